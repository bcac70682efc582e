"""Several requests to one model at once."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

from .. import _native
from .._checks import integer, utf8
from .._closing import Closing
from ..constraints.tools import CallFormat, ToolUse
from ..errors import OptionError, printable
from ..inputs.budget import Budget, SeenPicture
from ..inputs.chat import Prompt
from ..inputs.images import Picture
from ..inputs.thinking import open_thought
from ..settings.presets import Recommended
from ..settings.reduce import Reducer
from ..settings.schedule import Schedule
from ..settings.setting import InForce, Setting, SettingOptions
from ..settings.skip import Skip
from ..settings.turbo import Turbo
from .active import Active
from .batcher import Batcher, PoolBusy
from .job import Job, Piece, Progress, TokenProb, follow
from .loaded import LoadedModel, LoadOptions, PathLike, model_files, setting_options
from .sampling import Sampling

if TYPE_CHECKING:
    from typing_extensions import Unpack

__all__ = ["Job", "JobPool", "Piece", "PoolBusy", "Progress", "TokenProb", "follow"]

_MAX_TOP = 100


class _Prepared(NamedTuple):
    """What the engine takes, and what is known of it."""

    request: _native.EngineRequest
    pictures: tuple[SeenPicture, ...] = ()
    n_pictures: int = 0
    image_decode_ms: float = 0.0
    open_thought: str = ""
    calls: CallFormat | None = None


# its keywords are those of sampling
_Prepare: TypeAlias = "Callable[..., _Prepared]"


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
        name: str | None = None,
        n_ctx: int | None = None,
        fastv: Schedule | str | None = Recommended(),  # noqa: B008 - frozen
        turbo: Turbo | str | None = None,
        reduce: Reducer | str | None = None,
        skip: Skip | str | None = None,
        **options: Unpack[LoadOptions],
    ) -> None:
        """Load a model, and start.

        ``slots``: requests answered at once. ``queue``: most requests that wait beside them. ``name``: of the model, for
        clients; None: that of its file. The other arguments and the errors are those of :class:`pyfastv.Runner`.
        ``n_ubatch`` is also how many rows of a prompt are evaluated between two tokens of other answers.
        """
        self.setting = Setting.of(fastv, turbo, reduce, skip)
        """Of requests that bring none of their own."""
        self.queue = integer("queue", queue, 0)
        """Most requests that wait."""
        path, mmproj = model_files(model_path, mmproj_path)
        self.path, self.mmproj = path, mmproj
        """Files of the model, and of its vision encoder if it has one."""
        self.file = printable(path.name)
        """File name of the model."""
        self.name = self.file if name is None else utf8("name", name)
        """Of the model, for clients."""
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
            self.setting = self._model.fitted(self.setting)
            specs = setting_options(self.setting)
            self._slots.check(specs["turbo"], specs["reducer"], specs["skip"])
            self._slots.fit(specs["fastv"])
            self._batcher = Batcher(self._slots, self.queue)
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
        reports: bool = False,
        cache_prompt: bool = True,
        continues: bool = False,
        tools: ToolUse | None = None,
        variables: Mapping[str, Any] | None = None,
        budget: Budget | None = None,
        **options: Unpack[SettingOptions],
    ) -> Job:
        """Queue a chat. The calling thread renders the template, decodes the pictures and counts the tokens.

        ``messages``, ``variables``: see :meth:`pyfastv.inputs.chat.ChatTemplate.render`. ``tools``: that the answer may
        call, in the form of :attr:`Job.calls`. ``n_probs``: how many of the likeliest tokens each piece names, 0 to 100.
        ``fastv``: a schedule for this request; None: none. With cuts at the layers of those before it, and as many
        ``cells``, it runs beside them; else it waits until they have ended, those behind it wait for it, and what the
        slots hold is lost.
        ``turbo``, ``reduce``, ``skip``: a merging, a reducer, and what is left out of pictures, for this request, which
        none waits for; None: none. ``budget``: visual tokens of each picture; None: that of the pool.
        ``details``: fill :attr:`Job.details`; ``reports``: :attr:`Piece.report`. ``cache_prompt``: False computes the
        whole prompt, whatever slots hold of it. ``continues``: the answer goes on with the last message, of the
        assistant.

        Raises OptionError, ImageError, ModelError (a picture without a vision encoder), ContextLengthError,
        PoolBusy, ClosedError.
        """
        setting = self._model.fitted(self.setting.but(**options))
        prepare = self._preparing_chat(
            setting, budget, messages, tools, variables=variables, continues=continues
        )
        return self._submit(
            setting, prepare, sampling, n_probs, details, reports, cache_prompt, keep_space=continues
        )

    def submit_text(
        self,
        prompt: str | Sequence[int],
        sampling: Sampling,
        *,
        pictures: Sequence[Picture] = (),
        mark: str = "",
        n_probs: int = 0,
        details: bool = False,
        reports: bool = False,
        budget: Budget | None = None,
        cache_prompt: bool = True,
        **options: Unpack[SettingOptions],
    ) -> Job:
        """Queue a text to go on from, or the tokens of one, as it is, without a chat template. The answer keeps the space
        that it begins with. ``pictures``: where ``mark`` is in the text, in this order. Otherwise as :meth:`submit`."""
        setting = self._model.fitted(self.setting.but(**options))
        if isinstance(prompt, str):
            text, shown = prompt, tuple(pictures)
            if shown:
                if (found := text.count(mark)) != len(shown):
                    raise OptionError(f"the prompt has {mark} {found} times, for {len(shown)} pictures")
                text = text.replace(mark, self._slots.media_marker)
            prepare = self._preparing(lambda: (Prompt(text, shown, add_bos=True), None), setting, budget)
        elif not isinstance(prompt, Sequence) or isinstance(prompt, bytes):
            raise OptionError(f"prompt must be a string, or a list of tokens; got {prompt!r:.200}")
        else:
            tokens = [integer(f"prompt[{i}]: a token", token, 0) for i, token in enumerate(prompt)]
            prepare = self._preparing_tokens(tokens, setting)
        return self._submit(
            setting, prepare, sampling, n_probs, details, reports, cache_prompt, keep_space=True
        )

    def count_tokens(
        self,
        messages: Sequence[dict[str, Any]],
        *,
        continues: bool = False,
        tools: ToolUse | None = None,
        variables: Mapping[str, Any] | None = None,
        budget: Budget | None = None,
        **options: Unpack[SettingOptions],
    ) -> int:
        """Tokens of the prompt that :meth:`submit` makes of the same, visual ones included: those that enter the language
        model, after Turbo and a reducer. Nothing is queued. Raises as :meth:`submit`."""
        setting = self._model.fitted(self.setting.but(**options))
        prepare = self._preparing_chat(
            setting, budget, messages, tools, variables=variables, continues=continues
        )
        with self._batcher.place():
            prepared = prepare(**self._model.sampling_options(Sampling(max_tokens=0)), n_probs=0)
        return prepared.request.n_tokens

    @property
    def budget(self) -> Budget:
        """Visual tokens of the pictures of requests that say nothing of them."""
        return self._model.budget

    @property
    def sees(self) -> bool:
        """Has it a vision encoder?"""
        return self.encoder is not None

    @property
    def chat_template(self) -> str | None:
        """The model's own, Jinja2 text."""
        return self._slots.chat_template

    @property
    def bos_token(self) -> str:
        """As the vocabulary spells it; empty: there is none."""
        return self._slots.bos_token

    @property
    def eos_token(self) -> str:
        """As the vocabulary spells it; empty: there is none."""
        return self._slots.eos_token

    def tokenize(self, text: str, *, add_special: bool = False, parse_special: bool = True) -> list[int]:
        """The tokens of a text. ``add_special``: with those that begin a prompt; ``parse_special``: the spelling of a
        special token is that token. Raises ContextLengthError for a text far longer than the context."""
        return self._slots.tokenize(utf8("text", text), add_special, parse_special)

    def detokenize(self, tokens: Sequence[int]) -> bytes:
        """The text of tokens, special ones spelt. Raises OptionError: a number that is no token."""
        return self._slots.detokenize(
            [integer(f"tokens[{i}]: a token", token, 0) for i, token in enumerate(tokens)]
        )

    def render(self, messages: Sequence[dict[str, Any]], mark: str, *, continues: bool = False) -> str:
        """The prompt that :meth:`submit` makes of messages, with ``mark`` for each picture; none is read."""
        return self._model.render(messages, continues=continues).text.replace(self._slots.media_marker, mark)

    def busy_slots(self) -> set[int]:
        """Their numbers, of ``n_slots``."""
        return self._batcher.busy_slots()

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

    def _preparing_chat(
        self,
        setting: Setting,
        budget: Budget | None,
        messages: Sequence[dict[str, Any]],
        tools: ToolUse | None,
        **shown: Any,
    ) -> _Prepare:
        return self._preparing(
            lambda: self._model.render_for_calls(messages, tools, **shown), setting, budget
        )

    def _preparing(
        self,
        render: Callable[[], tuple[Prompt, CallFormat | None]],
        setting: Setting,
        budget: Budget | None,
    ) -> _Prepare:
        def prepare(**sampling: Any) -> _Prepared:
            prompt, form = render()
            opened = open_thought(prompt.text)
            if form is not None:
                sampling |= form.sampling(opened)
            request, image_decode_ms, seen = self._model.request(prompt, setting, budget)
            prepared = self._slots.prepare(**request, **sampling)
            return _Prepared(prepared, seen, len(request["images"]), image_decode_ms, opened, form)

        return prepare

    def _preparing_tokens(self, tokens: Sequence[int], setting: Setting) -> _Prepare:
        fastv = setting_options(setting)["fastv"]
        return lambda **sampling: _Prepared(self._slots.prepare_tokens(tokens, fastv=fastv, **sampling))

    def _submit(
        self,
        setting: Setting,
        prepare: _Prepare,
        sampling: Sampling,
        n_probs: int,
        details: bool,
        reports: bool,
        cache_prompt: bool,
        keep_space: bool,
    ) -> Job:
        n_probs = integer("n_probs", n_probs, 0, _MAX_TOP)
        if setting.fastv is not None:
            _native.check_schedule(setting.fastv.spec(), self.n_layer)
        with self._batcher.place():
            prepared = prepare(**self._model.sampling_options(sampling), n_probs=n_probs)
            job = Job(self._batcher.cancel)
            job.open_thought = prepared.open_thought
            job.calls = prepared.calls
            job.prompt_tokens = prepared.request.n_tokens
            item = Active(
                job=job,
                request=prepared.request,
                setting=setting,
                stop=(*(sampling.stop or ()), *(prepared.calls.stops if prepared.calls else ())),
                image_decode_ms=prepared.image_decode_ms,
                n_pictures=prepared.n_pictures,
                pictures=prepared.pictures,
                details=details,
                reports=reports,
                cache_prompt=cache_prompt,
                keep_space=keep_space,
            )
            self._batcher.add(item)
        return item.job
