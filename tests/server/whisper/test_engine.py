from __future__ import annotations

import io
import re
from dataclasses import replace
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import ctranslate2
import faster_whisper
import numpy as np
import pytest
from tokenizers import Tokenizer as Vocabulary

from localwhisper_client.shared.languages import NAMES
from localwhisper_server.audio import pool
from localwhisper_server.transcription.scheduler import Scheduler
from localwhisper_server.transcription.transcriber import StepRunner, Transcriber
from localwhisper_server.types import SAMPLE_RATE, AudioChunk, BatchLimits, Decoding, Options, Span
from localwhisper_server.whisper import weights
from localwhisper_server.whisper.devices import Device, Workers
from localwhisper_server.whisper.engine import Engine, take_rows, to_storage
from localwhisper_server.whisper.vad import find_speech
from tests.server import media
from tests.server.sound import encode
from tests.server.whisper.recordings import prepared, samples_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from localwhisper_server.types import Segment
    from localwhisper_server.whisper.chunks import Chunk, ChunkResult


@pytest.mark.parametrize(
    "kind", [ctranslate2.DataType.float32, ctranslate2.DataType.float16, ctranslate2.DataType.bfloat16]
)
def test_rows_are_taken_in_any_precision(kind: ctranslate2.DataType) -> None:
    """A GPU encodes in float16 or bfloat16; NumPy has no bfloat16."""
    encoded = to_storage(np.arange(12, dtype=np.float32).reshape(3, 2, 2)).to(kind)
    taken = take_rows(encoded, [2, 0]).to(ctranslate2.DataType.float32)
    assert np.asarray(taken).tolist() == [[[8, 9], [10, 11]], [[0, 1], [2, 3]]]
    assert take_rows(encoded, [0, 1, 2]) is encoded


class Engines(dict[str, Engine]):
    """The real models on the CPU, each loaded once; `aligned` has the rows and the batch size of each alignment."""

    def __init__(self, cache_dir: Path) -> None:
        self.cache_dir = cache_dir
        ctranslate2.set_random_seed(0)  # high temperatures sample at random
        self.aligned: list[tuple[int, int]] = []

    def folder(self, model: str) -> Path:
        """Return the folder of a model."""
        return weights.find(model, cache_dir=self.cache_dir)

    def __missing__(self, model: str) -> Engine:
        workers = Workers(1, 2)
        self[model] = Engine(self.folder(model), Device("cpu", "int8", "test"), workers, load_model=self._load)
        return self[model]

    def _load(self, *given: Any, **options: Any) -> Any:
        whisper = faster_whisper.WhisperModel(*given, **options)
        whisper.model = Counting(whisper.model, self.aligned)
        return whisper


class Counting:
    """CTranslate2's model, with a count of its alignments."""

    def __init__(self, model: Any, aligned: list[tuple[int, int]]) -> None:
        self._model, self._aligned = model, aligned

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def align(self, encoded: Any, start: list[int], texts: list[list[int]], frames: list[int]) -> Any:
        """Count and align."""
        self._aligned.append((len(texts), encoded.shape[0]))
        return self._model.align(encoded, start, texts, frames)


@pytest.fixture(scope="module")
def engines(model_cache: Path) -> Engines:
    """Give the engines by name."""
    return Engines(model_cache)


@pytest.fixture(scope="module")
def base(engines: Engines) -> Engine:
    """Give the base model."""
    return engines["base"]


@pytest.fixture(scope="module")
def tiny_en(engines: Engines) -> Engine:
    """Give an English-only model."""
    return engines["tiny.en"]


@pytest.fixture
def aligned(engines: Engines) -> list[tuple[int, int]]:
    """Give the alignments so far."""
    return engines.aligned


WORDS = ["please", "buy", "milk", "and", "bread", "on", "the", "way", "home", "and"]
WORDS += ["call", "me", "when", "you", "are", "there"]


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text.lower().replace("you're", "you are"))


def _text(result: ChunkResult) -> str:
    return "".join(segment.text for segment in result.segments).strip()


