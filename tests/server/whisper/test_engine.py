from __future__ import annotations

import io
import re
from dataclasses import replace
from itertools import pairwise
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import ctranslate2
import numpy as np
import pytest

from localwhisper_client.shared.languages import NAMES
from localwhisper_server.audio import pool
from localwhisper_server.transcription.preparation import StepRunner
from localwhisper_server.transcription.scheduler import Scheduler
from localwhisper_server.transcription.transcriber import Transcriber
from localwhisper_server.types import SAMPLE_RATE, AudioChunk, BatchLimits, Decoding, Options, Span, Voice
from localwhisper_server.whisper import chunks as batch
from localwhisper_server.whisper import engine, window
from localwhisper_server.whisper.chunks import Chunk, ChunkResult, Preparer
from localwhisper_server.whisper.devices import Device, Workers, choose_device, cores, workers
from localwhisper_server.whisper.engine import Engine, find_speech
from localwhisper_server.whisper.hypothesis import TEMPERATURES, Hypothesis
from tests.server import media
from tests.server.sound import encode, tone

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from localwhisper_server.types import Samples, Segment

BEGIN, EOT = 1000, 900  # of the tokenizer double


# Devices


@pytest.mark.parametrize(
    ("device", "compute_type", "count", "chosen"),
    [
        ("auto", "auto", 0, Device("cpu", "int8", "no CUDA device found")),
        ("auto", "auto", 1, Device("cuda", "float16", "1 CUDA device(s) found")),
        ("auto", "auto", 2, Device("cuda", "float16", "2 CUDA device(s) found")),
        ("auto", "int8_float16", 1, Device("cuda", "int8_float16", "1 CUDA device(s) found")),
        ("auto", "float32", 0, Device("cpu", "float32", "no CUDA device found")),
        ("cpu", "auto", 1, Device("cpu", "int8", "as set")),
        ("cpu", "float32", 0, Device("cpu", "float32", "as set")),
        ("cuda", "auto", 0, Device("cuda", "float16", "as set")),
        ("cuda", "int8", 1, Device("cuda", "int8", "as set")),
    ],
)
def test_device_table(device: str, compute_type: str, count: int, chosen: Device) -> None:
    """What is set is kept; "auto" follows what the driver shows, and says so."""
    assert choose_device(device, compute_type, cuda_devices=count, cuda_types=frozenset()) == chosen


@pytest.mark.parametrize(
    ("device", "threads", "cores", "chosen"),
    [
        ("cpu", 0, 1, Workers(1, 1)),
        ("cpu", 0, 2, Workers(2, 1)),
        ("cpu", 0, 6, Workers(2, 3)),
        ("cpu", 0, 64, Workers(2, 4)),
        ("cpu", 1, 8, Workers(1, 1)),
        ("cpu", 12, 4, Workers(2, 6)),
        ("cuda", 0, 8, Workers(1, 0)),
    ],
)
def test_a_cpu_has_two_workers(device: str, threads: int, cores: int, chosen: Workers) -> None:
    """With half of the threads each; a GPU is full with one."""
    assert workers(device, threads, cores=cores) == chosen


@pytest.mark.parametrize(
    ("written", "most"),
    [("100000 100000", 1), ("150000 100000", 2), ("1000 100000", 1), ("max 100000", None), ("", None), ("9 9 9", None)],
)
def test_a_container_has_its_share_of_the_cores(tmp_path: Path, written: str, most: int | None) -> None:
    """Threads beyond it would only take each other's turns; a started core counts."""
    quota = tmp_path / "cpu.max"
    whole = cores(quota)
    quota.write_text(written)
    assert cores(quota) == (whole if most is None else min(whole, most))


def test_counting_devices_needs_no_driver() -> None:
    """A machine without a GPU has none, and that is no error."""
    assert engine.cuda_devices() >= 0


# Who speaks where


def _voice(path: Path) -> Samples:
    with path.open("rb") as file:
        return pool.decode(file, max_seconds=600)


@pytest.mark.parametrize("name", ["demo", "de-5s", "fr-5s", "en-60s"])
def test_speech_is_found(voices: dict[str, Path], name: str) -> None:
    """In order, without overlap, inside the recording, and most of it."""
    samples = _voice(voices[name])
    spans = find_speech(samples, Voice())
    assert spans
    assert all(before.end <= after.start for before, after in pairwise(spans))
    assert spans[0].start >= 0
    assert spans[-1].end <= samples.size / SAMPLE_RATE
    assert sum(span.seconds for span in spans) > samples.size / SAMPLE_RATE / 2


