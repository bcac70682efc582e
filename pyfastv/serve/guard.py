"""What is checked of a request before anything of it is read: host, key, kind and size of its body."""

from __future__ import annotations

import hmac
import ipaddress
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager

import anyio
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .errors import ApiError, error_response
from .settings import Settings

__all__ = ["Guard", "is_address", "is_loopback"]

_OPEN = {"/", "/health"}  # without a key
_DRAINED_SECONDS = 5.0

_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}


def is_loopback(name: str) -> bool:
    """Does a host's name or address lead to this machine, and only to it?"""
    name = name.strip("[]").rstrip(".").lower()
    if name == "localhost" or name.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


def is_address(name: str) -> bool:
    """Is a host given in numbers? A page under it comes from there, and nobody can make it point elsewhere."""
    try:
        ipaddress.ip_address(name.strip("[]"))
    except ValueError:
        return False
    return True


class Guard:
    """ASGI middleware. ``in_flight``: most requests with a body at a time, so that what they hold is bounded."""

    def __init__(self, app: ASGIApp, settings: Settings, in_flight: int) -> None:
        self._app = app
        self._settings = settings
        self._free = in_flight

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1003})
            return
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = False

        async def send_safely(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                headers = MutableHeaders(scope=message)
                for name, value in _HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        try:
            self._check_host(Headers(scope=scope))
            self._check_key(scope)
            if scope["method"] != "POST":
                await self._app(scope, receive, send_safely)
                return
            with self._place():
                replay = await self._read(Headers(scope=scope), receive)
                await self._app(scope, replay, send_safely)
        except ApiError as error:
            if started:  # too late for another answer
                raise
            await error_response(error, scope["path"])(scope, receive, send_safely)

    def _check_host(self, headers: Headers) -> None:
        # browsers always name a host; checks of health by HTTP/1.0 name none
        if self._settings.hosts is None or "host" not in headers:
            return
        host = headers["host"]
        name = host.partition("]")[0] + "]" if host.startswith("[") else host.partition(":")[0]
        if not (is_loopback(name) or is_address(name) or name.lower() in self._settings.hosts):
            # another site's name that was made to point here (DNS rebinding)
            raise ApiError(
                421, f"this server does not answer for the host {host!r:.100}: see --allow-host", code=None
            )

    def _check_key(self, scope: Scope) -> None:
        key = self._settings.api_key
        if key is None or scope["path"] in _OPEN or scope["method"] == "OPTIONS":
            return
        headers = Headers(scope=scope)
        scheme, _, bearer = headers.get("authorization", "").partition(" ")
        # Anthropic's clients send their key in a header of its own
        given = [headers.get("x-api-key", ""), bearer if scheme.lower() == "bearer" else ""]
        # headers are bytes; Starlette has read them as Latin-1
        if not any([hmac.compare_digest(one.strip().encode("latin-1"), key.encode()) for one in given]):
            raise ApiError(
                401,
                "wrong or no API key: send the header Authorization: Bearer <key>, or x-api-key: <key>",
                headers={"WWW-Authenticate": "Bearer"},
            )

    @contextmanager
    def _place(self) -> Iterator[None]:
        if self._free < 1:
            raise ApiError(429, "too many requests at a time: try again later", headers={"Retry-After": "2"})
        self._free -= 1
        try:
            yield
        finally:
            self._free += 1

    async def _read(self, headers: Headers, receive: Receive) -> Receive:
        """The whole body, as far as it may go; a ``receive`` that gives it out."""
        kind = headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind != "application/json":
            # a page of another site can send any other kind without being asked (CORS preflight)
            await self._drain(receive)
            raise ApiError(415, f"the body must be application/json; got {kind or 'no Content-Type'!r:.100}")
        if headers.get("content-encoding", "identity").lower() != "identity":
            await self._drain(receive)
            raise ApiError(415, "a compressed body is not read: send it as it is")
        limit = self._settings.max_body_bytes
        length = headers.get("content-length", "")
        too_large = ApiError(413, f"the body is larger than {limit:,} bytes: see --max-body-mb")
        if length.isdecimal() and int(length) > limit:
            await self._drain(receive)
            raise too_large
        chunks: list[bytes] = []
        size = 0
        with anyio.move_on_after(self._settings.body_seconds) as deadline:
            async for chunk in _chunks(receive):
                size += len(chunk)
                if size > limit:
                    chunks.clear()
                    await self._drain(receive)
                    raise too_large
                chunks.append(chunk)
        if deadline.cancelled_caught:
            raise ApiError(408, f"the body did not arrive within {self._settings.body_seconds:.0f} s")
        body = b"".join(chunks)
        given = False

        async def replay() -> Message:
            nonlocal given, body
            if given:
                return await receive()
            given = True
            message = {"type": "http.request", "body": body, "more_body": False}
            body = b""  # the application has it now
            return message

        return replay

    async def _drain(self, receive: Receive) -> None:
        """Throws away what is still coming: many clients read no answer before they have sent everything."""
        left = 4 * self._settings.max_body_bytes
        with anyio.move_on_after(_DRAINED_SECONDS):
            async for chunk in _chunks(receive):
                left -= len(chunk)
                if left < 0:
                    return


async def _chunks(receive: Receive) -> AsyncIterator[bytes]:
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ApiError(400, "the client left", code="disconnected")
        yield message.get("body", b"")
        if not message.get("more_body", False):
            return
