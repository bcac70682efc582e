"""One request to a pool, and what comes of it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from .answer import Report
from .process_lock import ProcessLock

__all__ = ["Job", "Piece", "TokenProb"]


@dataclass(frozen=True)
class TokenProb:
    """How likely a token was."""

    token: str
    """Its text; broken characters are U+FFFD."""
    id: int
    bytes: bytes
    logprob: float
    """Natural logarithm of its probability by the model's logits, before any sampler."""
    top: tuple[TokenProb, ...] = ()
    """The likeliest tokens at its place, most likely first; their own ``top`` is empty."""


@dataclass(frozen=True)
class Piece:
    """A piece of an answer."""

    text: str
    """Whole characters, nothing of a stop string."""
    probs: tuple[TokenProb, ...] = ()
    """Of the tokens that became this text, if they were asked for."""


class Job:
    """A request, waiting or computed or finished; made by :meth:`pyfastv.engine.job_pool.JobPool.submit`.

    Iterating, blocking or ``async``, gives the pieces of the answer from its beginning, as they come; what went wrong
    with the computation is raised there. Every method can be called from any thread.
    """

    def __init__(self, cancel: Callable[[Job], None]) -> None:
        """``cancel``: of the pool."""
        self._cancel = cancel
        self._changed = ProcessLock("request")
        self._listeners: list[Callable[[], None]] = []
        self._pieces: list[Piece] = []
        self._error: BaseException | None = None
        self._ended = False
        self.finish_reason: str | None = None
        """"stop": the model ended, or a stop string; "length": ``max_tokens`` or the context; "cancelled". None: not yet,
        or an error."""
        self.report: Report | None = None
        """What was done, once finished; None for a job that was cancelled before it began."""
        self.open_thought = ""
        """The tag that ends the thought in which the answer begins, because the prompt has opened it; empty: in none."""
        self.details: dict[str, Any] | None = None
        """Once finished, if asked for: ``kept``, for every cut the ascending indices, over all pictures of the prompt, of
        the visual tokens that the layers behind it see; ``grids``, [picture][slice] (nx, ny) in patches, none without
        a schedule; ``first_layers`` of the stages."""

    @property
    def done(self) -> bool:
        """Finished, cancelled or failed."""
        return self._ended

    def cancel(self) -> None:
        """End it, wherever it is: its slot is free within one token. A job that has ended stays as it is."""
        self._cancel(self)

    def __iter__(self) -> Iterator[Piece]:
        at = 0
        while True:
            with self._changed:
                while at == len(self._pieces) and not self._ended:
                    self._changed.wait()
                pieces, ended = self._pieces[at:], self._ended
            yield from pieces
            at += len(pieces)
            if ended:
                if self._error is not None:
                    raise self._error
                return

    async def __aiter__(self) -> AsyncIterator[Piece]:
        loop, wake = asyncio.get_running_loop(), asyncio.Event()

        def listener() -> None:
            with suppress(RuntimeError):  # the loop was closed
                loop.call_soon_threadsafe(wake.set)

        with self._changed:
            self._listeners.append(listener)
        try:
            at = 0
            while True:
                wake.clear()
                with self._changed:
                    pieces, ended = self._pieces[at:], self._ended
                for piece in pieces:
                    yield piece
                at += len(pieces)
                if ended:
                    if self._error is not None:
                        raise self._error
                    return
                if not pieces:
                    await wake.wait()
        finally:
            with self._changed:
                self._listeners.remove(listener)

    def read(self) -> str:
        """Wait for all of it; the text of the answer. Raises as iterating does."""
        return "".join(piece.text for piece in self)

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until it has ended, at most ``timeout`` seconds; whether it has."""
        with self._changed:
            return self._changed.wait_for(lambda: self._ended, timeout)

    # the pool's side

    def _add(self, piece: Piece) -> None:
        with self._changed:
            self._pieces.append(piece)
            self._notify()

    def _end(self, reason: str | None, report: Report | None, error: BaseException | None = None) -> None:
        with self._changed:
            if self._ended:
                return
            self.finish_reason, self.report, self._error, self._ended = reason, report, error, True
            self._notify()

    def _notify(self) -> None:
        self._changed.notify_all()
        for listener in self._listeners:
            listener()
