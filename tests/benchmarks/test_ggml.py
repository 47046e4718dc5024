"""The file for whisper.cpp, read again as whisper.cpp reads it."""

from __future__ import annotations

import struct
import subprocess
import sys
from typing import TYPE_CHECKING, BinaryIO

import pytest

from tests.conftest import ROOT

if TYPE_CHECKING:
    from pathlib import Path


def numbers(file: BinaryIO, count: int) -> tuple[int, ...]:
    """Read so many 32-bit integers."""
    return struct.unpack(f"<{count}i", file.read(4 * count))


@pytest.mark.model
def test_the_file_holds_the_whole_model(tmp_path: Path) -> None:
    """Its sizes, the mel filters, the text tokens, and as many tensors as OpenAI's tiny.en has."""
    path = tmp_path / "tiny.en.bin"
    subprocess.run([sys.executable, str(ROOT / "benchmarks" / "ggml.py"), "tiny.en", str(path)], check=True)
    tensors: dict[str, tuple[tuple[int, ...], int]] = {}
    with path.open("rb") as file:
        assert numbers(file, 12) == (0x67676D6C, 51864, 1500, 384, 6, 4, 448, 384, 6, 4, 80, 1)
        assert numbers(file, 2) == (80, 201)
        file.seek(80 * 201 * 4, 1)
        tokens = [file.read(*numbers(file, 1)) for _ in range(*numbers(file, 1))]
        while head := file.read(12):
            rank, length, half = struct.unpack("<3i", head)
            shape, name = numbers(file, rank), file.read(length).decode()
            size = 2 if half else 4
            for dimension in shape:
                size *= dimension
            assert len(file.read(size)) == size
            tensors[name] = shape, half
    assert len(tokens) == 50256
    assert (tokens[0], tokens[220], tokens[262]) == (b"!", b" ", b" the")
    assert len(tensors) == 167
    assert tensors["decoder.token_embedding.weight"] == ((384, 51864), 1)
    assert tensors["encoder.conv1.weight"] == ((3, 80, 384), 1)
    assert tensors["encoder.conv1.bias"] == ((1, 384), 0)
    assert tensors["decoder.blocks.3.cross_attn.value.weight"] == ((384, 384), 1)
    assert "encoder.blocks.0.attn.key.bias" not in tensors
