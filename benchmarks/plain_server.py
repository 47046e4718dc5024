"""The simplest server around faster-whisper, for comparison: FastAPI with a thread for each request.

python benchmarks/plain_server.py MODEL_FOLDER PORT
"""

import sys
from typing import Annotated

import uvicorn
from fastapi import FastAPI, UploadFile
from faster_whisper import WhisperModel

app = FastAPI()
model = WhisperModel(sys.argv[1], device="cpu", compute_type="int8")


@app.get("/health")
def health() -> dict[str, bool]:
    """Say that the model is loaded."""
    return {"ready": True}


@app.post("/v1/audio/transcriptions")
def transcribe(file: Annotated[UploadFile, ...]) -> dict[str, str]:
    """Transcribe one upload; FastAPI runs this in a thread."""
    segments, _ = model.transcribe(file.file, beam_size=5)
    return {"text": "".join(segment.text for segment in segments).strip()}


if __name__ == "__main__":
    uvicorn.run(app, port=int(sys.argv[2]), log_level="warning")
