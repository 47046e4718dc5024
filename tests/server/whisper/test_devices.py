from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from localwhisper_server.whisper.devices import (
    SMALLEST,
    Device,
    Workers,
    choose_device,
    choose_workers,
    smaller_precision,
    usable_cores,
)

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize(
    ("device", "compute_type", "count", "chosen"),
    [
        ("auto", "auto", 0, Device("cpu", "int8", "no CUDA device found")),
        ("auto", "auto", 1, Device("cuda", "float16", "1 CUDA device(s) found")),
        ("auto", "auto", 2, Device("cuda", "float16", "2 CUDA device(s) found")),
        ("auto", "int8_float16", 1, Device("cuda", "int8_float16", "1 CUDA device(s) found")),
        ("auto", "float32", 0, Device("cpu", "float32", "no CUDA device found")),
        ("cpu", "auto", 1, Device("cpu", "int8", "as set")),
        ("cpu", "float32", 0, Device("cpu", "float32", "as set")),
        ("cuda", "auto", 0, Device("cuda", "float16", "as set")),
        ("cuda", "int8", 1, Device("cuda", "int8", "as set")),
    ],
)
def test_device_table(device: str, compute_type: str, count: int, chosen: Device) -> None:
    """What is set is kept; "auto" depends on the driver, and the reason says so."""
    assert choose_device(device, compute_type, cuda_devices=count, cuda_types=frozenset()) == chosen


@pytest.mark.parametrize(
    ("device", "threads", "cores", "chosen"),
    [
        ("cpu", 0, 1, Workers(1, 1)),
        ("cpu", 0, 2, Workers(2, 1)),
        ("cpu", 0, 6, Workers(2, 3)),
        ("cpu", 0, 64, Workers(2, 4)),
        ("cpu", 1, 8, Workers(1, 1)),
        ("cpu", 12, 4, Workers(2, 6)),
        ("cuda", 0, 8, Workers(1, 0)),
    ],
)
def test_a_cpu_has_two_workers(device: str, threads: int, cores: int, chosen: Workers) -> None:
    """With half of the threads each; one worker uses the whole of a GPU."""
    assert choose_workers(device, threads, cores=cores) == chosen


@pytest.mark.parametrize(
    ("written", "most"),
    [("100000 100000", 1), ("150000 100000", 2), ("1000 100000", 1), ("max 100000", None), ("", None), ("9 9 9", None)],
)
def test_a_container_has_its_share_of_the_cores(tmp_path: Path, written: str, most: int | None) -> None:
    """More threads than cores would slow each other down; part of a core counts as one."""
    quota = tmp_path / "cpu.max"
    whole = usable_cores(quota)
    quota.write_text(written)
    assert usable_cores(quota) == (whole if most is None else min(whole, most))


@pytest.mark.parametrize(
    ("device", "compute_type", "types", "smaller"),
    [
        ("cuda", "float16", {SMALLEST}, SMALLEST),
        ("cuda", "float16", {"float16"}, None),
        ("cuda", SMALLEST, {SMALLEST}, None),
        ("cpu", "int8", {SMALLEST}, None),
    ],
)
def test_the_precision_for_want_of_memory(device: str, compute_type: str, types: set[str], smaller: str | None) -> None:
    """Only on a card that can run it, and only if it is smaller."""
    assert smaller_precision(Device(device, compute_type, ""), frozenset(types)) == smaller
