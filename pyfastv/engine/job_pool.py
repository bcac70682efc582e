"""Several requests to one model at once."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from .. import _native
from .._checks import integer
from .._closing import Closing
from ..errors import OptionError, printable
from ..inputs.chat import Prompt
from ..inputs.thinking import open_thought
from ..settings.presets import Recommended
from ..settings.reduce import Reducer
from ..settings.schedule import Schedule
from ..settings.setting import InForce, Setting, SettingOptions
from ..settings.turbo import Turbo
from .active import Active
from .batcher import Batcher, PoolBusy
from .job import Job, Piece, TokenProb
from .loaded import LoadedModel, LoadOptions, PathLike, model_files, setting_options
from .sampling import Sampling

if TYPE_CHECKING:
    from typing_extensions import Unpack

__all__ = ["Job", "JobPool", "Piece", "PoolBusy", "TokenProb"]

_MAX_TOP = 100


class JobPool(Closing, InForce):
    """One model, and slots that answer as many requests at once; others wait in a queue.

    The slots share one context. A thread of the pool's own runs it: a token of every answer, then a piece of a
    prompt, and so on. A request whose prompt begins as one that a slot still holds, pictures included, goes on from
    there, whoever asked. Every method can be called from any thread; a context manager.

    >>> with JobPool(slots=4) as pool:
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
        fastv: Schedule | str | None = Recommended(),  # noqa: B008 - frozen
        turbo: Turbo | str | None = None,
        reduce: Reducer | str | None = None,
        **options: Unpack[LoadOptions],
    ) -> None:
        """Load a model, and start.

        ``slots``: requests answered at once. ``queue``: most requests that wait beside them. The other arguments
        and the errors are those of :class:`pyfastv.Runner`. ``n_ubatch`` is also how many rows of a prompt are evaluated
        between two tokens of other answers.
        """
        self.setting = Setting.of(fastv, turbo, reduce)
        """Of requests that bring none of their own."""
        queue = integer("queue", queue, 0)
        path, mmproj = model_files(model_path, mmproj_path)
        self.name = printable(path.name)
        """File name of the model."""
        n_slots = integer("slots", slots, 1, 2**31 - 1)
        self._model = LoadedModel(path, mmproj, n_slots=n_slots, n_ctx=n_ctx, **options)
        self.encoder = self._model.encoder
        """The vision encoder's file that was loaded, and its type; None: there is none."""
        self._slots = self._model.engine
        self.n_slots = self._slots.n_slots
        self.n_ctx = self._slots.n_ctx
        """Tokens of each slot."""
        self.n_layer = self._slots.n_layer
        try:
            specs = setting_options(self.setting)
            self._slots.check(specs["turbo"], specs["reducer"])
            self._slots.fit(specs["fastv"])
            self._batcher = Batcher(self._slots, queue)
        except BaseException:
            self._slots.close()
            raise

    def __repr__(self) -> str:
        return f"<pyfastv.engine.JobPool {self.name}, {self.n_slots} slots, {self.setting}>"

    def submit(
        self,
        messages: Sequence[dict[str, Any]],
        sampling: Sampling,
        *,
        n_probs: int = 0,
        details: bool = False,
        tools: Sequence[dict[str, Any]] | None = None,
        variables: Mapping[str, Any] | None = None,
        **options: Unpack[SettingOptions],
    ) -> Job:
        """Queue a chat. The calling thread renders the template, decodes the pictures and counts the tokens.

        ``messages``, ``tools``, ``variables``: see :meth:`pyfastv.inputs.chat.ChatTemplate.render`. ``n_probs``: how many
        of the likeliest tokens each piece names, 0 to 100. ``fastv``: a schedule for this request; None: none. With cuts
        at the layers of those before it, and as many ``cells``, it runs beside them; else it waits until they have
        ended, those behind it wait for it, and what the slots hold is lost.
        ``turbo``, ``reduce``: a merging and a reducer for this request, which none waits for; None: none.
        ``details``: fill :attr:`Job.details`.

        Raises OptionError, ImageError, ModelError (a picture without a vision encoder), ContextLengthError,
        PoolBusy, ClosedError.
        """
        return self._submit(
            self.setting.but(**options),
            lambda: self._model.render(messages, tools=tools, variables=variables),
            sampling,
            n_probs,
            details,
        )

    def submit_text(
        self,
        prompt: str,
        sampling: Sampling,
        *,
        n_probs: int = 0,
        details: bool = False,
        **options: Unpack[SettingOptions],
    ) -> Job:
        """Queue a text to go on from, as it is, without a chat template. Otherwise as :meth:`submit`."""
        if not isinstance(prompt, str):
            raise OptionError(f"prompt must be a string; got {prompt!r:.200}")
        setting = self.setting.but(**options)
        return self._submit(setting, lambda: Prompt(prompt, (), add_bos=True), sampling, n_probs, details)

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
        setting: Setting,
        render: Callable[[], Prompt],
        sampling: Sampling,
        n_probs: int,
        details: bool,
    ) -> Job:
        n_probs = integer("n_probs", n_probs, 0, _MAX_TOP)
        if setting.fastv is not None:
            _native.check_schedule(setting.fastv.spec(), self.n_layer)
        with self._batcher.place():
            prompt = render()
            request, image_decode_ms = self._model.request(prompt, setting)
            prepared = self._slots.prepare(
                **request, **self._model.sampling_options(sampling), n_probs=n_probs
            )
            job = Job(self._batcher.cancel)
            job.open_thought = open_thought(prompt.text)
            item = Active(
                job=job,
                request=prepared,
                setting=setting,
                stop=sampling.stop or (),
                image_decode_ms=image_decode_ms,
                n_pictures=len(request["images"]),
                details=details,
            )
            self._batcher.add(item)
        return item.job
