from __future__ import annotations

import io
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ctranslate2
import faster_whisper
import jiwer
import numpy as np
import pytest
from faster_whisper.audio import decode_audio
from tokenizers import Tokenizer as Vocabulary

from localwhisper_client.shared.languages import NAMES
from localwhisper_server.audio import pool
from localwhisper_server.transcription.scheduler import Scheduler
from localwhisper_server.transcription.transcriber import StepRunner, Transcriber
from localwhisper_server.types import SAMPLE_RATE, AudioChunk, BatchLimits, Decoding, Options, Span
from localwhisper_server.whisper.chunks import find_speech
from localwhisper_server.whisper.devices import Device
from localwhisper_server.whisper.engine import Engine, likeliest_language, prompt_tokens, take_rows, to_storage
from tests.server import media
from tests.server.engine_double import OUT_OF_MEMORY, chunk
from tests.server.sound import encode
from tests.server.whisper.recordings import decoded, prepared, samples_of, segments_of, words_of
from tests.server.whisper.vocabulary import Tokenizer

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from localwhisper_server.types import Segment, Transcript
    from tests.server.whisper.conftest import Engines

WORDS = [
    "please",
    "buy",
    "milk",
    "and",
    "bread",
    "on",
    "the",
    "way",
    "home",
    "and",
    "call",
    "me",
    "when",
    "you",
    "are",
    "there",
]


@pytest.mark.parametrize(
    "kind", [ctranslate2.DataType.float32, ctranslate2.DataType.float16, ctranslate2.DataType.bfloat16]
)
def test_rows_are_taken_in_any_precision(kind: ctranslate2.DataType) -> None:
    """A GPU encodes in float16 or bfloat16; NumPy has no bfloat16."""
    encoded = to_storage(np.arange(12, dtype=np.float32).reshape(3, 2, 2)).to(kind)
    taken = take_rows(encoded, [2, 0]).to(ctranslate2.DataType.float32)
    assert np.asarray(taken).tolist() == [[[8, 9], [10, 11]], [[0, 1], [2, 3]]]
    assert take_rows(encoded, [0, 1, 2]) is encoded


@pytest.mark.parametrize(
    ("among", "code", "probability"),
    [((), "yi", 0.5), (("de", "en"), "de", 0.75), (("en",), "en", 1.0), (("fr",), "yi", 0.5)],
)
def test_the_likeliest_of_the_hinted_languages(among: tuple[str, ...], code: str, probability: float) -> None:
    """German with German and English hinted is German, however probable Yiddish is."""
    ranked = [("<|yi|>", 0.5), ("<|de|>", 0.3), ("<|en|>", 0.1)]
    assert likeliest_language(ranked, among) == (code, pytest.approx(probability))


@pytest.mark.parametrize(
    ("hotwords", "previous", "expected"),
    [
        ((), (), []),
        ((), (1, 2), [901, 1, 2]),
        ((7,), (1, 2), [901, 7, 1, 2]),
        ((7, 8), (1, 2, 3, 4), [901, 7, 8, 3, 4]),
        ((5, 6, 7, 8, 9), (1, 2), [901, 5, 6, 7, 8]),
    ],
    ids=["none", "text", "hotwords", "too much text", "too many hotwords"],
)
def test_the_prompt_leaves_room_to_decode(
    hotwords: tuple[int, ...], previous: tuple[int, ...], expected: list[int]
) -> None:
    """Here four tokens: hotwords come first, and the end of the text is kept; then language and task."""
    made = chunk(hotwords=hotwords, prompt=previous[:1], prefix_tokens=previous[1:])
    assert prompt_tokens(made, Tokenizer(), room=4) == [*expected, 902, 903, 904]


def test_a_folder_without_a_model_cannot_be_loaded(tmp_path: Path) -> None:
    """CTranslate2's own error is raised."""
    (tmp_path / "model.bin").write_bytes(b"not weights")
    with pytest.raises((RuntimeError, ValueError)):
        Engine(tmp_path, Device("cpu", "int8", "test"))


