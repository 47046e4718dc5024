"""Ctrl-C while `cluster up` starts Ray."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
from pathlib import Path

import pytest

from tests.cluster.conftest import COMMAND


def test_ctrl_c_leaves_no_ray() -> None:
    """One line, exit code 130, and no process."""
    pytest.importorskip("ray")
    folder = Path(tempfile.mkdtemp(prefix="lw-"))
    try:
        with subprocess.Popen(
            [*COMMAND, "up", "--model", "tiny.en"],
            env=os.environ | {"LOCALWHISPER_CLUSTER_DIR": str(folder)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        ) as process:
            assert process.stdout
            assert process.stderr
            assert "starting Ray" in process.stdout.readline()
            while not (folder / "ray.log").exists() or not (folder / "ray.log").stat().st_size:
                assert process.poll() is None
            process.send_signal(signal.SIGINT)
            assert process.wait(60) == 130
            assert "interrupted" in process.stderr.read().splitlines()[-1]
        commands = [path.read_bytes() for path in Path("/proc").glob("[0-9]*/cmdline") if path.exists()]
        assert not [command for command in commands if str(folder).encode() in command]
    finally:
        shutil.rmtree(folder, ignore_errors=True)
