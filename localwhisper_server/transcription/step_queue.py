"""Which request takes the next step of preparation: hashing, voice activity, features. Pure.

A step is short (16 MB hashed, or 30 s of sound), so the requests can take turns and none holds up the others.
"""

from dataclasses import dataclass
from typing import Generic, TypeVar

Step = TypeVar("Step")

# One step in so many goes to the request that has waited longest, so that a long recording never stands still.
OLDEST_EVERY = 4
# A request that has taken no more steps than this is short so far: enough for a voice message of a minute.
FEW = 4


@dataclass(eq=False, slots=True)
class Account:
    """What one request has taken so far, in steps."""

    bulk: bool = False
    steps: int = 0

    @property
    def short(self) -> bool:
        """Whether it has taken few steps so far."""
        return self.steps <= FEW


class StepQueue(Generic[Step]):
    """The steps that wait. Interactive requests go before bulk ones, then the one with the fewest steps so far.

    So a short recording is through after a few steps, however many long ones are being prepared.
    """

    def __init__(self) -> None:
        self._waiting: list[tuple[Account, Step]] = []  # in the order of their arrival
        self._taken = 0

    def __len__(self) -> int:
        """Count the steps that wait."""
        return len(self._waiting)

    def put(self, account: Account, step: Step) -> None:
        """Add a request's next step."""
        self._waiting.append((account, step))

    def take(self, *, short: bool = False) -> tuple[Account, Step] | None:
        """Return the step whose turn it is, and book it; None if none waits, or none of a request that is `short`."""
        ready = [at for at, (account, _) in enumerate(self._waiting) if account.short or not short]
        if not ready:
            return None
        self._taken += 1
        oldest = self._taken % OLDEST_EVERY == 0
        account, step = self._waiting.pop(
            ready[0] if oldest else min(ready, key=lambda at: _rank(self._waiting[at][0]))
        )
        account.steps += 1
        return account, step


def _rank(account: Account) -> tuple[bool, int]:
    return account.bulk, account.steps
