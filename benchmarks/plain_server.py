"""What ours is compared with: other transcribers behind a minimal threaded server, as anyone would write it first.

    python benchmarks/plain_server.py MODEL PORT [--kind plain|batched|whispercpp] [--device cpu] [--compute-type int8]

``plain`` is `WhisperModel.transcribe` with five beams, ``batched`` is `BatchedInferencePipeline` with batches of 8, and
``whispercpp`` is whisper.cpp through pywhispercpp, with its defaults; its MODEL is a ggml file.
"""

from __future__ import annotations

import argparse
import importlib
import threading
from typing import TYPE_CHECKING, Annotated, BinaryIO

import uvicorn
from fastapi import FastAPI, UploadFile
from faster_whisper import BatchedInferencePipeline, WhisperModel
from faster_whisper.audio import decode_audio

from localwhisper_server.whisper import devices

if TYPE_CHECKING:
    from collections.abc import Callable

BATCH = 8


def plain(folder: str, device: str, compute_type: str, threads: int) -> Callable[[BinaryIO], str]:
    """Load a model; return its transcription of an upload."""
    model = WhisperModel(folder, device=device, compute_type=compute_type, cpu_threads=threads)

    def transcribe(file: BinaryIO) -> str:
        return "".join(segment.text for segment in model.transcribe(file, beam_size=5)[0])

    return transcribe


def batched(folder: str, device: str, compute_type: str, threads: int) -> Callable[[BinaryIO], str]:
    """Load a model for batches of the parts of one recording."""
    model = WhisperModel(folder, device=device, compute_type=compute_type, cpu_threads=threads)
    pipeline = BatchedInferencePipeline(model)
    lock = threading.Lock()  # the pipeline keeps a recording's state in itself

    def transcribe(file: BinaryIO) -> str:
        with lock:
            return "".join(segment.text for segment in pipeline.transcribe(file, beam_size=5, batch_size=BATCH)[0])

    return transcribe


def whispercpp(path: str, _device: str, _compute_type: str, threads: int) -> Callable[[BinaryIO], str]:
    """Load a ggml file. The wheel of PyPI runs on the CPU."""
    model_class = importlib.import_module("pywhispercpp.model").Model  # installed for this comparison alone
    threads = threads or devices.usable_cores()
    model = model_class(path, n_threads=threads, print_progress=False, print_realtime=False)
    lock = threading.Lock()  # one context decodes one recording at a time

    def transcribe(file: BinaryIO) -> str:
        audio = decode_audio(file)
        with lock:
            return " ".join(segment.text for segment in model.transcribe(audio, language=""))

    return transcribe


KINDS = {"plain": plain, "batched": batched, "whispercpp": whispercpp}


def app(transcribe: Callable[[BinaryIO], str]) -> FastAPI:
    """Return the server's two routes."""
    made = FastAPI()

    @made.get("/health")
    def health() -> dict[str, bool]:
        return {"ready": True}

    # FastAPI runs this in a thread.
    @made.post("/v1/audio/transcriptions")
    def transcription(file: Annotated[UploadFile, ...]) -> dict[str, str]:
        return {"text": transcribe(file.file).strip()}

    return made


def main() -> None:
    """Load the model and serve it."""
    parser = argparse.ArgumentParser(description="A minimal server for comparisons.")
    parser.add_argument("model")
    parser.add_argument("port", type=int)
    parser.add_argument("--kind", choices=KINDS, default="plain")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--compute-type", default="int8")
    parser.add_argument("--threads", type=int, default=0, help="0: the library's default; for whispercpp, the cores")
    options = parser.parse_args()
    if options.device == "cuda":
        devices.load_libraries()
    transcribe = KINDS[options.kind](options.model, options.device, options.compute_type, options.threads)
    uvicorn.run(app(transcribe), port=options.port, log_level="warning")


if __name__ == "__main__":
    main()
