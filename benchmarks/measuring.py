"""What several benchmarks need: recordings, percentiles, the memory of a server, and the tests' helpers."""

import math
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
VOICE = ROOT / "localwhisper_client" / "demo.ogg"
MINUTE = ROOT / "tests" / "voices" / "en-60s.ogg"

sys.path.insert(0, str(ROOT))  # for `tests.server`


def percentile(values: Sequence[float], share: float) -> float:
    """Return the smallest value that this share of the values does not exceed."""
    return sorted(values)[math.ceil(share * len(values)) - 1]


def memory(pid: int, *, children: bool = True) -> float:
    """Return the resident memory of a process, and of its children, in MB."""
    found = Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii").split() if children else []
    total = 0
    for each in (str(pid), *found):
        try:
            lines = Path(f"/proc/{each}/status").read_text(encoding="ascii").splitlines()
        except OSError:
            continue  # a decoder that has just ended
        total += next((int(line.split()[1]) for line in lines if line.startswith("VmRSS")), 0)
    return total / 1024