# A batch with different languages, tasks and hints, which most tests use.
MIXED: dict[str, tuple[str, dict[str, Any]]] = {
    "plain": ("demo", {}),
    "german": ("de-5s", {"words": True, "logprobs": True}),
    "prompt": ("demo", {"language": "en", "prompt": "A shopping list.", "words": True, "temperature": 0.0}),
    "translation": ("demo", {"task": "translate", "hotwords": "milk, bread", "logprobs": True}),
}


@pytest.fixture(scope="session")
def results(engines: Engines, voices: dict[str, Path]) -> dict[str, list[Segment]]:
    """Give the base model's segments for one batch of all of MIXED, and check the languages."""
    chunks = [prepared(engines["base"], samples_of(voices[voice]), **fields) for voice, fields in MIXED.values()]
    found = decoded(engines["base"], chunks)
    assert [results[-1].language for results in found] == ["en", "de", "en", "en"]
    return dict(zip(MIXED, map(segments_of, found), strict=True))


def _words(segments: Sequence[Segment], seconds: float) -> list[str]:
    """Return the timed words; they must be in order and inside the recording."""
    words = [word for segment in segments for word in segment.words]
    assert all(0 <= word.start <= word.end <= seconds for word in words)
    assert all(before.end <= after.start + 1e-6 for before, after in pairwise(words))
    assert sum(word.end > word.start for word in words) > len(words) / 2
    return [word.text for word in words]


@pytest.mark.model
def test_every_field_of_a_segment_is_filled(results: dict[str, list[Segment]]) -> None:
    """With its text, times, tokens and measures."""
    segment = results["plain"][0]
    assert segment.text.startswith(" ")
    assert 0 <= segment.start < segment.end <= 4.87
    assert -1 < segment.avg_logprob < 0
    assert 0.5 < segment.compression_ratio < 2.4
    assert 0 <= segment.no_speech_prob < 0.6
    assert segment.temperature == 0.0
    assert segment.tokens[0] >= 50364  # a timestamp


@pytest.mark.model
def test_the_words_are_those_that_are_spoken(results: dict[str, list[Segment]]) -> None:
    """In the detected language; with prompt and hotwords, and as a translation of English to English, they stay."""
    assert [words_of(results[name]) for name in ("plain", "prompt", "translation")] == [WORDS] * 3
    assert {"heute", "wetter", "park"} < set(words_of(results["german"]))


@pytest.mark.model
def test_words_and_logprobs_only_if_asked_for(results: dict[str, list[Segment]]) -> None:
    """They cost an alignment; other chunks of the batch get none."""
    asked = {name: (bool(found[0].words), bool(found[0].logprobs)) for name, found in results.items()}
    assert asked == {name: ("words" in fields, "logprobs" in fields) for name, (_, fields) in MIXED.items()}


@pytest.mark.model
@pytest.mark.parametrize("name", ["prompt", "german"])
def test_words_are_in_order_and_inside_the_recording(
    results: dict[str, list[Segment]], voices: dict[str, Path], name: str
) -> None:
    """Together they are the text; none begins before the one before it ends."""
    words = _words(results[name], samples_of(voices[MIXED[name][0]]).size / SAMPLE_RATE)
    assert "".join(words) == "".join(segment.text for segment in results[name])


@pytest.mark.model
@pytest.mark.parametrize("name", ["translation", "german"])
def test_the_bytes_of_logprobs_are_the_text(results: dict[str, list[Segment]], name: str) -> None:
    """Of all tokens, with umlauts; each has the logarithm of a probability."""
    tokens = [token for segment in results[name] for token in segment.logprobs]
    assert b"".join(token.data for token in tokens).decode() == "".join(segment.text for segment in results[name])
    assert all(-25 < token.logprob <= 1e-3 for token in tokens)
    assert np.mean([token.logprob for token in tokens]) > -1.5


