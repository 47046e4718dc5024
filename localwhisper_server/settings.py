"""The server's settings: one definition for the environment, the command line and `--help`."""

import re
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Field, SecretStr, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from localwhisper_client.shared.lan_ranges import RANGES, Network, parse_network

LAST_PORT = 65_535
MIB = 1024 * 1024
ENV_PREFIX = "LOCALWHISPER_SERVER_"
# ASCII that prints, without what separates the words of a header: blank, comma, semicolon, quotation mark.
_USABLE_KEY = re.compile(r"[!#-+\--:<-~]+")


def variable(name: str) -> str:
    """Return the environment variable of a setting."""
    return ENV_PREFIX + name.upper()


def written(value: object) -> str:
    """Return a setting's value as text for an environment variable."""
    if isinstance(value, SecretStr):
        return value.get_secret_value()
    if isinstance(value, tuple):
        return ",".join(map(written, value))
    if isinstance(value, bool):
        return str(value).lower()
    return "" if value is None else str(value)


def _split(value: object) -> object:
    """Split `a,b`, as the environment has it; an option that was given twice is a list already."""
    given = [value] if isinstance(value, str) else value
    if not isinstance(given, list | tuple):
        return value
    parts = [piece for each in given for piece in (each.split(",") if isinstance(each, str) else [each])]
    return tuple(part.strip() if isinstance(part, str) else part for part in parts if part != "")


