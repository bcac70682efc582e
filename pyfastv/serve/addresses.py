"""The spellings that clients have for one address: without ``/v1``, with it twice, with a slash too many, by HEAD."""

from __future__ import annotations

import re

from starlette.types import ASGIApp, Receive, Scope, Send

__all__ = ["Addresses", "address"]

_UNDER_V1 = re.compile(
    r"/(models(/.+)?|chat/completions|completions|responses(/input_tokens)?|messages(/count_tokens)?)"
)
_ALSO = {"/v1/health": "/health", "/healthz": "/health", "/index.html": "/"}


def address(path: str) -> str:
    """A path as the routes have it."""
    path = re.sub("/{2,}", "/", path)
    path = path.rstrip("/") or "/"
    # a base URL that ends in /v1, given to a client that adds it
    path = re.sub("^(/v1)+/", "/v1/", path)
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
