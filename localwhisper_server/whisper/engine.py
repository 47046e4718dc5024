"""A batch of chunks through Whisper.

One `Engine` holds one model on one device. `run` may be called by as many threads at a time as it has workers, and
`prepare` by any others meanwhile.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import ctranslate2
import faster_whisper
import numpy as np
import numpy.typing as npt
from faster_whisper.tokenizer import Tokenizer

from localwhisper_server.types import SAMPLE_RATE, AudioChunk, Decoding, Segment, Task
from localwhisper_server.whisper import cuda, decoding_rules, tokens
from localwhisper_server.whisper.chunks import (
    MIN_REMAINDER_SECONDS,
    Chunk,
    ChunkResult,
    Features,
    Preparer,
    padded,
    remainder_of,
)
from localwhisper_server.whisper.decoding_rules import FRAMES_PER_SECOND, FULL_FRAMES, TEMPERATURES, Hypothesis
from localwhisper_server.whisper.devices import ONE_WORKER, Device, Workers
from localwhisper_server.whisper.tokens import TIMESTAMP_SECONDS, ParsedTokens, TimedText

Alignment = Any  # CTranslate2 does not export its class: `alignments` and `text_token_probs`

BEAM_SIZE = 5
BEST_OF = 5
MAX_INITIAL_TIMESTAMP = int(1.0 / TIMESTAMP_SECONDS)
# Frames per call of the encoder. On a CPU a larger batch gains nothing and no longer fits the cache (BENCHMARKS.md).
ENCODED_AT_ONCE = {"cpu": 2400, "cuda": 96_000}


@dataclass(frozen=True, slots=True)
class _Row:
    """One chunk of a batch: with its language (`probability` None if it was given or is provisional) and prompt."""

    chunk: Chunk
    language: str
    probability: float | None
    tokenizer: Tokenizer
    prompt: list[int]


class Engine:
    """A loaded Whisper model. `load_model` and `load_libraries` are there for tests.

    Raises:
        RuntimeError, ValueError: CTranslate2 cannot load the folder, or not on this device.

    """

    def __init__(
        self,
        folder: Path,
        device: Device,
        workers: Workers = ONE_WORKER,
        *,
        load_model: Callable[..., Any] = faster_whisper.WhisperModel,
        load_libraries: Callable[[], object] = cuda.load_libraries,
    ) -> None:
        if device.name == "cuda":
            load_libraries()
        self._whisper = load_model(
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
        # Whisper's default set ("-1") and the control tokens, some of which English-only vocabularies lack.
        plain = self._tokenizer("en", "transcribe")
        control = (plain.transcribe, plain.translate, plain.sot, plain.sot_prev, plain.sot_lm, plain.no_speech)
        self._suppressed = sorted({*plain.non_speech_tokens, *(token for token in control if token is not None)})

    @property
    def languages(self) -> frozenset[str]:
        """The language codes that this model knows; only {"en"} for an English-only one."""
        token_id = self._whisper.hf_tokenizer.token_to_id
        # Models before large-v3 have no token for Cantonese, which faster-whisper lists for all multilingual ones.
        return frozenset(
            code
            for code in self._whisper.supported_languages
            if not self._model.is_multilingual or token_id(f"<|{code}|>") is not None
        )

    def warm_up(self) -> None:
        """Run a second of faint noise, so that the first request does not wait for allocations."""
        noise = np.random.default_rng(0).normal(0, 1e-3, SAMPLE_RATE).astype(np.float32)
        self.run([self.prepare(AudioChunk(noise, 0.0, ()), Decoding(language="en", temperature=0.0))])

    def run(self, chunks: Sequence[Chunk]) -> list[ChunkResult]:
        """Decode a batch and return a result per chunk, in order.

        Tasks, languages, prompts and lengths may be mixed. All chunks are encoded with the longest window among them.

        Raises:
            RuntimeError, MemoryError: CTranslate2 failed; see `model_manager.is_out_of_memory`.

        """
        frames = max(chunk.frames for chunk in chunks)
        full_window = frames == FULL_FRAMES
        encoded = self._encode([padded(chunk.features, frames) for chunk in chunks])
        rows = self._rows(chunks, encoded)
        hypotheses = self._decode(encoded, rows, full_window=full_window)
        results, unaligned = [], dict[int, ParsedTokens]()
        for number, (row, hypothesis) in enumerate(zip(rows, hypotheses, strict=True)):
            parsed = tokens.parse_tokens(hypothesis.tokens, row.tokenizer, row.chunk.seconds)
            result = _rejection(row, hypothesis, parsed, full_window=full_window) or _result(row, hypothesis, parsed)
            results.append(result)
            if result.segments and (row.chunk.decoding.words or row.chunk.decoding.logprobs):
                unaligned[number] = parsed
        for number, alignment in self._align(encoded, rows, unaligned).items():
            segments = _aligned(rows[number], unaligned[number].texts, results[number].segments, alignment)
            results[number] = replace(results[number], segments=segments)
        return results

    def _new_tokenizer(self, language: str, task: Task) -> Tokenizer:
        multilingual = self._model.is_multilingual
        return Tokenizer(self._whisper.hf_tokenizer, multilingual, task=task, language=language)

    def _encode(self, features: Sequence[Features]) -> ctranslate2.StorageView:
        """Encode windows of one length, in parts of the size that suits the device."""
        at_once = max(1, self._encoded_at_once // features[0].shape[1])
        if len(features) <= at_once:
            return self._model.encode(to_storage(np.stack(features)))
        parts = [
            _on_host(self._model.encode(to_storage(np.stack(features[first : first + at_once]))))
            for first in range(0, len(features), at_once)
        ]
        return to_storage(np.concatenate(parts))

    def _rows(self, chunks: Sequence[Chunk], encoded: ctranslate2.StorageView) -> list[_Row]:
        """Choose the language of each chunk, detected from the encoder's output if it is not given, and its prompt."""
        multilingual = self._model.is_multilingual
        ranking: list[list[tuple[str, float]]] = [[("<|en|>", 1.0)] for _ in chunks]
        if multilingual and not all(chunk.decoding.language for chunk in chunks):
            ranking = self._model.detect_language(encoded)
        rows = []
        for chunk, ranked in zip(chunks, ranking, strict=True):
            likeliest, probability = decoding_rules.likeliest_language(ranked, chunk.decoding.languages)
            given = chunk.decoding.language if multilingual else "en"
            language = given or likeliest
            tokenizer = self._tokenizer(language, chunk.decoding.task)
            previous = chunk.prompt + chunk.prefix_tokens
            # Half of the context for the prompt, as in Whisper's reference code.
            room = self._whisper.max_length // 2 - 1
            prompt = tokens.prompt_tokens(chunk.hotwords, previous, tokenizer, room=room)
            certain = given or chunk.language_provisional
            rows.append(_Row(chunk, language, None if certain else probability, tokenizer, prompt))
        return rows

    def _decode(self, encoded: ctranslate2.StorageView, rows: Sequence[_Row], *, full_window: bool) -> list[Hypothesis]:
        """Decode all rows; with the full window by temperature fallback."""

        def generate(numbers: list[int], temperature: float) -> list[Hypothesis]:
            batch = [rows[number] for number in numbers]
            results = self._generate(take_rows(encoded, numbers), batch, temperature, full_window=full_window)
            return [
                Hypothesis.scored(
                    result.sequences_ids[0],
                    row.tokenizer.decode(result.sequences_ids[0]).strip(),
                    temperature,
                    score=result.scores[0],
                    no_speech_prob=result.no_speech_prob,
                )
                for row, result in zip(batch, results, strict=True)
            ]

        schedules = [
            decoding_rules.temperatures(row.chunk.decoding.temperature) if full_window else TEMPERATURES[:1]
            for row in rows
        ]
        return decoding_rules.decode_with_fallback(generate, schedules, [len(row.prompt) for row in rows])

    def _generate(
        self, encoded: ctranslate2.StorageView, rows: Sequence[_Row], temperature: float, *, full_window: bool
    ) -> Sequence[ctranslate2.models.WhisperGenerationResult]:
        search: dict[str, Any] = (
            {"beam_size": 1, "num_hypotheses": BEST_OF, "sampling_topk": 0, "sampling_temperature": temperature}
            if temperature
            else {"beam_size": BEAM_SIZE}
        )
        most = max(decoding_rules.max_tokens(row.chunk.seconds, full_window=full_window) for row in rows)
        # CTranslate2 decodes at most half of max_length, and no more than max_length less the prompt.
        max_length = min(self._whisper.max_length, max(2 * most, most + len(rows[0].prompt)))
        results: Sequence[ctranslate2.models.WhisperGenerationResult] = self._model.generate(
            encoded,
            [row.prompt for row in rows],
            max_length=max_length,
            return_scores=True,
            return_no_speech_prob=True,
            suppress_tokens=self._suppressed,
            max_initial_timestamp_index=MAX_INITIAL_TIMESTAMP,
            **search,
        )
        return results

    def _align(
        self, encoded: ctranslate2.StorageView, rows: Sequence[_Row], unaligned: Mapping[int, ParsedTokens]
    ) -> dict[int, Alignment]:
        """Align the text of the numbered rows with their sound; those of one language and task together."""
        groups: dict[tuple[int, ...], list[int]] = {}
        for number in unaligned:
            groups.setdefault(tuple(rows[number].tokenizer.sot_sequence), []).append(number)
        found: dict[int, Alignment] = {}
        for start, numbers in groups.items():
            texts = [[token for text in unaligned[number].texts for token in text.tokens] for number in numbers]
            # Up to the chunk's end, since text must not be aligned with the padding.
            frames = [
                min(math.ceil(rows[number].chunk.seconds * FRAMES_PER_SECOND), 2 * encoded.shape[1])
                for number in numbers
            ]
            alignments = self._model.align(take_rows(encoded, numbers), list(start), texts, frames)
            found |= dict(zip(numbers, alignments, strict=True))
        return found


