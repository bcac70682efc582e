"""A line for each request that was answered."""

from __future__ import annotations

import json
import time
from collections.abc import Callable

from starlette.types import ASGIApp, Message, Receive, Scope, Send

__all__ = ["AccessLog"]


class AccessLog:
    """ASGI middleware. ``write``: takes a line: when, who, what, the status, milliseconds, bytes of the body.

    Neither queries nor headers are told: they may have keys."""

    def __init__(self, app: ASGIApp, write: Callable[[str], None]) -> None:
        self._app = app
        self._write = write

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        begin, status, size = time.perf_counter(), "-", 0

        async def look(message: Message) -> None:
            nonlocal status, size
            if message["type"] == "http.response.start":
                status = str(message["status"])
            elif message["type"] == "http.response.body":
                size += len(message.get("body", b""))
            await send(message)

        try:
            await self._app(scope, receive, look)
        finally:
            when = time.strftime("%Y-%m-%dT%H:%M:%S%z")
            client = scope["client"][0] if scope.get("client") else "-"
            # as JSON: a path can have line breaks
            path = json.dumps(scope["path"][:500])
            ms = (time.perf_counter() - begin) * 1000.0
            self._write(f"{when} {client} {scope['method']} {path} {status} {ms:.0f} ms {size} bytes")