def _read_keys(path: Path) -> tuple[str, ...]:
    """Return the keys in a file: one a line; empty lines and those that begin with # are none.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is not text, or holds no key: without one, the server would be open to the LAN.

    """
    try:
        lines = path.read_text(encoding="utf-8").split("\n")  # str.splitlines would split at more characters
    except UnicodeError as failure:
        raise ValueError(f"{path} is not text in UTF-8") from failure
    keys = tuple(line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#"))
    if not keys:
        raise ValueError(f"{path} holds no key")
    return keys


def _lower(value: str) -> str:
    return value.lower().rstrip("/")


def _web_address(value: str) -> str:
    scheme, separator, rest = value.partition("://")
    if scheme.lower() not in ("http", "https") or not separator or not rest.strip("/") or {"?", "#"} & set(rest):
        raise ValueError("expected an address such as https://api.openai.com/v1")
    return value.rstrip("/")


def _address(value: str) -> str:
    host, _, port = value.strip().removeprefix("tcp://").rpartition(":")
    if not (port.isascii() and port.isdigit() and int(port) <= LAST_PORT):
        raise ValueError("expected a port, such as 10300, or an address and a port, such as 0.0.0.0:10300")
    return f"{host}:{port}"


Range = Annotated[Network, BeforeValidator(lambda value: parse_network(value) if isinstance(value, str) else value)]
Name = Annotated[str, AfterValidator(_lower)]


class Settings(BaseSettings):
    """A speech-to-text server with OpenAI's API, on your own machine.

    In a program that uses OpenAI's API, set OPENAI_BASE_URL=http://ADDRESS:5000/v1 and change nothing else. Each
    option can also be set by an environment variable: LOCALWHISPER_SERVER_MODEL=small is --model small.
    """

    model_config = SettingsConfigDict(
        env_prefix=ENV_PREFIX,
        env_ignore_empty=True,
        frozen=True,
        extra="ignore",
        cli_prog_name="localwhisper-server",
        cli_kebab_case=True,
        cli_hide_none_type=True,
        cli_avoid_json=True,
        cli_implicit_flags=True,
    )

    model: Annotated[tuple[str, ...], NoDecode, BeforeValidator(_split)] = Field(
        default=("auto",),
        min_length=1,
        description="Model to serve: a name (tiny, base, small, medium, large-v3, large-v3-turbo, distil-large-v3 …), "
        "a Hugging Face repository, or a folder. auto: large-v3 on a GPU, base on a CPU. Several models are served by "
        "name; the first is what OpenAI's names mean, and the others are loaded when asked for. Default: auto.",
    )
    max_loaded: int = Field(
        default=0,
        ge=0,
        description="Models in memory at a time; 0: as many as fit on the GPU. On a CPU, set it to what the memory has "
        "room for.",
    )
    host: str = Field(default="127.0.0.1", description="Address to listen on; 0.0.0.0 for the whole network.")
    port: int = Field(default=5000, ge=0, le=LAST_PORT, description="Port to listen on; 0 picks a free one.")
    device: Literal["auto", "cpu", "cuda"] = Field(default="auto", description="Where the model runs.")
    compute_type: Literal[
        "auto", "int8", "int8_float16", "int8_float32", "int8_bfloat16", "float16", "bfloat16", "float32"
    ] = Field(default="auto", description="Precision. auto: float16 on a GPU, int8 on a CPU.")
    threads: int = Field(default=0, ge=0, description="CPU threads of the model; 0: chosen for this machine.")
    window: Literal["adaptive", "exact"] = Field(
        default="adaptive",
        description="adaptive: encode a chunk at its own length, check the result, and decode again with the full "
        "window of 30 s if the check fails. exact: always use the full window, as Whisper does.",
    )
    batch: int = Field(default=0, ge=0, le=256, description="Chunks decoded at once; 0: measured at the start.")
    queue: int = Field(default=64, ge=0, description="Requests that may wait; the next one gets a 503.")
    max_wait: float = Field(
        default=300.0, gt=0, description="Seconds that a request may wait; if more are expected, it gets a 503."
    )
    cache: int = Field(
        default=0, ge=0, description="Transcripts kept in memory, for requests with the same recording and options."
    )
    idle_unload: float = Field(
        default=0.0, ge=0, description="Seconds without work after which a model is unloaded; 0: never."
    )
    drain: float = Field(
        default=30.0, ge=0, description="Seconds that open requests have to finish when the server stops."
    )
    announce: bool = Field(
        default=False, description="Announce the server by mDNS, for clients with LOCALWHISPER_BASE_URL=auto."
    )
    wyoming: Annotated[str, AfterValidator(_address)] | None = Field(
        default=None,
        description="Port, or HOST:PORT, on which Home Assistant is answered by the Wyoming protocol; usually 10300. "
        "The protocol has no keys: all addresses of --allow-from may call. The default host is that of --host.",
    )
    api_key: Annotated[tuple[SecretStr, ...], NoDecode, BeforeValidator(_split)] = Field(
        default=(),
        description="Key that callers must send, as they send OpenAI's or in the header x-localwhisper-key; several "
        "keys are separated by commas. Without a key, anyone on the LAN may call.",
    )
    api_key_file: Path | None = Field(
        default=None,
        description="File with keys, one per line; # begins a comment. The process list does not show them.",
    )
    allow_from: Annotated[tuple[Range, ...], NoDecode, BeforeValidator(_split)] = Field(
        default=RANGES,
        description="Addresses that may call, as ranges such as 192.168.1.0/24, separated by commas. Default: all "
        "private addresses, without 100.64.0.0/10, which VPNs use. This machine may always call.",
    )
    trusted_proxy: Annotated[tuple[Range, ...], NoDecode, BeforeValidator(_split)] = Field(
        default=(),
        description="Addresses of proxies whose X-Forwarded-For names the caller. Otherwise all requests through a "
        "proxy on this machine count as this machine's.",
    )
    allow_host: Annotated[tuple[Name, ...], NoDecode, BeforeValidator(_split)] = Field(
        default=(),
        description="Public names of this server, such as pc.example.org, or .example.org for all names below it. "
        "Addresses and LAN names (pc, pc.local, pc.lan) are always allowed.",
    )
    cors_origin: Annotated[tuple[Name, ...], NoDecode, BeforeValidator(_split)] = Field(
        default=(),
        description="Web pages that may call from a browser, by their origin: https://app.example.org, or * for all.",
    )
    certfile: Path | None = Field(default=None, description="Certificate chain (PEM), for HTTPS.")
    keyfile: Path | None = Field(
        default=None, description="Private key of the certificate, if it is not in the same file."
    )
    upstream: Annotated[str, AfterValidator(_web_address)] | None = Field(
        default=None,
        description="Base URL of the API that gets all other /v1 requests (chat, embeddings, speech synthesis), with "
        "the caller's own key: https://api.openai.com/v1. Transcriptions are never passed on. Default: none; they get "
        "a 404.",
    )
    upstream_api_key: SecretStr | None = Field(
        default=None,
        description="This server's own key for the upstream. It replaces an --api-key that a caller sent, for programs "
        "that can send only one key. A caller's own key for the upstream is passed on.",
    )
    upstream_api_key_file: Path | None = Field(
        default=None, description="File with that key. The process list does not show it."
    )
    max_upload: int = Field(default=512 * MIB, ge=1, description="Largest request body in bytes.")
    min_upload_rate: float = Field(
        default=1024.0, ge=0, description="Slowest upload to accept, in bytes per second; 0: any."
    )
    upload_grace: float = Field(default=15.0, ge=0, description="Seconds that an upload may fall behind that rate.")
    max_per_address: int = Field(
        default=32,
        ge=0,
        description="Transcriptions that one address may have open at a time, so that one caller cannot fill the "
        "queue; 0: any number. This machine's own are not counted.",
    )
    max_seconds: float = Field(default=6 * 3600.0, gt=0, description="Longest recording in seconds.")
    cache_dir: Path | None = Field(
        default=None, description="Folder for weights that come as Python packages. Default: the user's cache folder."
    )
    diarization_models: Path | None = Field(
        default=None,
        description="Folder with segmentation.onnx and embedding.onnx, the networks that tell speakers apart. Default: "
        "they are downloaded from the Hugging Face hub when speakers are first asked for.",
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(default="info", description="How much to log.")
    log_format: Literal["text", "json"] = Field(
        default="text", description="text: lines for people. json: one object per line."
    )
    log_file: str = Field(
        default="auto",
        description="File for the log, in addition to the console. It is renamed at 10 MB, and five earlier files are "
        "kept. auto: server-PORT.log in the user's folder for logs, but no file with port 0. none: no file.",
    )
    quiet: bool = Field(
        default=False, description="Print only warnings and errors to the console; the log file has everything."
    )

    def keys(self) -> tuple[str, ...]:
        """Return every key that callers may send, those of the file included.

        Raises:
            OSError, ValueError: the file cannot be read, or holds none; a key cannot be told apart in a header.

        """
        given = tuple(key.get_secret_value() for key in self.api_key)
        given += _read_keys(self.api_key_file) if self.api_key_file else ()
        if not all(map(_USABLE_KEY.fullmatch, given)):
            raise ValueError(  # without the key itself
                "a key may hold letters, digits and signs of ASCII alone, no blank, comma, semicolon or quotation "
                "mark, since it could not be told apart in a header"
            )
        return given

    def upstream_key(self) -> str | None:
        """Return this server's own key for the upstream, if it has one.

        Raises:
            OSError, ValueError: the file cannot be read, or holds none or several.

        """
        if self.upstream_api_key_file is None:
            return self.upstream_api_key.get_secret_value() if self.upstream_api_key else None
        key, *others = _read_keys(self.upstream_api_key_file)
        if others:
            raise ValueError(f"{self.upstream_api_key_file} holds more than one key")
        return key

    @model_validator(mode="after")
    def _complete(self) -> Self:
        own_key = self.upstream_api_key is not None or self.upstream_api_key_file is not None
        if self.keyfile is not None and self.certfile is None:
            raise ValueError("--keyfile needs --certfile")
        if own_key and self.upstream is None:
            raise ValueError("--upstream-api-key needs --upstream")
        if own_key and not self.api_key and self.api_key_file is None:
            raise ValueError("--upstream-api-key needs --api-key, or anyone on the network could spend its money")
        return self
