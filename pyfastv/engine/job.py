"""One request to a pool, and what comes of it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Sequence
from contextlib import aclosing, suppress
from dataclasses import dataclass
from typing import Any

from ..constraints.tools import CallFormat
from .answer import Report
from .process_lock import ProcessLock

__all__ = ["Job", "Piece", "Progress", "TokenProb", "follow"]


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


@dataclass(frozen=True)
class Progress:
    """How far a prompt is read, in tokens."""

    done: int
    """``cached`` included."""
    total: int
    cached: int
    """Those that were still in the slot."""


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
        self._progress: Progress | None = None
        self._error: BaseException | None = None
        self._ended = False
        self.finish_reason: str | None = None
        """"stop": the model ended, or a stop string; "length": ``max_tokens`` or the context; "cancelled". None: not yet,
        or an error."""
        self.report: Report | None = None
        """What was done, once finished; None for a job that was cancelled before it began."""
        self.open_thought = ""
        """The tag that ends the thought in which the answer begins, because the prompt has opened it; empty: in none."""
        self.calls: CallFormat | None = None
        """How the answer has its calls of tools; None: it may have none."""
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
        async with aclosing(follow([self])) as items:
            async for item in items:
                if item is not None and isinstance(item[1], Piece):
                    yield item[1]

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

    def _read_on(self, progress: Progress) -> None:
        with self._changed:
            if progress != self._progress:
                self._progress = progress
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


async def follow(
    jobs: Sequence[Job],
    *,
    progress: bool = False,
    patience: float | None = None,
    begun: Callable[[Callable[[], None]], object] = lambda nudge: None,
) -> AsyncGenerator[tuple[int, Piece | Progress | None] | None, None]:
    """What comes of several jobs, as it comes: the index of one, and a piece of its answer, or None at its end.

    ``progress``: how far its prompt is read, too, before the first piece. ``patience``: seconds without any of these,
    after which a lone None comes; None: never. ``begun``: called with a function that makes one come at once, of this
    thread alone. Raises what went wrong with one of them.
    """
    loop, wake = asyncio.get_running_loop(), asyncio.Event()

    def listener() -> None:
        with suppress(RuntimeError):  # the loop was closed
            loop.call_soon_threadsafe(wake.set)

    nudged = False

    def nudge() -> None:
        nonlocal nudged
        nudged = True
        wake.set()

    at = [0] * len(jobs)
    told: list[Progress | None] = [None] * len(jobs)
    running = list(range(len(jobs)))
    for job in jobs:
        with job._changed:
            job._listeners.append(listener)
    begun(nudge)
    try:
        last = loop.time()
        while running:
            wake.clear()
            came = False
            for index in [*running]:
                job = jobs[index]
                with job._changed:
                    pieces, ended, read = job._pieces[at[index] :], job._ended, job._progress
                if progress and not at[index] and not pieces and not ended and read != told[index]:
                    told[index], came = read, True
                    yield index, read
                at[index] += len(pieces)
                for piece in pieces:
                    yield index, piece
                if ended:
                    if job._error is not None:
                        raise job._error
                    running.remove(index)
                    yield index, None
                came = came or ended or bool(pieces)
            if came or nudged:
                if not came:
                    yield None
                nudged = False
                last = loop.time()
                continue
            timer = None if patience is None else loop.call_at(last + patience, wake.set)
            await wake.wait()
            if timer is not None:
                timer.cancel()
                if loop.time() >= timer.when():
                    last = loop.time()
                    yield None
    finally:
        for job in jobs:
            with job._changed:
                job._listeners.remove(listener)