# A batch with different languages, tasks and hints, which most tests use.
MIXED: dict[str, tuple[str, dict[str, Any]]] = {
    "plain": ("demo", {}),
    "german": ("de-5s", {"words": True, "logprobs": True}),
    "prompt": ("demo", {"language": "en", "prompt": "A shopping list.", "words": True, "temperature": 0.0}),
    "translation": ("demo", {"task": "translate", "hotwords": "milk, bread", "logprobs": True}),
}


def _run(model: Engine, chunks: Sequence[Chunk]) -> list[ChunkResult]:
    """Run a batch, and retry what was rejected, as the transcriber does."""
    return [
        model.run([result.remainder])[0] if result.rejected and result.remainder else result
        for result in model.run(chunks)
    ]


def _mixed(model: Engine, voices: dict[str, Path], name: str) -> Chunk:
    voice, decoding = MIXED[name]
    return prepared(model, samples_of(voices[voice]), **decoding)


@pytest.fixture(scope="module")
def results(base: Engine, voices: dict[str, Path]) -> dict[str, ChunkResult]:
    """Give the base model's results for one batch of all of MIXED."""
    return dict(zip(MIXED, _run(base, [_mixed(base, voices, name) for name in MIXED]), strict=True))


@pytest.mark.model
def test_the_words_of_the_demo(results: dict[str, ChunkResult]) -> None:
    """The words that are spoken, in the detected language; every field of a segment is filled."""
    result = results["plain"]
    assert result.language == "en"
    assert _words(_text(result)) == WORDS
    segment = result.segments[0]
    assert segment.text.startswith(" ")
    assert 0 <= segment.start < segment.end <= 4.87
    assert -1 < segment.avg_logprob < 0
    assert 0.5 < segment.compression_ratio < 2.4
    assert 0 <= segment.no_speech_prob < 0.6
    assert segment.temperature == 0.0
    assert segment.tokens[0] >= 50364  # a timestamp
    assert result.remainder is None


@pytest.mark.model
def test_german_is_detected(base: Engine, results: dict[str, ChunkResult]) -> None:
    """And transcribed in German."""
    assert {"en", "de", "fr"} < base.languages
    assert results["german"].language == "de"
    assert {"heute", "wetter", "park"} < set(_words(_text(results["german"])))


@pytest.mark.model
def test_french_is_answered_in_the_language_asked_for(base: Engine, voices: dict[str, Path]) -> None:
    """Small models get few of the words, but in that language, and at the one temperature asked for."""
    (result,) = base.run([prepared(base, samples_of(voices["fr-5s"]), language="fr", temperature=0.1)])
    assert result.language == "fr"
    assert _text(result)
    assert {segment.temperature for segment in result.segments} == {0.1}


@pytest.mark.model
def test_hints_and_task_do_not_change_the_words(results: dict[str, ChunkResult]) -> None:
    """With prompt and hotwords, and as a translation of English to English."""
    assert [_words(_text(results[name])) for name in ("prompt", "translation")] == [WORDS] * 2


@pytest.mark.model
def test_words_and_logprobs_only_if_asked_for(results: dict[str, ChunkResult]) -> None:
    """They cost an alignment; other chunks of the batch get none."""
    asked = {
        name: (bool(result.segments[0].words), bool(result.segments[0].logprobs)) for name, result in results.items()
    }
    assert asked == {name: ("words" in fields, "logprobs" in fields) for name, (_, fields) in MIXED.items()}


@pytest.mark.model
def test_alignments_share_a_batch(base: Engine, aligned: list[tuple[int, int]], voices: dict[str, Path]) -> None:
    """One call for each language and task, with the rows that need it only; the results are those of each row alone."""
    demo = samples_of(voices["demo"])
    # With the full window, for which there are no retries.
    chunks = [
        prepared(base, demo, full_window=True, language="en", words=True),
        prepared(base, demo[: 4 * SAMPLE_RATE], full_window=True, language="en", logprobs=True),
        prepared(base, demo, full_window=True, language="en"),
        prepared(base, samples_of(voices["de-5s"]), full_window=True, language="de", words=True),
    ]
    aligned.clear()
    together = base.run(chunks)
    assert sorted(aligned) == [(1, 1), (2, 2)]
    for chunk, result in zip(chunks, together, strict=True):
        (alone,) = base.run([chunk])
        assert [segment.words for segment in alone.segments] == [segment.words for segment in result.segments]
        assert len(alone.segments[0].logprobs) == len(result.segments[0].logprobs)