@pytest.mark.model
def test_french_is_answered_in_the_language_asked_for(base: Engine, voices: dict[str, Path]) -> None:
    """Small models get few of the words, but in that language, and at the one temperature asked for."""
    (result,) = base.run([prepared(base, samples_of(voices["fr-5s"]), language="fr", temperature=0.1)])
    assert result.language == "fr"
    assert {segment.temperature for segment in result.segments} == {0.1}


@pytest.mark.model
def test_a_batch_gives_the_results_of_each_chunk_alone(engines: Engines, voices: dict[str, Path]) -> None:
    """Whatever their hints, lengths and options; alignments of one language and task share a call."""
    base, demo = engines["base"], samples_of(voices["demo"])
    # All have the smallest window, and none is rejected.
    chunks = [
        prepared(base, demo, language="en", words=True),
        prepared(base, demo[: 4 * SAMPLE_RATE], language="en", logprobs=True),
        prepared(base, demo, language="en", hotwords="milk, bread"),
        prepared(base, samples_of(voices["de-5s"]), language="de", words=True),
    ]
    engines.aligned.clear()
    together = base.run(chunks)
    assert all(result.segments for result in together)
    assert sorted(engines.aligned) == [(1, 1), (2, 2)]
    for one, result in zip(chunks, together, strict=True):
        (alone,) = base.run([one])
        assert [(segment.tokens, segment.words) for segment in alone.segments] == [
            (segment.tokens, segment.words) for segment in result.segments
        ]
        assert all(bool(segment.logprobs) is one.decoding.logprobs for segment in result.segments)


@pytest.mark.model
def test_the_english_only_model(base: Engine, tiny_en: Engine, voices: dict[str, Path]) -> None:
    """Its vocabulary differs, and English is its only language; Cantonese came with large-v3."""
    assert (base.languages, tiny_en.languages) == (frozenset(NAMES) - {"yue"}, {"en"})
    tiny_en.warm_up()
    ((*_, result),) = decoded(tiny_en, [prepared(tiny_en, samples_of(voices["demo"]), words=True, logprobs=True)])
    assert result.language == "en"
    assert words_of(result.segments) == words_of("".join(_words(result.segments, 4.9))) == WORDS


@pytest.mark.model
@pytest.mark.parametrize("model", ["base", "tiny.en"])
def test_a_prompt_is_text_and_never_a_special_token(engines: Engines, model: str) -> None:
    """Whatever special token it names, alone or between words: the model gets its letters. Of the times, four do."""
    vocabulary = Vocabulary.from_file(str(engines.folder(model) / "tokenizer.json"))
    special = vocabulary.get_added_tokens_decoder()
    nothing = AudioChunk(np.zeros(SAMPLE_RATE, np.float32), 0.0, ())
    for name in {token.content for token in special.values()}:
        if "." in name and not name.endswith("0.00|>"):
            continue
        for text in (name, f"so {name}{name} it <|{name}"):
            made = engines[model].prepare(nothing, Decoding(prompt=text, hotwords=text))
            assert made.prompt == made.hotwords
            assert not special.keys() & set(made.prompt)
            expected = f" {text.strip()}" if text.strip() else ""
            assert vocabulary.decode(list(made.prompt), skip_special_tokens=False) == expected


@pytest.mark.model
def test_an_offset_moves_everything(tiny_en: Engine, voices: dict[str, Path]) -> None:
    """The times of segments, words and seek are those in the recording, not in the chunk."""
    samples = samples_of(voices["demo"])
    chunks = [prepared(tiny_en, samples, offset, language="en", words=True) for offset in (0.0, 600.0)]
    here, there = map(segments_of, decoded(tiny_en, chunks))
    assert here
    for before, after in zip(here, there, strict=True):
        assert (after.start, after.end) == pytest.approx((before.start + 600, before.end + 600))
        assert (after.seek, after.tokens) == (before.seek + 60_000, before.tokens)
        assert [word.start for word in after.words] == pytest.approx([word.start + 600 for word in before.words])


