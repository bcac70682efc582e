"""The process: a socket, uvicorn, and an end that lets answers finish."""

from __future__ import annotations

import asyncio
import signal
import socket
from collections.abc import Callable
from contextlib import suppress
from functools import partial

import uvicorn
from fastapi import FastAPI

from ..engine.job_pool import JobPool
from ..errors import OptionError
from .connection import Connection

__all__ = ["address_of", "listen", "run"]

_GRACE_SECONDS = 3.0  # for answers to finish after Ctrl-C or SIGTERM
_CLOSING_SECONDS = 3.0  # for responses to end after that
_BACKLOG = 128


def listen(host: str, port: int) -> socket.socket:
    """A listening socket; port 0: any that is free. Raises OptionError."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, kind, protocol, _, address = found[0]
        listening = socket.socket(family, kind, protocol)
        try:
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listening.bind(address)
            listening.listen(_BACKLOG)
        except BaseException:
            listening.close()
            raise
    except (OSError, UnicodeError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or error
        raise OptionError(
            f"cannot listen at {host}:{port}: {reason}: choose another --host or --port"
        ) from None
    listening.set_inheritable(False)
    return listening


def address_of(listening: socket.socket) -> str:
    """As a URL."""
    host, port = listening.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


class _Server(uvicorn.Server):
    """Ends the pool's work beside the connections, so that answers are cut off and not waited for."""

    def __init__(self, config: uvicorn.Config, end: Callable[[], None]) -> None:
        super().__init__(config)
        self._end = end

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        ending = asyncio.get_running_loop().run_in_executor(None, self._end)
        await super().shutdown(sockets)
        with suppress(Exception):
            await ending


def run(app: FastAPI, pool: JobPool, listening: socket.socket, *, verbose: bool = False) -> None:
    """Serve until SIGTERM or Ctrl-C; the pool is closed then."""
    config = uvicorn.Config(
        app,
        log_level="info" if verbose else "warning",
        access_log=verbose,
        http=Connection,
        lifespan="off",
        ws="none",
        server_header=False,
        timeout_keep_alive=30,
        timeout_graceful_shutdown=round(_GRACE_SECONDS + _CLOSING_SECONDS),
        limit_concurrency=1000,
    )
    server = _Server(config, partial(pool.close, _GRACE_SECONDS))
    # heard here until uvicorn listens to it; and when uvicorn is done it gives the signal on, which by default would end
    # the process by it
    with suppress(ValueError):  # not the main thread
        signal.signal(signal.SIGTERM, server.handle_exit)
    with suppress(KeyboardInterrupt):
        server.run(sockets=[listening])
