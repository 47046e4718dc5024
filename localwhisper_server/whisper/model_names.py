"""Names of models: faster-whisper's, the hub's, OpenAI's and habitual ones, and which of them mean the same model."""

from pathlib import Path

from localwhisper_client.shared import openai_models

# faster-whisper's short names, each with the repository of its CTranslate2 conversion.
SIZES = ["tiny.en", "tiny", "base.en", "base", "small.en", "small", "medium.en", "medium"]
SIZES += ["large-v1", "large-v2", "large-v3"]
DISTILLED = ["large-v2", "medium.en", "small.en", "large-v3"]
REPOSITORIES = {
    **{size: f"Systran/faster-whisper-{size}" for size in SIZES},
    "large": "Systran/faster-whisper-large-v3",
    **{f"distil-{size}": f"Systran/faster-distil-whisper-{size}" for size in DISTILLED},
    "distil-large-v3.5": "distil-whisper/distil-large-v3.5-ct2",
    "large-v3-turbo": "mobiuslabsgmbh/faster-whisper-large-v3-turbo",
    "turbo": "mobiuslabsgmbh/faster-whisper-large-v3-turbo",
}
# Other services' names for their Whisper, which clients keep in their settings: aliases of the first served model.
HABITUAL_NAMES = frozenset(
    [
        *("whisper", "whisper-large-v3", "whisper-large-v3-turbo", "distil-whisper-large-v3-en", "openai/whisper"),
        *openai_models.LIVE_NAMES,
        *(f"openai/{name}" for name in (*openai_models.NAMES, *openai_models.LIVE_NAMES)),
        *(f"openai/whisper-{size}" for size in REPOSITORIES),
    ]
)


def default_model(device: str) -> str:
    """Return the default model of a device; large-v3, since the faster turbo was not trained to translate."""
    return "large-v3" if device == "cuda" else "base"


def served_names(model: str) -> tuple[str, ...]:
    """Return the names that `model` is listed under: its own, its size's and its repository's."""
    own = _own_name(model)
    same = _sizes(own)
    repositories = [] if folder_named(model) else [REPOSITORIES[size] for size in same]
    return tuple(dict.fromkeys([own, *same, *repositories]))


def aliases(model: str) -> frozenset[str]:
    """Return the names that mean `model` but are not listed: other spellings of its size."""
    return frozenset().union(*(_spellings(size) for size in _sizes(_own_name(model))))


def trained_to_translate(model: str) -> bool:
    """Return whether a model was trained to translate, as far as its name says.

    turbo was trained without translations (https://huggingface.co/openai/whisper-large-v3-turbo), and the distilled
    models with English alone (https://huggingface.co/distil-whisper). A folder of another name may be anything.
    """
    return not any(word in _own_name(model).lower() for word in ("turbo", "distil"))


def _own_name(model: str) -> str:
    folder = folder_named(model)
    return folder.absolute().name if folder else model


def _sizes(name: str) -> list[str]:
    """Return faster-whisper's short names for a model: `large-v3` and `large` for either; none for an unknown model."""
    repositories = {REPOSITORIES[size] for size in REPOSITORIES if name in _spellings(size)}
    return [size for size, repository in REPOSITORIES.items() if repository in repositories]


def _spellings(size: str) -> set[str]:
    """Return the names of one key of REPOSITORIES that its makers and the makers of its conversions use."""
    short = size.removeprefix("distil-")
    name = f"whisper-{size}" if short == size else f"distil-whisper-{short}"
    spelled = {size, name, f"faster-{name}", f"openai/{name}", f"Systran/faster-{name}", REPOSITORIES[size]}
    return spelled if short == size else spelled | {f"distil-whisper/{size}"}


def folder_named(model: str) -> Path | None:
    """Return the folder that `model` names, or None.

    The name of a known model is never a folder, or a folder `base` in the working directory would replace the checked
    weights. Such a folder needs a path, as in ./base.
    """
    if model in REPOSITORIES or model in REPOSITORIES.values():
        return None
    folder = Path(model).expanduser()
    return folder if folder.is_dir() else None