def to_storage(features: Features) -> ctranslate2.StorageView:
    """Return an array as CTranslate2 takes it."""
    return ctranslate2.StorageView.from_array(np.ascontiguousarray(features))


def take_rows(encoded: ctranslate2.StorageView, numbers: Sequence[int]) -> ctranslate2.StorageView:
    """Return some rows of a batch, by way of the host, since a StorageView cannot be sliced on the device."""
    if len(numbers) == encoded.shape[0]:
        return encoded
    return to_storage(_on_host(encoded)[list(numbers)])


def _on_host(encoded: ctranslate2.StorageView) -> npt.NDArray[Any]:
    host = encoded.to_device(ctranslate2.Device.cpu)
    if host.dtype == ctranslate2.DataType.bfloat16:  # NumPy has no such type; the model converts it back
        host = host.to(ctranslate2.DataType.float32)
    return np.asarray(host)


def _rejection(row: _Row, hypothesis: Hypothesis, parsed: ParsedTokens, *, full_window: bool) -> ChunkResult | None:
    """Return the result of a chunk that is to be decoded again; None if the answer is accepted."""
    chunk, asked = row.chunk, row.chunk.decoding
    if decoding_rules.may_echo_prompt(hypothesis.text, hypothesis.no_speech_prob, prompt=asked.prompt + asked.hotwords):
        without_prompt = replace(chunk, decoding=replace(asked, prompt="", hotwords=""), prompt=(), hotwords=())
        return ChunkResult(None, (), without_prompt, "prompt")
    if full_window:
        return None
    continues_at = parsed.continues_at or 0.0
    continues = MIN_REMAINDER_SECONDS <= continues_at <= chunk.seconds - MIN_REMAINDER_SECONDS
    allowed = decoding_rules.max_tokens(chunk.seconds, full_window=False)
    reason = decoding_rules.rejection(
        decoding_rules.Answer(
            text=hypothesis.text,
            tokens=sum(len(text.tokens) for text in parsed.texts),
            avg_logprob=hypothesis.avg_logprob,
            compression_ratio=hypothesis.compression_ratio,
            last_timestamp=parsed.last_timestamp,
            finished=parsed.ends_in_timestamp and len(hypothesis.tokens) < allowed,
            seconds=chunk.seconds,
            speech_seconds=chunk.speech_seconds,
            # Speech after the start of the remainder has not been cut off.
            speech_end=continues_at if continues else chunk.speech_end,
            language_probability=row.probability,
        )
    )
    return ChunkResult(None, (), replace(chunk, is_retry=True), reason) if reason else None


