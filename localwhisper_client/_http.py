"""The HTTP library under the installed SDK: httpx for openai 1 and 2, httpx2 for openai 3. Nothing else knows which."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import openai

# The SDK's own client class is a subclass of that library's, which knows where it comes from.
_base = openai.DefaultHttpxClient.__mro__[1]

http: Any = import_module(_base.__module__.partition(".")[0])
