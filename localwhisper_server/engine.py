"""A batch of chunks through Whisper. The only importer of faster_whisper and ctranslate2.

One `Engine` holds one model on one device. It is called from one thread at a time and keeps no state between calls.
The decoding rules (thresholds, the temperature ladder, the reading of timestamps) are those of the Whisper paper,
§4.5, with the values of its reference code (https://github.com/openai/whisper, `whisper/transcribe.py`).
"""

import math
import zlib
from collections.abc import Iterable, Sequence
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

from localwhisper_server import cuda_libraries
from localwhisper_server.audio import SAMPLE_RATE, Samples
from localwhisper_server.chunks import WINDOW_SECONDS, Span
from localwhisper_server.options import Decoding, Voice
from localwhisper_server.transcript import Segment, Task, TokenLogprob, Word

BEAM_SIZE = 5
BEST_OF = 5
TEMPERATURES = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
COMPRESSION_RATIO_THRESHOLD = 2.4
LOGPROB_THRESHOLD = -1.0
NO_SPEECH_THRESHOLD = 0.6
FRAMES_PER_SECOND = 100
WINDOW_FRAMES = int(WINDOW_SECONDS * FRAMES_PER_SECOND)
TIMESTAMP_SECONDS = 0.02  # what one timestamp token counts
MAX_INITIAL_TIMESTAMP = int(1.0 / TIMESTAMP_SECONDS)
# A window whose text ends well before the sound does is decoded again from there.
MIN_REST_SECONDS = 1.0


@dataclass(frozen=True, slots=True, eq=False)
class Chunk:
    """At most one window of sound: float32 samples of shape (n,) at 16 kHz, beginning `offset` seconds in."""

    samples: Samples
    offset: float
    decoding: Decoding

    @property
    def seconds(self) -> float:
        """Its length."""
        return self.samples.size / SAMPLE_RATE


@dataclass(frozen=True, slots=True)
class ChunkResult:
    """What was heard in a chunk. `rest` is what the model left undecoded at its end, to be run as a chunk itself."""

    language: str
    segments: tuple[Segment, ...]
    rest: Chunk | None = None


@dataclass(frozen=True, slots=True)
class _Hypothesis:
    """One decoded token sequence with what the thresholds look at."""

    tokens: tuple[int, ...]
    text: str
    temperature: float
    avg_logprob: float
    compression_ratio: float
    no_speech_prob: float

    @property
    def silent(self) -> bool:
        return self.no_speech_prob > NO_SPEECH_THRESHOLD and self.avg_logprob <= LOGPROB_THRESHOLD

    @property
    def accepted(self) -> bool:
        if self.silent:
            return True
        return self.compression_ratio <= COMPRESSION_RATIO_THRESHOLD and self.avg_logprob >= LOGPROB_THRESHOLD


def find_speech(samples: Samples, voice: Voice | None = None) -> list[Span]:
    """Return the stretches of `samples` (shape (n,), 16 kHz) in which somebody speaks, each at most one window long."""
    voice = voice or Voice()
    options = VadOptions(
        threshold=voice.threshold,
        speech_pad_ms=voice.prefix_padding_ms,
        min_silence_duration_ms=voice.silence_duration_ms,
        max_speech_duration_s=WINDOW_SECONDS,
    )
    found = get_speech_timestamps(samples, options)
    return [Span(span["start"] / SAMPLE_RATE, span["end"] / SAMPLE_RATE) for span in found]


@dataclass(frozen=True, slots=True)
class Device:
    """Where and in what precision a model runs, and why."""

    name: str
    compute_type: str
    reason: str


def choose_device(device: str, compute_type: str, *, cuda_devices: int) -> Device:
    """Settle "auto" into a device and a compute type.

    float16 is CUDA's default because int8 fails on some cards (RTX 50 with cuBLAS before 12.8), float16 on none.
    """
    if device == "auto":
        name = "cuda" if cuda_devices else "cpu"
        reason = f"{cuda_devices} CUDA device(s) found" if cuda_devices else "no CUDA device found"
    else:
        name, reason = device, "as set"
    if compute_type == "auto":
        compute_type = "float16" if name == "cuda" else "int8"
    return Device(name, compute_type, reason)


