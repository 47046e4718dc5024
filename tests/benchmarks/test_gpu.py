"""The table for a machine with a card, on the CPU with the smallest model."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from tests.conftest import ROOT

if TYPE_CHECKING:
    from pathlib import Path

SCRIPT = ROOT / "benchmarks" / "gpu.py"


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the script."""
    command = [sys.executable, str(SCRIPT), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=280, check=False)


@pytest.mark.model
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
    """The table is written when the time is up, without figures."""
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
