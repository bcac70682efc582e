"""What routes of several protocols have in common."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from typing import NamedTuple, TypeAlias

from starlette.responses import Response

from ..engine.job_pool import Job
from .pictures import PictureReader

__all__ = ["Answerer", "Submit"]

Submit: TypeAlias = "Callable[[AsyncExitStack], Awaitable[list[Job]]]"
"""Queues the jobs of a request; gets what holds the pictures until the prompts have been read."""


class Answerer(NamedTuple):
    """Functions of :func:`pyfastv.serve.routes.make_router`."""

    pictures: PictureReader
    chat: Callable[..., Submit]
    """Of a chat: its request, the form of its answer, what is wanted, and where its pictures are for messages."""
    submit: Callable[[Sequence[Callable[[], Job]]], Awaitable[list[Job]]]
    """Queues jobs in their order; all or none."""
    respond: Callable[..., Awaitable[Response]]
    """The request, a :data:`Submit`, the form of the answer, what is wanted, when the request came, and a class of
    :class:`pyfastv.serve.answering.Answering`."""
