"""A batch of chunks through Whisper. The only importer of faster_whisper and ctranslate2.

One `Engine` holds one model on one device. `run` is called from as many threads at a time as it has workers;
`prepare` and `find_speech` may be called from others meanwhile.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import ctranslate2
import faster_whisper
import numpy as np
import numpy.typing as npt
from faster_whisper.tokenizer import Tokenizer
from faster_whisper.vad import VadOptions, get_speech_timestamps

from localwhisper_server.types import SAMPLE_RATE, AudioChunk, Decoding, Samples, Segment, Span, Task, Voice
from localwhisper_server.whisper import acceptance, cuda_libraries, window
from localwhisper_server.whisper import tokens as reading
from localwhisper_server.whisper.chunks import (
    MIN_REMAINDER_SECONDS,
    Chunk,
    ChunkResult,
    Features,
    Preparer,
    padded,
    remainder_of,
)
from localwhisper_server.whisper.devices import ONE_WORKER, Device, Workers
from localwhisper_server.whisper.hypothesis import TEMPERATURES, Hypothesis, best, ladder

Alignment = Any  # CTranslate2 does not export its class: `alignments` and `text_token_probs`

BEAM_SIZE = 5
BEST_OF = 5
HOTTEST_TO_GO_ON_FROM = 0.5
MAX_INITIAL_TIMESTAMP = int(1.0 / reading.TIMESTAMP_SECONDS)
# A burst this short passes for speech only if the detector is this sure of it. A word alone lasts hardly longer ("yes":
# 0.3 s), and neither does a beep.
SHORT_SECONDS = 0.25
SURE = 0.7
# The detector hears nothing below -50 dB. What is louder than all but a thousandth of the samples is the level: a click
# does not count.
FAINT, AUDIBLE = 0.01, 0.03
# The encoder gains nothing from a batch on a CPU and loses its cache to a large one (BENCHMARKS.md).
ENCODED_AT_ONCE = {"cpu": 2400, "cuda": 96_000}


@dataclass(frozen=True, slots=True)
class _Row:
    """One chunk of a batch on its way through it."""

    chunk: Chunk
    language: str
    probability: float | None
    tokenizer: Tokenizer
    prompt: list[int]


def find_speech(samples: Samples, voice: Voice, *, longest: float = window.LONGEST_SECONDS) -> list[Span]:
    """Return the stretches of `samples` (shape (n,), 16 kHz) in which somebody speaks, without padding.

    What is longer than fits in a chunk of `longest` seconds is cut in its least pauses. Faint sound is raised first,
    for the detector alone.
    """
    level = float(np.quantile(np.abs(samples), 0.999)) if samples.size else 0.0
    if 0 < level < FAINT:
        samples = samples * np.float32(AUDIBLE / level)
    found = _speech(samples, voice, voice.threshold, longest)
    if any(span.seconds < SHORT_SECONDS for span in found):
        sure = _speech(samples, voice, max(voice.threshold, SURE), longest)
        found = [
            span
            for span in found
            if span.seconds >= SHORT_SECONDS or any(span.start < it.end and it.start < span.end for it in sure)
        ]
    return found


def _speech(samples: Samples, voice: Voice, threshold: float, longest: float) -> list[Span]:
    options = VadOptions(
        threshold=threshold,
        min_speech_duration_ms=voice.min_speech_ms,
        min_silence_duration_ms=voice.silence_duration_ms,
        # It cuts at the pauses there are, the plan without looking; so it is told what the plan will ask for.
        max_speech_duration_s=window.most_speech(voice.prefix_padding_ms / 1000, longest),
        speech_pad_ms=0,
    )
    found = get_speech_timestamps(samples, options)
    return [Span(span["start"] / SAMPLE_RATE, span["end"] / SAMPLE_RATE) for span in found]


def cuda_devices() -> int:
    """Count the CUDA devices the driver shows; 0 without a driver."""
    return int(ctranslate2.get_cuda_device_count())


def cuda_compute_types() -> frozenset[str]:
    """Return the precisions that the first CUDA device can run; none without a device or driver."""
    try:
        return compute_types("cuda") if cuda_devices() else frozenset()
    except (RuntimeError, ValueError):  # a driver that is broken says so at the load, in its own words
        return frozenset()


def compute_types(device: str) -> frozenset[str]:
    """Return the precisions that "cpu" or "cuda" can run.

    Raises:
        RuntimeError: there is no such device here.

    """
    return frozenset(ctranslate2.get_supported_compute_types(device))


class Engine:
    """A Whisper model, loaded.

    Raises what CTranslate2 raises (RuntimeError, ValueError) when the folder or the device will not do.
    """

    def __init__(self, folder: Path, device: Device, workers: Workers = ONE_WORKER) -> None:
        if device.name == "cuda":
            cuda_libraries.load()
        self._whisper = faster_whisper.WhisperModel(
            str(folder),
            device=device.name,
            compute_type=device.compute_type,
            cpu_threads=workers.threads,
            num_workers=workers.count,
        )
        self._model = self._whisper.model
        text = self._whisper.hf_tokenizer
        self.prepare = Preparer(
            self._whisper.feature_extractor, lambda part: text.encode(part, add_special_tokens=False).ids
        )
        self._encoded_at_once = ENCODED_AT_ONCE[device.name]
        self._tokenizer = lru_cache(maxsize=256)(self._new_tokenizer)
        # The default set ("-1" in Whisper's words) and the tokens that steer rather than say something.
        plain = self._tokenizer("en", "transcribe")
        steering = (plain.transcribe, plain.translate, plain.sot, plain.sot_prev, plain.sot_lm, plain.no_speech)
        # English-only vocabularies lack some of them.
        self._suppressed = sorted({*plain.non_speech_tokens, *(token for token in steering if token is not None)})

    @property
    def languages(self) -> frozenset[str]:
        """The language codes this model knows; only {"en"} for an English-only one."""
        token_id = self._whisper.hf_tokenizer.token_to_id
        # Models before large-v3 have no token for Cantonese, which faster-whisper lists for all multilingual ones.
        return frozenset(
            code
            for code in self._whisper.supported_languages
            if not self._model.is_multilingual or token_id(f"<|{code}|>") is not None
        )

    def warm_up(self) -> None:
        """Run a second of faint noise, so that the first request does not pay for allocations."""
        noise = np.random.default_rng(0).normal(0, 1e-3, SAMPLE_RATE).astype(np.float32)
        self.run([self.prepare(AudioChunk(noise, 0.0, ()), Decoding(language="en", temperature=0.0))])

    def run(self, chunks: Sequence[Chunk]) -> list[ChunkResult]:
        """Decode a batch and return a result per chunk, in order.

        Tasks, languages, prompts and lengths may be mixed; each chunk is encoded with the longest window among them.
        """
        frames = max(chunk.frames for chunk in chunks)
        encoded = self._encode([padded(chunk.features, frames) for chunk in chunks])
        rows = self._rows(chunks, encoded)
        full = frames == window.FULL_FRAMES
        hypotheses = self._decode(encoded, rows, full=full)
        results, unaligned = [], dict[int, reading.Reading]()
        for number, (row, hypothesis) in enumerate(zip(rows, hypotheses, strict=True)):
            read = reading.read(hypothesis.tokens, row.tokenizer, row.chunk.seconds)
            asked = row.chunk.decoding
            if acceptance.is_prompts_doing(
                hypothesis.text, hypothesis.no_speech_prob, prompt=asked.prompt + asked.hotwords
            ):
                plain = replace(asked, prompt="", hotwords="")
                bare = replace(row.chunk, decoding=plain, prompt=(), hotwords=())
                results.append(ChunkResult(None, (), bare, "prompt"))
                continue
            doubt = None if full else _doubt(row, hypothesis, read)
            if doubt:
                results.append(ChunkResult(None, (), replace(row.chunk, is_retry=True), doubt))
                continue
            segments = () if hypothesis.silent else tuple(_segment(piece, hypothesis, row) for piece in read.pieces)
            if segments and (row.chunk.decoding.words or row.chunk.decoding.logprobs):
                unaligned[number] = read
            remainder = (
                None if hypothesis.silent else remainder_of(row.chunk, read.stops_at, _written(row.chunk, hypothesis))
            )
            results.append(ChunkResult(row.language, segments, remainder))
        for number, alignment in self._align(encoded, rows, unaligned).items():
            segments = _aligned(rows[number], unaligned[number].pieces, results[number].segments, alignment)
            results[number] = replace(results[number], segments=segments)
        return results

    def _new_tokenizer(self, language: str, task: Task) -> Tokenizer:
        multilingual = self._model.is_multilingual
        return Tokenizer(self._whisper.hf_tokenizer, multilingual, task=task, language=language)

    def _encode(self, features: Sequence[Features]) -> ctranslate2.StorageView:
        """Encode windows of one length, as many at a time as the device likes."""
        at_once = max(1, self._encoded_at_once // features[0].shape[1])
        if len(features) <= at_once:
            return self._model.encode(_storage(np.stack(features)))
        parts = [
            _on_host(self._model.encode(_storage(np.stack(features[first : first + at_once]))))
            for first in range(0, len(features), at_once)
        ]
        return _storage(np.concatenate(parts))

    def _rows(self, chunks: Sequence[Chunk], encoded: ctranslate2.StorageView) -> list[_Row]:
        """Settle each chunk's language, with the encoder's output that is there anyway, and its prompt."""
        ranking: list[list[tuple[str, float]]] = [[("<|en|>", 1.0)] for _ in chunks]
        detect = self._model.is_multilingual and not all(chunk.decoding.language for chunk in chunks)
        if detect:
            ranking = self._model.detect_language(encoded)
        rows = []
        for chunk, ranked in zip(chunks, ranking, strict=True):
            likeliest, probability = _likeliest(ranked, chunk.decoding.languages)
            given = chunk.decoding.language if self._model.is_multilingual else "en"
            language = given or likeliest
            tokenizer = self._tokenizer(language, chunk.decoding.task)
            prompt = self._prompt(tokenizer, chunk)
            rows.append(
                _Row(chunk, language, None if given or chunk.language_provisional else probability, tokenizer, prompt)
            )
        return rows

    def _prompt(self, tokenizer: Tokenizer, chunk: Chunk) -> list[int]:
        """Return the tokens before the first that is decoded: hotwords, prompt, what was said just before.

        Together they get what Whisper gives a prompt; the prompt's beginning is dropped first.
        """
        room = self._whisper.max_length // 2 - 1
        hotwords, said = chunk.hotwords[:room], chunk.prompt + chunk.prefix_tokens
        before = [*hotwords, *said[max(0, len(said) + len(hotwords) - room) :]]
        return [*([tokenizer.sot_prev, *before] if before else ()), *tokenizer.sot_sequence]

    def _decode(self, encoded: ctranslate2.StorageView, rows: Sequence[_Row], *, full: bool) -> list[Hypothesis]:
        """Decode every row; in the full window those that are not accepted climb the temperature ladder."""
        tried: list[list[Hypothesis]] = [[] for _ in rows]
        ladders = [ladder(row.chunk.decoding.temperature) if full else TEMPERATURES[:1] for row in rows]
        waiting = list(range(len(rows)))
        for step in range(len(TEMPERATURES)):
            for numbers in _alike(
                waiting, [row.prompt for row in rows], [temperatures[step:] for temperatures in ladders]
            ):
                temperature = ladders[numbers[0]][step]
                results = self._generate(
                    _taken(encoded, numbers), [rows[number] for number in numbers], temperature, full=full
                )
                for number, result in zip(numbers, results, strict=True):
                    tried[number].append(_hypothesis(result, rows[number].tokenizer, temperature))
            waiting = [
                number for number in waiting if not tried[number][-1].accepted and step + 1 < len(ladders[number])
            ]
            if not waiting:
                break
        return [best(hypotheses) for hypotheses in tried]

    def _generate(
        self, encoded: ctranslate2.StorageView, rows: Sequence[_Row], temperature: float, *, full: bool
    ) -> list[ctranslate2.models.WhisperGenerationResult]:
        search: dict[str, Any] = (
            {"beam_size": 1, "num_hypotheses": BEST_OF, "sampling_topk": 0, "sampling_temperature": temperature}
            if temperature
            else {"beam_size": BEAM_SIZE}
        )
        tokens = max(window.most_tokens(row.chunk.seconds, full=full) for row in rows)
        # CTranslate2 writes at most half of max_length, and no more than max_length less the prompt.
        longest = min(self._whisper.max_length, max(2 * tokens, tokens + len(rows[0].prompt)))
        return list(
            self._model.generate(
                encoded,
                [row.prompt for row in rows],
                max_length=longest,
                return_scores=True,
                return_no_speech_prob=True,
                suppress_tokens=self._suppressed,
                max_initial_timestamp_index=MAX_INITIAL_TIMESTAMP,
                **search,
            )
        )

    def _align(
        self, encoded: ctranslate2.StorageView, rows: Sequence[_Row], readings: Mapping[int, reading.Reading]
    ) -> dict[int, Alignment]:
        """Align the text of each row that has a reading with its sound; those of one language and task together."""
        groups: dict[tuple[int, ...], list[int]] = {}
        for number in readings:
            groups.setdefault(tuple(rows[number].tokenizer.sot_sequence), []).append(number)
        found: dict[int, Alignment] = {}
        for start, numbers in groups.items():
            texts = [[token for piece in readings[number].pieces for token in piece.tokens] for number in numbers]
            # No further than the chunk: beyond it there is only padding to align with.
            frames = [
                min(math.ceil(rows[number].chunk.seconds * window.FRAMES_PER_SECOND), 2 * encoded.shape[1])
                for number in numbers
            ]
            alignments = self._model.align(_taken(encoded, numbers), list(start), texts, frames)
            found |= dict(zip(numbers, alignments, strict=True))
        return found


def _likeliest(ranked: Sequence[tuple[str, float]], among: Sequence[str]) -> tuple[str, float]:
    """Return the likeliest language's code and its probability; of those in `among` alone, where there are any.

    `ranked` are tokens (`<|en|>`) with their probabilities, the likeliest first.
    """
    named = [(token.strip("<|>"), probability) for token, probability in ranked]
    hinted = [(code, probability) for code, probability in named if code in among]
    if not hinted:
        return named[0]
    code, probability = hinted[0]
    return code, probability / max(sum(share for _, share in hinted), 1e-9)


def _aligned(
    row: _Row,
    pieces: Sequence[reading.Piece],
    segments: Sequence[Segment],
    alignment: Alignment,
) -> tuple[Segment, ...]:
    """Add words and token log probabilities from the alignment of a chunk's text."""
    chunk, tokenizer = row.chunk, row.tokenizer
    starts = reading.token_starts(alignment.alignments, sum(len(piece.tokens) for piece in pieces))
    aligned, position = [], 0
    for segment, piece in zip(segments, pieces, strict=True):
        tokens, last = list(piece.tokens), position + len(piece.tokens)
        words = reading.words(tokens, starts[position : last + 1], tokenizer, seconds=chunk.seconds)
        logprobs = reading.logprobs(tokens, alignment.text_token_probs[position:last], tokenizer)
        aligned.append(
            replace(
                segment,
                words=tuple(
                    replace(word, start=_in_recording(chunk, start, 2), end=_in_recording(chunk, end, 2))
                    for word in words
                    for start, end in (reading.in_speech(word.start, word.end, chunk.speech),)
                )
                if chunk.decoding.words
                else (),
                logprobs=tuple(logprobs) if chunk.decoding.logprobs else (),
            )
        )
        position = last
    return tuple(aligned)


