"""The acceptance check's and the window's numbers for a model: what each candidate would cost in words and in time.

    python benchmarks/tune.py --model large-v3 --device cuda --corpus FOLDER [--records FILE] [--minutes N]

Decodes the clips of the corpus's tune split with several short windows, without the acceptance check, and with the full
window. Then it computes, without decoding again, what each pair of thresholds would have made of the answers: wrong
words, how many chunks are decoded twice, how many clips are worse than with the full window, and the time.

The other signs of the acceptance check stay as they are. A rejected chunk counts with the text and the time of the full
window. Clips are decoded in an order drawn from their names, so those decoded until the time is up are a sample of the
whole. With `--records`, results are kept: a second run with the same file goes on where the first ended. Without
`--corpus`, the recordings in `../shared/speech` are used.

The figures say which candidates are worth a measurement on the test split, and are no measurement themselves: they are
of the clips that the choice is made on.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import hashlib
import itertools
import json
import math
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import accuracy
import corpus
from measuring import ROOT

from localwhisper_server.transcription.segmentation import Segmenter
from localwhisper_server.types import Decoding, Options
from localwhisper_server.whisper import acceptance, chunks, devices, weights
from localwhisper_server.whisper.engine import Engine

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from localwhisper_server.types import AudioChunk
    from localwhisper_server.whisper.acceptance import Hypothesis
    from localwhisper_server.whisper.chunks import Chunk

    Clock = Callable[[], float]

Window = tuple[float, float]
"""The room behind a chunk, and the shortest window, in seconds."""

WINDOW_IN_USE: Window = (chunks.MARGIN_SECONDS, chunks.MIN_WINDOW_SECONDS)

LOGPROBS = (-math.inf, acceptance.MIN_LOGPROB, -1.0, -0.8, -0.7, -0.6, -0.55, -0.5, -0.45, -0.4, -0.3)
LANGUAGES = (0.0, 0.2, acceptance.MIN_LANGUAGE_PROBABILITY, 0.5, 0.7, 0.8, 0.9)
IN_USE = (acceptance.MIN_LOGPROB, acceptance.MIN_LANGUAGE_PROBABILITY)
ALLOWED_POINTS = 0.3
ALLOWED_WORSE = 0.01
WORSE_BY = 2
"""Wrong words more than with the full window, from which on a clip counts as worse."""

EASY = "clean"
FULL = "full"


@dataclasses.dataclass(slots=True)
class Answer:
    """What one window makes of a chunk, the parts decoded after an early stop included.

    `logprob` and `language` are the least that the check saw, and `sign` is another reason for which it would have
    rejected the answer.
    """

    text: str = ""
    seconds: float = 0.0
    logprob: float = 0.0
    language: float = 1.0
    sign: str = ""

    def rejected(self, logprob: float, language: float) -> bool:
        """Whether the acceptance check with these thresholds rejects it."""
        return bool(self.sign) or self.logprob < logprob or self.language < language


@dataclasses.dataclass(frozen=True, slots=True)
class Record:
    """The answers for each chunk of a clip, by window."""

    clip: str
    chunks: list[dict[str, Answer]]


@dataclasses.dataclass(frozen=True, slots=True)
class Outcome:
    """What a window and thresholds make of all clips. `worse` is a share of clips, `again` are shares of chunks."""

    window: str
    logprob: float
    language: float
    errors: int
    rate: float
    invented: int
    worse: float
    again: float
    again_easy: float
    again_hard: float
    seconds: float


class Recorder:
    """An acceptance check that accepts everything, and notes what the real one saw."""

    def __init__(self) -> None:
        self.answer = Answer()

    def __call__(
        self, chunk: Chunk, answer: Hypothesis, *, language_probability: float | None, full_window: bool
    ) -> None:
        """Note one answer."""
        if full_window:
            return
        self.answer.logprob = min(self.answer.logprob, answer.avg_logprob)
        self.answer.language = min(self.answer.language, 1.0 if language_probability is None else language_probability)
        # The other signs alone: neither of the two thresholds can apply to this.
        sure = dataclasses.replace(answer, avg_logprob=0.0)
        sign = acceptance.rejection(chunk, sure, language_probability=None, full_window=False)
        self.answer.sign = self.answer.sign or (sign[0] if sign else "")


def key(window: Window) -> str:
    """Name a window."""
    return f"{window[0]:g} s, {window[1]:g} s"


def cut(clip: corpus.Clip, options: Options) -> list[AudioChunk]:
    """Cut a clip as the server does."""
    segmenter = Segmenter(chunks.find_speech, options)
    samples = corpus.as_uploaded(clip.audio)
    found: list[AudioChunk] = []
    step = 5 * corpus.RATE
    for first in range(0, samples.size, step):
        if segmenter.add(samples[first : first + step]):
            found += segmenter.cut()
    return found + segmenter.cut(end=True)


def decode(engine: Engine, recorder: Recorder, chunk: Chunk, window: Window | None, clock: Clock) -> tuple[Answer, str]:
    """Decode a chunk and what the model leaves of it; return the answer and its language.

    `window` is None for the chunk's own.
    """
    recorder.answer = answer = Answer()
    rest: Chunk | None = chunk
    language = chunk.decoding.language
    started = clock()
    while rest is not None:
        if window is not None:
            frames = min(chunks.FULL_FRAMES, math.ceil(max(rest.seconds + window[0], window[1])) * 100)
            object.__setattr__(rest, "frames", frames)  # as the chunk itself sets it
        (result,) = engine.run([rest])
        answer.text += "".join(segment.text for segment in result.segments)
        language = language or result.language
        rest = result.remainder
        if rest is not None:
            rest = dataclasses.replace(rest, decoding=dataclasses.replace(rest.decoding, language=language))
    answer.seconds = clock() - started
    return answer, language or ""


def measure(engine: Engine, recorder: Recorder, clip: corpus.Clip, windows: Sequence[Window], clock: Clock) -> Record:
    """Decode a clip with every window; the language of its first chunk is the clip's, as in the server."""
    decoding, found = Decoding(), list[dict[str, Answer]]()
    for piece in cut(clip, Options()):
        answers = {}
        full, language = decode(engine, recorder, engine.prepare(piece, decoding, full_window=True), None, clock)
        answers[FULL] = full
        for window in windows:
            # The window in use has more room behind chunks of more than 12 s.
            own = None if window == WINDOW_IN_USE else window
            answers[key(window)], _ = decode(engine, recorder, engine.prepare(piece, decoding), own, clock)
        found.append(answers)
        decoding = Decoding(language=decoding.language or language or None)
    return Record(clip.id, found)