def cuda_devices() -> int:
    """Count the CUDA devices the driver shows; 0 without a driver."""
    return int(ctranslate2.get_cuda_device_count())


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

    def __init__(self, folder: Path, device: Device, *, threads: int = 0) -> None:
        if device.name == "cuda":
            cuda_libraries.load()
        self._whisper = faster_whisper.WhisperModel(
            str(folder), device=device.name, compute_type=device.compute_type, cpu_threads=threads
        )
        self._model = self._whisper.model
        self._tokenizer = lru_cache(maxsize=256)(self._new_tokenizer)
        # The default set ("-1" in Whisper's words) and the tokens that steer rather than say something.
        plain = self._tokenizer("en", "transcribe")
        steering = (plain.transcribe, plain.translate, plain.sot, plain.sot_prev, plain.sot_lm, plain.no_speech)
        # English-only vocabularies lack some of them.
        self._suppressed = sorted({*plain.non_speech_tokens, *(token for token in steering if token is not None)})

    @property
    def languages(self) -> frozenset[str]:
        """The language codes this model knows; only {"en"} for an English-only one."""
        return frozenset(self._whisper.supported_languages)

    def warm_up(self) -> None:
        """Run one window of faint noise, so that the first request does not pay for allocations."""
        noise = np.random.default_rng(0).normal(0, 1e-3, SAMPLE_RATE).astype(np.float32)
        self.run([Chunk(noise, 0.0, Decoding(language="en", temperature=0.0))])

    def run(self, chunks: Sequence[Chunk]) -> list[ChunkResult]:
        """Decode a batch and return a result per chunk, in order. Tasks, languages and prompts may be mixed."""
        encoded = self._model.encode(_storage(np.stack([self._features(chunk) for chunk in chunks])))
        languages = self._languages(chunks, encoded)
        tokenizers = [
            self._tokenizer(language, chunk.decoding.task) for chunk, language in zip(chunks, languages, strict=True)
        ]
        prompts = [
            self._whisper.get_prompt(
                tokenizer,
                tokenizer.encode(" " + chunk.decoding.prompt.strip()) if chunk.decoding.prompt.strip() else [],
                hotwords=chunk.decoding.hotwords or None,
            )
            for chunk, tokenizer in zip(chunks, tokenizers, strict=True)
        ]
        hypotheses = self._decode(encoded, prompts, tokenizers, [chunk.decoding.temperature for chunk in chunks])
        results = []
        for row, (chunk, tokenizer, hypothesis) in enumerate(zip(chunks, tokenizers, hypotheses, strict=True)):
            pieces, rest_at = _pieces(hypothesis, tokenizer, chunk.seconds)
            segments = [_segment(piece, hypothesis, tokenizer, chunk) for piece in pieces]
            if segments and (chunk.decoding.words or chunk.decoding.logprobs):
                segments = self._align(_rows(encoded, [row]), tokenizer, chunk, segments)
            results.append(ChunkResult(languages[row], tuple(segments), _rest(chunk, rest_at)))
        return results

    def _new_tokenizer(self, language: str, task: Task) -> Tokenizer:
        multilingual = self._model.is_multilingual
        return Tokenizer(self._whisper.hf_tokenizer, multilingual, task=task, language=language)

    def _features(self, chunk: Chunk) -> npt.NDArray[np.float32]:
        """Return log-mel features padded with zeros to one window, shape (mels, 3000)."""
        features = self._whisper.feature_extractor(chunk.samples)[:, :-1][:, :WINDOW_FRAMES]
        return np.pad(features, ((0, 0), (0, WINDOW_FRAMES - features.shape[1])))

    def _languages(self, chunks: Sequence[Chunk], encoded: ctranslate2.StorageView) -> list[str]:
        if not self._model.is_multilingual:
            return ["en"] * len(chunks)
        if all(chunk.decoding.language for chunk in chunks):
            return [str(chunk.decoding.language) for chunk in chunks]
        detected = self._model.detect_language(encoded)  # per row: [("<|en|>", probability), …], best first
        return [
            chunk.decoding.language or ranking[0][0].strip("<|>")
            for chunk, ranking in zip(chunks, detected, strict=True)
        ]

    def _decode(
        self,
        encoded: ctranslate2.StorageView,
        prompts: Sequence[list[int]],
        tokenizers: Sequence[Tokenizer],
        asked: Sequence[float | None],
    ) -> list[_Hypothesis]:
        """Decode every row, climbing the temperature ladder with those that are not accepted."""
        tried: list[list[_Hypothesis]] = [[] for _ in prompts]
        open_rows = list(range(len(prompts)))
        for step in range(len(TEMPERATURES)):
            for rows in _alike(open_rows, prompts, [_ladder(value)[step] for value in asked]):
                temperature = _ladder(asked[rows[0]])[step]
                results = self._generate(_rows(encoded, rows), [prompts[row] for row in rows], temperature)
                for row, result in zip(rows, results, strict=True):
                    tried[row].append(_hypothesis(result, tokenizers[row], temperature))
            open_rows = [
                row for row in open_rows if not tried[row][-1].accepted and step + 1 < len(_ladder(asked[row]))
            ]
            if not open_rows:
                break
        return [_best(hypotheses) for hypotheses in tried]

    def _generate(
        self, encoded: ctranslate2.StorageView, prompts: list[list[int]], temperature: float
    ) -> list[ctranslate2.models.WhisperGenerationResult]:
        search: dict[str, Any] = (
            {"beam_size": 1, "num_hypotheses": BEST_OF, "sampling_topk": 0, "sampling_temperature": temperature}
            if temperature
            else {"beam_size": BEAM_SIZE}
        )
        return list(
            self._model.generate(
                encoded,
                prompts,
                max_length=self._whisper.max_length,
                return_scores=True,
                return_no_speech_prob=True,
                suppress_tokens=self._suppressed,
                max_initial_timestamp_index=MAX_INITIAL_TIMESTAMP,
                **search,
            )
        )

    def _align(
        self, encoded: ctranslate2.StorageView, tokenizer: Tokenizer, chunk: Chunk, segments: list[Segment]
    ) -> list[Segment]:
        """Add words and token log probabilities from one forced alignment over the chunk's text."""
        text_tokens = [[token for token in segment.tokens if token < tokenizer.eot] for segment in segments]
        joined = [token for tokens in text_tokens for token in tokens]
        frames = min(WINDOW_FRAMES, math.ceil(chunk.seconds * FRAMES_PER_SECOND))
        (alignment,) = self._model.align(encoded, tokenizer.sot_sequence, [joined], frames)
        starts = _token_starts(alignment.alignments, len(joined))
        aligned, position = [], 0
        for segment, tokens in zip(segments, text_tokens, strict=True):
            last = position + len(tokens)
            words = _words(tokenizer, tokens, starts[position : last + 1], chunk)
            logprobs = [
                TokenLogprob(_token_bytes(tokenizer, token), math.log(max(probability, 1e-10)))
                for token, probability in zip(tokens, alignment.text_token_probs[position:last], strict=True)
            ]
            aligned.append(
                replace(
                    segment,
                    words=tuple(words) if chunk.decoding.words else (),
                    logprobs=tuple(logprobs) if chunk.decoding.logprobs else (),
                )
            )
            position = last
        return aligned