def _storage(features: Features) -> ctranslate2.StorageView:
    return ctranslate2.StorageView.from_array(np.ascontiguousarray(features))


def _taken(encoded: ctranslate2.StorageView, numbers: Sequence[int]) -> ctranslate2.StorageView:
    """Take some rows of a batch; by way of the host, since a StorageView cannot be sliced on the device."""
    if len(numbers) == encoded.shape[0]:
        return encoded
    return _storage(_on_host(encoded)[list(numbers)])


def _on_host(encoded: ctranslate2.StorageView) -> npt.NDArray[Any]:
    host = encoded.to_device(ctranslate2.Device.cpu)
    if host.dtype == ctranslate2.DataType.bfloat16:  # which NumPy does not know; the model converts it back
        host = host.to(ctranslate2.DataType.float32)
    return np.asarray(host)


def _alike(
    numbers: Iterable[int], prompts: Sequence[list[int]], ladders: Sequence[tuple[float, ...]]
) -> list[list[int]]:
    """Group rows that one call of generate can take: prompts of one length, one temperature next."""
    groups: dict[tuple[int, float], list[int]] = {}
    for number in numbers:
        groups.setdefault((len(prompts[number]), ladders[number][0]), []).append(number)
    return list(groups.values())


def _hypothesis(
    result: ctranslate2.models.WhisperGenerationResult, tokenizer: Tokenizer, temperature: float
) -> Hypothesis:
    tokens = tuple(result.sequences_ids[0])
    text = tokenizer.decode(list(tokens)).strip()
    # The score is the mean over the tokens; Whisper's average counts the end of text as well.
    avg_logprob = result.scores[0] * len(tokens) / (len(tokens) + 1)
    return Hypothesis(tokens, text, temperature, avg_logprob, reading.compression_ratio(text), result.no_speech_prob)


