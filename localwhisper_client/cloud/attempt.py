"""One attempt in the cloud: the call made into one that the cloud can answer, entered in the books, and settled."""

from __future__ import annotations

import copy
import json
import math
import time
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import openai

from localwhisper_client._http import http
from localwhisper_client.cloud import media
from localwhisper_client.cloud.accounting import Spent
from localwhisper_client.cloud.adaptation import Impossible, adapted
from localwhisper_client.cloud.ledger import Row
from localwhisper_client.cloud.models import BY_CHOICE
from localwhisper_client.cloud.prices import Usage, cost
from localwhisper_client.errors import BudgetExceeded, CloudUnsupported
from localwhisper_client.events import BudgetReached, LanguageDropped
from localwhisper_client.lan.classification import failed
from localwhisper_client.routing.plan import Outcome, Verdict

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from datetime import date

    from localwhisper_client.cloud.accounting import Books
    from localwhisper_client.routing.plan import Announce, Ending

UPLOAD_LIMIT = 25 * 1024 * 1024
"""Bytes that OpenAI takes in one request."""
# The limit is on the whole request: what the form needs beside the file.
_FORM = 64 * 1024
_USAGE = ("seconds", "input_tokens", "output_tokens")
_MAY_PASS = frozenset({Verdict.OUTAGE, Verdict.FAILURE, Verdict.BUSY})


@dataclass
class Attempt:
    """One attempt; `options` is what to send."""

    options: Any
    backend: str
    books: Books
    announce: Announce
    now: float
    """Seconds since the epoch."""
    reason: str
    adapts: bool = True
    """Whether the models' names are OpenAI's; Azure's are of the user's own deployments, and stay."""
    clock: Callable[[], float] = time.monotonic
    sent: float = field(init=False)
    row: Row | None = field(init=False, default=None)
    number: int | None = field(init=False, default=None)

    def prepare(self) -> None:
        """Adapt the request and enter it in the books. Blocks.

        Raises:
            CloudUnsupported: no model of the cloud's can answer it, or its file cannot be made small enough.
            BudgetExceeded: it must not be paid for.

        """
        self.sent = self.clock()
        self.options = copy.copy(self.options)
        request = http.Request("POST", self.backend)
        if not isinstance(self.options.json_data, dict):
            why = "The cloud was not asked: the program wrote the body itself, so no model can be chosen for it."
            raise CloudUnsupported(why, request=request)
        try:
            dropped: tuple[str, ...] = ()
            if self.adapts:
                self.options.json_data, dropped = adapted(self.options.url, self.options.json_data, day(self.now))
            self.options.files = _fitting(self.options.files)
        except Impossible as why:
            raise CloudUnsupported(f"The cloud was not asked: {why}.", request=request) from why
        for language in dropped:
            self.announce(LanguageDropped(self.backend, language, self.model))
        audio_seconds, most = None, None
        if self.books.kept:
            content = content_of(self.options.files)
            # Money follows what was counted: what a header says may be wrong by any factor.
            audio_seconds = media.counted(content)
            longest = audio_seconds + 1 if audio_seconds is not None else media.most_seconds(content)
            most = cost(self.model, Usage(longest))
        self.row = Row(self.now, self.backend, True, self.reason, audio_seconds, None, None, 0.0)  # noqa: FBT003
        try:
            self.number = self.books.enter(self.row, most)
        except Spent as why:
            self.announce(BudgetReached(self.backend, str(why), most))
            raise BudgetExceeded(f"The cloud was not asked: {why}.", request=request) from why

    @property
    def model(self) -> str:
        """The model that the cloud is asked for."""
        return str(self.options.json_data.get("model"))

    def answered(self, value: Any) -> Outcome:
        """Settle an answer. Blocks."""
        usage = usage_of(value)
        if usage.seconds is None and self.row is not None:
            usage = replace(usage, seconds=self.row.audio_seconds)
        price = cost(self.model, usage)
        self._settle(audio_seconds=usage.seconds, cost_usd=price)
        return Outcome(Verdict.ANSWERED, value=value, audio_seconds=usage.seconds, cost_usd=price)

    def failed(self, error: Exception) -> Outcome:
        """Settle a failure: an error status costs nothing, nor does what was never sent; else nobody knows. Blocks.

        Also of an answer that cannot be read: it is as dear as any.
        """
        if isinstance(error, (BudgetExceeded, CloudUnsupported)):
            return Outcome(Verdict.REFUSED, str(error), error=error)
        if self.row is None:
            raise error
        seen = failed(error, self.now)
        status = getattr(error, "status_code", None) if isinstance(error, openai.APIStatusError) else None
        reason = f"status {status}" if status else f"{type(error).__name__}: {error}"
        unsent = isinstance(error.__cause__, (http.ConnectError, http.ConnectTimeout))
        price = 0.0 if status or unsent else None
        self._settle(reason=reason, cost_usd=price)
        return Outcome(
            Verdict.FAILURE,
            reason,
            retry_after=seen.retry_after if seen else None,
            error=error,
            cost_usd=price,
            may_pass=seen is not None and seen.verdict in _MAY_PASS and not _is_final(error),
        )

    def _settle(self, **known: Any) -> None:
        if self.number is not None and self.row is not None:
            self.books.settle(self.number, replace(self.row, seconds=self.clock() - self.sent, **known))


