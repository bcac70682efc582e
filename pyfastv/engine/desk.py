"""Who of several threads and tasks has a slot of a runner's engine, and who waits for one."""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

from ..errors import ClosedError, Error
from .process_lock import ProcessLock

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["TASK", "Desk", "InThread", "Place"]

T = TypeVar("T")

TASK = 0  # is no thread's number


class Place:
    """A request's place at an engine, from before it has a slot until its end."""

    def __init__(self) -> None:
        self.fastv = ""
        """Its schedule, as the engine takes it."""
        self.number: int | None = None
        """Of the request, as the engine counts; None: it has no slot yet."""
        self.thread: int | None = None
        """That computes for it now."""
        self.held_by: int | None = None
        """A thread, or ``TASK``: no other request takes it away."""
        self.stopped = False
        self.result: Any = None
        """What came of it, once it has ended."""


class Desk:
    """Gives places, as many at once as there are slots, in order, to requests whose schedules share a context.

    ``lock`` guards it, and is held by who has the engine alone.
    """

    def __init__(
        self,
        n_slots: int,
        cancel: Callable[[int], None],
        fits: Callable[[str], bool],
        fit: Callable[[str], None],
    ) -> None:
        """``cancel``, ``fits``, ``fit``: of the engine."""
        self.lock = ProcessLock("runner")
        self._n_slots = n_slots
        self._cancel, self._fits, self._fit = cancel, fits, fit
        self._places: list[Place] = []  # that are taken, the oldest first
        self._queue: deque[object] = deque()
        self._calling_back: set[int] = set()  # threads

    def enter(self, place: Place) -> None:
        """Wait for a place, for which this thread computes then; its schedule fits the context. Raises ClosedError if it
        is stopped meanwhile, and as the engine's fit()."""
        ticket = object()
        with self.lock:
            self.refuse_reentry()
            try:
                self._queue.append(ticket)
                self.lock.wait_for(
                    lambda: place.stopped or (self._queue[0] is ticket and self._makes_room_for(place))
                )
                if place.stopped:
                    raise ClosedError("this request was stopped")
                if not self._places:
                    self._fit(place.fastv)
                place.thread = threading.get_ident()
                self._places.append(place)
            finally:
                if ticket in self._queue:
                    self._queue.remove(ticket)
                self.lock.notify_all()

    def _makes_room_for(self, place: Place) -> bool:
        # a thread that asks for a place has none: what is there of it an exception has left behind
        free = (None, threading.get_ident())
        kept = [other for other in self._places if other.thread not in free or other.held_by not in free]
        fits = self._fits(place.fastv)
        if len(kept) >= self._n_slots or (kept and not fits):
            return False
        for other in [other for other in self._places if other not in kept]:
            if len(self._places) >= self._n_slots or not fits:
                self._take_away(other)
        return True

    def _take_away(self, place: Place) -> None:
        self._places.remove(place)
        if place.number is not None:
            self._cancel(place.number)

    def begin(self, place: Place, number: int) -> None:
        """The engine has given the request a slot."""
        with self.lock:
            place.number = number
            if place.stopped:
                self._cancel(number)

    @contextmanager
    def reading(self, place: Place) -> Iterator[None]:
        """Meanwhile this thread reads it, alone. Raises ClosedError: it was taken away."""
        me = threading.get_ident()
        with self.lock:
            self.refuse_reentry()
            self.lock.wait_for(lambda: place.thread in (None, me))
            if place.result is None and place not in self._places:
                raise ClosedError("this stream was ended by a later request to the same runner")
            place.thread = me
        try:
            yield
        finally:
            self.pause(place)

    @contextmanager
    def holding(self, place: Place | None = None) -> Iterator[Place]:
        """A place that this thread holds meanwhile."""
        place = place or Place()
        place.held_by = threading.get_ident()
        try:
            yield place
        finally:
            self.leave(place)

    def pause(self, place: Place) -> None:
        """This thread does not compute for it any more."""
        with self.lock:
            place.thread = None
            self.lock.notify_all()

    def leave(self, place: Place) -> None:
        """The request has ended; its place is free."""
        with self.lock:
            if place in self._places:
                self._places.remove(place)
            place.held_by = None
            self.pause(place)

    def stop(self, place: Place) -> None:
        """End its computation at once; from any thread."""
        with self.lock:
            place.stopped = True
            if place.number is not None and place in self._places:
                self._cancel(place.number)
            self.lock.notify_all()

    def give_up(self, place: Place, reset: Callable[[], None]) -> None:
        """The request has failed. ``reset``: of the engine, if there is no other."""
        with self.lock:
            if place not in self._places:
                return
            if len(self._places) > 1:
                self._take_away(place)
                self.pause(place)
            else:
                self.leave(place)
                reset()

    def wait_for_threads(self) -> None:
        """With the lock held, which stays so: until no other thread computes, or has a place."""
        self.refuse_reentry()
        free = (None, threading.get_ident())
        self.lock.wait_for(
            lambda: all(
                place.thread in free and (place.held_by in free or place.held_by == TASK)
                for place in self._places
            )
        )

    def clear(self) -> None:
        """With the lock held: take all places away."""
        for place in [*self._places]:
            self._take_away(place)

    def calling_back(self, call: Callable[..., object]) -> Callable[..., None]:
        """``call``, in which this thread cannot come for a place."""

        def called(*arguments: Any) -> None:
            me = threading.get_ident()
            self._calling_back.add(me)
            try:
                call(*arguments)
            finally:
                self._calling_back.discard(me)

        return called

    def refuse_reentry(self) -> None:
        """Raises Error in a callback of this thread's own request."""
        if threading.get_ident() in self._calling_back:
            raise Error("a runner cannot be used from within its own progress callback")


class InThread:
    """A thread that computes for one task, at one place; when the task goes, the computation is stopped."""

    def __init__(self, desk: Desk) -> None:
        self.place = Place()
        self.place.held_by = TASK
        self._desk = desk
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="pyfastv")
        self._work: Future[Any] | None = None

    async def run(self, work: Callable[[], T]) -> T:
        """What ``work`` gives."""
        self._work = self._thread.submit(work)
        return await asyncio.wrap_future(self._work)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *raised: object) -> None:
        self._desk.stop(self.place)
        try:
            if self._work is not None and not self._work.done():
                await asyncio.wait([asyncio.wrap_future(self._thread.submit(lambda: None))])
        finally:
            self._desk.leave(self.place)
            self._thread.shutdown(wait=False)
