"""The pages of docs/, held against the program: whatever a reader may paste exists."""

import re
import shlex
import tomllib
from pathlib import Path

import pytest

from localwhisper_server import cli
from localwhisper_server.api.access_control import names_this_server
from localwhisper_server.operations.doctor.machine import Output
from localwhisper_server.operations.doctor.network import RULE, WSL_VM_CREATOR, _mirrored
from localwhisper_server.operations.service import settings_file
from localwhisper_server.settings import Settings

ROOT = Path(__file__).parents[2]
PAGES = sorted(path for path in (ROOT / "docs").glob("*.md") if not path.name.startswith("decisions"))
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
NEEDED = {"wsl2.md", "linux.md", "mac.md", "finding-the-server.md", "programs.md", "troubleshooting.md"}
WYOMING_PORT = 10300  # Home Assistant's, in programs.md

each_page = pytest.mark.parametrize("page", PAGES, ids=[page.name for page in PAGES])


def settings_options() -> set[str]:
    """Give every option that a setting becomes."""
    return {f"--{name.replace('_', '-')}" for name in Settings.model_fields}


def code(page: Path) -> list[str]:
    """Give what a reader could paste: lines of code blocks, and what stands between backticks."""
    text = page.read_text()
    blocks = re.findall(r"^```\w*\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)
    rest = re.sub(r"^```\w*\n.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    return [line for block in blocks for line in block.splitlines()] + [
        " ".join(span.split()) for span in re.findall(r"`([^`]+)`", rest)
    ]


def commands(page: Path) -> list[list[str]]:
    """Give the words of each `localwhisper-server` command."""
    found = [line for line in code(page) if re.match(r"localwhisper-server\b", line)]
    return [shlex.split(line, comments=True)[1:] for line in found]


def test_the_pages_are_there():
    """One page for each road."""
    assert {page.name for page in PAGES} >= NEEDED


@each_page
def test_every_command_is_understood(page, monkeypatch, tmp_path):
    """Each one is run as far as its options go: nothing is served, installed or examined."""
    understood: list[object] = []
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(cli, "_serve", understood.append)
    monkeypatch.setattr(cli.doctor, "run", lambda *_, **__: understood.append(0) or 0)
    for step in ("install", "uninstall", "show"):
        monkeypatch.setattr(cli.service_control, step, lambda *_, **__: understood.append(0) or 0)
    found = commands(page)
    for words in found:
        try:
            cli.main(words)
        except SystemExit as stop:
            assert stop.code == 0, words  # noqa: PT017 - the status of a command
    assert len(understood) == len(found)


@each_page
def test_every_option_exists(page):
    """Options that stand alone in the text, too."""
    for span in code(page):
        if span.startswith("--"):
            option = span.split()[0].split("=")[0]
            assert option in settings_options() | {"--env-file", "--json", "--profile"}, span


@each_page
def test_every_variable_exists(page):
    """LOCALWHISPER_SERVER_ and the name of a setting."""
    variables = set(re.findall(r"LOCALWHISPER_SERVER_[A-Z_]+", page.read_text()))
    assert variables <= {settings_file.variable(name) for name in Settings.model_fields}


@each_page
def test_every_extra_exists(page):
    """What `pip install` is asked for is in pyproject.toml, under its right name."""
    for name, extras in re.findall(r"(\S+?)\[([\w,]+)\]'", page.read_text()):
        assert name.lstrip("`'") == PROJECT["project"]["name"]
        assert set(extras.split(",")) <= PROJECT["project"]["optional-dependencies"].keys()


@each_page
def test_every_link_leads_somewhere(page):
    """To a page that is there, and to a heading that it has."""
    for target in re.findall(r"\]\(([^)]+)\)", page.read_text()):
        name, _, heading = target.partition("#")
        linked = (page.parent / name) if name else page
        assert linked.exists(), target
        headings = [
            line.lstrip("# ").lower().replace(" ", "-") for line in linked.read_text().splitlines() if line[:1] == "#"
        ]
        assert not heading or heading in headings, target


@each_page
def test_every_port_is_the_default_or_its_neighbour(page):
    """A changed default would leave a wrong number in a page."""
    port = Settings.model_fields["port"].default
    ports = {
        int(number)
        for number in re.findall(r"(?:--port |-LocalPorts |any port |[a-z0-9]:)(\d{4,5})\b", page.read_text())
    }
    assert ports <= {port, port + 1, WYOMING_PORT}


def test_names_of_routers_and_vpns_are_let_in_as_the_page_says():
    """Each name is refused without the option beside it, and let in with it; README's default name needs none."""
    page = (ROOT / "docs/finding-the-server.md").read_text()
    rows = re.findall(r"^\|[^|`]*(?:`([\w.-]+)`)?[^|]*\| `--allow-host (\S+?)[ `]", page, flags=re.MULTILINE)
    assert len(rows) == 3
    for name, allowed in rows:
        host = name or allowed
        assert not names_this_server(host, ())
        assert names_this_server(host, allowed.split(","))
    assert "wsl.home" in page
    assert names_this_server("wsl.home", ())


def test_what_to_paste_into_powershell_is_what_doctor_prints():
    """The page and the program give the same line, to the letter."""

    class Unruled:
        """A Windows without the rule."""

        @staticmethod
        def run(_line):
            """Say that there is none."""
            return Output(1, "")

    printed = _mirrored(Unruled(), Settings.model_fields["port"].default).fix[-1].strip()
    assert RULE in printed
    assert WSL_VM_CREATOR in printed
    assert printed in code(ROOT / "docs/wsl2.md")
