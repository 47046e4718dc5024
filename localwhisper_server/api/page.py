"""The page at `/`, for people with a browser: its files, and what it shows of the server.

Everything it needs is in `web/`; it loads nothing from elsewhere. Its files hold no secrets, so they need no key.
"""

from importlib.resources import files
from typing import Final

from fastapi import FastAPI, Response

from localwhisper_client.shared import languages
from localwhisper_server.api.formats import JSON_TYPE, to_json
from localwhisper_server.api.middleware import Activity
from localwhisper_server.errors import NotFound

# The page may load its own files and call its own server; the microphone is for the page itself.
_HEADERS: Final = {
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
        "media-src 'self' blob:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "permissions-policy": "microphone=(self), camera=(), geolocation=()",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
    "cache-control": "no-cache",
}
# The same on every machine, whatever its registry of types says.
_TYPES: Final = {
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript",
    ".css": "text/css",
    ".svg": "image/svg+xml",
    ".ogg": "audio/ogg",
}


def add_page(app: FastAPI, activity: Activity) -> None:
    """Add the page, its files, and `/activity` to the application."""
    folder = files("localwhisper_server").joinpath("web")
    contents = {entry.name: entry.read_bytes() for entry in folder.iterdir() if entry.is_file()}
    contents["message.ogg"] = files("localwhisper_client").joinpath("demo.ogg").read_bytes()
    contents["languages.json"] = to_json(languages.NAMES)

    def served(name: str) -> Response:
        if name not in contents:
            raise NotFound("GET", f"/web/{name}")
        _, dot, ending = name.rpartition(".")
        return Response(contents[name], headers=_HEADERS, media_type=_TYPES.get(dot + ending, JSON_TYPE))

    @app.head("/", include_in_schema=False)  # many monitors ask by HEAD
    @app.get("/", include_in_schema=False)
    async def page() -> Response:
        return served("index.html")

    @app.get("/web/{name}", include_in_schema=False)
    async def file(name: str) -> Response:
        return served(name)

    @app.get("/activity", response_class=Response)
    async def describe() -> Response:
        return Response(to_json(activity.describe()), media_type=JSON_TYPE)
