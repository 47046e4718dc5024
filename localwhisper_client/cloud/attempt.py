"""One attempt in the cloud: adapt the request, reserve its cost in the ledger, and commit what it cost in the end."""

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
from localwhisper_client.cloud.adaptation import Unsupported, adapted
from localwhisper_client.cloud.budget import OverBudget
from localwhisper_client.cloud.ledger import Row
from localwhisper_client.cloud.models import BY_CHOICE, Usage, cost
from localwhisper_client.errors import BudgetExceeded, CloudUnsupported
from localwhisper_client.events import BudgetReached, LanguageDropped
from localwhisper_client.routing.plan import Outcome, Verdict

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from datetime import date

    from localwhisper_client.cloud.ledger import Ledger
    from localwhisper_client.events import LastCall
    from localwhisper_client.routing.backend import Announce

UPLOAD_LIMIT = 25 * 1024 * 1024
"""Bytes that OpenAI takes in one request."""
# The limit is on the whole request; this much is left for the form's other fields.
_FORM = 64 * 1024
_USAGE = ("seconds", "input_tokens", "output_tokens")
_MAY_PASS = frozenset({Verdict.OUTAGE, Verdict.FAILURE, Verdict.BUSY})


@dataclass
class CloudAttempt:
    """One attempt; `options` is the request to send, which `prepare` adapts."""

    options: Any
    backend: str
    ledger: Ledger
    announce: Announce
    classify: Callable[[Exception, float], Outcome | None]
    """Says what an exception of the HTTP library or the SDK means; `None` if it is neither's."""
    now: float
    """Seconds since the epoch."""
    reason: str
    """Why the LAN server did not answer."""
    adapts: bool = True
    """Whether models have OpenAI's names. Azure's are names of the user's own deployments, and are not changed."""
    clock: Callable[[], float] = time.monotonic
    _sent: float = field(init=False)
    _row: Row | None = field(init=False, default=None)
    _number: int | None = field(init=False, default=None)

    def prepare(self) -> None:
        """Adapt the request and reserve its cost. Blocks.

        Raises:
            CloudUnsupported: no model of the cloud's can answer it, or its file cannot be made small enough.
            BudgetExceeded: the budget has no room for it, or cannot be checked.

        """
        self._sent = self.clock()
        self.options = copy.copy(self.options)
        request = http.Request("POST", self.backend)
        try:
            dropped = self._adapt()
        except Unsupported as why:
            raise CloudUnsupported(f"The cloud was not asked: {why}.", request=request) from why
        for language in dropped:
            self.announce(LanguageDropped(self.backend, language, self.model))
        audio_seconds, most_usd = None, None
        if self.ledger.enabled:
            audio_seconds, most_seconds = media.billed_seconds(content_of(self.options.files))
            most_usd = cost(self.model, Usage(most_seconds))
        self._row = Row(self.now, self.backend, True, self.reason, audio_seconds, None, None, 0.0)  # noqa: FBT003
        try:
            self._number = self.ledger.reserve(self._row, most_usd)
        except OverBudget as why:
            self.announce(BudgetReached(self.backend, str(why), most_usd))
            raise BudgetExceeded(f"The cloud was not asked: {why}.", request=request) from why

    def _adapt(self) -> tuple[str, ...]:
        """Adapt the fields and the file; return the languages that had to be left out."""
        dropped: tuple[str, ...] = ()
        if not isinstance(self.options.json_data, dict):
            raise Unsupported("the program wrote the body itself, so no model can be chosen for it")
        if self.adapts:
            self.options.json_data, dropped = adapted(self.options.url, self.options.json_data, day(self.now))
        self.options.files = fitting(self.options.files)
        return dropped

    @property
    def model(self) -> str:
        """The model that the cloud is asked for."""
        return str(self.options.json_data.get("model"))

    def answered(self, value: Any) -> Outcome:
        """Commit the cost of an answer. Blocks."""
        usage = usage_of(value)
        if usage.seconds is None and self._row is not None:
            usage = replace(usage, seconds=self._row.audio_seconds)
        price = cost(self.model, usage)
        self._commit(audio_seconds=usage.seconds, cost_usd=price)
        return Outcome(Verdict.ANSWERED, value=value, audio_seconds=usage.seconds, cost_usd=price)

    def failed(self, error: Exception) -> Outcome:
        """Commit the cost of a failure. Blocks.

        An error status costs nothing, nor does a request that was never sent. The cost of any other failure, such as
        an answer that cannot be read, is unknown.
        """
        if isinstance(error, (BudgetExceeded, CloudUnsupported)):
            return Outcome(Verdict.REFUSED, str(error), error=error)
        if self._row is None:
            raise error
        seen = self.classify(error, self.now)
        status = error.status_code if isinstance(error, openai.APIStatusError) else None
        reason = f"status {status}" if status else f"{type(error).__name__}: {error}"
        unsent = isinstance(error.__cause__, (http.ConnectError, http.ConnectTimeout))
        price = 0.0 if status or unsent else None
        self._commit(reason=reason, cost_usd=price)
        return Outcome(
            Verdict.FAILURE,
            reason,
            retry_after=seen.retry_after if seen else None,
            error=error,
            cost_usd=price,
            may_pass=seen is not None and seen.verdict in _MAY_PASS and not _is_final(error),
        )

    def _commit(self, **known: Any) -> None:
        if self._number is not None and self._row is not None:
            self.ledger.commit(self._number, replace(self._row, seconds=self.clock() - self._sent, **known))


