"""How much may be spent on the cloud in a day or a month, and whether a call still fits; pure."""

from __future__ import annotations

import math
from dataclasses import dataclass
from datetime import datetime, tzinfo
from typing import Self


class OverBudget(Exception):
    """The budget has no room for a call, or cannot be checked; says why."""


@dataclass(frozen=True, slots=True)
class Budget:
    """An amount for each day or each month of the calendar."""

    dollars: float
    period: str
    """`day` or `month`."""

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read `5.00/month` or `0.50/day`.

        Raises:
            ValueError: it is neither.

        """
        amount, slash, period = text.strip().lower().partition("/")
        dollars = float(amount.strip().removeprefix("$"))
        period = period.strip()
        if not slash or period not in ("day", "month") or not math.isfinite(dollars) or dollars < 0:
            raise ValueError(text)
        return cls(dollars, period)

    def since(self, now: float, timezone: tzinfo | None = None) -> float:
        """Return when the current period began. Both times are seconds since the epoch; the default zone is local."""
        start = datetime.fromtimestamp(now, timezone).replace(hour=0, minute=0, second=0, microsecond=0)
        return (start.replace(day=1) if self.period == "month" else start).timestamp()

    def check(self, spent_usd: float, most_usd: float, note: str = "") -> None:
        """Check that a call fits; `spent_usd` is what this period has cost and reserved, `most_usd` the call's maximum.

        Raises:
            OverBudget: it does not fit; `note` is added to the reason.

        """
        if spent_usd + most_usd > self.dollars:
            raise OverBudget(
                f"the budget of ${self} has no room for up to ${most_usd:.4f}{note}: "
                f"${spent_usd:.4f} is spent or reserved"
            )

    def __str__(self) -> str:
        cents = f"{self.dollars:.2f}"
        return f"{cents if float(cents) == self.dollars else self.dollars}/{self.period}"