def _check_words(segments: Sequence[Segment], seconds: float) -> list[str]:
    words = [word for segment in segments for word in segment.words]
    assert all(0 <= word.start <= word.end <= seconds for word in words)
    assert all(before.end <= after.start + 1e-6 for before, after in pairwise(words))
    assert sum(word.end > word.start for word in words) > len(words) / 2
    return [word.text for word in words]


@pytest.mark.model
@pytest.mark.parametrize("name", ["prompt", "german"])
def test_words_are_in_order_and_inside_the_recording(
    results: dict[str, ChunkResult], voices: dict[str, Path], name: str
) -> None:
    """Together they are the text; none begins before the one before it ends."""
    words = _check_words(results[name].segments, samples_of(voices[MIXED[name][0]]).size / SAMPLE_RATE)
    assert "".join(words).split() == _text(results[name]).split()


@pytest.mark.model
@pytest.mark.parametrize("name", ["translation", "german"])
def test_the_bytes_of_logprobs_are_the_text(results: dict[str, ChunkResult], name: str) -> None:
    """Of all tokens, with umlauts; each has the logarithm of a probability."""
    tokens = [token for segment in results[name].segments for token in segment.logprobs]
    assert b"".join(token.data for token in tokens).decode().strip() == _text(results[name])
    assert all(-25 < token.logprob <= 1e-3 for token in tokens)
    assert np.mean([token.logprob for token in tokens]) > -1.5


@pytest.mark.model
def test_a_batch_gives_the_results_of_each_chunk_alone(tiny_en: Engine, voices: dict[str, Path]) -> None:
    """Different hotwords, lengths and options do not affect each other."""
    demo, minute = samples_of(voices["demo"]), samples_of(voices["en-60s"])[: 9 * SAMPLE_RATE]
    chunks = [
        prepared(tiny_en, minute, full_window=True, words=True),
        prepared(tiny_en, demo, full_window=True, hotwords="milk, bread", logprobs=True),
    ]
    for chunk, together in zip(chunks, tiny_en.run(chunks), strict=True):
        (alone,) = tiny_en.run([chunk])
        assert _text(alone) == _text(together)
        assert [segment.words for segment in alone.segments] == [segment.words for segment in together.segments]
        assert [bool(segment.logprobs) for segment in together.segments] == [
            chunk.decoding.logprobs for _ in together.segments
        ]


@pytest.mark.model
def test_a_rejected_answer_comes_back_for_the_full_window(tiny_en: Engine, voices: dict[str, Path]) -> None:
    """The whole chunk; the answer of the full window is not rejected again."""
    chunk = replace(prepared(tiny_en, samples_of(voices["demo"])), speech_seconds=60.0)  # far too much for its text
    (rejected,) = tiny_en.run([chunk])
    assert (rejected.rejected, rejected.segments, rejected.language) == ("speech rate", (), None)
    assert rejected.remainder is not None
    assert (rejected.remainder.is_retry, rejected.remainder.features is chunk.features) == (True, True)
    (result,) = tiny_en.run([rejected.remainder])
    assert result.rejected is None
    assert _words(_text(result)) == WORDS


@pytest.mark.model
def test_the_english_only_model(tiny_en: Engine, voices: dict[str, Path]) -> None:
    """Its vocabulary differs, and English is its only language."""
    assert tiny_en.languages == frozenset({"en"})
    (result,) = _run(tiny_en, [prepared(tiny_en, samples_of(voices["demo"]), words=True, logprobs=True)])
    assert result.language == "en"
    assert _words(_text(result)) == WORDS
    assert _words(" ".join(word.text for segment in result.segments for word in segment.words)) == WORDS


@pytest.mark.model
@pytest.mark.parametrize("model", ["base", "tiny.en"])
def test_a_prompt_is_text_and_never_a_special_token(engines: Engines, model: str) -> None:
    """Whatever special token it names, alone or between words: the model gets its letters."""
    vocabulary = Vocabulary.from_file(str(engines.folder(model) / "tokenizer.json"))
    special = vocabulary.get_added_tokens_decoder()
    nothing = AudioChunk(np.zeros(SAMPLE_RATE, np.float32), 0.0, ())
    for name in {token.content for token in special.values()}:
        for text in (name, f"so {name}{name} it <|{name}"):
            chunk = engines[model].prepare(nothing, Decoding(prompt=text, hotwords=text))
            assert chunk.prompt == chunk.hotwords
            assert not special.keys() & set(chunk.prompt)
            expected = f" {text.strip()}" if text.strip() else ""
            assert vocabulary.decode(list(chunk.prompt), skip_special_tokens=False) == expected