def outcome(
    records: Sequence[Record], clips: dict[str, corpus.Clip], window: str, logprob: float, language: float
) -> Outcome:
    """Compute what a window and thresholds make of the recorded answers."""
    errors = total = invented = worse = speech = 0
    again: dict[bool, list[bool]] = {True: [], False: []}
    seconds = 0.0
    for record in records:
        clip, texts = clips[record.clip], []
        for answers in record.chunks:
            answer = answers[window]
            rejected = window != FULL and answer.rejected(logprob, language)
            chosen = answers[FULL] if rejected else answer
            texts.append(chosen.text)
            seconds += answer.seconds + rejected * answers[FULL].seconds
            again[clip.group == EASY].append(rejected)
        ours = score(clip, "".join(texts))
        full = score(clip, "".join(answers[FULL].text for answers in record.chunks))
        if clip.language == corpus.NO_SPEECH:
            invented += ours.errors
            continue
        errors, total, speech = errors + ours.errors, total + ours.total, speech + 1
        worse += ours.errors - full.errors >= WORSE_BY
    both = again[True] + again[False]
    return Outcome(
        window,
        logprob,
        language,
        errors,
        100 * errors / max(1, total),
        invented,
        worse / max(1, speech),
        _share(both),
        _share(again[True]),
        _share(again[False]),
        seconds,
    )


@functools.cache
def _normalizer() -> accuracy.Normalizer:
    return accuracy.Normalizer()


@functools.cache
def score(clip: corpus.Clip, text: str) -> accuracy.Score:
    """Compare a text with what is said; the same text comes with many thresholds."""
    return accuracy.score(clip, text, 0.0, _normalizer())


def tables(records: Sequence[Record], clips: dict[str, corpus.Clip], windows: Sequence[Window]) -> list[str]:
    """Return the tables as Markdown lines."""
    full = outcome(records, clips, FULL, -math.inf, 0.0)
    words = sum(score(clips[record.clip], "").total for record in records)
    speech = sum(clips[record.clip].language != corpus.NO_SPEECH for record in records)
    pieces = sum(len(record.chunks) for record in records)
    head = "room, shortest window|log probability, language|errors|rate|invented|worse by 2|twice|clean, other|time"
    lines = [
        f"{len(records)} clips, {speech} with speech, {pieces} chunks, {words} words (Japanese, Chinese: characters).",
        f"Full window: {full.errors} errors, {full.rate:.2f} %, {full.invented} invented words.",
        "",
        f"| {head.replace('|', ' | ')} |",
        "|---" * (head.count("|") + 1) + "|",
    ]
    found = [
        outcome(records, clips, key(window), logprob, language)
        for window in windows
        for logprob, language in itertools.product(LOGPROBS, LANGUAGES)
    ]
    # Many thresholds reject the same chunks: the lowest of them stand for all.
    distinct = {(one.window, one.errors, one.invented, one.worse, one.seconds): one for one in reversed(found)}
    shown = [
        one
        for one in found
        if (one.logprob, one.language) in (IN_USE, (-math.inf, 0.0))
        or (one in distinct.values() and not any(_beats(other, one) for other in found if other.window == one.window))
    ]
    lines += [_row(one, full) for one in shown]
    good = [
        one
        for one in found
        if one.rate <= full.rate + ALLOWED_POINTS and one.worse <= ALLOWED_WORSE and one.invented <= full.invented
    ]
    best = min(good, key=lambda one: one.seconds, default=None)
    lines += ["", f"Fastest within + {ALLOWED_POINTS} points and {ALLOWED_WORSE:.0%} of clips worse by {WORSE_BY}:"]
    lines += [_row(best, full)] if best else ["none."]
    signs: dict[str, int] = {}
    for record in records:
        for answers in record.chunks:
            sign = answers[key(WINDOW_IN_USE)].sign
            signs[sign] = signs.get(sign, 0) + bool(sign)
    named = ", ".join(f"{sign} {count}" for sign, count in sorted(signs.items()) if sign)
    return [*lines, "", f"Rejected for other signs, window in use: {named or 'none'}."]