@pytest.mark.model
def test_an_unloaded_engine_gives_its_memory_back(tiny_en: Engine, voices: dict[str, Path]) -> None:
    """To the system, not only to the process; loaded again, it decodes the same. A running batch prevents it."""
    chunks = [prepared(tiny_en, samples_of(voices["demo"]), 0.0)]
    before = segments_of(decoded(tiny_en, chunks)[0])
    loaded = _resident_mb()
    assert tiny_en.unload()
    assert tiny_en.unload()  # already
    if loaded:
        assert _resident_mb() < loaded - 20
    with pytest.raises(RuntimeError, match="No model replica"):
        tiny_en.run(chunks)
    tiny_en.reload()
    assert segments_of(decoded(tiny_en, chunks)[0]) == before


def _resident_mb() -> int:
    """Return this process's memory; 0 where there is no /proc."""
    status = Path("/proc/self/status")
    lines = status.read_text(encoding="ascii").splitlines() if status.exists() else []
    return next((int(line.split()[1]) // 1024 for line in lines if line.startswith("VmRSS")), 0)


@pytest.mark.model
def test_the_prompt_is_not_repeated_over_music(base: Engine) -> None:
    """Nor are hotwords, nor over noise, if the detector takes either for speech; in short windows and in the full."""
    time = np.arange(4 * SAMPLE_RATE) / SAMPLE_RATE
    notes = np.array([262, 330, 392, 523])[(time * 2).astype(int) % 4]
    melody = (0.2 * np.sin(2 * np.pi * time * notes) * np.exp(-(time * 2 % 1) * 3)).astype(np.float32)
    noise = np.random.default_rng(0).normal(0, 0.02, time.size).astype(np.float32)
    cases: Any = [(melody, "prompt", False), (noise, "hotwords", True)]
    for samples, hint, full in cases:
        asked: Any = {"language": "en", hint: "Welcome to the meeting."}
        piece = AudioChunk(samples, 0.0, (Span(0.0, 4.0),))
        (results,) = decoded(base, [base.prepare(piece, Decoding(**asked), full_window=full)])
        assert words_of(segments_of(results)) == []


@pytest.mark.model
def test_odd_hints_are_no_error(tiny_en: Engine, voices: dict[str, Path]) -> None:
    """Longer than the model's context, without letters, or with the names of special tokens."""
    samples = samples_of(voices["demo"])
    hints = ["word " * 2000, "\0\n\t🎙<|endoftext|><|notimestamps|><|fr|>"]
    found = decoded(tiny_en, [prepared(tiny_en, samples, prompt=hint, hotwords=hint) for hint in hints])
    assert all(segment.end <= 4.87 for results in found for segment in segments_of(results))


@pytest.mark.model
@pytest.mark.parametrize("seconds", [0.1, 0.5, 30.0])
def test_sound_without_words_is_no_error(tiny_en: Engine, seconds: float) -> None:
    """Very short and very long chunks; times stay inside the chunk."""
    samples = np.random.default_rng(0).normal(0, 0.01, round(seconds * SAMPLE_RATE)).astype(np.float32)
    decoding = {"language": "en", "temperature": 1.0, "words": True, "logprobs": True}
    (result,) = tiny_en.run([prepared(tiny_en, samples, **decoding)])
    for segment in result.segments:
        assert all(0 <= one.start <= one.end <= seconds for one in (segment, *segment.words))


# A transcriber around it


@pytest.fixture(scope="module")
def service(engines: Engines) -> Iterator[Transcriber]:
    """Give a transcriber on the base model."""
    limits = BatchLimits(items=4, frames=6000, share=6000)
    scheduler = Scheduler(engines["base"].run, capacity=4, limits=limits, clock=lambda: 0.0)
    yield Transcriber(
        scheduler=scheduler,
        prepare=engines["base"].prepare,
        find_speech=find_speech,
        blocks=pool.blocks,
        steps=StepRunner(clock=lambda: 0.0),
        max_seconds=600,
    )
    assert scheduler.close(60)


async def _transcribed(service: Transcriber, sound: bytes, **decoding: Any) -> Transcript:
    *_, transcript = [item async for item in service.transcribe(io.BytesIO(sound), Options(Decoding(**decoding)))]
    return transcript  # type: ignore[return-value] # the last item


@pytest.mark.model
@pytest.mark.anyio
async def test_a_minute_is_transcribed_to_its_end(service: Transcriber, voices: dict[str, Path]) -> None:
    """In more than one window: the words of its text, in order, with times that grow."""
    transcript = await _transcribed(service, voices["en-60s"].read_bytes(), words=True)
    expected = words_of(voices["en-60s"].with_suffix(".txt").read_text())
    assert jiwer.wer(" ".join(expected), " ".join(words_of(transcript.text))) < 0.1
    assert transcript.language == "en"
    assert transcript.duration == pytest.approx(60.6, abs=0.1)
    assert len({segment.seek for segment in transcript.segments}) > 1
    assert all(before.end <= after.start + 0.02 for before, after in pairwise(transcript.segments))
    assert len(_words(transcript.segments, 60.7)) > 100


@pytest.mark.model
@pytest.mark.anyio
async def test_each_stretch_is_transcribed_in_its_own_language(service: Transcriber, voices: dict[str, Path]) -> None:
    """English, German and English in one file, both hinted; none is translated."""
    pause = np.zeros(SAMPLE_RATE, np.float32)
    demo, german = samples_of(voices["demo"]), samples_of(voices["de-5s"])
    sound = encode(np.concatenate([demo, pause, german, pause, demo])[None])
    words = words_of((await _transcribed(service, sound, languages=("de", "en"))).text)
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
    transcript = await _transcribed(service, data, words=True, language="en")
    assert words_of(transcript.text) == WORDS
    _words(transcript.segments, start + 5.2)
    words = [word for segment in transcript.segments for word in segment.words]
    assert (transcript.segments[0].start, words[0].start) == pytest.approx((start, start), abs=0.3)
    assert max(word.end - word.start for word in words) < 1.0


class Cramped:
    """CTranslate2's model on a device whose encoder has room for so many windows at a time."""

    def __init__(self, model: Any, room: int) -> None:
        self._model = model
        self.room, self.sizes = room, list[int]()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def encode(self, features: ctranslate2.StorageView) -> ctranslate2.StorageView:
        """Fail as CTranslate2 does, or encode."""
        self.sizes.append(features.shape[0])
        if features.shape[0] > self.room:
            raise RuntimeError(OUT_OF_MEMORY)
        encoded: ctranslate2.StorageView = self._model.encode(features)
        return encoded


@pytest.mark.model
def test_the_encoder_takes_fewer_at_a_time_when_memory_is_short(engines: Engines, voices: dict[str, Path]) -> None:
    """The decoder keeps its batch, and the answers stay the same; one window that does not fit is an error."""
    models: list[Cramped] = []

    def load(*given: Any, **options: Any) -> Any:
        whisper = faster_whisper.WhisperModel(*given, **options)
        whisper.model = Cramped(whisper.model, room=1)
        models.append(whisper.model)
        return whisper

    cramped = Engine(engines.folder("tiny.en"), Device("cpu", "int8", "test"), load_model=load)
    samples = decode_audio(str(voices["demo"]))
    chunks = [cramped.prepare(AudioChunk(samples, offset, ()), Decoding()) for offset in (0.0, 5.0, 10.0)]
    expected = [result.segments for result in engines["tiny.en"].run(chunks)]
    (model,) = models
    for sizes in ([2, 1, 1, 1], [1, 1, 1]):
        model.sizes.clear()
        assert [result.segments for result in cramped.run(chunks)] == expected
        assert model.sizes == sizes  # the size that fits is kept
    model.room = 0
    with pytest.raises(RuntimeError, match="out of memory"):
        cramped.run(chunks)
