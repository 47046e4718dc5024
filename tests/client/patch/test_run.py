"""`localwhisper run`: programs that a program starts, and other `sitecustomize` files."""

from __future__ import annotations

import importlib
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import openai
import pytest

from localwhisper_client.patch import installation
from localwhisper_client.patch.watch import Watch
from tests.client.fault_server import TEXT
from tests.client.leaving import ROOT, run

if TYPE_CHECKING:
    from tests.client.fault_server import FaultServer

SPEAK = 'OpenAI(api_key="k").audio.transcriptions.create(model="whisper-1", file=("a.ogg", b"x")).text'
BOT = f"from openai import OpenAI; print({SPEAK}, flush=True)"
PROGRAM = f"""
import subprocess, sys
{BOT}
if sys.argv[1:]:
    sys.exit(subprocess.call([sys.executable, __file__, *sys.argv[2:]]))
sys.exit(7)
"""
RUN = [sys.executable, "-m", "localwhisper_client", "run", "--"]


def started(*command: Any, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run a program to its end."""
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, **options)


@pytest.fixture
def local_server(local_server: FaultServer, monkeypatch: pytest.MonkeyPatch) -> FaultServer:
    """A LAN server that the environment names."""
    monkeypatch.setenv("LOCALWHISPER_BASE_URL", local_server.url)
    return local_server


def test_run_reaches_a_program_its_children_and_nested_runs(local_server: FaultServer, tmp_path: Path) -> None:
    """`localwhisper run -- localwhisper run -- python bot.py`; the exit code is the innermost program's."""
    bot = tmp_path / "bot.py"
    bot.write_text(PROGRAM)
    done = started(*RUN, *RUN, sys.executable, bot, "child")
    assert (done.returncode, done.stdout) == (7, f"{TEXT}\n{TEXT}\n"), done.stderr
    assert len(local_server.calls) == 2


def test_run_keeps_an_existing_sitecustomize(local_server: FaultServer, tmp_path: Path) -> None:
    """The program's own start-up file runs too. The SDK is not loaded for a program that does not use it."""
    (tmp_path / "sitecustomize.py").write_text("import builtins; builtins.mine = __file__\n")
    code = "import sys, sitecustomize; print(mine == sitecustomize.__file__, 'openai' in sys.modules)"
    done = started(*RUN, sys.executable, "-c", code, env={**os.environ, "PYTHONPATH": str(tmp_path)})
    assert done.stdout == "True False\n", done.stderr


def test_run_passes_signals_on(local_server: FaultServer) -> None:
    """The program replaces the process that was started."""
    code = "import os, signal; print(os.getpid(), flush=True); signal.pause()"
    with subprocess.Popen([*RUN, sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert int(process.stdout.readline()) == process.pid
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == -signal.SIGTERM


@pytest.mark.parametrize(
    ("command", "code", "said"),
    [(["no-such-program"], 127, "no-such-program"), (["/"], 126, "/"), (["x"], 2, "nonsense")],
)
def test_run_fails_as_a_shell_does(command: list[str], code: int, said: str) -> None:
    """With its exit codes; a wrong setting is reported before the program starts."""
    settings = {"LOCALWHISPER_BASE_URL": "nonsense"} if said == "nonsense" else {}
    done = started(*RUN, *command, env={**os.environ, **settings})
    assert done.returncode == code
    assert said in done.stderr
    assert "Traceback" not in done.stderr


def test_run_reaches_a_python_without_this_package(local_server: FaultServer, tmp_path: Path) -> None:
    """If the patch cannot be made there, `import openai` fails, so that no audio is sent to the cloud."""
    site = tmp_path / "site"
    site.mkdir()
    for entry in Path(openai.__file__).parents[1].iterdir():
        if "localwhisper" not in entry.name and entry.suffix != ".pth":
            (site / entry.name).symlink_to(entry)
    environ = {**installation.environment({}), "LOCALWHISPER_BASE_URL": local_server.url, "PATH": os.environ["PATH"]}
    environ["PYTHONPATH"] += os.pathsep + str(site)
    base = Path(sys.base_prefix) / "bin" / f"python{sys.version_info.major}.{sys.version_info.minor}"
    if not base.exists():
        pytest.skip("no Python outside of this environment")
    bot = tmp_path / "bot.py"
    bot.write_text(PROGRAM)
    done = started(base, bot, env=environ, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (7, f"{TEXT}\n"), done.stderr
    (site / "anyio").unlink()
    (site / "openai").unlink()
    (site / "openai.py").write_text("class OpenAI: pass\n")
    done = started(base, bot, env=environ, cwd=tmp_path)
    assert done.returncode == 1
    assert "localwhisper run: this program's Python" in done.stderr


@pytest.mark.parametrize(
    ("start", "chains"),
    [
        ("os.execl(sys.executable, sys.executable, '-c', BOT)", True),
        ("sys.exit(subprocess.call([sys.executable, '-c', BOT]))", False),
        ("sys.exit(subprocess.call([sys.executable, '-c', BOT], env=os.environ))", False),
    ],
)
def test_another_sitecustomize_in_front(start: str, chains: bool, local_server: FaultServer, tmp_path: Path) -> None:  # noqa: FBT001 - pytest passes it by name
    """As of `opentelemetry-instrument`, or of `ddtrace-run`, which loads ours itself: both work, and audio stays."""
    front = tmp_path / "front"
    front.mkdir()
    finds_next = (
        "import sys, os, importlib\n"
        "here = os.path.dirname(__file__)\n"
        "path = list(sys.path); sys.path[:] = [each for each in path if each != here]\n"
        "mine = sys.modules.pop('sitecustomize'); importlib.import_module('sitecustomize'); sys.path[:] = path\n"
    )
    (front / "sitecustomize.py").write_text("print('in front', flush=True)\n" + finds_next * chains)
    code = (
        f"import os, subprocess, sys\nBOT = {BOT!r}\n"
        f"os.environ['PYTHONPATH'] = {str(front)!r} + os.pathsep + os.environ['PYTHONPATH']\n{start}\n"
    )
    done = run(code, tmp_path)
    assert done.stdout == f"in front\n{TEXT}\n", done.stderr
    assert len(local_server.calls) == 1


STARTS = [
    "subprocess.call([sys.executable, '-c', BOT], env=env)",
    "subprocess.call(sys.executable, stdin=subprocess.DEVNULL, env=env)",
    "os.execve(sys.executable, [sys.executable, '-c', BOT], env)",
    "os.posix_spawn(sys.executable, [sys.executable, '-c', BOT], env)",
    "subprocess.call([script], env=env)",
]


def test_a_python_without_the_hook_is_not_started(local_server: FaultServer, tmp_path: Path) -> None:
    """It would send audio to the cloud. The message says what to do. Other programs are started."""
    script = tmp_path / "script"
    script.write_text(f"#!{sys.executable}\n{BOT}\n")
    script.chmod(0o755)
    code = f"import os, subprocess, sys\nBOT, script, env = {BOT!r}, {str(script)!r}, dict(PATH=os.environ['PATH'])\n"
    code += "assert subprocess.call(['true'], env=env) == 0\n"
    for start in STARTS:
        code += f"try: {start}\nexcept RuntimeError as error: print(error)\n"
    done = run(code, tmp_path)
    assert done.stdout.count("Pass PYTHONPATH on") == len(STARTS) == len(done.stdout.splitlines()), done.stderr
    assert not local_server.calls


def test_a_python_that_may_send_audio_to_the_cloud_is_reported_once(local_server: FaultServer, tmp_path: Path) -> None:
    """Under `cloud` a Python without the hook is started. An isolated one is started under any policy: tools do so."""
    quiet = (
        "import os, subprocess, sys\nfor _ in range(2): subprocess.call([sys.executable, *FLAGS, '-c', ''], env=ENV)"
    )
    for flags, env, policy in ((["-I"], "os.environ", ""), (["-sE"], "None", ""), ([], "{}", "cloud")):
        done = run(quiet.replace("FLAGS", repr(flags)).replace("ENV", env), tmp_path, LOCALWHISPER_POLICY=policy)
        assert done.returncode == 0, done.stderr
        assert done.stderr.count("localwhisper run:") == 1
        assert "goes to the cloud" in done.stderr
    done = run(quiet.replace("*FLAGS, ", "'-u', ").replace("ENV", "{**os.environ, 'A': 'b'}"), tmp_path)
    assert done.stderr == ""


ANEW = """
import sys
import localwhisper, openai
localwhisper.install()
from openai import OpenAI
before = OpenAI(api_key="k")
print(before.audio.transcriptions.create(model="whisper-1", file=("a.ogg", b"x")).text)
for name in [name for name in sys.modules if name.partition(".")[0] == "openai"]:
    del sys.modules[name]
import openai as anew
assert anew is not openai
localwhisper.install()
localwhisper.install()
azure = anew.AzureOpenAI(api_key="k", azure_endpoint="https://a", api_version="1")
for client in (anew.OpenAI(api_key="k"), azure):
    print(client.audio.transcriptions.create(model="whisper-1", file=("a.ogg", b"x")).text)
localwhisper.uninstall()
assert "localwhisper" not in anew.OpenAI.request.__code__.co_filename + openai.OpenAI.request.__code__.co_filename
"""


def test_two_watches_of_one_module_both_see_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """A second SDK has a second one; neither asks the other without end."""
    seen: list[int] = []
    watches = [Watch({"colorsys"}, lambda _, number=number: seen.append(number)) for number in (1, 2)]
    monkeypatch.setattr(sys, "meta_path", [*watches, *sys.meta_path])
    monkeypatch.delitem(sys.modules, "colorsys", raising=False)
    importlib.import_module("colorsys")
    assert sorted(seen) == [1, 2]


def test_an_sdk_that_is_loaded_anew_is_patched_anew(local_server: FaultServer, tmp_path: Path) -> None:
    """By the next `install()`, or by itself under `localwhisper run`."""
    done = run(ANEW, tmp_path, served=False)
    assert done.stdout == f"{TEXT}\n" * 3, done.stderr
    done = run(ANEW.replace("localwhisper.install()", "").replace("localwhisper.uninstall()", "sys.exit()"), tmp_path)
    assert done.stdout == f"{TEXT}\n" * 3, done.stderr
    assert len(local_server.calls) == 6


def test_the_hook_is_recognised_through_a_link(local_server: FaultServer, tmp_path: Path) -> None:
    """A package may be installed as a symbolic link, and PYTHONPATH then has the link's path."""
    (tmp_path / "link").symlink_to(installation.HOOK)
    code = (
        f"import subprocess, sys, os\nsys.exit(subprocess.call([sys.executable, '-c', {BOT!r}], env=dict(os.environ)))"
    )
    environ: dict[str, Any] = {"PYTHONPATH": os.pathsep.join([str(tmp_path / "link"), str(ROOT)])}
    done = run(code, tmp_path, served=False, **environ)
    assert done.stdout == f"{TEXT}\n", done.stderr