def _beats(other: Outcome, one: Outcome) -> bool:
    """Whether another candidate is better in one respect, and worse in none."""
    first = (other.errors, other.invented, other.worse, other.seconds)
    second = (one.errors, one.invented, one.worse, one.seconds)
    return all(a <= b for a, b in zip(first, second, strict=True)) and first != second


def _row(one: Outcome, full: Outcome) -> str:
    check = "none but the other signs" if one.logprob == -math.inf else f"{one.logprob:g}"
    check += f", {one.language:g}" if one.language else ""
    use = " (in use)" if (one.logprob, one.language) == IN_USE and one.window == key(WINDOW_IN_USE) else ""
    cells = [
        one.window,
        check + use,
        str(one.errors),
        f"{one.rate:.2f} % ({one.rate - full.rate:+.2f})",
        str(one.invented),
        f"{one.worse:.1%}",
        f"{one.again:.1%}",
        f"{one.again_easy:.1%}, {one.again_hard:.1%}",
        f"{one.seconds / max(full.seconds, 1e-9):.2f} x",
    ]
    return f"| {' | '.join(cells)} |"


def _share(values: Sequence[bool]) -> float:
    return sum(values) / len(values) if values else 0.0


def read(path: Path) -> list[Record]:
    """Return the records of an earlier run."""
    if not path.is_file():
        return []
    found = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return [
        Record(one["clip"], [{name: Answer(**answer) for name, answer in each.items()} for each in one["chunks"]])
        for one in found
    ]


def wanted(folder: Path | None, languages: frozenset[str], most: float) -> list[corpus.Clip]:
    """Return the clips to tune on, in an order drawn from their names; `most` is the longest, in seconds."""
    found = corpus.built(folder, "tune") if folder else list(corpus.shared(ROOT.parent / "shared" / "speech"))
    found = [clip for clip in found if clip.seconds <= most and clip.language in languages]
    return sorted(found, key=lambda clip: hashlib.sha256(clip.id.encode()).digest())


def main(arguments: Sequence[str]) -> int:
    """Measure and print the tables; return 1 without clips."""
    parser = argparse.ArgumentParser(description="Candidates for the acceptance check's thresholds of one model.")
    parser.add_argument("--model", default="base", help="folder or name of the model")
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto")
    parser.add_argument("--compute-type", default="auto")
    parser.add_argument("--corpus", type=Path, help="folder with a manifest.tsv, whose tune split is used")
    parser.add_argument(
        "--window",
        action="append",
        type=lambda text: tuple(map(float, text.split(","))),
        help="also try this room and shortest window, in seconds: 3,15",
    )
    parser.add_argument("--language", action="append", help="only clips in these languages (zxx: no speech)")
    parser.add_argument("--records", type=Path, help="file that keeps what was decoded")
    parser.add_argument("--minutes", type=float, default=50.0, help="stop decoding after so long")
    parser.add_argument("--max-seconds", type=float, default=30.0, help="leave out longer clips")
    parser.add_argument("--clips", type=int, default=0, help="no more than so many")
    options = parser.parse_args(arguments)
    device = devices.choose_device(
        options.device,
        options.compute_type,
        cuda_devices=devices.device_count(),
        cuda_types=devices.cuda_compute_types(),
    )
    # A busy machine takes the processor away from this one thread; what runs on a card takes none.
    clock = time.process_time if device.name == "cpu" else time.perf_counter
    windows: list[Window] = [WINDOW_IN_USE, *(options.window or ())]
    recorder = Recorder()
    engine = Engine(weights.find(options.model), device, devices.Workers(1, 1), rejection=recorder)
    languages = engine.languages | {corpus.NO_SPEECH}
    chosen = languages & set(options.language) if options.language else languages
    found = wanted(options.corpus, chosen, options.max_seconds)
    clips = {clip.id: clip for clip in (found[: options.clips] if options.clips else found)}
    if not clips:
        print("tune: no clips; name a folder with --corpus", file=sys.stderr)
        return 1
    records = [record for record in (read(options.records) if options.records else []) if record.clip in clips]
    done, until = {record.clip for record in records}, time.monotonic() + 60 * options.minutes
    for clip in clips.values():
        if clip.id in done:
            continue
        if time.monotonic() > until:
            break
        records.append(measure(engine, recorder, clip, windows, clock))
        if options.records:
            with options.records.open("a", encoding="utf-8") as file:
                file.write(json.dumps(dataclasses.asdict(records[-1])) + "\n")
    print(f"{options.model}, {device.name}, {device.compute_type}: {len(records)} of {len(clips)} clips\n")
    print("\n".join(tables(records, clips, windows)))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
