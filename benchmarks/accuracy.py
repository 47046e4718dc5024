"""Word error rates of several transcribers on the same clips, in one run, in turn.

A transcriber is a function from a clip's samples to a text, so plain faster-whisper and our server are measured by the
same code. As a script it compares plain faster-whisper, our full window and our adaptive window. It starts a server for
the latter two, or uses a running one::

    python benchmarks/accuracy.py [--model PATH_OR_NAME] [--server http://localhost:5000/v1]

With ``--corpus FOLDER`` the clips are those of `corpus/build.py`, and `corpus_accuracy.py` measures them.

Rates are errors / reference words over all clips of a language (not a mean of clips). English passes through Whisper's
own English normaliser, other languages through its basic one; Japanese and Chinese are counted in characters, since
their words are not separated. On clips without speech, every word of a transcript counts as an invented one.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import random
import sys
import time
from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import corpus
import jiwer
from faster_whisper import WhisperModel
from openai import OpenAI
from whisper_normalizer.basic import BasicTextNormalizer
from whisper_normalizer.english import EnglishTextNormalizer

from localwhisper_client.server_process import serving
from localwhisper_server.whisper import chunks, weights

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    import numpy as np
    from numpy.typing import NDArray

CHARACTERS = frozenset({"ja", "zh"})
"""Languages counted in characters."""

BAR = 0.3
"""Points of error rate by which the adaptive window may be worse than the full one."""

WORST = 10


class Transcriber(Protocol):
    """Anything that turns mono float32 samples at `corpus.RATE` into a text, its language unknown."""

    def __call__(self, audio: NDArray[np.float32], /) -> str:
        """Return what is said in ``audio``; empty without speech."""


@dataclasses.dataclass(frozen=True, slots=True)
class Score:
    """How one transcript differs from its reference; ``total`` is the reference's words (or characters)."""

    clip: corpus.Clip
    text: str
    errors: int
    total: int
    seconds: float


class Normalizer:
    """Brings references and transcripts to a common spelling, per language."""

    def __init__(self) -> None:
        self._english = EnglishTextNormalizer()
        self._basic = BasicTextNormalizer()

    def __call__(self, text: str, language: str) -> str:
        """Return ``text`` as units separated by single spaces."""
        plain = self._english(text) if language == "en" else self._basic(text)
        units = "".join(plain.split()) if language in CHARACTERS else plain.split()
        return " ".join(units)


def score(clip: corpus.Clip, text: str, seconds: float, normalize: Normalizer) -> Score:
    """Compare ``text`` with what is said in ``clip``; without a reference each word is an error."""
    reference, heard = (normalize(words, clip.language) for words in (clip.reference, text))
    if not reference:
        return Score(clip, text, len(heard.split()), 0, seconds)
    counts = jiwer.process_words(reference, heard)
    errors = counts.substitutions + counts.deletions + counts.insertions
    return Score(clip, text, errors, len(reference.split()), seconds)


def rate(scores: Sequence[Score]) -> float:
    """Return errors per 100 reference words (or characters)."""
    return 100 * sum(s.errors for s in scores) / max(1, sum(s.total for s in scores))


def compare(
    transcribers: Mapping[str, Transcriber],
    clips: Sequence[corpus.Clip],
    now: Callable[[], float] = time.perf_counter,
) -> dict[str, list[Score]]:
    """Give each clip to every transcriber before the next clip, so that a busy machine slows down all of them."""
    normalize = Normalizer()
    scores: dict[str, list[Score]] = {name: [] for name in transcribers}
    for clip in clips:
        audio = corpus.as_uploaded(clip.audio)
        for name, transcribe in transcribers.items():
            start = now()
            text = transcribe(audio)
            scores[name].append(score(clip, text, now() - start, normalize))
    return scores


def report(scores: Mapping[str, Sequence[Score]]) -> list[str]:
    """Return the tables as Markdown lines; the others are compared with the first transcriber."""
    names = list(scores)
    groups: dict[tuple[str, str], list[int]] = defaultdict(list)
    silent: list[int] = []
    for index, reference in enumerate(scores[names[0]]):
        clip = reference.clip
        if clip.language == corpus.NO_SPEECH:
            silent.append(index)
            continue
        groups[clip.language, f"{clip.group}, all"].append(index)
        groups[clip.language, f"{clip.group}, {corpus.length_group(clip.seconds)}"].append(index)
        groups[clip.language, "held out" if clip.held_out else "tuned on"].append(index)
        groups[clip.language, "all"].append(index)

    def row(label: str, cells: Sequence[str]) -> str:
        return f"| {label} | {' | '.join(cells)} |"

    lines = [row("language, clips", ["count", *names]), row("---", ["---"] * (len(names) + 1))]
    for (language, label), indices in sorted(groups.items()):
        rates = [rate([scores[name][i] for i in indices]) for name in names]
        unit = "CER" if language in CHARACTERS else "WER"
        cells = [f"{value:.2f} %" + (f" ({value - rates[0]:+.2f})" if n else "") for n, value in enumerate(rates)]
        lines.append(row(f"{language}, {label} ({unit})", [str(len(indices)), *cells]))
    if silent:
        invented = [sum(scores[name][i].errors for i in silent) for name in names]
        talking = [sum(bool(scores[name][i].errors) for i in silent) for name in names]
        lines.append(row("no speech: invented words", [str(len(silent)), *map(str, invented)]))
        lines.append(row("no speech: clips with text", [str(len(silent)), *map(str, talking)]))
    first = sum(s.seconds for s in scores[names[0]])
    ratios = [f"{sum(s.seconds for s in scores[name]) / first:.2f} x" for name in names]
    lines.append(row("time", [str(len(scores[names[0]])), *ratios]))
    for name in names[1:]:
        alike = sum(base.text == other.text for base, other in zip(scores[names[0]], scores[name], strict=True))
        lines += ["", f"{name}: {alike} of {len(scores[name])} texts are {names[0]}'s, letter for letter."]
        lines += ["", f"Worst {WORST} clips of {name}, by errors more than {names[0]} makes:", ""]
        pairs = sorted(
            zip(scores[names[0]], scores[name], strict=True), key=lambda pair: pair[0].errors - pair[1].errors
        )
        for base, other in pairs[:WORST]:
            lines += [
                f"- {base.clip.id} ({base.clip.seconds:.1f} s): {base.errors} -> {other.errors} errors",
                f"  - said: {base.clip.reference[:200]!r}",
                f"  - {names[0]}: {base.text[:200]!r}",
                f"  - {name}: {other.text[:200]!r}",
            ]
    return lines


