"""Several requests to one model at once."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

from .. import _native
from .._checks import integer
from .._native_options import (
    PathLike,
    engine_options,
    model_files,
    native_pictures,
    sampling_options,
    seed_of,
)
from ..chat import ChatTemplate, Prompt
from ..errors import ModelError, OptionError, printable
from ..images import MAX_PIXELS
from ..options import Sampling
from ..presets import Recommended, to_schedule
from ..reduce import Reducer, to_reducer
from ..schedule import Schedule
from ..turbo import Turbo, to_turbo
from .active import Active
from .batcher import Batcher, PoolBusy
from .job import Job, Piece, TokenProb

if TYPE_CHECKING:
    from types import TracebackType

    from typing_extensions import Self

__all__ = ["Job", "Piece", "Pool", "PoolBusy", "TokenProb"]

_MAX_TOP = 100


class _OfThePool:
    """The default of what a request may bring: what the pool was given."""


_OF_THE_POOL = _OfThePool()


class Pool:
    """One model, and slots that answer as many requests at once; others wait in a queue.

    The slots share one context. A thread of the pool's own runs it: a token of every answer, then a piece of a
    prompt, and so on. A request whose prompt begins as one that a slot still holds, pictures included, goes on from
    there, whoever asked. Every method can be called from any thread; a context manager.

    >>> with Pool(slots=4) as pool:
    ...     jobs = [pool.submit([user_message("What time is it?", path)], Sampling()) for path in paths]
    ...     print([job.read() for job in jobs])

    Raises the classes of :mod:`pyfastv.errors`, and :class:`PoolBusy`.
    """

    def __init__(
        self,
        model_path: PathLike | None = None,
        mmproj_path: PathLike | None = None,
        *,
        slots: int = 4,
        queue: int = 32,
        n_ctx: int | None = None,
        n_batch: int = 2048,
        n_ubatch: int = 512,
        n_threads: int | None = None,
        n_gpu_layers: int = -1,
        flash_attn: bool | Literal["auto", "on", "off"] = "auto",
        type_k: str = "f16",
        type_v: str = "f16",
        seed: int | None = None,
        verbose: bool = False,
        fastv: Schedule | str | None = Recommended(),  # noqa: B008 - frozen
        turbo: Turbo | str | None = None,
        reduce: Reducer | str | None = None,
        progress: Callable[[float], object] | None = None,
        max_pixels: int = MAX_PIXELS,
        encoder_cache_mb: int = 256,
        encoder_type: str = "auto",
    ) -> None:
        """Load a model, and start.

        ``slots``: requests answered at once. ``queue``: most requests that wait beside them. The other arguments
        and the errors are those of :class:`pyfastv.Runner`. ``n_ubatch`` is also how many rows of a prompt are evaluated
        between two tokens of other answers.
        """
        queue = integer("queue", queue, 0)
        self._seed = seed_of(seed)
        self._max_pixels = integer("max_pixels", max_pixels, 1, 2**62)
        schedule = to_schedule(fastv)
        self.turbo, self.reduce = to_turbo(turbo), to_reducer(reduce)
        """The merging, and the reducer, of requests that bring none; None: off."""
        model, mmproj = model_files(model_path, mmproj_path)
        self.name = printable(model.name)
        """File name of the model."""
        self.has_vision = mmproj is not None
        options, self.encoder = engine_options(
            model,
            mmproj,
            n_slots=integer("slots", slots, 1, 2**31 - 1),
            n_ctx=n_ctx,
            n_batch=n_batch,
            n_ubatch=n_ubatch,
            n_threads=n_threads,
            n_gpu_layers=n_gpu_layers,
            flash_attn=flash_attn,
            type_k=type_k,
            type_v=type_v,
            encoder_cache_mb=encoder_cache_mb,
            encoder_type=encoder_type,
            verbose=verbose,
        )
        """The vision encoder's file that was loaded, and its type; None: there is none."""
        self._slots = _native.Engine(**options, progress=progress)
        self.fastv = schedule
        """The schedule of requests that bring none; None: off."""
        self.n_slots = self._slots.n_slots
        self.n_ctx = self._slots.n_ctx
        """Tokens of each slot."""
        self.n_layer = self._slots.n_layer
        try:
            self._slots.check(_spec(self.turbo), _spec(self.reduce))
            self._batcher = Batcher(self._slots, schedule, queue)
        except BaseException:
            self._slots.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<pyfastv.serve.Pool {self.name}, {self.n_slots} slots, {self.fastv or 'fastv off'}>"

    def submit(
        self,
        messages: Sequence[dict[str, Any]],
        sampling: Sampling,
        *,
        n_probs: int = 0,
        fastv: Schedule | str | _OfThePool | None = _OF_THE_POOL,
        turbo: Turbo | str | _OfThePool | None = _OF_THE_POOL,
        reduce: Reducer | str | _OfThePool | None = _OF_THE_POOL,
        details: bool = False,
    ) -> Job:
        """Queue a chat. The calling thread renders the template, decodes the pictures and counts the tokens.

        ``messages``: see :meth:`pyfastv.chat.ChatTemplate.render`. ``n_probs``: how many of the likeliest tokens
        each piece names, 0 to 100. ``fastv``: a schedule for this request: it waits until all before it have ended, and
        those behind it wait for it, unless they bring the same; a change of schedule empties the context.
        ``turbo``, ``reduce``: a merging and a reducer for this request, which none waits for; None: none.
        ``details``: fill :attr:`Job.details`.

        Raises OptionError, ImageError, ModelError (a picture without a vision encoder), ContextLengthError,
        PoolBusy, ClosedError.
        """
        return self._submit(
            lambda: self._template.render(messages, self._slots.media_marker),
            sampling,
            n_probs,
            fastv,
            turbo,
            reduce,
            details,
        )

    def submit_text(
        self,
        prompt: str,
        sampling: Sampling,
        *,
        n_probs: int = 0,
        fastv: Schedule | str | _OfThePool | None = _OF_THE_POOL,
        turbo: Turbo | str | _OfThePool | None = _OF_THE_POOL,
        reduce: Reducer | str | _OfThePool | None = _OF_THE_POOL,
        details: bool = False,
    ) -> Job:
        """Queue a text to go on from, as it is, without a chat template. Otherwise as :meth:`submit`."""
        if not isinstance(prompt, str):
            raise OptionError(f"prompt must be a string; got {prompt!r:.200}")
        return self._submit(
            lambda: Prompt(prompt, (), add_bos=True), sampling, n_probs, fastv, turbo, reduce, details
        )

    def stats(self) -> dict[str, float]:
        """Now: ``slots``, ``active``, ``waiting``. Since the start: ``requests`` (taken), ``finished``, ``cancelled``,
        ``failed``, and of those that have ended ``prompt_tokens``, ``cached_tokens``, ``generated_tokens``, ``pictures``,
        ``visual_tokens`` and ``visual_kept``."""
        return self._batcher.stats()

    def close(self, timeout: float = 10.0) -> None:
        """Take no more requests, let those that are here finish for ``timeout`` seconds, cancel the rest, free the model.

        Can be called again. In a child of ``os.fork()`` it is closed: there is no thread that computes."""
        self._batcher.close(timeout)

    # a request, in the caller's thread

    def _submit(
        self,
        render: Callable[[], Prompt],
        sampling: Sampling,
        n_probs: int,
        fastv: Schedule | str | _OfThePool | None,
        turbo: Turbo | str | _OfThePool | None,
        reduce: Reducer | str | _OfThePool | None,
        details: bool,
    ) -> Job:
        merging = self.turbo if isinstance(turbo, _OfThePool) else to_turbo(turbo)
        reducer = self.reduce if isinstance(reduce, _OfThePool) else to_reducer(reduce)
        n_probs = integer("n_probs", n_probs, 0, _MAX_TOP)
        schedule = self.fastv if isinstance(fastv, _OfThePool) else to_schedule(fastv)
        if schedule is not None:
            _native.check_schedule(schedule.spec(), self.n_layer)
        with self._batcher.place():
            begin = time.perf_counter()
            prompt = render()
            if prompt.pictures and not self.has_vision:
                raise ModelError(
                    f"{self.name} was loaded without a vision encoder: pass its mmproj_path to Pool"
                )
            images, ids, frames = native_pictures(prompt.pictures, self._max_pixels)
            image_decode_ms = (time.perf_counter() - begin) * 1000.0
            request = self._slots.prepare(
                prompt.text,
                images,
                ids,
                prompt.add_bos,
                frames=frames,
                **sampling_options(sampling, self._seed),
                n_probs=n_probs,
                turbo=_spec(merging),
                reducer=_spec(reducer),
                answers=prompt.answers,
            )
            item = Active(
                job=Job(self._batcher.cancel),
                request=request,
                fastv=schedule,
                turbo=merging,
                reduce=reducer,
                stop=sampling.stop or (),
                image_decode_ms=image_decode_ms,
                n_pictures=len(images),
                details=details,
            )
            self._batcher.add(item)
        return item.job

    @cached_property
    def _template(self) -> ChatTemplate:
        slots = self._slots
        return ChatTemplate(slots.chat_template, bos_token=slots.bos_token, eos_token=slots.eos_token)


def _spec(setting: Turbo | Reducer | None) -> str:
    return "" if setting is None else setting.spec()