def _is_final(error: Exception) -> bool:
    """Whether the cloud itself says that a retry is of no use."""
    headers = getattr(getattr(error, "response", None), "headers", {})
    return headers.get("x-should-retry") == "false" or getattr(error, "code", None) == "insufficient_quota"


def lan_row(call: LastCall, fields: Mapping[str, Any], files: Any, now: float) -> Row:
    """Return the ledger's row for a call that the LAN server has answered, with what that saved. Blocks."""
    length = call.audio_seconds
    if length is None:
        length = media.seconds(content_of(files))
    saved = cost(str(fields.get("model")), Usage(length))
    if saved is None:
        stand_in = next(model.name for model in BY_CHOICE if model.alive(day(now)))
        saved = cost(stand_in, Usage(length))
    return Row(
        now - call.seconds,
        call.backend,
        cloud=False,
        reason=call.reason,
        audio_seconds=length,
        seconds=call.seconds,
        cost_usd=0.0,
        saved_usd=saved,
    )


def day(now: float) -> date:
    """Return the day in UTC; `now` in seconds since the epoch."""
    return datetime.fromtimestamp(now, UTC).date()


def usage_of(value: Any) -> Usage:
    """Return the usage that an answer reports, in any form in which the SDK hands it over; a stream reports none."""
    usage, duration = getattr(value, "usage", None), getattr(value, "duration", None)
    response = getattr(value, "http_response", None)
    if usage is None and duration is None and response is not None:
        try:
            body = json.loads(response.content)
            usage, duration = body.get("usage"), body.get("duration")
        except (http.StreamError, ValueError, AttributeError):
            return Usage()
    reported = usage if isinstance(usage, dict) else {name: getattr(usage, name, None) for name in _USAGE}
    seconds, tokens_in, tokens_out = (_number(reported.get(name)) for name in _USAGE)
    return Usage(_number(duration) if seconds is None else seconds, tokens_in, tokens_out)


def _number(value: Any) -> float | None:
    """Return an amount; a negative one, which would lower the cost, counts as unknown."""
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


def fitting(files: Any, convert: Callable[[Any], bytes] = media.to_opus) -> Any:
    """Return the files as they are if the cloud takes them, else the audio made smaller.

    Raises:
        Unsupported: it cannot be made small enough.

    """
    content = content_of(files)
    size = media.size(content)
    if size <= UPLOAD_LIMIT - _FORM:
        return files
    too_large = f"the file has {size / 1e6:.0f} MB, and OpenAI takes {UPLOAD_LIMIT / 1e6:.0f}"
    try:
        smaller = convert(content)
    except ModuleNotFoundError:
        raise Unsupported(
            f"{too_large}; with pip install 'localwhisper-lan[transcode]' it would be made smaller"
        ) from None
    except media.Unreadable as error:
        raise Unsupported(f"{too_large}, and it cannot be read to make it smaller ({error})") from error
    if len(smaller) > UPLOAD_LIMIT - _FORM:
        raise Unsupported(f"{too_large}; as Opus it still has {len(smaller) / 1e6:.0f} MB")
    return [("file", ("audio.ogg", smaller, "audio/ogg"))]