@dataclass(frozen=True, slots=True)
class _Piece:
    """Tokens between two timestamps; `start` and `end` are seconds in the chunk."""

    start: float
    end: float
    tokens: tuple[int, ...]


def _storage(features: npt.NDArray[np.float32]) -> ctranslate2.StorageView:
    return ctranslate2.StorageView.from_array(np.ascontiguousarray(features))


def _rows(encoded: ctranslate2.StorageView, rows: Sequence[int]) -> ctranslate2.StorageView:
    """Take some rows of a batch; by way of the host, since a StorageView cannot be sliced on the device."""
    if len(rows) == encoded.shape[0]:
        return encoded
    host = encoded.to_device(ctranslate2.Device.cpu)
    return ctranslate2.StorageView.from_array(np.ascontiguousarray(np.asarray(host)[list(rows)]))


def _ladder(temperature: float | None) -> tuple[float, ...]:
    # OpenAI documents 0 as "raise the temperature by itself where needed", so 0 and nothing are the same here.
    return (temperature,) if temperature else TEMPERATURES


def _alike(rows: Iterable[int], prompts: Sequence[list[int]], temperatures: Sequence[float]) -> list[list[int]]:
    """Group rows that one call of generate can take: prompts of one length, one temperature."""
    groups: dict[tuple[int, float], list[int]] = {}
    for row in rows:
        groups.setdefault((len(prompts[row]), temperatures[row]), []).append(row)
    return list(groups.values())


def _hypothesis(
    result: ctranslate2.models.WhisperGenerationResult, tokenizer: Tokenizer, temperature: float
) -> _Hypothesis:
    tokens = tuple(result.sequences_ids[0])
    text = tokenizer.decode(list(tokens)).strip()
    # The score is the mean over the tokens; Whisper's average counts the end of text as well.
    avg_logprob = result.scores[0] * len(tokens) / (len(tokens) + 1)
    return _Hypothesis(tokens, text, temperature, avg_logprob, _compression_ratio(text), result.no_speech_prob)


def _compression_ratio(text: str) -> float:
    data = text.encode()
    return len(data) / len(zlib.compress(data)) if data else 0.0


def _best(tried: list[_Hypothesis]) -> _Hypothesis:
    """Return the accepted one, which is the last, or the likeliest of those that do not repeat themselves."""
    if tried[-1].accepted:
        return tried[-1]
    varied = [hypothesis for hypothesis in tried if hypothesis.compression_ratio <= COMPRESSION_RATIO_THRESHOLD]
    return max(varied or tried, key=lambda hypothesis: hypothesis.avg_logprob)