@pytest.mark.model
def test_an_offset_moves_everything(tiny_en: Engine, voices: dict[str, Path]) -> None:
    """The times of segments, words and seek are those in the recording, not in the chunk."""
    samples = samples_of(voices["demo"])
    chunks = [prepared(tiny_en, samples, offset, language="en", words=True) for offset in (0.0, 600.0)]
    here, there = _run(tiny_en, chunks)
    assert here.segments
    for before, after in zip(here.segments, there.segments, strict=True):
        assert (after.start, after.end) == pytest.approx((before.start + 600, before.end + 600))
        assert after.seek == before.seek + 60_000
        assert after.text == before.text
        assert after.tokens == before.tokens
        assert [word.start for word in after.words] == pytest.approx([word.start + 600 for word in before.words])


@pytest.mark.model
@pytest.mark.parametrize("hint", ["prompt", "hotwords"])
@pytest.mark.parametrize("full", [False, True], ids=["adaptive", "full"])
def test_the_prompt_is_not_repeated_over_music(base: Engine, hint: str, *, full: bool) -> None:
    """Nor over noise, if the detector takes either for speech."""
    time = np.arange(4 * SAMPLE_RATE) / SAMPLE_RATE
    notes = np.array([262, 330, 392, 523])[(time * 2).astype(int) % 4]
    melody = (0.2 * np.sin(2 * np.pi * time * notes) * np.exp(-(time * 2 % 1) * 3)).astype(np.float32)
    noise = np.random.default_rng(0).normal(0, 0.02, time.size).astype(np.float32)
    for samples in (melody, noise):
        piece, text = AudioChunk(samples, 0.0, (Span(0.0, 4.0),)), ""
        chunk: Chunk | None
        chunk = base.prepare(piece, Decoding(language="en", **{hint: "Welcome to the meeting."}), full_window=full)  # type: ignore[arg-type]
        while chunk is not None:
            (result,) = base.run([chunk])
            text, chunk = text + _text(result), result.remainder
        assert _words(text) == []


@pytest.mark.model
def test_odd_hints_are_no_error(tiny_en: Engine, voices: dict[str, Path]) -> None:
    """Longer than the model's context, without letters, or with the names of special tokens."""
    samples = samples_of(voices["demo"])
    hints = ["word " * 2000, "\0\n\t🎙<|endoftext|><|notimestamps|><|fr|>"]
    results = _run(tiny_en, [prepared(tiny_en, samples, prompt=hint, hotwords=hint) for hint in hints])
    assert all(segment.end <= 4.87 for result in results for segment in result.segments)


@pytest.mark.model
@pytest.mark.parametrize("seconds", [0.1, 0.5, 30.0])
def test_sound_without_words_is_no_error(tiny_en: Engine, seconds: float) -> None:
    """Very short and very long chunks; times stay inside the chunk."""
    samples = np.random.default_rng(0).normal(0, 0.01, round(seconds * SAMPLE_RATE)).astype(np.float32)
    decoding = {"language": "en", "temperature": 1.0, "words": True, "logprobs": True}
    (result,) = tiny_en.run([prepared(tiny_en, samples, **decoding)])
    assert all(0 <= segment.start <= segment.end <= seconds for segment in result.segments)
    words = [word for segment in result.segments for word in segment.words]
    assert all(0 <= word.start <= word.end <= seconds for word in words)


@pytest.mark.model
def test_warming_up_is_repeatable(tiny_en: Engine) -> None:
    """Twice is no error."""
    tiny_en.warm_up()
    tiny_en.warm_up()


