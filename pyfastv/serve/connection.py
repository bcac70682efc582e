"""A client's connection whose sending side is closed."""

from __future__ import annotations

import socket
from typing import Any

from uvicorn.protocols.http.auto import AutoHTTPProtocol

__all__ = ["NUDGE", "Connection"]

_Protocol: Any = AutoHTTPProtocol  # that of h11 or of httptools

NUDGE = "pyfastv.nudge"
"""In the state of a request, while its response is a stream: a function that makes something be sent at once."""

_INTERIM = b"HTTP/1.1 100 Continue\r\n\r\n"
_LOOK_SECONDS = 0.1


class Connection(_Protocol):  # type: ignore[misc]
    """uvicorn's, for clients that close their sending side behind a request and wait for its answer (``nc -N``).

    To a server such a client looks like one that has left, until something is sent: the system of one that has left
    refuses it. That is a comment in a stream, else an interim response, which every client of HTTP/1.1 passes over."""

    def eof_received(self) -> bool:
        """Whether the connection stays open."""
        cycle = self.cycle
        if cycle is None or cycle.more_body or cycle.response_complete:
            return False
        cycle.keep_alive = False  # no other request can come
        nudge = self.scope["state"].get(NUDGE)
        if nudge is not None:
            nudge()
        elif not cycle.response_started and self.scope["http_version"] == "1.1":
            self.transport.write(_INTERIM)
        self._look()
        return True

    def _look(self) -> None:
        if self.transport.is_closing() or self.cycle.response_complete:
            return
        if self.transport.get_extra_info("socket").getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
            self.transport.abort()
        else:
            self.loop.call_later(_LOOK_SECONDS, self._look)