@pytest.mark.parametrize("seconds", [0.1, 1.0, 10.0, 70.0])
@pytest.mark.parametrize("kind", ["silence", "noise", "tone"])
def test_nobody_is_found_in_silence(seconds: float, kind: str) -> None:
    """Nor in noise or a tone, at any length."""
    count = round(seconds * SAMPLE_RATE)
    noise = np.random.default_rng(0).normal(0, 0.02, count).astype(np.float32)
    samples = {"silence": np.zeros(count, np.float32), "noise": noise, "tone": tone(seconds)[0]}[kind]
    assert find_speech(samples, Voice()) == []


@pytest.mark.parametrize("decibels", [-40, -50, -60, -66])
def test_faint_speech_is_found(voices: dict[str, Path], decibels: int) -> None:
    """The level decides nothing: as much of it as of the same speech at full level, in 16 bits, beside a loud click."""
    samples = _voice(voices["en-60s"])[: 25 * SAMPLE_RATE]
    faint = samples / np.abs(samples).max() * 10 ** (decibels / 20)
    faint = np.round(faint * 32768).astype(np.float32) / np.float32(32768)
    expected = sum(span.seconds for span in find_speech(samples, Voice()))
    assert sum(span.seconds for span in find_speech(faint, Voice())) == pytest.approx(expected, rel=0.15)
    faint[4 * SAMPLE_RATE : 4 * SAMPLE_RATE + 16] = 0.9
    assert sum(span.seconds for span in find_speech(faint, Voice())) == pytest.approx(expected, rel=0.15)


@pytest.mark.parametrize("decibels", [-30, -50, -70, -90])
def test_nobody_is_found_in_faint_noise(decibels: int) -> None:
    """A quiet room stays quiet, whatever the detector is given."""
    level = 10 ** (decibels / 20)
    noise = np.random.default_rng(0).normal(0, level, 30 * SAMPLE_RATE).astype(np.float32)
    assert find_speech(noise, Voice()) == []
    assert find_speech(np.round(noise * 32768).astype(np.float32) / np.float32(32768), Voice()) == []


WORDS_ALONE = [(0.0, 0.3), (0.6, 0.92), (2.08, 2.48), (2.48, 3.04), (3.04, 3.3), (4.0, 4.36)]


@pytest.mark.parametrize(("start", "end"), WORDS_ALONE)
def test_a_word_alone_is_found(voices: dict[str, Path], start: float, end: float) -> None:
    """Cut to itself, a third of a second long: "please", "milk", "home", "and", "call", "there"."""
    word = _voice(voices["demo"])[round(start * SAMPLE_RATE) : round(end * SAMPLE_RATE)]
    assert find_speech(word, Voice())


