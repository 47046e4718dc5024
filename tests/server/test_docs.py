"""The README and the pages of docs/, held against the program: every command, option and link in them exists."""

import re
import shlex
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer
from pydantic_settings import CliApp

from localwhisper_client.cli.app import app
from localwhisper_server import cli
from localwhisper_server.api.access_control import names_this_server
from localwhisper_server.cluster.shape import Shape
from localwhisper_server.operations.doctor.checks import RULE
from localwhisper_server.settings import ENV_PREFIX, Settings

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
# Decisions name options of other programs.
each_page = pytest.mark.parametrize(
    "page", [page for page in PAGES if page.stem != "decisions"], ids=lambda page: page.name
)
EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
DOCTOR_OPTIONS = {"--json", "--env-file"}
OF_CLUSTER = {f"--{name.replace('_', '-')}" for name in Shape.model_fields} | {"--kuberay", "--json"}
OTHER_OPTIONS = {"--profile", "--help", "--delete-input"}  # docker compose's, everyone's, the skill's
WYOMING_PORT = 10300  # Home Assistant's, in programs.md
CLIENT = typer.main.get_command(app)


def code(page: Path) -> list[str]:
    """Return what a reader could paste: lines of code blocks, and what is between backticks."""
    text = page.read_text().replace("\\\n", "")  # a backslash continues a line
    blocks = re.findall(r"^ *```\w*\n(.*?)^ *```", text, flags=re.MULTILINE | re.DOTALL)
    rest = re.sub(r"^ *```\w*\n.*?^ *```", "", text, flags=re.MULTILINE | re.DOTALL)
    return [line.strip() for block in blocks for line in block.splitlines()] + [
        " ".join(span.split()) for span in re.findall(r"`([^`]+)`", rest)
    ]


def commands(page: Path, program: str) -> list[list[str]]:
    """Return the words after `program` of each such command."""
    found = [line for line in code(page) if line.split()[:1] == [program]]
    return [shlex.split(line, comments=True)[1:] for line in found]


def client_commands(command: object = CLIENT) -> Iterator[object]:
    """Yield every command and subcommand of `localwhisper`."""
    yield command
    for each in getattr(command, "commands", {}).values():
        yield from client_commands(each)


def heading_anchors(page: Path) -> set[str]:
    """Return the anchors that GitHub gives to a page's headings."""
    titles = re.findall(r"^#+ (.+)$", page.read_text(), flags=re.MULTILINE)
    return {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}


@each_page
def test_every_server_command_is_understood(page, capsys):
    """Its options and their values are the server's; nothing is served, installed or examined."""
    with pytest.raises(SystemExit):
        cli.main(["service", "--help"])
    service = re.sub(r"[\[\]]", "", capsys.readouterr().out)
    for words in commands(page, "localwhisper-server"):
        if words[:1] == ["service"] and words[1:2] != ["install"]:
            assert " ".join(words) in service
            continue
        options = words[{"service": 2, "doctor": 1, "cluster": 2}.get(words[0] if words else "", 0) :]
        if words[:1] == ["cluster"]:
            assert set(words[1].split("|")) <= {"up", "status", "down", "config"}
            options = re.sub(rf"({'|'.join(OF_CLUSTER)})( [\d.]+)?", "", " ".join(options)).split()
        if set(options) <= {"--help", "--version"} | DOCTOR_OPTIONS:
            continue
        CliApp.run(Settings, cli_args=options)


@each_page
def test_every_client_command_is_understood(page):
    """Its options and arguments are those of `localwhisper`; nothing is run."""
    for words in commands(page, "localwhisper"):
        if not words or words[0] == "COMMAND":
            continue
        command = CLIENT
        while hasattr(command, "commands"):
            command = command.commands[words.pop(0)]
        if words not in ([], ["--"]):  # without its arguments, it is only mentioned
            command.make_context(command.name, words)


@each_page
def test_every_option_exists(page):
    """An option that is named without its command belongs to one of our commands."""
    known = {f"--{name.replace('_', '-')}" for name in Settings.model_fields}
    known |= {option for command in client_commands() for each in command.params for option in each.opts}
    for span in code(page):
        if span.startswith("--"):
            option = span.split()[0].split("=")[0]
            assert option in known | DOCTOR_OPTIONS | OTHER_OPTIONS | OF_CLUSTER, span


@each_page
def test_every_server_variable_exists(page):
    """LOCALWHISPER_SERVER_ and the name of a setting."""
    variables = set(re.findall(rf"{ENV_PREFIX}([A-Z_]+)", page.read_text()))
    assert {variable.lower() for variable in variables} <= Settings.model_fields.keys()


@each_page
def test_installation_starts_from_the_clone(page):
    """The package is not on PyPI: `pip install` takes the folder, with extras that pyproject.toml has."""
    assert "localwhisper-lan[" not in page.read_text()
    for extras in re.findall(r"'\.\[([\w,]+)\]'", page.read_text()):
        assert set(extras.split(",")) <= EXTRAS.keys()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_leads_somewhere(page):
    """To a page that is there, and to a heading that it has."""
    for target in re.findall(r"\]\(([^)]+)\)", page.read_text()):
        name, _, heading = target.partition("#")
        linked = (page.parent / name) if name else page
        assert linked.exists(), target
        assert not heading or heading in heading_anchors(linked), target


@each_page
def test_every_port_is_the_default_or_its_neighbour(page):
    """A changed default would leave a wrong number in a page."""
    port = Settings.model_fields["port"].default
    ports = {
        int(number)
        for number in re.findall(r"(?:--port |-LocalPorts |any port |[a-z0-9]:)(\d{4,5})\b", page.read_text())
    }
    assert ports <= {port, port + 1, WYOMING_PORT}


def test_names_of_routers_and_vpns_are_allowed_as_the_page_says():
    """Each name is refused without the option beside it, and allowed with it; the skill's default name needs none."""
    page = (ROOT / "docs/finding-the-server.md").read_text()
    rows = re.findall(r"^\|[^|`]*(?:`([\w.-]+)`)?[^|]*\| `--allow-host (\S+?)[ `]", page, flags=re.MULTILINE)
    assert len(rows) == 3
    for name, allowed in rows:
        host = name or allowed
        assert not names_this_server(host, ())
        assert names_this_server(host, allowed.split(","))
    assert "wsl.home" in page
    assert names_this_server("wsl.home", ())


def test_the_firewall_rule_for_wsl_is_the_one_that_doctor_looks_for():
    """It has the name by which `doctor` asks Windows for it, and opens the server's port."""
    (rule,) = (line for line in code(ROOT / "docs/wsl2.md") if line.startswith("New-NetFirewallHyperVRule"))
    assert f"-Name {RULE} " in rule
    assert f"-LocalPorts {Settings.model_fields['port'].default} " in rule
