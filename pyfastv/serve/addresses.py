"""The spellings that clients have for one address: without ``/v1``, with it twice, with a slash too many, by HEAD."""

from __future__ import annotations

import re

from starlette.types import ASGIApp, Receive, Scope, Send

__all__ = ["Addresses", "address"]

_UNDER_V1 = re.compile(r"/(models(/.+)?|chat/completions|completions)")
_HEALTH = (
    "/v1/health",
    "/healthz",
    "/livez",
    "/readyz",
    "/ready",
    "/live",
    "/ping",
    "/health/live",
    "/health/ready",
)
_ALSO = {**dict.fromkeys(_HEALTH, "/health"), "/index.html": "/"}


def address(path: str) -> str:
    """A path as the routes have it."""
    path = re.sub("/{2,}", "/", path)
    path = path.rstrip("/") or "/"
    # a base URL that ends in /v1, given to a client that adds it
    path = re.sub("^(/v1)+/", "/v1/", path)
    # one that ends in /v1 or /api, given to a client of Ollama
    path = re.sub("^(/v1)?(/api)+/", "/api/", path)
    if _UNDER_V1.fullmatch(path):
        return f"/v1{path}"
    return _ALSO.get(path, path)


class Addresses:
    """ASGI middleware: behind it every spelling is that of the routes, and HEAD is GET, whose body uvicorn leaves out."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            method = "GET" if scope["method"] == "HEAD" else scope["method"]
            scope = {**scope, "path": address(scope["path"]), "method": method}
        await self._app(scope, receive, send)