@pytest.mark.parametrize("milliseconds", [20, 60, 160, 240])
@pytest.mark.parametrize("kind", ["click", "beep", "thump"])
def test_nobody_is_found_in_short_sounds(milliseconds: int, kind: str) -> None:
    """Bursts as long as a short word."""
    count = milliseconds * SAMPLE_RATE // 1000
    fall = np.exp(-np.arange(count) / count * 4)
    burst = {
        "click": np.random.default_rng(1).normal(0, 0.3, count) * fall,
        "beep": 0.4 * np.sin(2 * np.pi * 880 * np.arange(count) / SAMPLE_RATE),
        "thump": 0.6 * np.sin(2 * np.pi * 90 * np.arange(count) / SAMPLE_RATE) * fall,
    }[kind]
    samples = np.zeros(2 * SAMPLE_RATE, np.float32)
    samples[SAMPLE_RATE // 2 :][:count] = burst
    assert find_speech(samples, Voice()) == []
    assert find_speech(burst.astype(np.float32), Voice()) == []


@pytest.mark.parametrize("threshold", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("padding", [0, 300, 10_000])
@pytest.mark.parametrize("silence", [0, 200, 30_000])
def test_any_settings_of_the_detector_are_taken(
    voices: dict[str, Path], threshold: float, padding: int, silence: int
) -> None:
    """Everything the form lets through gives spans inside the recording, in order."""
    samples = _voice(voices["demo"])
    spans = find_speech(samples, Voice(threshold, padding, silence))
    assert all(0 <= span.start < span.end <= samples.size / SAMPLE_RATE for span in spans)
    assert all(before.end <= after.start for before, after in pairwise(spans))


# The ladder of temperatures, on a model that says what a test wants


class Tokenizer:
    """Decodes a token to its letter; timestamps begin at BEGIN."""

    timestamp_begin, eot = BEGIN, EOT

    def decode(self, tokens: Sequence[int]) -> str:
        """Give one letter for a token; 32 is a space."""
        return "".join(chr(token) for token in tokens if token < EOT)


def _result(text: str, score: float = -0.1, no_speech: float = 0.0) -> Any:
    return SimpleNamespace(sequences_ids=[[ord(letter) for letter in text]], scores=[score], no_speech_prob=no_speech)


def _chunk(temperature: float | None, seconds: float = 30.0) -> Chunk:
    return Chunk(np.zeros((1, 1), np.float32), seconds, 0.0, Decoding(temperature=temperature))


class Ladder:
    """An Engine without a model: `script` gives the result of a row at a temperature."""

    def __init__(self, script: Callable[[int, float], Any]) -> None:
        self.engine = object.__new__(Engine)
        self.calls: list[tuple[list[int], float]] = []

        def generate(encoded: Any, rows: Sequence[engine._Row], temperature: float, *, full: bool) -> list[Any]:
            assert encoded.shape[0] == len(rows)
            assert len({len(row.prompt) for row in rows}) == 1  # as CTranslate2 wants them
            numbers = [int(row) for row in np.asarray(encoded)[:, 0, 0]]
            self.calls.append((numbers, temperature))
            return [script(number, temperature) for number in numbers]

        self.engine._generate = generate  # type: ignore[method-assign, assignment]

    def decode(
        self, asked: Sequence[float | None], lengths: Sequence[int] | None = None, *, full: bool = True
    ) -> list[Hypothesis]:
        """Decode one row for each temperature asked, row n encoded as the number n."""
        count = len(asked)
        encoded = engine._storage(np.arange(count, dtype=np.float32).reshape(count, 1, 1))
        rows = [
            engine._Row(_chunk(temperature), "en", None, Tokenizer(), [0] * length)  # type: ignore[arg-type]
            for temperature, length in zip(asked, lengths or [1] * count, strict=True)
        ]
        return self.engine._decode(encoded, rows, full=full)


GOOD, UNLIKELY = _result("a quick brown fox"), _result("mumble", -2.0)
LOOP = _result("he " * 60)


def test_a_good_first_answer_is_kept() -> None:
    """At temperature 0, with beams, once."""
    ladder = Ladder(lambda _row, _temperature: GOOD)
    (hypothesis,) = ladder.decode([None])
    assert (hypothesis.text, hypothesis.temperature) == ("a quick brown fox", 0.0)
    assert ladder.calls == [([0], 0.0)]
    assert hypothesis.avg_logprob == pytest.approx(-0.1 * 17 / 18)  # the end of text counts as well


@pytest.mark.parametrize("bad", [UNLIKELY, LOOP], ids=["unlikely", "repeating"])
def test_a_bad_answer_climbs_until_one_is_good(bad: Any) -> None:
    """Each step hotter, only for the rows that need it."""
    ladder = Ladder(lambda row, temperature: bad if row == 1 and temperature < 0.4 else GOOD)
    first, second, third = ladder.decode([None, 0.0, None])
    assert [first.temperature, second.temperature, third.temperature] == [0.0, 0.4, 0.0]
    assert ladder.calls == [([0, 1, 2], 0.0), ([1], 0.2), ([1], 0.4)]


def test_a_temperature_that_was_asked_for_is_used_alone() -> None:
    """Without a ladder, even where the answer is poor, and beside a neighbour that climbs."""
    ladder = Ladder(lambda _row, temperature: GOOD if temperature == 1.0 else UNLIKELY)
    own, climbing = ladder.decode([0.5, None])
    assert (own.temperature, own.text) == (0.5, "mumble")
    assert climbing.temperature == 1.0
    assert [rows for rows, temperature in ladder.calls if temperature == 0.5] == [[0]]


def test_rows_with_prompts_of_other_lengths_go_separately() -> None:
    """CTranslate2 takes prompts of one length; every row still gets its own answer."""
    ladder = Ladder(lambda row, _temperature: _result(f"row {row} says so"))
    hypotheses = ladder.decode([None, 0.7, None, None], lengths=[1, 3, 3, 1])
    assert [hypothesis.text for hypothesis in hypotheses] == [f"row {row} says so" for row in range(4)]
    assert ladder.calls == [([0, 3], 0.0), ([1], 0.7), ([2], 0.0)]


def test_of_bad_answers_the_likeliest_that_does_not_repeat() -> None:
    """After the whole ladder; and if all repeat, the likeliest of those."""
    answers = {0.0: LOOP, 0.2: _result("one", -3.0), 0.4: _result("two", -1.5), 0.6: _result("three", -2.0)}
    ladder = Ladder(lambda _row, temperature: answers.get(temperature, LOOP))
    assert ladder.decode([None])[0].text == "two"
    assert len(ladder.calls) == len(TEMPERATURES)
    (all_loop,) = Ladder(lambda _row, temperature: _result("he " * 60, temperature - 2)).decode([None])
    assert all_loop.temperature == 1.0


def test_a_short_window_has_no_ladder() -> None:
    """A bad answer there is for the gate, which gives the chunk its full window."""
    ladder = Ladder(lambda _row, _temperature: UNLIKELY)
    assert [hypothesis.temperature for hypothesis in ladder.decode([None, None], full=False)] == [0.0, 0.0]
    assert len(ladder.calls) == 1


def test_silence_is_accepted_at_once() -> None:
    """Unlikely words where the model hears no speech are not climbed for."""
    ladder = Ladder(lambda _row, _temperature: _result("thanks for watching", -1.5, no_speech=0.9))
    (hypothesis,) = ladder.decode([None])
    assert hypothesis.silent
    assert len(ladder.calls) == 1


def test_an_empty_answer_is_no_error() -> None:
    """No tokens, no ratio to compute."""
    (hypothesis,) = Ladder(lambda _row, _temperature: _result("")).decode([None])
    assert (hypothesis.text, hypothesis.compression_ratio, hypothesis.avg_logprob) == ("", 0.0, 0.0)


@pytest.mark.parametrize(
    "kind", [ctranslate2.DataType.float32, ctranslate2.DataType.float16, ctranslate2.DataType.bfloat16]
)
def test_rows_are_taken_in_any_precision(kind: ctranslate2.DataType) -> None:
    """A GPU encodes in float16 or bfloat16, of which NumPy knows only one."""
    encoded = engine._storage(np.arange(12, dtype=np.float32).reshape(3, 2, 2)).to(kind)
    taken = engine._taken(encoded, [2, 0]).to(ctranslate2.DataType.float32)
    assert np.asarray(taken).tolist() == [[[8, 9], [10, 11]], [[0, 1], [2, 3]]]
    assert engine._taken(encoded, [0, 1, 2]) is encoded


def test_a_rest_is_the_sound_from_there_on() -> None:
    """Where it is in the recording; a second or less is not worth a run."""
    features = np.arange(500, dtype=np.float32)[None]
    chunk = Chunk(features, 5.0, 60.0, Decoding(language="de"), speech_seconds=4.0, speech_end=4.5)
    rest = batch.remainder_of(chunk, 2.0, (7, 8))
    assert rest is not None
    assert (rest.offset, rest.seconds, rest.features[0, 0], rest.decoding) == (62.0, 3.0, 200.0, chunk.decoding)
    assert rest.prefix_tokens == (7, 8)
    assert rest.speech_end == pytest.approx(2.5)
    assert batch.remainder_of(chunk, None, ()) is batch.remainder_of(chunk, 4.5, ()) is None


@pytest.mark.parametrize(
    ("seconds", "full", "temperature"),
    [(1.0, False, None), (10.0, False, 0.0), (10.0, True, None), (10.0, False, 0.5)],
)
def test_what_a_chunk_costs(
    seconds: float,
    full: bool,  # noqa: FBT001 - a table's column
    temperature: float | None,
) -> None:
    """Its own length with room; the full window where asked, and where a temperature makes the gate blind."""
    chunk = Chunk(np.zeros((1, 1), np.float32), seconds, 0.0, Decoding(temperature=temperature), full_window=full)
    assert chunk.frames == window.frames(seconds, full=full or temperature == 0.5)


def test_preparing_needs_no_model() -> None:
    """A piece's features, its speech counted; callable from any thread."""
    prepare = Preparer(lambda samples: np.zeros((80, samples.size // 160 + 1)), lambda _: [])
    piece = AudioChunk(np.zeros(32_000, np.float32), 7.0, (Span(0.1, 0.6), Span(1.0, 1.5)))
    chunk = prepare(piece, Decoding(language="de"), full_window=True)
    assert chunk.features.shape == (80, 200)
    assert chunk.features.dtype == np.float32
    assert (chunk.seconds, chunk.offset, chunk.full_window, chunk.decoding.language) == (2.0, 7.0, True, "de")
    assert (chunk.speech_seconds, chunk.speech_end) == (pytest.approx(1.0), 1.5)
    assert prepare(AudioChunk(np.zeros(1600, np.float32), 0.0, ()), Decoding()).speech_end == 0.0


# The real models


THREADS = 2
WORDS = ["please", "buy", "milk", "and", "bread", "on", "the", "way", "home", "and"]
WORDS += ["call", "me", "when", "you", "are", "there"]


@pytest.fixture(scope="module")
def base(model_cache: Path) -> Engine:
    """Give the base model on the CPU, loaded once."""
    from localwhisper_server.whisper import weights

    return Engine(weights.find("base", cache_dir=model_cache), Device("cpu", "int8", "test"), Workers(1, THREADS))


@pytest.fixture(scope="module")
def tiny_en(model_cache: Path) -> Engine:
    """Give an English-only model."""
    from localwhisper_server.whisper import weights

    return Engine(weights.find("tiny.en", cache_dir=model_cache), Device("cpu", "int8", "test"), Workers(1, THREADS))


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text.lower().replace("you're", "you are"))


def _text(result: ChunkResult) -> str:
    return "".join(segment.text for segment in result.segments).strip()


# A batch of everything at once, which most tests look at.
MIXED: dict[str, tuple[str, dict[str, Any]]] = {
    "plain": ("demo", {}),
    "german": ("de-5s", {"words": True, "logprobs": True}),
    "prompt": ("demo", {"language": "en", "prompt": "A shopping list.", "words": True, "temperature": 0.0}),
    "translation": ("demo", {"task": "translate", "hotwords": "milk, bread", "logprobs": True}),
}


def _prepared(
    model: Engine, samples: Samples, offset: float = 0.0, *, full_window: bool = False, **decoding: Any
) -> Chunk:
    piece = AudioChunk(samples, offset, tuple(find_speech(samples, Voice())))
    return model.prepare(piece, Decoding(**decoding), full_window=full_window)


def _hinted(model: Engine, prefix_tokens: tuple[int, ...] = (), **decoding: Any) -> Chunk:
    piece = AudioChunk(np.zeros(SAMPLE_RATE, np.float32), 0.0, ())
    return replace(model.prepare(piece, Decoding(**decoding)), prefix_tokens=prefix_tokens)


def _run(model: Engine, chunks: Sequence[Chunk]) -> list[ChunkResult]:
    """Run a batch, and what the gate doubts once more, as the service does."""
    return [
        model.run([result.remainder])[0] if result.rejected and result.remainder else result
        for result in model.run(chunks)
    ]


def _mixed(model: Engine, voices: dict[str, Path], name: str) -> Chunk:
    voice, decoding = MIXED[name]
    return _prepared(model, _voice(voices[voice]), **decoding)


@pytest.fixture(scope="module")
def heard(base: Engine, voices: dict[str, Path]) -> dict[str, ChunkResult]:
    """Give what the base model heard in one batch of all of MIXED."""
    return dict(zip(MIXED, _run(base, [_mixed(base, voices, name) for name in MIXED]), strict=True))


@pytest.mark.model
def test_the_words_of_the_demo(heard: dict[str, ChunkResult]) -> None:
    """Heard as they were spoken, in a language that is found; every field of a segment is filled."""
    result = heard["plain"]
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
def test_german_is_recognised(base: Engine, heard: dict[str, ChunkResult]) -> None:
    """And written down."""
    assert {"en", "de", "fr"} < base.languages
    assert heard["german"].language == "de"
    assert {"heute", "wetter", "park"} < set(_words(_text(heard["german"])))


@pytest.mark.model
def test_french_is_answered_in_the_language_asked_for(base: Engine, voices: dict[str, Path]) -> None:
    """Small models hardly understand this voice, but they answer; at the one temperature asked for."""
    (result,) = base.run([_prepared(base, _voice(voices["fr-5s"]), language="fr", temperature=0.1)])
    assert result.language == "fr"
    assert _text(result)
    assert {segment.temperature for segment in result.segments} == {0.1}


@pytest.mark.model
def test_prompt_keywords_and_task_leave_the_words_alone(heard: dict[str, ChunkResult]) -> None:
    """Hints, and a translation of English to English, are heard as the plain one is."""
    assert [_words(_text(heard[name])) for name in ("prompt", "translation")] == [WORDS] * 2


@pytest.mark.model
def test_words_and_logprobs_are_for_who_asked(heard: dict[str, ChunkResult]) -> None:
    """They cost an alignment; a neighbour in the batch gets none."""
    asked = {
        name: (bool(result.segments[0].words), bool(result.segments[0].logprobs)) for name, result in heard.items()
    }
    assert asked == {name: ("words" in fields, "logprobs" in fields) for name, (_, fields) in MIXED.items()}


@pytest.mark.model
def test_alignments_share_a_batch(base: Engine, voices: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """One call a language and task, with every row that asked, and what each gives is what it gives alone."""
    calls = []

    class Counting:
        def __init__(self, model: Any) -> None:
            self._model = model

        def __getattr__(self, name: str) -> Any:
            return getattr(self._model, name)

        def align(self, encoded: Any, start: list[int], texts: list[list[int]], frames: list[int]) -> Any:
            calls.append((len(texts), encoded.shape[0]))
            return self._model.align(encoded, start, texts, frames)

    demo = _voice(voices["demo"])
    # The full window, where nothing is retried.
    chunks = [
        _prepared(base, demo, full_window=True, language="en", words=True),
        _prepared(base, demo[: 4 * SAMPLE_RATE], full_window=True, language="en", logprobs=True),
        _prepared(base, demo, full_window=True, language="en"),
        _prepared(base, _voice(voices["de-5s"]), full_window=True, language="de", words=True),
    ]
    monkeypatch.setattr(base, "_model", Counting(base._model))
    together = base.run(chunks)
    assert sorted(calls) == [(1, 1), (2, 2)]
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
    heard: dict[str, ChunkResult], voices: dict[str, Path], name: str
) -> None:
    """Together they are the text; none begins before the last has ended."""
    words = _check_words(heard[name].segments, _voice(voices[MIXED[name][0]]).size / SAMPLE_RATE)
    assert "".join(words).split() == _text(heard[name]).split()


@pytest.mark.model
@pytest.mark.parametrize("name", ["translation", "german"])
def test_the_bytes_of_logprobs_are_the_text(heard: dict[str, ChunkResult], name: str) -> None:
    """Token for token, umlauts too; each is a log of a probability."""
    tokens = [token for segment in heard[name].segments for token in segment.logprobs]
    assert b"".join(token.data for token in tokens).decode().strip() == _text(heard[name])
    assert all(-25 < token.logprob <= 1e-3 for token in tokens)
    assert np.mean([token.logprob for token in tokens]) > -1.5


@pytest.mark.model
def test_a_batch_hears_what_each_alone_does(tiny_en: Engine, voices: dict[str, Path]) -> None:
    """Keywords, lengths and what is asked for share one without touching each other."""
    demo, minute = _voice(voices["demo"]), _voice(voices["en-60s"])[: 9 * SAMPLE_RATE]
    chunks = [
        _prepared(tiny_en, minute, full_window=True, words=True),
        _prepared(tiny_en, demo, full_window=True, hotwords="milk, bread", logprobs=True),
    ]
    for chunk, together in zip(chunks, tiny_en.run(chunks), strict=True):
        (alone,) = tiny_en.run([chunk])
        assert _text(alone) == _text(together)
        assert [segment.words for segment in alone.segments] == [segment.words for segment in together.segments]
        assert [bool(segment.logprobs) for segment in together.segments] == [
            chunk.decoding.logprobs for _ in together.segments
        ]


@pytest.mark.model
def test_a_doubted_answer_comes_back_whole(tiny_en: Engine, voices: dict[str, Path]) -> None:
    """To be run with the full window, where nothing is retried any more."""
    chunk = replace(_prepared(tiny_en, _voice(voices["demo"])), speech_seconds=60.0)  # far too much for its text
    (retried,) = tiny_en.run([chunk])
    assert (retried.rejected, retried.segments, retried.language) == ("pace", (), None)
    assert retried.remainder is not None
    assert (retried.remainder.is_retry, retried.remainder.features is chunk.features) == (True, True)
    (result,) = tiny_en.run([retried.remainder])
    assert result.rejected is None
    assert _words(_text(result)) == WORDS


@pytest.mark.model
def _spoken(temperature: float) -> Hypothesis:
    return Hypothesis((BEGIN, 1, 2, BEGIN + 50, BEGIN + 50), "so", temperature, -0.2, 1.0, 0.0)


@pytest.mark.parametrize(("temperature", "written"), [(0.0, True), (0.4, True), (0.6, False)])
def test_a_rest_knows_what_was_said_before_it(temperature: float, written: bool) -> None:  # noqa: FBT001
    """All that was written in its window, without the timestamp that begins the rest; nothing after a hot sample."""
    chunk = Chunk(np.zeros((1, 0), np.float32), 5.0, 0.0, Decoding(), prefix_tokens=(BEGIN, 9, BEGIN + 20))
    expected = (BEGIN, 9, BEGIN + 20, BEGIN, 1, 2, BEGIN + 50) if written else ()
    assert engine._written(chunk, _spoken(temperature)) == expected


@pytest.mark.model
def test_what_was_said_before_is_in_the_prompt(base: Engine) -> None:
    """After the caller's own prompt."""
    tokenizer = base._tokenizer("en", "transcribe")
    written = tuple(tokenizer.encode(" and then"))
    tokens = base._prompt(tokenizer, _hinted(base, written, prompt="At first"))
    assert tokenizer.decode(tokens).strip() == "At first and then"
    assert len(base._prompt(tokenizer, _hinted(base, written * 500))) <= 224 + 4


def test_the_english_only_model(tiny_en: Engine, voices: dict[str, Path]) -> None:
    """Its vocabulary differs, and it knows one language, whatever is asked."""
    assert tiny_en.languages == frozenset({"en"})
    (result,) = _run(tiny_en, [_prepared(tiny_en, _voice(voices["demo"]), words=True, logprobs=True)])
    assert result.language == "en"
    assert _words(_text(result)) == WORDS
    assert _words(" ".join(word.text for segment in result.segments for word in segment.words)) == WORDS


@pytest.mark.model
def test_the_task_and_the_language_reach_the_prompt(base: Engine) -> None:
    """As the tokens Whisper was trained with."""
    tokenizer = base._tokenizer("de", "translate")
    steering = [tokenizer.tokenizer.id_to_token(token) for token in base._prompt(tokenizer, _hinted(base))]
    assert steering == ["<|startoftranscript|>", "<|de|>", "<|translate|>"]


@pytest.mark.model
@pytest.mark.parametrize("hotwords", ["", "milk, bread", "word " * 2000], ids=["none", "some", "too many"])
@pytest.mark.parametrize("prompt", ["", "Before this.", "x " * 2000 + "the end"], ids=["none", "some", "too long"])
def test_prompts_leave_room_to_decode(base: Engine, hotwords: str, prompt: str) -> None:
    """At most half the context together; the end of the prompt is what is kept."""
    tokenizer = base._tokenizer("en", "transcribe")
    tokens = base._prompt(tokenizer, _hinted(base, prompt=prompt, hotwords=hotwords))
    assert len(tokens) <= 224 + 4
    text = tokenizer.decode(tokens)
    assert hotwords[:9] in text
    if len(hotwords) < 100:
        assert prompt[-7:] in text


@pytest.mark.model
def test_a_prompt_is_text_and_never_a_special_token(base: Engine, tiny_en: Engine) -> None:
    """Whatever special token it names, alone or amid words: the model is told its letters."""
    for model in (base, tiny_en):
        tokenizer = model._tokenizer("en", "transcribe")
        for name in {token.content for token in tokenizer.tokenizer.get_added_tokens_decoder().values()}:
            for text in (name, f"so {name}{name} it <|{name}"):
                chunk = _hinted(model, prompt=text, hotwords=text)
                assert chunk.prompt == chunk.hotwords
                assert max(chunk.prompt, default=0) < tokenizer.eot
                assert tokenizer.decode(list(chunk.prompt)) == f" {text.strip()}" if text.strip() else not chunk.prompt


def test_hints_are_encoded_once_for_a_recording() -> None:
    """By the thread that prepares it, however many chunks it has; the engine's thread gets tokens."""
    asked: list[str] = []

    def encode(text: str) -> list[int]:
        asked.append(text)
        return [len(text)]

    prepare = Preparer(lambda samples: np.zeros((80, samples.size // 160 + 1)), encode)
    decoding = Decoding(prompt=" a hint ", hotwords="words")
    chunks = [prepare(AudioChunk(np.zeros(16_000, np.float32), float(at), ()), decoding) for at in range(5)]
    assert {(chunk.prompt, chunk.hotwords) for chunk in chunks} == {((7,), (6,))}
    assert asked == [" a hint", " words"]


@pytest.mark.model
def test_an_offset_moves_everything(tiny_en: Engine, voices: dict[str, Path]) -> None:
    """Segments, words and seek are places in the recording, not in the chunk."""
    samples = _voice(voices["demo"])
    chunks = [_prepared(tiny_en, samples, offset, language="en", words=True) for offset in (0.0, 600.0)]
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
def test_a_prompt_does_not_come_back_where_nobody_speaks(base: Engine, hint: str, *, full: bool) -> None:
    """Music that passed for speech: what the prompt makes likely is no transcript."""
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
    """Longer than the model's context, no letters at all, steering tokens spelled out."""
    samples = _voice(voices["demo"])
    hints = ["word " * 2000, "\0\n\t🎙<|endoftext|><|notimestamps|><|fr|>"]
    results = _run(tiny_en, [_prepared(tiny_en, samples, prompt=hint, hotwords=hint) for hint in hints])
    assert all(segment.end <= 4.87 for result in results for segment in result.segments)


@pytest.mark.model
@pytest.mark.parametrize("seconds", [0.1, 0.5, 30.0])
def test_sound_without_words_is_no_error(tiny_en: Engine, seconds: float) -> None:
    """Very short and very long chunks run; times stay inside."""
    samples = np.random.default_rng(0).normal(0, 0.01, round(seconds * SAMPLE_RATE)).astype(np.float32)
    decoding = {"language": "en", "temperature": 1.0, "words": True, "logprobs": True}
    (result,) = tiny_en.run([_prepared(tiny_en, samples, **decoding)])
    assert all(0 <= segment.start <= segment.end <= seconds for segment in result.segments)
    words = [word for segment in result.segments for word in segment.words]
    assert all(0 <= word.start <= word.end <= seconds for word in words)


@pytest.mark.model
def test_warming_up_is_repeatable(tiny_en: Engine) -> None:
    """It leaves nothing behind."""
    tiny_en.warm_up()
    tiny_en.warm_up()


@pytest.fixture(scope="module")
def service(base: Engine) -> Iterator[Transcriber]:
    """Give the whole way of a request behind the routes."""
    limits = BatchLimits(items=4, frames=6000, share=6000)
    scheduler = Scheduler(base.run, capacity=4, limits=limits, clock=lambda: 0.0)
    steps = StepRunner(clock=lambda: 0.0)
    yield Transcriber(scheduler, base.prepare, find_speech, blocks=pool.blocks, steps=steps, max_seconds=600)
    assert scheduler.close(60)


@pytest.mark.model
@pytest.mark.anyio
async def test_a_minute_is_heard_to_its_end(service: Transcriber, voices: dict[str, Path]) -> None:
    """In more than one window: the words of its text, in order, every word's time inside, and growing."""
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
async def test_each_of_several_hinted_languages_is_written_down(service: Transcriber, voices: dict[str, Path]) -> None:
    """English, then German, then English in one file: every stretch in its own, none translated."""
    pause = np.zeros(SAMPLE_RATE, np.float32)
    demo, german = _voice(voices["demo"]), _voice(voices["de-5s"])
    sound = encode(np.concatenate([demo, pause, german, pause, demo])[None])
    options = Options(Decoding(languages=("de", "en")))
    *_, transcript = [item async for item in service.transcribe(io.BytesIO(sound), options)]
    words = _words(transcript.text)  # type: ignore[union-attr]
    assert {"heute", "wetter", "park", "milk", "bread", "home"} < set(words)
    assert words.count("milk") == 2
    assert words.index("milk") < words.index("wetter") < len(words) - 1 - words[::-1].index("milk")


@pytest.mark.parametrize(
    ("among", "code", "probability"),
    [((), "yi", 0.5), (("de", "en"), "de", 0.75), (("en",), "en", 1.0), (("fr",), "yi", 0.5)],
)
def test_the_likeliest_hinted_language(among: tuple[str, ...], code: str, probability: float) -> None:
    """German with German and English hinted is German, however sure the model is that it is Yiddish."""
    ranked = [("<|yi|>", 0.5), ("<|de|>", 0.3), ("<|en|>", 0.1)]
    assert engine._likeliest(ranked, among) == (code, pytest.approx(probability))


@pytest.mark.model
def test_a_model_lists_the_languages_it_has_tokens_for(base: Engine, tiny_en: Engine) -> None:
    """Cantonese came with large-v3: a request for it would end in a fault of the engine."""
    assert base.languages == frozenset(NAMES) - {"yue"}
    assert tiny_en.languages == {"en"}


@pytest.mark.model
@pytest.mark.anyio
@pytest.mark.parametrize(("container", "codec", "start"), [("matroska", "libopus", 5.0), ("mp4", "aac", 20.0)])
async def test_a_film_is_heard_where_it_speaks(
    service: Service, voices: dict[str, Path], container: str, codec: str, start: float
) -> None:
    """Its sound begins later than its pictures: so do the first cue and the first word, and none lasts through silence.

    Short enough to be one chunk, and too long for one.
    """
    speech = _voice(voices["demo"])
    data = media.recording(speech, container, codec, rate=48_000, start=start, film=True)
    *segments, transcript = [
        item async for item in service.transcribe(io.BytesIO(data), Options(Decoding(words=True, language="en")))
    ]
    assert _words(transcript.text) == WORDS  # type: ignore[union-attr]
    _check_words(segments, start + 5.2)  # type: ignore[arg-type]
    words = [word for segment in segments for word in segment.words]  # type: ignore[union-attr]
    assert segments[0].start == pytest.approx(start, abs=0.3)  # type: ignore[union-attr]
    assert words[0].start == pytest.approx(start, abs=0.3)
    assert max(word.end - word.start for word in words) < 1.0


def test_a_folder_that_is_no_model_raises_what_the_command_line_catches(tmp_path: Path) -> None:
    """RuntimeError, in CTranslate2's words."""
    (tmp_path / "model.bin").write_bytes(b"not weights")
    with pytest.raises((RuntimeError, ValueError)):
        Engine(tmp_path, Device("cpu", "int8", "test"))