def passed(scores: Mapping[str, Sequence[Score]]) -> bool:
    """Whether the adaptive window keeps `BAR` in English, and invents no more words in clips without speech."""
    first, others = scores["full window"], [scores["adaptive"]]

    def english(part: Sequence[Score], group: str) -> float:
        return rate([s for s in part if s.clip.language == "en" and s.clip.group == group])

    def invented(part: Sequence[Score]) -> int:
        return sum(s.errors for s in part if s.clip.language == corpus.NO_SPEECH)

    return all(
        english(other, group) <= english(first, group) + BAR for other in others for group in ("shared", "debian")
    ) and all(invented(other) <= invented(first) for other in others)


def faster_whisper(model: WhisperModel, *, context: bool = True) -> Transcriber:
    """Return plain faster-whisper with its defaults: beam 5, 30 s windows, temperature fallback, no voice filter.

    Without ``context``, the text of a window is not the prefix of the next one.
    """

    def transcribe(audio: NDArray[np.float32], /) -> str:
        segments, _ = model.transcribe(audio, beam_size=5, condition_on_previous_text=context)
        return "".join(segment.text for segment in segments).strip()

    return transcribe


def server(client: OpenAI, model: str, **fields: str) -> Transcriber:
    """Return a transcriber that sends 16-bit WAV files to a server of OpenAI's API."""

    def transcribe(audio: NDArray[np.float32], /) -> str:
        answer = client.audio.transcriptions.create(
            model=model, file=("clip.wav", corpus.wav(audio), "audio/wav"), response_format="json", extra_body=fields
        )
        return answer.text.strip()

    return transcribe


def main(arguments: Sequence[str]) -> int:
    """Print the tables; return 1 where a transcriber misses a bar."""
    parser = argparse.ArgumentParser(description="Error rates of plain faster-whisper and of a server, in one run.")
    parser.add_argument("--model", default="base", help="folder or name of the model")
    parser.add_argument("--server", help="base URL of a running server; without one, one is started")
    parser.add_argument("--server-model", default="whisper-1", help="model name to ask the server for")
    parser.add_argument("--language", action="append", help="only clips in these languages (zxx: no speech)")
    parser.add_argument("--max-seconds", type=float, default=30.0, help="leave out longer clips")
    parser.add_argument(
        "--min-seconds", type=float, default=0.1, help="leave out shorter clips; OpenAI refuses them, too"
    )
    parser.add_argument("--cache", type=Path, default=Path.home() / ".cache" / "localwhisper-bench")
    parser.add_argument("--group", action="append", choices=["shared", "debian", "generated"], help="only these clips")
    parser.add_argument("--clips", type=int, default=0, help="no more than so many from packages, drawn by lot")
    parser.add_argument(
        "--repeat", type=int, default=1, help="take every clip so many times: hot samples are drawn by lot"
    )
    parser.add_argument("--prompt", default="", help="send this prompt along, to the server alone")
    parser.add_argument(
        "--no-plain", action="store_true", help="leave plain faster-whisper out, which takes the most time"
    )
    options = parser.parse_args(arguments)
    clips = [
        clip
        for clip in corpus.load(Path(__file__).resolve().parents[1], options.cache)
        if options.min_seconds <= clip.seconds <= options.max_seconds
        and (not options.language or clip.language in options.language)
        and (not options.group or clip.group in options.group)
    ]
    if options.clips:
        packaged = [clip for clip in clips if clip.group == "debian"]
        random.Random(0).shuffle(packaged)  # noqa: S311 - the same draw every time
        clips = [clip for clip in clips if clip.group != "debian"] + packaged[: options.clips]
    folder = str(weights.find(options.model))
    with contextlib.ExitStack() as stack:
        url = options.server or stack.enter_context(serving("--model", folder)).base_url
        client = OpenAI(base_url=url, api_key="none", max_retries=0)
        transcribers = {
            "full window": server(client, options.server_model, prompt=options.prompt, window="exact"),
            "adaptive": server(client, options.server_model, prompt=options.prompt),
        }
        if not options.no_plain:
            model = WhisperModel(folder, device="cpu", compute_type="int8")
            transcribers["faster-whisper"] = faster_whisper(model)
            if options.max_seconds > chunks.FULL_SECONDS:  # in one window there is nothing before
                transcribers["without context"] = faster_whisper(model, context=False)
        scores = compare(transcribers, clips * options.repeat)
    print("\n".join(report(scores)))
    return 0 if passed(scores) else 1


if __name__ == "__main__":
    if any(argument.partition("=")[0] == "--corpus" for argument in sys.argv[1:]):
        import corpus_accuracy

        sys.exit(corpus_accuracy.main(sys.argv[1:]))
    sys.exit(main(sys.argv[1:]))
