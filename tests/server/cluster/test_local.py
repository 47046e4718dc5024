"""The Ray of `cluster up`: how it is found again, and what the command says where there is none."""

from __future__ import annotations

import json
import os
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from localwhisper_server import cli
from localwhisper_server.cluster.local import LocalRay, Running, default_folder


@pytest.mark.parametrize("text", [None, "", "[]", "{}", '{"pid": "x"}'])
def test_without_its_file_none_runs(tmp_path: Path, text: str | None) -> None:
    """Nor with one that another version wrote, or that is damaged."""
    if text is not None:
        (tmp_path / "localwhisper.json").write_text(text)
    assert LocalRay(tmp_path).running() is None


def test_the_number_of_another_process_is_not_ray(tmp_path: Path) -> None:
    """After a restart of the machine it may be anyone's, and `down` must not end that one."""
    local = LocalRay(tmp_path)
    local.remember(Running(os.getpid(), "127.0.0.1:1", "http://127.0.0.1:2"))
    assert json.loads((tmp_path / "localwhisper.json").read_text())["pid"] == os.getpid()
    assert local.running() is None


def test_a_ray_that_ended_leaves_no_file(tmp_path: Path) -> None:
    """`stop` waits for nothing then."""
    local = LocalRay(tmp_path)
    gone = Running(2**22 - 3, "127.0.0.1:1")  # above the kernel's highest number
    local.remember(gone)
    local.stop(gone)
    assert not (tmp_path / "localwhisper.json").exists()


def test_the_folder() -> None:
    """One of this user's own, or the one that is set."""
    assert str(os.getuid()) in default_folder({}).name
    assert default_folder({"LOCALWHISPER_CLUSTER_DIR": "/x"}) == Path("/x")


@pytest.mark.skipif(sys.platform != "linux", reason="looks for processes in /proc")
def test_ctrl_c_while_ray_starts_ends_it(tmp_path: Path) -> None:
    """It has a session of its own, and `down` would not find it."""
    pauses: list[float] = []

    def interrupted(seconds: float) -> None:
        pauses.append(seconds)
        if len(pauses) == 1:
            raise KeyboardInterrupt
        os.sched_yield()

    with pytest.raises(KeyboardInterrupt):
        LocalRay(tmp_path, pause=interrupted).start(cpus=1)
    commands = [path.read_bytes() for path in Path("/proc").glob("[0-9]*/cmdline") if path.exists()]
    assert not [command for command in commands if f"--temp-dir={tmp_path}".encode() in command]
    assert LocalRay(tmp_path).running() is None


@pytest.mark.parametrize(("arguments", "code"), [(["--help"], 0), (["-h"], 0), ([], 0), (["start"], os.EX_USAGE)])
def test_help(capsys: pytest.CaptureFixture[str], arguments: list[str], code: int) -> None:
    """Without an action, and with an unknown one too."""
    with pytest.raises(SystemExit) as left:
        cli.main(["cluster", *arguments])
    assert left.value.code == code
    assert "cluster status" in capsys.readouterr().out


@pytest.mark.skipif(find_spec("ray") is not None, reason="Ray is installed")
def test_without_ray(capsys: pytest.CaptureFixture[str]) -> None:
    """It says how to install it."""
    with pytest.raises(SystemExit) as left:
        cli.main(["cluster", "up"])
    assert left.value.code == os.EX_CONFIG
    assert "'.[ray]'" in capsys.readouterr().err