def _result(row: _Row, hypothesis: Hypothesis, parsed: ParsedTokens) -> ChunkResult:
    texts = () if hypothesis.silence else parsed.texts
    segments = tuple(_segment(text, hypothesis, row) for text in texts)
    return ChunkResult(row.language, segments, remainder_of(row.chunk, hypothesis, parsed.continues_at))


def _segment(text: TimedText, hypothesis: Hypothesis, row: _Row) -> Segment:
    begin = row.tokenizer.timestamp_begin
    start, end = tokens.in_speech(text.start, text.end, row.chunk.speech)
    return Segment(
        start=_in_recording(row.chunk, start, 3),
        end=_in_recording(row.chunk, end, 3),
        text=row.tokenizer.decode(list(text.tokens)).rstrip(),
        # With its timestamps, as in OpenAI's `tokens`.
        tokens=(
            begin + round(text.start / TIMESTAMP_SECONDS),
            *text.tokens,
            begin + round(text.end / TIMESTAMP_SECONDS),
        ),
        seek=round(row.chunk.offset * FRAMES_PER_SECOND),
        temperature=hypothesis.temperature,
        avg_logprob=hypothesis.avg_logprob,
        compression_ratio=hypothesis.compression_ratio,
        no_speech_prob=hypothesis.no_speech_prob,
    )


