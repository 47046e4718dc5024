"""One attempt in the cloud: adapt the request, reserve its cost in the ledger, and commit what it cost in the end."""

from __future__ import annotations

import copy
import json
import math
import time
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from localwhisper_client._http import http
from localwhisper_client.cloud import media
from localwhisper_client.cloud.ledger import OverBudget, Row
from localwhisper_client.cloud.models import Unsupported, Usage, adapted, cost, saved
from localwhisper_client.errors import BudgetExceeded, CloudUnsupported
from localwhisper_client.events import BudgetReached, LanguageDropped
from localwhisper_client.routing.plan import Outcome, Verdict
from localwhisper_client.shared import install_command

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from localwhisper_client.cloud.ledger import Ledger
    from localwhisper_client.events import LastCall
    from localwhisper_client.routing.backend import Announce

# OpenAI takes 25 MiB in one request; the rest is left for the form's other fields.
_MOST_BYTES = 25 * 1024 * 1024 - 64 * 1024
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
    _began: float = field(init=False, default_factory=time.monotonic)
    _row: Row | None = field(init=False, default=None)
    _number: int | None = field(init=False, default=None)

    def prepare(self) -> None:
        """Adapt the request and reserve its cost. Blocks.

        Raises:
            CloudUnsupported: no model of the cloud's can answer it, or its file cannot be made small enough.
            BudgetExceeded: the budget has no room for it, or cannot be checked.

        """
        options = self.options = copy.copy(self.options)
        request = http.Request("POST", self.backend)
        length = most_usd = None
        try:
            if self.adapts:
                options.json_data, dropped = adapted(options.url, options.json_data, self.now)
                for language in dropped:
                    self.announce(LanguageDropped(self.backend, language, self.model))
            options.files = fitting(options.files)
            if self.ledger.enabled:
                length, most_seconds = media.billed_seconds(content_of(options.files))
                most_usd = cost(self.model, Usage(most_seconds))
            self._row = Row(self.now, self.backend, cloud=True, reason=self.reason, audio_seconds=length)
            self._number = self.ledger.reserve(self._row, most_usd)
        except Unsupported as why:
            raise CloudUnsupported(f"The cloud was not asked: {why}.", request=request) from why
        except OverBudget as why:
            self.announce(BudgetReached(self.backend, str(why), most_usd))
            raise BudgetExceeded(f"The cloud was not asked: {why}.", request=request) from why

    @property
    def model(self) -> str:
        """The model that the cloud is asked for."""
        fields = self.options.json_data
        return str(fields.get("model")) if isinstance(fields, dict) else ""

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
        status = getattr(error, "status_code", None)
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
        if self._row is not None and self._number is not None:
            self.ledger.commit(self._number, replace(self._row, seconds=time.monotonic() - self._began, **known))


def _is_final(error: Exception) -> bool:
    """Whether the cloud itself says that a retry is of no use."""
    headers = getattr(getattr(error, "response", None), "headers", {})
    return headers.get("x-should-retry") == "false" or getattr(error, "code", None) == "insufficient_quota"


def lan_row(call: LastCall, fields: Mapping[str, Any], files: Any, now: float) -> Row:
    """Return the ledger's row for a call that the LAN server has answered, with what that saved. Blocks."""
    length = call.audio_seconds
    if length is None:
        length = media.seconds(content_of(files))
    return Row(
        now - call.seconds,
        call.backend,
        cloud=False,
        reason=call.reason,
        audio_seconds=length,
        seconds=call.seconds,
        cost_usd=0.0,
        saved_usd=saved(str(fields.get("model")), Usage(length), now),
    )


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
    """Return the files as they are if the cloud takes them, else the audio as Opus.

    Raises:
        Unsupported: it cannot be made small enough.

    """
    content = content_of(files)
    size = media.size(content)
    if size <= _MOST_BYTES:
        return files
    too_large = f"the file has {size / 1e6:.0f} MB, and OpenAI takes {_MOST_BYTES / 1e6:.0f}"
    try:
        smaller = convert(content)
    except ModuleNotFoundError:
        raise Unsupported(f"{too_large}; it would be made smaller after: {install_command('transcode')}") from None
    except media.Unreadable as error:
        raise Unsupported(f"{too_large}, and it cannot be read to make it smaller ({error})") from error
    if len(smaller) > _MOST_BYTES:
        raise Unsupported(f"{too_large}; as Opus it still has {len(smaller) / 1e6:.0f} MB")
    return [("file", ("audio.ogg", smaller, "audio/ogg"))]