@pytest.fixture(scope="module")
def service(base: Engine) -> Iterator[Transcriber]:
    """Give a transcriber on the base model."""
    limits = BatchLimits(items=4, frames=6000, share=6000)
    scheduler = Scheduler(base.run, capacity=4, limits=limits, clock=lambda: 0.0)
    yield Transcriber(
        scheduler=scheduler,
        prepare=base.prepare,
        find_speech=find_speech,
        blocks=pool.blocks,
        steps=StepRunner(clock=lambda: 0.0),
        max_seconds=600,
    )
    assert scheduler.close(60)


@pytest.mark.model
@pytest.mark.anyio
async def test_a_minute_is_transcribed_to_its_end(service: Transcriber, voices: dict[str, Path]) -> None:
    """In more than one window: the words of its text, in order, with times that grow."""
    import jiwer

    with voices["en-60s"].open("rb") as file:
        *segments, transcript = [item async for item in service.transcribe(file, Options(Decoding(words=True)))]
    expected = voices["en-60s"].with_suffix(".txt").read_text()
    assert jiwer.wer(" ".join(_words(expected)), " ".join(_words(transcript.text))) < 0.1  # type: ignore[union-attr]
    assert transcript.language == "en"  # type: ignore[union-attr]
    assert transcript.duration == pytest.approx(60.6, abs=0.1)  # type: ignore[union-attr]
    assert len({segment.seek for segment in segments}) > 1  # type: ignore[union-attr]
    assert all(before.end <= after.start + 0.02 for before, after in pairwise(segments))  # type: ignore[union-attr]
    assert len(_check_words(segments, 60.7)) > 100  # type: ignore[arg-type]


@pytest.mark.model
@pytest.mark.anyio
async def test_each_stretch_is_transcribed_in_its_own_language(service: Transcriber, voices: dict[str, Path]) -> None:
    """English, German and English in one file, both hinted; none is translated."""
    pause = np.zeros(SAMPLE_RATE, np.float32)
    demo, german = samples_of(voices["demo"]), samples_of(voices["de-5s"])
    sound = encode(np.concatenate([demo, pause, german, pause, demo])[None])
    options = Options(Decoding(languages=("de", "en")))
    *_, transcript = [item async for item in service.transcribe(io.BytesIO(sound), options)]
    words = _words(transcript.text)  # type: ignore[union-attr]
    assert {"heute", "wetter", "park", "milk", "bread", "home"} < set(words)
    assert words.count("milk") == 2
    assert words.index("milk") < words.index("wetter") < len(words) - 1 - words[::-1].index("milk")


@pytest.mark.model
@pytest.mark.anyio
@pytest.mark.parametrize(("container", "codec", "start"), [("matroska", "libopus", 5.0), ("mp4", "aac", 20.0)])
async def test_the_words_of_a_film_have_the_film_s_times(
    service: Transcriber, voices: dict[str, Path], container: str, codec: str, start: float
) -> None:
    """Its sound begins later than its pictures, and so do the first cue and the first word; no word lasts long.

    One film fits into one chunk, the other does not.
    """
    data = media.recording(samples_of(voices["demo"]), container, codec, rate=48_000, start=start, film=True)
    *segments, transcript = [
        item async for item in service.transcribe(io.BytesIO(data), Options(Decoding(words=True, language="en")))
    ]
    assert _words(transcript.text) == WORDS  # type: ignore[union-attr]
    _check_words(segments, start + 5.2)  # type: ignore[arg-type]
    words = [word for segment in segments for word in segment.words]  # type: ignore[union-attr]
    assert segments[0].start == pytest.approx(start, abs=0.3)  # type: ignore[union-attr]
    assert words[0].start == pytest.approx(start, abs=0.3)
    assert max(word.end - word.start for word in words) < 1.0


@pytest.mark.model
def test_a_model_lists_the_languages_it_has_tokens_for(base: Engine, tiny_en: Engine) -> None:
    """Cantonese came with large-v3; older models would fail on it."""
    assert base.languages == frozenset(NAMES) - {"yue"}
    assert tiny_en.languages == {"en"}


def test_a_folder_without_a_model_cannot_be_loaded(tmp_path: Path) -> None:
    """CTranslate2's own error is raised."""
    (tmp_path / "model.bin").write_bytes(b"not weights")
    with pytest.raises((RuntimeError, ValueError)):
        Engine(tmp_path, Device("cpu", "int8", "test"))