def _pieces(hypothesis: _Hypothesis, tokenizer: Tokenizer, seconds: float) -> tuple[list[_Piece], float | None]:
    """Cut a token sequence at its timestamps.

    Returns the pieces and the second at which the model stopped short: a sequence that ends in a pair of timestamps
    says that more speech begins there.
    """
    if hypothesis.silent:
        return [], None
    pieces: list[_Piece] = []
    begin, start, tokens = tokenizer.timestamp_begin, 0.0, list[int]()
    stamps_at_end = 0
    for token in hypothesis.tokens:
        if token < begin:
            tokens.append(token)
            stamps_at_end = 0
            continue
        stamps_at_end += 1
        time = min((token - begin) * TIMESTAMP_SECONDS, seconds)
        if tokens:
            pieces.append(_Piece(min(start, time), time, tuple(tokens)))
            tokens = []
        start = time
    if tokens:
        pieces.append(_Piece(min(start, seconds), seconds, tuple(tokens)))
    spoken = [piece for piece in pieces if tokenizer.decode(list(piece.tokens)).strip()]
    return spoken, start if stamps_at_end > 1 and start > 0 else None


def _segment(piece: _Piece, hypothesis: _Hypothesis, tokenizer: Tokenizer, chunk: Chunk) -> Segment:
    begin = tokenizer.timestamp_begin
    return Segment(
        start=round(chunk.offset + piece.start, 3),
        end=round(chunk.offset + piece.end, 3),
        text=tokenizer.decode(list(piece.tokens)).rstrip(),
        # With its timestamps, as OpenAI's `tokens` have them.
        tokens=(
            begin + round(piece.start / TIMESTAMP_SECONDS),
            *piece.tokens,
            begin + round(piece.end / TIMESTAMP_SECONDS),
        ),
        seek=round(chunk.offset * FRAMES_PER_SECOND),
        temperature=hypothesis.temperature,
        avg_logprob=hypothesis.avg_logprob,
        compression_ratio=hypothesis.compression_ratio,
        no_speech_prob=hypothesis.no_speech_prob,
    )


def _rest(chunk: Chunk, at: float | None) -> Chunk | None:
    if at is None or chunk.seconds - at < MIN_REST_SECONDS:
        return None
    return replace(chunk, samples=chunk.samples[int(at * SAMPLE_RATE) :], offset=chunk.offset + at)


def _token_starts(path: Sequence[tuple[int, int]], count: int) -> list[float]:
    """Return the second at which each of `count` tokens begins, and the end of the last: `count` + 1 numbers.

    `path` is the alignment as (token, time) steps, time in units of 20 ms.
    """
    first: dict[int, int] = {}
    for token, time in path:
        first.setdefault(token, time)
    last = max((time for _, time in path), default=0)
    starts: list[float] = []
    for token in range(count + 1):
        known = first.get(token, last)
        starts.append(known * TIMESTAMP_SECONDS)
    return starts


def _words(tokenizer: Tokenizer, tokens: list[int], starts: Sequence[float], chunk: Chunk) -> list[Word]:
    """Join tokens to words; a word lies within its chunk and ends where the next one begins."""
    words: list[Word] = []
    position = 0
    end_of_chunk = chunk.offset + chunk.seconds
    texts, groups = tokenizer.split_to_word_tokens([*tokens, tokenizer.eot])
    for text, group in zip(texts[:-1], groups[:-1], strict=True):
        start = chunk.offset + starts[position]
        position += len(group)
        end = chunk.offset + starts[position]
        if not any(letter.isalnum() for letter in text) and words:
            # Punctuation belongs to the word before it.
            words[-1] = replace(words[-1], text=words[-1].text + text)
            continue
        start, end = min(start, end_of_chunk), min(end, end_of_chunk)
        words.append(Word(text, round(start, 2), round(max(start, end), 2)))
    return words


@lru_cache(maxsize=1)
def _byte_of_letter() -> dict[str, int]:
    """Return GPT-2's letters for bytes: printable ones stand for themselves, the rest follow from U+0100."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    rest = [byte for byte in range(256) if byte not in set(printable)]
    table = {chr(byte): byte for byte in printable}
    return table | {chr(0x100 + number): byte for number, byte in enumerate(rest)}


def _token_bytes(tokenizer: Tokenizer, token: int) -> bytes:
    letters = tokenizer.tokenizer.id_to_token(token)
    table = _byte_of_letter()
    return bytes(table[letter] for letter in letters)
