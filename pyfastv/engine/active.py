"""A request of a pool between its queue and its end: tokens to pieces of text."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from .. import _native
from ..inputs.budget import SeenPicture
from ..settings.setting import Setting
from .answer import Report
from .job import Job
from .pieces import Piece, TokenReader, token_prob

__all__ = ["Active"]

_OF_TOKEN = ("token", "bytes", "logprob", "top")  # of an event


@dataclass
class Active:
    """A request and its job; used by one thread once it has a slot."""

    job: Job
    request: _native.EngineRequest
    setting: Setting
    stop: Sequence[str]
    image_decode_ms: float
    n_pictures: int
    pictures: Sequence[SeenPicture] = ()
    details: bool = False
    reports: bool = False
    """Every piece has one."""
    keep_space: bool = False
    """Before the first word of the answer."""
    cache_prompt: bool = True
    """It goes on from what a slot holds of its prompt."""
    cancelled: bool = False
    queued: float = field(default_factory=time.monotonic)
    began: float | None = None
    slot: int = 0
    """While it is computed, a number that no other has."""
    reading: bool = True
    """Its prompt is not all read yet."""

    def __post_init__(self) -> None:
        self._reader = TokenReader(self.stop, keep_space=self.keep_space)
        self._report: Report | None = None

    @property
    def stopped(self) -> bool:
        """A stop string came."""
        return self._reader.stopped

    @property
    def queue_ms(self) -> float:
        """From the queue to a slot."""
        return 0.0 if self.began is None else (self.began - self.queued) * 1000.0

    def begin(self) -> None:
        """It has a slot."""
        self.began = time.monotonic()

    def take(self, event: dict[str, Any], report: Report | None = None) -> None:
        """What a step did to it (:meth:`pyfastv._native.Engine.step`): text to the job."""
        self.reading = False
        self._report = report
        if self.stopped or self.job.done:
            return
        if event["token"] is not None:
            known = token_prob(*(event[name] for name in _OF_TOKEN)) if event["top"] else None
            self._give(self._reader.feed(event["bytes"], known))
        if event["finish"] is not None and not self.stopped:
            self._give(self._reader.finish())

    def _give(self, piece: Piece | None) -> None:
        if piece is not None:
            self.job._add(replace(piece, report=self._report))

    def reason(self, event: dict[str, Any] | None) -> str | None:
        """Why it ended."""
        if self.stopped:
            return "stop"
        return None if event is None else event["finish"]

    def end(self, event: dict[str, Any] | None, report: Report | None, error: BaseException | None) -> None:
        """Tell the job."""
        self.job.stop_string = self._reader.stop_string
        if event is not None and self.details:
            self.job.details = {
                "grids": [[list(grid) for grid in slices] for slices in event["grids"]],
                "pictures": [
                    [
                        {"patches": [list(grid) for grid in patches], "places": places.tolist()}
                        for patches, places in slices
                    ]
                    for slices in event["pictures"]
                ],
                "kept": [kept.tolist() for kept in event["kept"]],
                "first_layers": list(event["report"].first_layers),
            }
        self.job._end(None if error is not None else self.reason(event), report, error)
