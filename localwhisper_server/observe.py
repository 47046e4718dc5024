"""What the server says about its work: request ids and the log. Never a transcript, a key, a file name or its bytes."""

import contextvars
import logging
import re
import secrets
import sys
from typing import TextIO

request_id: contextvars.ContextVar[str] = contextvars.ContextVar("request_id", default="-")

_GIVEN_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")


def new_request_id(given: str | None) -> str:
    """Keep a caller's `x-request-id` if it is fit to print, else make one in OpenAI's shape."""
    if given and _GIVEN_ID.fullmatch(given):
        return given
    return f"req_{secrets.token_hex(16)}"


class _WithRequestId(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        record.request_id = request_id.get()
        return True


def configure_logging(level: str, stream: TextIO | None = None) -> None:
    """Log to `stream` (standard error by default), one line a record, each with the id of its request."""
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.addFilter(_WithRequestId())
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)-7s %(request_id)s %(message)s"))
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(level.upper())
    for chatty in ("httpx", "httpx2", "filelock", "faster_whisper", "uvicorn", "python_multipart"):
        logging.getLogger(chatty).setLevel(max(root.level, logging.WARNING))
