"""What a user would pick instead, in one run, in turn: words and seconds.

    python benchmarks/compare.py [--corpus FOLDER] [--model base] [--ggml FILE] [--clips 40] [--long 600]

The rivals are faster-whisper as it is, its `BatchedInferencePipeline` with batches of 8, and whisper.cpp through
pywhispercpp, each behind `plain_server.py`, and our server. No wheel brings whisper.cpp's weights: `ggml.py` writes
them from the same model as the others', and without `--ggml` whisper.cpp is left out. All of them are loaded at the
same time. Each clip goes to every rival before the next clip, so that a busy machine slows down all of them; in the
other parts one rival works while the others are idle.

Clips are those of the corpus's test split up to 15 s with speech in them, drawn from their names; without `--corpus`,
the recordings in `../shared/speech`. The language is not given. Rates are wrong words in percent (Japanese, Chinese:
characters). With fewer than 16 clips, eight clients send some twice, which our server decodes once.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import hashlib
import itertools
import statistics
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import accuracy
import corpus
from measuring import MINUTE, ROOT, joined_to, multilingual, ours, percentile, plain, upload

from localwhisper_server.whisper import weights

if TYPE_CHECKING:
    from collections.abc import Sequence

    from measuring import Rival, Upload

LONGEST = 15.0
CLIENTS = 8
EASY = "clean"


@dataclasses.dataclass(slots=True)
class Figures:
    """What was measured of one rival: seconds, and clips a second."""

    scores: list[accuracy.Score] = dataclasses.field(default_factory=list)
    minute: float = 0.0
    long: float = 0.0
    clients: float = 0.0

    def rate(self, *, easy: bool | None = None) -> str:
        """Return the error rate over all clips, or over the easy or the other ones; a dash if there are none."""
        scores = [s for s in self.scores if easy is None or (s.clip.group == EASY) == easy]
        return f"{accuracy.rate(scores):.2f} %" if scores else "-"


def clips_of(
    folder: Path | None, most: float, *, count: int, languages: frozenset[str] | None = None
) -> list[corpus.Clip]:
    """Return so many clips with speech of at most `most` seconds, in an order drawn from their names."""
    found = corpus.built(folder, "test") if folder else list(corpus.shared(ROOT.parent / "shared" / "speech"))
    found = [
        clip
        for clip in found
        if clip.seconds <= most
        and clip.language != corpus.NO_SPEECH
        and (languages is None or clip.language in languages)
    ]
    return sorted(found, key=lambda clip: hashlib.sha256(clip.id.encode()).digest())[:count]


def in_turn(rivals: Sequence[Rival], clips: Sequence[corpus.Clip]) -> dict[str, Figures]:
    """Send each clip to every rival; return texts compared with what is said, and their seconds."""
    normalize = accuracy.Normalizer()
    figures = {rival.name: Figures() for rival in rivals}
    for number, clip in enumerate(clips):
        sound = ("clip.wav", corpus.wav(clip.audio))
        # The first rival after a pause finds a cold cache: each is first in turn.
        first = number % len(rivals)
        for rival in (*rivals[first:], *rivals[:first]):
            text, seconds = rival.answer(sound)
            figures[rival.name].scores.append(accuracy.score(clip, text, seconds, normalize))
    return figures


def throughput(rival: Rival, uploads: Sequence[Upload], clients: int) -> float:
    """Return how many clips a second so many clients get through that send them all once."""
    pile = list(itertools.islice(itertools.cycle(uploads), max(len(uploads), 2 * clients)))
    started = time.perf_counter()
    with ThreadPoolExecutor(clients) as pool:
        list(pool.map(rival.ask, pile))
    return len(pile) / (time.perf_counter() - started)


def table(figures: dict[str, Figures], long_seconds: float) -> list[str]:
    """Return a Markdown table; ratios are to the first rival."""
    base = next(iter(figures.values()))
    long_name = f"{long_seconds:.0f} s" if long_seconds else "-"
    head = ["", "p50", "p95", "60 s", long_name, f"{CLIENTS} clients", "wrong words", "clean", "other"]
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]

    def seconds(value: float, other: float) -> str:
        return f"{value:.2f} s ({value / other:.2f})" if value and other else "-"

    def p(one: Figures, share: float) -> float:
        return percentile([score.seconds for score in one.scores], share)

    for name, one in figures.items():
        cells = [
            name,
            seconds(
                statistics.median(s.seconds for s in one.scores), statistics.median(s.seconds for s in base.scores)
            ),
            seconds(p(one, 0.95), p(base, 0.95)),
            seconds(one.minute, base.minute),
            seconds(one.long, base.long),
            f"{one.clients:.2f} /s ({one.clients / base.clients:.2f})" if one.clients else "-",
            one.rate(),
            one.rate(easy=True),
            one.rate(easy=False),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def main(arguments: Sequence[str]) -> int:
    """Measure and print the table; return 1 without clips."""
    parser = argparse.ArgumentParser(description="Our server against what a user would pick instead.")
    parser.add_argument("--model", default="base", help="folder or name of the model")
    parser.add_argument("--ggml", type=Path, help="the same weights for whisper.cpp, written by ggml.py")
    parser.add_argument("--ggml-threads", type=int, default=0, help="whisper.cpp's threads; 0: one for each core")
    parser.add_argument("--corpus", type=Path, help="folder with a manifest.tsv, whose test split is used")
    parser.add_argument("--clips", type=int, default=40)
    parser.add_argument("--long", type=float, default=600.0, help="seconds of the long recording; 0 for none")
    parser.add_argument("--rounds", type=int, default=3, help="how often the recording of 60 s is sent")
    options = parser.parse_args(arguments)
    folder = str(weights.find(options.model))
    languages = None if multilingual(Path(folder)) else frozenset({"en"})
    clips = clips_of(options.corpus, LONGEST, count=options.clips, languages=languages)
    if not clips:
        print("compare: no clips; name a folder with --corpus", file=sys.stderr)
        return 1
    with contextlib.ExitStack() as stack:
        rivals = [
            stack.enter_context(plain(folder, name="plain")),
            stack.enter_context(plain(folder, "--kind", "batched", name="batched")),
        ]
        if options.ggml:
            threads = str(options.ggml_threads)
            cpp = plain(str(options.ggml), "--kind", "whispercpp", "--threads", threads, name="whisper.cpp")
            rivals.append(stack.enter_context(cpp))
        rivals.append(stack.enter_context(ours(folder)))
        figures = in_turn(rivals, clips)

        def print_table() -> None:
            """Print what is known so far: all of it takes long."""
            print(f"\n{options.model}, {len(clips)} clips up to {LONGEST:.0f} s:\n")
            print("\n".join(table(figures, options.long)), flush=True)

        print_table()
        uploads = [("clip.wav", corpus.wav(clip.audio)) for clip in clips]
        minutes: dict[str, list[float]] = {rival.name: [] for rival in rivals}
        for _, rival in itertools.product(range(options.rounds), rivals):
            minutes[rival.name].append(rival.ask(upload(MINUTE)))
            figures[rival.name].minute = statistics.median(minutes[rival.name])
        print_table()
        for rival in rivals:
            figures[rival.name].clients = throughput(rival, uploads, CLIENTS)
        print_table()
        if options.long:
            english = [clip for clip in clips if clip.language == "en"]
            long = joined_to(options.long, english or clips)
            for rival in rivals:
                figures[rival.name].long = rival.ask(long)
            print_table()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
