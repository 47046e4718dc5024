"""`localwhisper transcribe --jobs 64` against two replicas: interrupted, continued, and a report of what failed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.e2e.conftest import ENGLISH

if TYPE_CHECKING:
    from tests.cluster.conftest import Cluster

pytestmark = pytest.mark.model
MODEL = "tiny.en"
COMMAND = (sys.executable, "-u", "-m", "localwhisper_client", "transcribe", "--jobs", "64", "--language", "en")
RECORDINGS = 48


def names(folder: Path, pattern: str) -> set[str]:
    """Return the paths that match, relative to the folder and without their endings."""
    return {str(path.relative_to(folder).with_suffix("")) for path in folder.glob(pattern)}


def test_a_batch_is_interrupted_and_continued(cluster: Cluster, tmp_path: Path) -> None:
    """No recording is sent twice or forgotten; those that are none are named at the end, and the exit code is 1."""
    folder, out = tmp_path / "recordings", tmp_path / "out"
    for number in range(RECORDINGS):
        path = folder / f"{number % 4}" / f"{number:02d}.ogg"
        path.parent.mkdir(parents=True, exist_ok=True)
        # Bytes are added, or equal recordings would be computed once.
        path.write_bytes(ENGLISH.read_bytes() + number.to_bytes(8))
    good = names(folder, "*/*.ogg")
    broken = folder / "broken"
    broken.mkdir()
    (broken / "empty.wav").write_bytes(b"")
    (broken / "text.wav").write_text("A letter, and no sound.\n" * 30)
    (broken / "nowhere.wav").symlink_to(tmp_path / "nothing")
    command = [*COMMAND, str(folder), "--out", str(out)]
    environ = os.environ | {"LOCALWHISPER_BASE_URL": cluster.base_url}
    with subprocess.Popen(
        command, env=environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as interrupted:
        assert interrupted.stdout
        assert interrupted.stderr
        for _ in range(4):
            assert " -> " in interrupted.stdout.readline()
        interrupted.send_signal(signal.SIGINT)
        said = interrupted.stderr.read()
        assert interrupted.wait(60) == 130
    done = names(out, "**/*.txt")
    assert 4 <= len(done) < RECORDINGS
    assert f"interrupted; {len(done)} done" in said
    times = {path: path.stat().st_mtime_ns for path in out.rglob("*.txt")}

    continued = subprocess.run(command, env=environ, capture_output=True, text=True, check=False, timeout=240)
    assert continued.returncode == 1, continued.stderr
    assert continued.stdout.count(" -> ") == RECORDINGS - len(done)
    assert names(out, "**/*.txt") == good
    assert all("bread" in path.read_text() for path in out.rglob("*.txt"))
    assert all(path.stat().st_mtime_ns == before for path, before in times.items())
    report = continued.stderr[continued.stderr.rindex("\n\n") :]
    assert {Path(line.strip()).name for line in report.splitlines() if line.startswith("  ")} == {
        "empty.wav", "text.wav", "nowhere.wav",
    }  # fmt: skip
    assert f"{RECORDINGS - len(done)} done, {len(done)} skipped, 3 failed in 0:0" in report
    assert cluster.health()["requests"] == 0