def _is_final(error: Exception) -> bool:
    """Whether the cloud says itself that asking again is of no use."""
    told = getattr(getattr(error, "response", None), "headers", {}).get("x-should-retry")
    return told == "false" or getattr(error, "code", None) == "insufficient_quota"


def lan_row(ending: Ending, fields: Mapping[str, Any], files: Any, now: float) -> Row:
    """Return the row of a call that the LAN server answered just now, and what that saved. Blocks."""
    outcome = ending.outcome
    length = outcome.audio_seconds
    if length is None:
        length = media.seconds(content_of(files))
    asked = str(fields.get("model"))
    stand_in = next(model.name for model in BY_CHOICE if model.alive(day(now)))
    usage = Usage(length)
    saved = cost(asked, usage)
    return Row(
        now - ending.seconds,
        ending.backend,
        cloud=False,
        reason=ending.reason,
        audio_seconds=length,
        seconds=ending.seconds,
        cost_usd=0.0,
        saved_usd=cost(stand_in, usage) if saved is None else saved,
    )


def day(now: float) -> date:
    """Return the day in UTC; `now` in seconds since the epoch."""
    return datetime.fromtimestamp(now, UTC).date()


def usage_of(value: Any) -> Usage:
    """Return what an answer says of its usage, in any form in which the SDK hands one over; a stream says nothing."""
    told, duration = getattr(value, "usage", None), getattr(value, "duration", None)
    response = getattr(value, "http_response", None)
    if told is None and duration is None and response is not None:
        try:
            body = json.loads(response.content)
            told, duration = body.get("usage"), body.get("duration")
        except (http.StreamError, ValueError, AttributeError):
            return Usage()
    said = told if isinstance(told, dict) else {name: getattr(told, name, None) for name in _USAGE}
    seconds, tokens_in, tokens_out = (_number(said.get(name)) for name in _USAGE)
    return Usage(_number(duration) if seconds is None else seconds, tokens_in, tokens_out)


def _number(value: Any) -> float | None:
    """Return an amount; what is none, or would give money back, is unknown."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if math.isfinite(number) and number >= 0 else None


def content_of(files: Any) -> Any:
    """Return the content of a request's file: bytes, or an open file that can be rewound."""
    for _, value in files.items() if hasattr(files, "items") else files or ():
        return value[1] if isinstance(value, tuple) else value
    return b""


def _fitting(files: Any) -> Any:
    """Return the files as they are where the cloud takes them, else made smaller."""
    content = content_of(files)
    big = media.size(content)
    if big <= UPLOAD_LIMIT - _FORM:
        return files
    wish = f"the file has {big / 1e6:.0f} MB, and OpenAI takes {UPLOAD_LIMIT / 1e6:.0f}"
    try:
        smaller = media.to_opus(content)
    except ModuleNotFoundError:
        raise Impossible(f"{wish}; with pip install 'localwhisper-lan[transcode]' it would be made smaller") from None
    except media.Unreadable as error:
        raise Impossible(f"{wish}, and it cannot be read to make it smaller ({error})") from error
    if len(smaller) > UPLOAD_LIMIT - _FORM:
        raise Impossible(f"{wish}; as Opus it still has {len(smaller) / 1e6:.0f} MB")
    return [("file", ("audio.ogg", smaller, "audio/ogg"))]
