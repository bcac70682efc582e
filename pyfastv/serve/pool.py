"""Temporary: one job at a time on one Runner, in the shape of the pool of slots."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..answer import Report
from ..errors import ClosedError, ContextLengthError, Error, OptionError
from ..images import MAX_PIXELS
from ..options import Sampling
from ..pieces import PieceReader
from ..presets import Recommended, to_schedule
from ..runner import Runner, _content_id
from ..schedule import Schedule

__all__ = ["Job", "Piece", "Pool", "PoolBusy", "TokenProb"]

_UNSET: Any = object()


class PoolBusy(Error):
    def __init__(self, message: str, retry_after: float) -> None:
        super().__init__(message)
        self.retry_after = retry_after


@dataclass(frozen=True)
class TokenProb:
    token: str
    id: int
    bytes: bytes
    logprob: float
    top: tuple[TokenProb, ...] = ()


@dataclass(frozen=True)
class Piece:
    text: str
    probs: tuple[TokenProb, ...] = ()


class Job:
    def __init__(self, work: Any) -> None:
        self.work = work
        self.finish_reason: str | None = None
        self.report: Report | None = None
        self.details: dict[str, Any] | None = None
        self.cancelled = threading.Event()
        self._out: deque[Piece | Exception | None] = deque()
        self._ready = threading.Condition()
        self._wake: tuple[asyncio.AbstractEventLoop, asyncio.Event] | None = None

    def cancel(self) -> None:
        self.cancelled.set()

    def put(self, item: Piece | Exception | None) -> None:
        with self._ready:
            self._out.append(item)
            self._ready.notify()
            if self._wake is not None:
                loop, event = self._wake
                try:
                    loop.call_soon_threadsafe(event.set)
                except RuntimeError:
                    self._wake = None

    def __iter__(self) -> Iterator[Piece]:
        while True:
            with self._ready:
                self._ready.wait_for(lambda: self._out)
                item = self._out.popleft()
            if item is None:
                return
            if isinstance(item, Exception):
                raise item
            yield item

    async def __aiter__(self) -> AsyncIterator[Piece]:
        event = asyncio.Event()
        with self._ready:
            self._wake = (asyncio.get_running_loop(), event)
        while True:
            event.clear()
            with self._ready:
                item = self._out.popleft() if self._out else self
            if item is self:
                await event.wait()
                continue
            if item is None:
                return
            if isinstance(item, Exception):
                raise item
            yield item  # type: ignore[misc]


class Pool:
    def __init__(
        self,
        model_path: Any = None,
        mmproj_path: Any = None,
        *,
        slots: int = 4,
        queue: int = 32,
        n_ctx: int | None = None,
        fastv: Schedule | str | None = Recommended(),  # noqa: B008
        max_pixels: int = MAX_PIXELS,
        **options: Any,
    ) -> None:
        self._runner = Runner(
            model_path, mmproj_path, n_ctx=n_ctx or 0, fastv=fastv, max_pixels=max_pixels, **options
        )
        info = self._runner.info
        self.name = str(info["model"])
        self.n_ctx, self.n_layer, self.n_slots = info["n_ctx"], info["n_layer"], slots
        self.has_vision = info["mmproj"] is not None
        self.fastv = self._runner.fastv
        self._limit = queue + slots
        self._jobs: deque[Job] = deque()
        self._condition = threading.Condition()
        self._active: Job | None = None
        self._closed = False
        self._stats = dict.fromkeys(
            (
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
            ),
            0.0,
        )
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._thread.start()

    def submit(
        self,
        messages: Sequence[dict[str, Any]],
        sampling: Sampling,
        *,
        n_probs: int = 0,
        fastv: Any = _UNSET,
        turbo: Any = None,
        reduce: Any = None,
        details: bool = False,
    ) -> Job:
        prompt = self._runner._template.render(messages, self._runner._engine.media_marker)
        begin = time.perf_counter()
        images = self._runner._load_images(prompt.pictures)
        ms = (time.perf_counter() - begin) * 1000
        return self._queue(
            prompt.text, images, prompt.add_bos, sampling, n_probs, fastv, turbo, reduce, details, ms
        )

    def submit_text(
        self,
        prompt: str,
        sampling: Sampling,
        *,
        n_probs: int = 0,
        fastv: Any = _UNSET,
        turbo: Any = None,
        reduce: Any = None,
        details: bool = False,
    ) -> Job:
        return self._queue(prompt, [], True, sampling, n_probs, fastv, turbo, reduce, details, 0.0)

    def _queue(
        self,
        text: str,
        images: Any,
        add_bos: bool,
        sampling: Sampling,
        n_probs: int,
        fastv: Any,
        turbo: Any,
        reduce: Any,
        details: bool,
        ms: float,
    ) -> Job:
        if turbo or reduce:
            raise OptionError("turbo and reduce are not there yet")
        schedule = self.fastv if fastv is _UNSET else to_schedule(fastv)
        job = Job((text, images, add_bos, sampling, n_probs, schedule, details, ms))
        with self._condition:
            if self._closed:
                raise ClosedError("closed")
            if len(self._jobs) + (self._active is not None) >= self._limit:
                raise PoolBusy(f"all slots are busy and {len(self._jobs)} requests wait", 2.0)
            self._jobs.append(job)
            self._stats["requests"] += 1
            self._condition.notify()
        return job

    def stats(self) -> dict[str, float]:
        with self._condition:
            return {
                **self._stats,
                "slots": self.n_slots,
                "active": float(self._active is not None),
                "waiting": len(self._jobs),
            }

    def close(self, timeout: float = 10.0) -> None:
        with self._condition:
            self._closed = True
            self._condition.notify()
        self._thread.join(timeout)
        with self._condition:
            for job in [*self._jobs, *([self._active] if self._active else [])]:
                job.cancel()
        self._thread.join()
        self._runner.close()

    def _work(self) -> None:
        while True:
            with self._condition:
                self._condition.wait_for(lambda: self._jobs or self._closed)
                if not self._jobs:
                    return
                job = self._active = self._jobs.popleft()
            try:
                if job.cancelled.is_set():
                    job.finish_reason = "cancelled"
                else:
                    self._run(job)
                self._stats["cancelled" if job.finish_reason == "cancelled" else "finished"] += 1
                job.put(None)
            except Exception as error:
                self._stats["failed"] += 1
                job.put(error)
            finally:
                with self._condition:
                    self._active = None

    def _run(self, job: Job) -> None:
        text, images, add_bos, sampling, n_probs, schedule, details, ms = job.work
        runner = self._runner
        with runner._engine_at_work() as engine:
            if schedule != runner._in_force:
                runner._put_in_force(engine, schedule)
            engine.prefill(text, images, [_content_id(image) for image in images], None, add_bos, 1)
            names = (
                "temperature",
                "top_k",
                "top_p",
                "min_p",
                "typical_p",
                "repeat_penalty",
                "repeat_last_n",
                "frequency_penalty",
                "presence_penalty",
                "grammar",
            )
            values = {name: getattr(sampling, name) for name in names}
            engine.start(
                max_tokens=-1 if sampling.max_tokens is None else sampling.max_tokens,
                seed=2**32 - 1 if sampling.seed is None else sampling.seed,
                **values,
            )
            reader = PieceReader(sampling.stop or ())
            probs: list[TokenProb] = []
            while not job.cancelled.is_set():
                token = engine.next()
                if token is not None and n_probs:
                    probs.append(_prob(engine.logits(), *token, n_probs))
                piece = reader.finish() if token is None else reader.feed(token[1])
                if piece:
                    job.put(Piece(piece, tuple(probs)))
                    probs = []
                if token is None or reader.stopped:
                    break
            report = engine.report()
            job.report = Report.of(report, n_layer=engine.n_layer, image_decode_ms=ms, fastv=schedule)
            if details:
                cuts = len(report["first_layers"]) - 1
                job.details = {
                    "grids": [[list(grid) for grid in picture] for picture in engine.grids()],
                    "kept": [engine.kept(cut).tolist() for cut in range(cuts)],
                    "first_layers": list(report["first_layers"]),
                }
            for name, value in {
                "prompt_tokens": job.report.prompt_tokens,
                "cached_tokens": job.report.cached_tokens,
                "generated_tokens": job.report.generated_tokens,
                "pictures": len(images),
                "visual_tokens": job.report.visual_tokens,
                "visual_kept": job.report.visual_tokens_kept,
            }.items():
                self._stats[name] += value
            if job.cancelled.is_set():
                job.finish_reason = "cancelled"
            else:
                job.finish_reason = "stop" if reader.stopped else engine.finish_reason


def _prob(logits: Any, token: int, data: bytes, n: int) -> TokenProb:
    wide = np.asarray(logits, dtype=np.float64)
    log = wide - wide.max()
    log -= np.log(np.exp(log).sum())
    top = tuple(
        TokenProb(
            data.decode("utf-8", "replace") if i == token else f"<{i}>",
            int(i),
            data if i == token else b"",
            float(log[i]),
        )
        for i in np.argsort(-log)[:n]
    )
    return TokenProb(data.decode("utf-8", "replace"), token, data, float(log[token]), top)


_ = ContextLengthError
