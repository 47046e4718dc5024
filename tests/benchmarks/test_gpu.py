"""The table for a machine with a card, on the CPU with the smallest model."""

from __future__ import annotations

import importlib
import subprocess
import sys
import warnings
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from tests.conftest import ROOT

if TYPE_CHECKING:
    from pathlib import Path

SCRIPT = ROOT / "benchmarks" / "gpu.py"


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the script."""
    command = [sys.executable, str(SCRIPT), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=580, check=False)


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Import the script as it imports its neighbours."""
    monkeypatch.syspath_prepend(str(SCRIPT.parent))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # at the first import of whisper_normalizer
        return importlib.import_module("gpu")


@pytest.mark.model
@pytest.mark.timeout(600)
def test_every_system_has_a_row_of_figures(tmp_path: Path) -> None:
    """Plain, batched and ours: seconds, clips a second, memory and words; nothing is left out without --seconds."""
    output = tmp_path / "table.md"
    done = run("tiny.en", "--device", "cpu", "--quick", "--output", str(output))
    assert done.returncode == 0, done.stdout + done.stderr
    rows = [line.strip("| ").split(" | ") for line in output.read_text().splitlines() if line.startswith("| tiny.en")]
    assert [row[1] for row in rows] == ["plain", "batched", "ours"]
    for row in rows:
        short, minute, *clients = (float(cell.split()[0]) for cell in row[2:6])
        rest, peak = (float(cell) for cell in row[7].removesuffix(" MB").split(", "))
        assert 0 < short < minute
        assert all(rate > 0 for rate in clients)
        assert 50 < rest <= peak
        assert float(row[8].split()[0]) < 50


@pytest.mark.model
def test_no_time_leaves_dashes(tmp_path: Path) -> None:
    """The table is written when the time is up, without figures, and no server is started."""
    output = tmp_path / "table.md"
    assert run("tiny.en", "--device", "cpu", "--quick", "--seconds", "0", "--output", str(output)).returncode == 0
    (row,) = [line for line in output.read_text().splitlines() if line.startswith("| tiny.en | ours")]
    assert "| - s | - s | - /s | - /s | - |" in row


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the driver is asked in another way")
def test_without_a_card_it_says_so(tmp_path: Path) -> None:
    """It never measures a CPU unasked."""
    done = run("tiny.en", "--output", str(tmp_path / "table.md"))
    if done.returncode == 0:
        pytest.skip("this machine has a card")
    assert "--device cpu" in done.stderr


def test_parts_share_the_time_that_is_left(gpu: Any) -> None:
    """What one part does not need is divided among those behind it."""
    now = [0.0]
    deadline = gpu.Deadline(90.0, lambda: now[0])
    assert deadline.share(3).at == 30.0
    now[0] = 10.0
    assert deadline.share(2).at == 50.0
    now[0] = 95.0
    assert deadline.share(1).left <= 0


def test_memory_is_what_was_added_to_other_programs(gpu: Any) -> None:
    """A desktop uses some of the card, too."""
    used = [3 * 2**30]
    nvml = SimpleNamespace(
        nvmlInit=lambda: None,
        nvmlDeviceGetHandleByIndex=lambda number: number,
        nvmlDeviceGetName=lambda _: "RTX 3060",
        nvmlSystemGetDriverVersion=lambda: "570.1",
        nvmlDeviceGetMemoryInfo=lambda _: SimpleNamespace(used=used[0]),
    )
    card = gpu.Card(nvml)
    assert (card.name, card.used()) == ("RTX 3060, driver 570.1", 0.0)
    used[0] += 2**30
    assert card.used() == 1024.0
