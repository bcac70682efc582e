"""The thread that runs a pool's slots, and the queue before it."""

from __future__ import annotations

import atexit
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from .. import _native
from ..errors import ClosedError, Error, OutOfMemoryError
from .active import Active
from .answer import Report
from .job import Job, Progress
from .loaded import setting_options
from .process_lock import ProcessLock

__all__ = ["Batcher", "PoolBusy"]

_TOTALS = (
    "requests",
    "finished",
    "cancelled",
    "failed",
    "prompt_tokens",
    "cached_tokens",
    "generated_tokens",
    "pictures",
    "visual_tokens",
    "visual_kept",
)


class PoolBusy(Error):
    """Every slot is busy and the queue is full.

    ``retry_after``: seconds after which there is probably room."""

    def __init__(self, message: str, retry_after: float) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class Batcher:
    """Runs the requests of a queue on native slots, in a thread of its own: a step for all of them, and the next.

    Its methods can be called from any thread. The slots are its own, save for ``prepare``.
    """

    def __init__(self, slots: _native.Engine, queue: int) -> None:
        """``queue``: most requests that wait."""
        self._slots = slots
        self._n_slots = slots.n_slots
        self._n_layer = slots.n_layer
        self._queue = queue

        self._changed = ProcessLock("pool")  # guards all below
        self._waiting: deque[Active] = deque()
        self._active: dict[int, Active] = {}
        self._admitting: Active | None = None  # between both
        self._preparing = 0  # requests that are on their way to the queue
        self._totals = dict.fromkeys(_TOTALS, 0)
        self._seconds = 1.0  # that a request holds a slot, a running mean
        self._closing = False
        self._failure: Error | None = None  # that ended the pool's thread
        self._closed = threading.Lock()
        self._thread = threading.Thread(target=self._run, name="pyfastv-pool", daemon=True)
        try:
            self._thread.start()
        except RuntimeError as error:  # a limit on threads or memory
            raise OutOfMemoryError(f"the pool's thread cannot be started: {error}") from None
        atexit.register(self._close_at_exit)

    @contextmanager
    def place(self) -> Iterator[None]:
        """Room for one request while it is prepared. Raises PoolBusy, ClosedError."""
        with self._changed:
            self._refuse_closed()
            self._refuse_full()
            self._preparing += 1
        try:
            yield
        finally:
            with self._changed:
                self._preparing -= 1
                self._changed.notify_all()

    def add(self, item: Active) -> None:
        """To the queue; from within :meth:`place`. Raises ClosedError."""
        with self._changed:
            if self._failure is not None:
                raise self._failure
            self._waiting.append(item)
            self._totals["requests"] += 1
            self._changed.notify_all()

    def stats(self) -> dict[str, float]:
        """See :meth:`pyfastv.engine.job_pool.JobPool.stats`."""
        with self._changed:
            now = {"slots": self._n_slots, "active": len(self._active), "waiting": len(self._waiting)}
            return {**now, **self._totals}

    def busy_slots(self) -> set[int]:
        """See :meth:`pyfastv.engine.job_pool.JobPool.busy_slots`."""
        with self._changed:
            return self._busy_slots()

    def _busy_slots(self) -> set[int]:
        return {item.slot for item in self._active.values()}

    def close(self, timeout: float = 10.0) -> None:
        """Take no more requests, let those that are here finish for ``timeout`` seconds, cancel the rest, free the model.

        Can be called again."""
        if self._changed.inherited:
            return
        with self._changed:
            self._closing = True
            self._changed.notify_all()
            self._changed.wait_for(lambda: not self._busy(), timeout)
            self._changed.wait_for(lambda: not self._preparing)
            left = [*self._waiting, *self._active.values()]
            if self._admitting is not None:
                left.append(self._admitting)
        for item in left:
            self.cancel(item.job)
        self._thread.join()
        with self._closed:
            self._slots.close()
        atexit.unregister(self._close_at_exit)

    def _close_at_exit(self) -> None:
        self.close(timeout=0)

    def cancel(self, job: Job) -> None:
        """See :meth:`pyfastv.engine.job.Job.cancel`."""
        with self._changed:
            for item in self._waiting:
                if item.job is job:
                    self._waiting.remove(item)
                    self._totals["cancelled"] += 1
                    job._end("cancelled", None)
                    self._changed.notify_all()
                    return
            if self._admitting is not None and self._admitting.job is job:
                self._admitting.cancelled = True
            for number, item in self._active.items():
                if item.job is job:
                    self._slots.cancel(number)

    def _busy(self) -> bool:
        return bool(self._waiting or self._active or self._admitting or self._preparing)

    def _refuse_closed(self) -> None:
        if self._closing:
            raise ClosedError("this pool is closed: make a new one")

    def _refuse_full(self) -> None:
        ahead = len(self._waiting) + len(self._active) + self._preparing
        if ahead >= self._n_slots + self._queue:
            wait = min(60.0, max(1.0, self._seconds * (ahead - self._n_slots + 1) / self._n_slots))
            raise PoolBusy(
                f"all {self._n_slots} slots are busy and the queue of {self._queue} is full: try again later",
                wait,
            )

    # the pool's thread

    def _run(self) -> None:
        try:
            self._serve()
        except BaseException as error:
            failure = ClosedError(f"the pool's thread has ended, make a new pool: {error!r}")
            failure.__cause__ = error
            with self._changed:  # whoever waits is told, whoever comes is refused
                self._closing, self._failure = True, failure
                lost = [*self._active.values(), *self._waiting]
                if self._admitting is not None:
                    lost.append(self._admitting)
                self._active.clear()
                self._waiting.clear()
                self._admitting = None
                self._changed.notify_all()
            for item in lost:
                item.job._end(None, None, failure)
            raise

    def _serve(self) -> None:
        while True:
            with self._changed:
                while not self._waiting and not self._active:
                    if self._closing and not self._preparing:
                        return
                    self._changed.wait()
            self._admit()
            if self._active:
                self._compute()

    def _admit(self) -> None:
        """Waiting requests to idle slots, in their order; one with cuts at other layers holds up those behind it."""
        while True:
            with self._changed:
                if not self._waiting or len(self._active) == self._n_slots:
                    return
                if self._active and not self._fits(self._waiting[0]):
                    return
                item = self._admitting = self._waiting.popleft()
            try:
                item.begin()
                number = self._slots.start(item.request, cache_prompt=item.cache_prompt)
            except Exception as error:
                self._end(item, None, error)
                continue
            with self._changed:
                self._admitting = None
                taken = self._busy_slots()
                item.slot = item.job.slot = next(i for i in range(self._n_slots) if i not in taken)
                self._active[number] = item
                if item.cancelled:
                    self._slots.cancel(number)

    def _compute(self) -> None:
        try:
            self._tell_progress()
            events = self._slots.step()
        except Exception as error:  # of nobody in particular: memory, for one
            with self._changed:
                lost = list(self._active.values())
                self._active.clear()
            with suppress(Exception):
                self._slots.reset()
            for item in lost:
                self._end(item, None, error)
            return
        for event in events:
            number = event["id"]
            item = self._active[number]
            try:
                self._deliver(event, item)
            except Exception as error:  # of this request alone
                item.job._end(None, None, error)
                if number in self._active:  # until its last event
                    self._slots.cancel(number)

    def _tell_progress(self) -> None:
        if not any(item.reading for item in self._active.values()):
            return
        for number, done, total, cached in self._slots.reading():
            if number in self._active:
                self._active[number].job._read_on(Progress(done, total, cached))

    def _deliver(self, event: dict[str, Any], item: Active) -> None:
        number = event["id"]
        ended = event["finish"] is not None or event["error"] is not None
        if ended:
            with self._changed:
                del self._active[number]
        stopped_before = item.stopped
        report = None
        if item.reports and event["error"] is None:
            report = self._report(item, event["report"] or self._slots.report(number))
        item.take(event, report)
        if item.stopped and not stopped_before:
            self._slots.cancel(number)
        if ended:
            self._end(item, event, event["error"])

    def _report(self, item: Active, report: _native.RunReport) -> Report:
        return Report.of(
            report,
            n_layer=self._n_layer,
            image_decode_ms=item.image_decode_ms,
            setting=item.setting,
            queue_ms=item.queue_ms,
            pictures=item.pictures,
        )

    def _end(self, item: Active, event: dict[str, Any] | None, error: BaseException | None) -> None:
        report = None if event is None else self._report(item, event["report"])
        with self._changed:
            if self._admitting is item:
                self._admitting = None
            self._count(item, event, report, error)
            self._changed.notify_all()
        item.end(event, report, error)

    def _count(
        self, item: Active, event: dict[str, Any] | None, report: Report | None, error: BaseException | None
    ) -> None:
        totals = self._totals
        totals[
            "failed"
            if error is not None
            else "cancelled"
            if item.reason(event) == "cancelled"
            else "finished"
        ] += 1
        if item.began is not None:
            self._seconds += 0.2 * (time.monotonic() - item.began - self._seconds)
        if report is not None:
            totals["prompt_tokens"] += report.prompt_tokens
            totals["cached_tokens"] += report.cached_tokens
            totals["generated_tokens"] += report.generated_tokens
            totals["pictures"] += item.n_pictures
            totals["visual_tokens"] += report.visual_tokens
            totals["visual_kept"] += report.visual_tokens_kept

    def _fits(self, item: Active) -> bool:
        try:
            return self._slots.fits(setting_options(item.setting)["fastv"])
        except Exception:  # its start meets it again
            return True
