"""A batch of chunks through Whisper.

One `Engine` holds one model on one device. `run` may be called by as many threads at a time as it has workers, and
`prepare` by any others meanwhile.
"""

import math
import time
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
from localwhisper_server.whisper import acceptance, devices
from localwhisper_server.whisper.acceptance import TEMPERATURES, TIMESTAMP_SECONDS, Hypothesis
from localwhisper_server.whisper.alignment import aligned
from localwhisper_server.whisper.chunks import FRAMES_PER_SECOND, FULL_FRAMES, Chunk, ChunkResult, Features, Preparer

# As in Whisper's reference code.
BEAM_SIZE = 5
BEST_OF = 5
MAX_INITIAL_TIMESTAMP = int(1.0 / TIMESTAMP_SECONDS)
# Above this temperature the text may be invented, and as a prefix it would lead to more of the same; Whisper's
# reference code has the same limit.
MAX_PREFIX_TEMPERATURE = 0.5
# Frames per call of the encoder. On a CPU a larger batch gains nothing and no longer fits the cache (BENCHMARKS.md).
ENCODED_AT_ONCE = {"cpu": 2400, "cuda": 96_000}
# CTranslate2 counts a batch as running for a moment after its results are here, and then unloads nothing.
UNLOAD_ATTEMPTS = 20
UNLOAD_PAUSE_SECONDS = 0.002


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

    `rejection` is the acceptance check; `benchmarks/tune.py` measures with another one.

    Raises:
        RuntimeError, ValueError: CTranslate2 cannot load the folder, or not on this device.

    """

    def __init__(
        self,
        folder: Path,
        device: devices.Device,
        workers: devices.Workers = devices.ONE_WORKER,
        *,
        load_model: Callable[..., Any] = faster_whisper.WhisperModel,
        load_libraries: Callable[[], object] = devices.load_libraries,
        rejection: Callable[..., tuple[str, Chunk] | None] = acceptance.rejection,
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
        self._rejection = rejection
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

    def unload(self) -> bool:
        """Free the memory of the weights; return whether that was possible, since no batch may be running.

        The vocabulary stays: to read it again would keep every other thread waiting for 0.3 s (BENCHMARKS.md).
        """
        for _ in range(UNLOAD_ATTEMPTS):
            self._model.unload_model()
            if not self._model.model_is_loaded:
                devices.return_free_memory()
                return True
            time.sleep(UNLOAD_PAUSE_SECONDS)
        return False

    def reload(self) -> None:
        """Load the weights again.

        Raises:
            RuntimeError, MemoryError: they do not fit into the device's memory, or their file is gone.

        """
        self._model.load_model()

    def run(self, chunks: Sequence[Chunk]) -> list[ChunkResult]:
        """Decode a batch and return a result per chunk, in order.

        Tasks, languages, prompts and lengths may be mixed. All chunks are encoded with the longest window among them.

        Raises:
            RuntimeError, MemoryError: CTranslate2 failed; see `devices.is_out_of_memory`.

        """
        frames = max(chunk.frames for chunk in chunks)
        full_window = frames == FULL_FRAMES
        encoded = self._encode([_padded(chunk.features, frames) for chunk in chunks])
        rows = self._rows(chunks, encoded)
        results, unaligned = [], dict[int, Hypothesis]()
        for number, hypothesis in enumerate(self._decode(encoded, rows, full_window=full_window)):
            chunk = rows[number].chunk
            rejected = self._rejection(
                chunk, hypothesis, language_probability=rows[number].probability, full_window=full_window
            )
            if rejected:
                reason, again = rejected
                results.append(ChunkResult(None, (), again, reason, _result(rows[number], hypothesis).segments))
                continue
            results.append(_result(rows[number], hypothesis))
            if results[-1].segments and (chunk.decoding.words or chunk.decoding.logprobs):
                unaligned[number] = hypothesis
        if unaligned:
            self._align(encoded, rows, unaligned, results)
        return results

    def _new_tokenizer(self, language: str, task: Task) -> Tokenizer:
        multilingual = self._model.is_multilingual
        return Tokenizer(self._whisper.hf_tokenizer, multilingual, task=task, language=language)

    def _encode(self, features: Sequence[Features]) -> ctranslate2.StorageView:
        """Encode windows of one length, in parts of the size that suits the device, or of one that fits into memory.

        Small parts take hardly longer. So a batch that the decoder has room for is not divided because of the encoder.
        """
        frames = features[0].shape[1]
        while True:
            at_once = min(len(features), max(1, self._encoded_at_once // frames))
            try:
                return self._encode_in_parts(features, at_once)
            except (RuntimeError, MemoryError) as failure:
                if at_once == 1 or not devices.is_out_of_memory(failure):
                    raise
                self._encoded_at_once = at_once // 2 * frames

    def _encode_in_parts(self, features: Sequence[Features], at_once: int) -> ctranslate2.StorageView:
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
            likeliest, probability = likeliest_language(ranked, chunk.decoding.languages)
            given = chunk.decoding.language if multilingual else "en"
            language = given or likeliest
            tokenizer = self._tokenizer(language, chunk.decoding.task)
            # Half of the context for the prompt, as in Whisper's reference code.
            prompt = prompt_tokens(chunk, tokenizer, room=self._whisper.max_length // 2 - 1)
            certain = given or chunk.language_provisional
            rows.append(_Row(chunk, language, None if certain else probability, tokenizer, prompt))
        return rows

    def _decode(self, encoded: ctranslate2.StorageView, rows: Sequence[_Row], *, full_window: bool) -> list[Hypothesis]:
        """Decode all rows; with the full window by temperature fallback."""

        def generate(numbers: list[int], temperature: float) -> list[Hypothesis]:
            batch = [rows[number] for number in numbers]
            most = max(
                acceptance.MAX_TOKENS
                if row.chunk.full_window
                else acceptance.max_tokens(row.chunk.seconds, full_window=full_window)
                for row in batch
            )
            search: dict[str, Any] = (
                {"beam_size": 1, "num_hypotheses": BEST_OF, "sampling_topk": 0, "sampling_temperature": temperature}
                if temperature
                else {"beam_size": BEAM_SIZE}
            )
            found: Sequence[ctranslate2.models.WhisperGenerationResult] = self._model.generate(
                take_rows(encoded, numbers),
                [row.prompt for row in batch],
                # CTranslate2 decodes at most half of max_length, and no more than max_length less the prompt.
                max_length=min(self._whisper.max_length, max(2 * most, most + len(batch[0].prompt))),
                return_scores=True,
                return_no_speech_prob=True,
                suppress_tokens=self._suppressed,
                max_initial_timestamp_index=MAX_INITIAL_TIMESTAMP,
                **search,
            )
            return [
                acceptance.parsed(
                    one.sequences_ids[0],
                    row.tokenizer,
                    row.chunk.seconds,
                    temperature,
                    score=one.scores[0],
                    no_speech_prob=one.no_speech_prob,
                )
                for row, one in zip(batch, found, strict=True)
            ]

        # OpenAI documents temperature 0 as "increase it automatically", so 0 and None mean the same.
        asked = [row.chunk.decoding.temperature if full_window else None for row in rows]
        automatic = TEMPERATURES if full_window else TEMPERATURES[:1]
        schedules = [(temperature,) if temperature else automatic for temperature in asked]
        loops_only = [not row.chunk.full_window for row in rows]
        return acceptance.decode_with_fallback(generate, schedules, [len(row.prompt) for row in rows], loops_only)

    def _align(
        self,
        encoded: ctranslate2.StorageView,
        rows: Sequence[_Row],
        unaligned: Mapping[int, Hypothesis],
        results: list[ChunkResult],
    ) -> None:
        """Add words and log probabilities to the numbered results; those of one language and task go together."""
        groups: dict[tuple[int, ...], list[int]] = {}
        for number in unaligned:
            groups.setdefault(tuple(rows[number].tokenizer.sot_sequence), []).append(number)
        for start, numbers in groups.items():
            tokens = [[token for text in unaligned[number].texts for token in text.tokens] for number in numbers]
            # Up to the chunk's end, since text must not be aligned with the padding.
            frames = [
                min(math.ceil(rows[number].chunk.seconds * FRAMES_PER_SECOND), 2 * encoded.shape[1])
                for number in numbers
            ]
            alignments = self._model.align(take_rows(encoded, numbers), list(start), tokens, frames)
            for number, alignment in zip(numbers, alignments, strict=True):
                row, texts, segments = rows[number], unaligned[number].texts, results[number].segments
                segments = aligned(row.chunk, segments, texts, alignment, row.tokenizer)
                results[number] = replace(results[number], segments=segments)


def likeliest_language(ranked: Sequence[tuple[str, float]], among: Sequence[str]) -> tuple[str, float]:
    """Return the most probable language code and its probability; only codes in `among` count, if any is ranked.

    `ranked` has tokens (`<|en|>`) with their probabilities, in descending order.
    """
    named = [(token.strip("<|>"), probability) for token, probability in ranked]
    hinted = [(code, probability) for code, probability in named if code in among]
    if not hinted:
        return named[0]
    code, probability = hinted[0]
    return code, probability / max(sum(share for _, share in hinted), 1e-9)


def prompt_tokens(chunk: Chunk, tokenizer: Tokenizer, *, room: int) -> list[int]:
    """Return what the decoder is given first: hotwords, the text before the chunk, language and task.

    Hotwords and text get `room` tokens together; the beginning of the text is dropped first.
    """
    hotwords, previous = chunk.hotwords[:room], chunk.prompt + chunk.prefix_tokens
    prompt = [*hotwords, *previous[max(0, len(previous) + len(hotwords) - room) :]]
    return [*([tokenizer.sot_prev, *prompt] if prompt else ()), *tokenizer.sot_sequence]


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


def _padded(features: Features, frames: int) -> Features:
    """Cut or pad with zeros to shape (mels, frames), as Whisper pads its own window."""
    kept = features[:, :frames]
    return np.pad(kept, ((0, 0), (0, frames - kept.shape[1])))


def _result(row: _Row, hypothesis: Hypothesis) -> ChunkResult:
    """Return the segments of an accepted answer, and the part of the chunk that the model did not get to."""
    chunk, begin = row.chunk, row.tokenizer.timestamp_begin
    if hypothesis.silence:
        return ChunkResult(row.language, ())
    segments = []
    for text in hypothesis.texts:
        start, end = chunk.in_recording(text.start, text.end, 3)
        segments.append(
            Segment(
                start,
                end,
                text.text,
                # With its timestamps, as in OpenAI's `tokens`.
                tokens=(
                    begin + round(text.start / TIMESTAMP_SECONDS),
                    *text.tokens,
                    begin + round(text.end / TIMESTAMP_SECONDS),
                ),
                seek=round(chunk.offset * FRAMES_PER_SECOND),
                temperature=hypothesis.temperature,
                avg_logprob=hypothesis.avg_logprob,
                compression_ratio=hypothesis.compression_ratio,
                no_speech_prob=hypothesis.no_speech_prob,
            )
        )
    remainder = None
    if hypothesis.continues_at is not None:
        # Without the second of the two timestamps at the end.
        before = chunk.prefix_tokens + hypothesis.tokens[:-1]
        trusted = hypothesis.temperature <= MAX_PREFIX_TEMPERATURE
        remainder = chunk.remainder(hypothesis.continues_at, before if trusted else ())
    return ChunkResult(row.language, tuple(segments), remainder)