def _aligned(
    row: _Row, texts: Sequence[TimedText], segments: Sequence[Segment], alignment: Alignment
) -> tuple[Segment, ...]:
    """Return the segments with the words and log probabilities that the request asks for."""
    chunk = row.chunk
    starts = tokens.token_starts(alignment.alignments, sum(len(text.tokens) for text in texts))
    aligned, position = [], 0
    for segment, text in zip(segments, texts, strict=True):
        last = position + len(text.tokens)
        if chunk.decoding.words:
            found = tokens.words(list(text.tokens), starts[position : last + 1], row.tokenizer, seconds=chunk.seconds)
            trimmed = [(word, *tokens.in_speech(word.start, word.end, chunk.speech)) for word in found]
            words = tuple(
                replace(word, start=_in_recording(chunk, start, 2), end=_in_recording(chunk, end, 2))
                for word, start, end in trimmed
            )
            segment = replace(segment, words=words)  # noqa: PLW2901 - the same segment, with more in it
        if chunk.decoding.logprobs:
            logprobs = tokens.logprobs(text.tokens, alignment.text_token_probs[position:last], row.tokenizer)
            segment = replace(segment, logprobs=tuple(logprobs))  # noqa: PLW2901 - as above
        aligned.append(segment)
        position = last
    return tuple(aligned)


def _in_recording(chunk: Chunk, seconds: float, digits: int) -> float:
    """Return a time in the chunk as a time in the recording, rounded, but not past the chunk's end."""
    return min(round(chunk.offset + seconds, digits), chunk.offset + chunk.seconds)