def _written(chunk: Chunk, hypothesis: Hypothesis) -> tuple[int, ...]:
    """Return the tokens to go on from, without the second of the two timestamps at their end.

    After a hot sample there are none, as in Whisper's reference code: what was made up once would be made up again.
    """
    return chunk.prefix_tokens + hypothesis.tokens[:-1] if hypothesis.temperature <= HOTTEST_TO_GO_ON_FROM else ()


def _doubt(row: _Row, hypothesis: Hypothesis, read: reading.Reading) -> str | None:
    chunk = row.chunk
    allowed = window.most_tokens(chunk.seconds, full=False)
    stops_at = read.stops_at or 0.0
    continues = MIN_REMAINDER_SECONDS <= stops_at <= chunk.seconds - MIN_REMAINDER_SECONDS
    return acceptance.doubt(
        acceptance.Answer(
            text=hypothesis.text,
            tokens=sum(len(piece.tokens) for piece in read.pieces),
            avg_logprob=hypothesis.avg_logprob,
            compression_ratio=hypothesis.compression_ratio,
            last_timestamp=read.last,
            finished=read.closed and len(hypothesis.tokens) < allowed,
            seconds=chunk.seconds,
            speech_seconds=chunk.speech_seconds,
            # What it leaves for another run it has not broken off.
            speech_end=stops_at if continues else chunk.speech_end,
            language_probability=row.probability,
        )
    )


def _in_recording(chunk: Chunk, seconds: float, digits: int) -> float:
    """Return a time in the chunk as one in the recording, rounded, but not past the chunk's end."""
    return min(round(chunk.offset + seconds, digits), chunk.offset + chunk.seconds)


def _segment(piece: reading.Piece, hypothesis: Hypothesis, row: _Row) -> Segment:
    begin = row.tokenizer.timestamp_begin
    start, end = reading.in_speech(piece.start, piece.end, row.chunk.speech)
    return Segment(
        start=_in_recording(row.chunk, start, 3),
        end=_in_recording(row.chunk, end, 3),
        text=row.tokenizer.decode(list(piece.tokens)).rstrip(),
        # With its timestamps, as OpenAI's `tokens` have them.
        tokens=(
            begin + round(piece.start / reading.TIMESTAMP_SECONDS),
            *piece.tokens,
            begin + round(piece.end / reading.TIMESTAMP_SECONDS),
        ),
        seek=round(row.chunk.offset * window.FRAMES_PER_SECOND),
        temperature=hypothesis.temperature,
        avg_logprob=hypothesis.avg_logprob,
        compression_ratio=hypothesis.compression_ratio,
        no_speech_prob=hypothesis.no_speech_prob,
    )
