"""The HTTP library of the installed SDK: httpx for openai 1 and 2, httpx2 for openai 3."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import openai

# The SDK's client class is a subclass of the library's, which has the library's module name.
_base = openai.DefaultHttpxClient.__mro__[1]

http: Any = import_module(_base.__module__.partition(".")[0])
