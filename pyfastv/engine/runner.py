"""A model that answers questions about pictures."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, cast, overload

from .. import _native
from .._checks import integer, utf8
from .._closing import Closing
from ..constraints.tools import ToolUse
from ..errors import ClosedError, OptionError, printable
from ..inputs.budget import Budget
from ..inputs.chat import system_message, user_message
from ..inputs.images import MAX_PIXELS, Frame, Pictures, as_list
from ..inputs.question import picture_and_question
from ..inputs.template_options import template_variables
from ..inputs.thinking import open_thought
from ..inputs.video import Video, VideoSource, load_frames
from ..settings.presets import Recommended
from ..settings.reduce import Reducer
from ..settings.schedule import Schedule
from ..settings.setting import InForce, Setting
from ..settings.skip import Skip
from ..settings.turbo import Turbo
from . import completion
from .answer import Answer, Report
from .desk import Desk, InThread, Place
from .llama_cpp_options import CompletionOptions, as_ours
from .loaded import LoadedModel, PathLike, model_files, setting_options
from .pieces import TokenProb, token_prob
from .reply import reply_of
from .sampling import RequestOptions, of_request
from .session import Session
from .stream import Stream
from .told import AnswerReader

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from typing_extensions import Unpack

    from ..types import ChatCompletion, ChatCompletionChunk, Messages

__all__ = ["Runner"]

Progress: TypeAlias = "Callable[[int, int], object]"


class Runner(Closing, InForce):
    """One model with its vision encoder and one context; a context manager.

    >>> with Runner() as runner:                                            # the bundled model
    ...     print(runner.ask("clock.png", "What time is it?"))

    Several runners can live in one process. Any thread may use a runner: as many requests as it has slots (``n_slots``)
    are computed side by side, others wait in order; one whose schedule has its cuts at other layers waits until it is
    alone. A request that finds no slot ends a stream that is open and that nobody reads (continuing it raises
    ClosedError). After an error, and after Ctrl-C, the runner stays usable. In a child of ``os.fork()`` it is closed.

    Raises the classes of :mod:`pyfastv.errors`.
    """

    def __init__(
        self,
        model_path: PathLike | None = None,
        mmproj_path: PathLike | None = None,
        *,
        n_slots: int = 1,
        n_ctx: int | None = None,
        n_batch: int = 2048,
        n_ubatch: int = 512,
        n_threads: int | None = None,
        n_threads_batch: int | None = None,
        n_gpu_layers: int = -1,
        flash_attn: bool | Literal["auto", "on", "off"] = "auto",
        type_k: str = "f16",
        type_v: str = "f16",
        seed: int | None = None,
        verbose: bool = False,
        fastv: Schedule | str | None = Recommended(),  # noqa: B008 - frozen
        turbo: Turbo | str | None = None,
        reduce: Reducer | str | None = None,
        skip: Skip | str | None = None,
        progress: Callable[[float], object] | None = None,
        max_pixels: int = MAX_PIXELS,
        encoder_cache_mb: int = 256,
        encoder_cache_dir: PathLike | None = None,
        encoder_cache_disk_mb: int = 1024,
        checkpoint_mb: int = 512,
        encoder_type: str = "auto",
        chat_template: PathLike | None = None,
        image_tokens: int | Sequence[int] | str | None = None,
        enlarge: bool | None = None,
    ) -> None:
        """Load a model.

        ``model_path``, ``mmproj_path``: GGUF files of the language model and of its vision encoder; without a
        model the bundled one, without an mmproj text only.
        ``n_slots``: requests computed side by side. ``n_ctx``: tokens of each, prompt and answer; None or 0: what the
        model was trained for, at most 8192. ``n_batch``, ``n_ubatch``: most tokens in a logical and in a physical batch.
        ``n_threads``: None: one for each physical core that this process may use, by its affinity and the CPU quota of
        its control group (container). ``n_threads_batch``: of prompts and pictures, which gain more from many; None: as
        ``n_threads``.
        ``n_gpu_layers``: layers on the GPU if there is one, -1: all. ``type_k``, ``type_v``: ggml types of
        the KV cache.
        ``seed``: of requests that bring none. ``verbose``: llama.cpp's log on stderr.
        ``fastv``: which visual tokens the later layers see: a :class:`pyfastv.Schedule`, text as in
        ``LLAMA_FASTV`` ("k=2,drop=0.5"), or the name of a preset ("pyramiddrop"); None or "off": all, as in stock
        llama.cpp. A cut at a layer where the model cannot be cut is at the next where it can, with a warning.
        ``turbo``: merge tokens in the vision encoder: a :class:`pyfastv.Turbo` or text as in ``LLAMA_TURBO``
        ("share=0.5"); None or "off": none.
        ``reduce``: fewer visual tokens before the language model: a :class:`pyfastv.Reducer`, or text such as
        "divprune,keep=288"; None or "off": all.
        ``skip``: patches that their neighbours predict are not encoded: a :class:`pyfastv.Skip`, or text as in
        ``LLAMA_SKIP`` ("tau=8"); None or "off": all are.
        ``progress``: called with 0..1 while loading; an exception in it ends the loading.
        ``max_pixels``: largest picture taken, in pixels. ``encoder_cache_mb``: memory for the vision encoder's
        outputs, so that a picture that comes again is not encoded again; 0: none. ``encoder_cache_dir``: a folder for
        them, made if it is not there, which later processes and others read, too; None: in memory alone.
        ``encoder_cache_disk_mb``: most of the folder; those that were not used for longest leave first.
        ``checkpoint_mb``: memory, of all slots together, for states of recurrent layers (Qwen3.5, LFM2), which do not go
        back by themselves: another question about a picture goes on from the one behind it; 0: none, and the prompt is
        computed anew.
        ``encoder_type``: of the vision encoder's matrices, one of :data:`pyfastv.models.encoder_type.ENCODER_TYPES`.
        "auto" is q8_0 where this machine's products with it are faster than with f16, "stock" the file as it is. Where
        the file has to be quantized, that is done once, and kept in the user's cache.
        ``chat_template``: in place of the model's: Jinja2 text, a file with it, or the name of one of
        :data:`pyfastv.inputs.named_templates.NAMED`.
        ``image_tokens``: most visual tokens of a picture, or of a frame, or the least and the most (a pair): each is
        scaled for that, its aspect kept; a request may say otherwise. ``enlarge``: may a model that scales every picture
        to one size (SmolVLM and its like: 2048 pixels) enlarge it; None: unless ``image_tokens`` are given.

        Raises ModelError, UnsupportedModelError (with ``fastv=None`` such a model runs), OptionError,
        OutOfMemoryError.
        """
        setting = Setting.of(fastv, turbo, reduce, skip)
        self._max_pixels = max_pixels
        self._model = LoadedModel(
            *model_files(model_path, mmproj_path),
            n_slots=integer("n_slots", n_slots, 1, 2**31 - 1),
            n_ctx=n_ctx,
            n_batch=n_batch,
            n_ubatch=n_ubatch,
            n_threads=n_threads,
            n_threads_batch=n_threads_batch,
            n_gpu_layers=n_gpu_layers,
            flash_attn=flash_attn,
            type_k=type_k,
            type_v=type_v,
            seed=seed,
            verbose=verbose,
            progress=progress,
            max_pixels=max_pixels,
            encoder_cache_mb=encoder_cache_mb,
            encoder_cache_dir=encoder_cache_dir,
            encoder_cache_disk_mb=encoder_cache_disk_mb,
            checkpoint_mb=checkpoint_mb,
            encoder_type=encoder_type,
            chat_template=chat_template,
            image_tokens=image_tokens,
            enlarge=enlarge,
        )
        self._engine = self._model.engine
        self._desk = Desk(n_slots, self._engine.cancel, self._engine.fits, self._engine.fit)
        self._lock = self._model.guard = self._desk.lock
        self.setting = Setting()
        """Of requests that bring none of their own."""
        try:
            if not setting.is_off:
                self._use(setting)
        except BaseException:
            self._engine.close()
            raise

    def __repr__(self) -> str:
        return f"<pyfastv.Runner {printable(self._model.path.name)}, {self.setting}>"

    def close(self) -> None:
        """Free the model and the context. Can be called again; anything else then raises ClosedError."""
        if self._lock.inherited:
            return
        with self._lock:
            self._desk.wait_for_threads()
            self._desk.clear()
            self._engine.close()

    @property
    def closed(self) -> bool:
        """True after :meth:`close`, and in a child of ``os.fork()``."""
        return self._engine.closed

    def set_fastv(self, fastv: Schedule | str | None) -> None:
        """Change the schedule, None: off, without loading the model again. Clears the context.

        Raises OptionError (a cut is not below the number of layers), UnsupportedModelError, OutOfMemoryError.
        """
        self._use(self.setting.but(fastv=fastv))

    def set_turbo(self, turbo: Turbo | str | None) -> None:
        """Change the merging in the vision encoder, None: off. Clears the context.

        Raises OptionError (blocks that the encoder does not have), UnsupportedModelError (another kind of encoder).
        """
        self._use(self.setting.but(turbo=turbo))

    def set_reduce(self, reduce: Reducer | str | None) -> None:
        """Change the reducer, None: off. Clears the context. Raises OptionError, UnsupportedModelError (CDPruner)."""
        self._use(self.setting.but(reduce=reduce))

    def set_skip(self, skip: Skip | str | None) -> None:
        """Change what is left out of pictures before the encoder, None: nothing. Clears the context. Raises OptionError,
        UnsupportedModelError (another kind of encoder)."""
        self._use(self.setting.but(skip=skip))

    def _use(self, setting: Setting) -> None:
        """What requests that bring nothing of their own get from now on. Clears the context.

        Raises as the setters do; nothing has changed then."""
        with self._engine_at_work() as engine:
            self._desk.clear()
            setting = self._model.fitted(setting)
            options = setting_options(setting)
            engine.check(options["turbo"], options["reducer"], options["skip"])
            engine.set_fastv(options["fastv"])
            if setting.turbo != self.turbo:
                engine.set_turbo(options["turbo"])
            if setting.reduce != self.reduce:
                engine.set_reducer(options["reducer"])
            if setting.skip != self.skip:
                engine.set_skip(options["skip"])
            self.setting = setting

    @property
    def info(self) -> dict[str, Any]:
        """``model`` and ``mmproj`` (file names), ``encoder`` (the type that its matrices are loaded in, and where from),
        ``description``, ``n_layer``, ``n_ctx``, ``fastv``, ``turbo``, ``reduce``, ``skip``."""
        model = self._model
        with self._engine_at_work() as engine:
            return {
                "model": model.path.name,
                "mmproj": None if model.mmproj is None else model.mmproj.name,
                "encoder": None if model.encoder is None else str(model.encoder),
                "description": engine.description,
                "n_layer": engine.n_layer,
                "n_ctx": engine.n_ctx,
                **self.setting.options(),
            }

    def ask(
        self,
        *asked: Pictures,
        image: Pictures = None,
        question: str | None = None,
        video: Video | VideoSource | None = None,
        system: str | None = None,
        progress: Progress | None = None,
        **options: Unpack[RequestOptions],
    ) -> Answer:
        """Answer a question about a picture, about several (a list), about a video, or about none (None).

        ``asked``: the picture and then the question, or the question alone; or both by name, ``image`` and
        ``question``. A picture is what :func:`pyfastv.load_image` takes. ``video``: a path, bytes, a list of frames, or a
        :class:`pyfastv.Video`, which says what frames are taken; it comes behind the pictures. ``system``: a system
        message. ``progress``: called with (prompt tokens done, prompt tokens) during prefill, after every picture and
        every frame. ``options``: see :class:`pyfastv.Sampling`; ``fastv``, ``turbo``, ``reduce`` and ``skip``, a
        schedule, a merging, a reducer and what is left out, for this request alone; ``image_tokens`` and ``enlarge``, how
        large its pictures, those of earlier turns included, are seen
        (:class:`pyfastv.inputs.budget.PictureOptions`); ``response_format``, which the
        answer follows, ``logprobs`` and ``top_logprobs`` (:class:`pyfastv.engine.reply.ReplyOptions`).

        What the context or the encoder's cache still holds of an earlier request is not computed again. The visual
        tokens are chosen anew, as by a new runner; only rounding may differ.

        Raises ImageError, OptionError, ContextLengthError (the prompt does not fit), OutOfMemoryError,
        DecodeError, AnswerError (the answer does not follow the schema), ClosedError.
        """
        image, question = picture_and_question(asked, image, question)
        with self._desk.holding() as place:
            return self._ask(image, question, video, system, progress, options, place).read()

    def stream(
        self,
        *asked: Pictures,
        image: Pictures = None,
        question: str | None = None,
        video: Video | VideoSource | None = None,
        system: str | None = None,
        progress: Progress | None = None,
        **options: Unpack[RequestOptions],
    ) -> Stream:
        """As :meth:`ask`, piece by piece. Prefill is done when this returns, and its errors raised."""
        image, question = picture_and_question(asked, image, question)
        return self._ask(image, question, video, system, progress, options)

    async def aask(
        self,
        *asked: Pictures,
        image: Pictures = None,
        question: str | None = None,
        video: Video | VideoSource | None = None,
        system: str | None = None,
        progress: Progress | None = None,
        **options: Unpack[RequestOptions],
    ) -> Answer:
        """As :meth:`ask`, without blocking the event loop. Cancelling the task ends the computation at once.

        A thread of its own computes it; ``progress`` is called there."""
        pictures, text = picture_and_question(asked, image, question)

        def ask() -> Answer:
            with self._desk.holding(thread.place) as place:
                return self._ask(pictures, text, video, system, progress, options, place).read()

        async with InThread(self._desk) as thread:
            return await thread.run(ask)

    async def astream(
        self,
        *asked: Pictures,
        image: Pictures = None,
        question: str | None = None,
        video: Video | VideoSource | None = None,
        system: str | None = None,
        progress: Progress | None = None,
        **options: Unpack[RequestOptions],
    ) -> AsyncIterator[str]:
        """As :meth:`aask`, piece by piece: ``async for``. It has its slot until it ends, or is closed, or its task is
        cancelled."""
        pictures, text = picture_and_question(asked, image, question)
        async with InThread(self._desk) as thread:
            stream = await thread.run(
                lambda: self._ask(pictures, text, video, system, progress, options, thread.place)
            )
            while (piece := await thread.run(lambda: next(stream, None))) is not None:
                yield piece

    def _ask(
        self,
        image: Pictures,
        question: str | None,
        video: Video | VideoSource | None,
        system: str | None,
        progress: Progress | None,
        options: RequestOptions,
        place: Place | None = None,
    ) -> Stream:
        self._refuse_closed()
        begin = time.perf_counter()
        pictures = [*as_list(image), *self._load_frames(video)]
        image_decode_ms = (time.perf_counter() - begin) * 1000.0
        messages = [user_message(question, pictures)]
        if system is not None:
            messages.insert(0, system_message(system))
        return self._start(messages, progress, options, image_decode_ms=image_decode_ms, place=place)

    def session(
        self,
        *,
        system: str | None = None,
        restore: PathLike | None = None,
        **options: Unpack[RequestOptions],
    ) -> Session:
        """A conversation: later questions may be about earlier pictures, and know the earlier answers.

        ``options``: of every question that brings none of its own. Several sessions may share a runner; each time
        that another one asks, the context is evaluated anew, save for what both have in common at the beginning.
        ``restore``: a file of :meth:`pyfastv.Session.save`, with which the conversation goes on; ``options`` that are
        given come in place of its own. Where its context does not fit this runner (another schedule, other types of the
        KV cache, a smaller ``n_ctx``), a warning says so, and the next question reads the conversation anew.

        Raises DataError: the file cannot be read, is damaged, or is of another model or a later version.
        """
        self._refuse_closed()
        if restore is None:
            return Session(self, system, **options)
        if system is not None:
            raise OptionError("system: a conversation that is restored has its own: leave it out")
        return Session._restored(self, restore, options)

    def tokenize(self, text: str, *, add_special: bool = False, parse_special: bool = True) -> list[int]:
        """The tokens of a text. ``add_special``: with those that begin a prompt; ``parse_special``: the spelling of a
        special token is that token. Raises OptionError, ContextLengthError for a text far longer than the context."""
        utf8("text", text)
        with self._lock:
            self._refuse_closed()
            return self._engine.tokenize(text, bool(add_special), bool(parse_special))

    def detokenize(self, tokens: Sequence[int]) -> str:
        """The text of tokens, special ones spelt; broken characters are U+FFFD. Raises OptionError: a number that is no
        token."""
        given = [integer(f"tokens[{i}]: a token", token, 0) for i, token in enumerate(tokens)]
        with self._lock:
            self._refuse_closed()
            return self._engine.detokenize(given).decode("utf-8", "replace")

    @overload
    def create_chat_completion(
        self,
        messages: Messages,
        *,
        tools: Sequence[dict[str, Any]] | None = None,
        tool_choice: str | dict[str, Any] | None = None,
        parallel_tool_calls: bool | None = None,
        stream: Literal[False] = False,
        **options: Unpack[CompletionOptions],
    ) -> ChatCompletion: ...

    @overload
    def create_chat_completion(
        self,
        messages: Messages,
        *,
        tools: Sequence[dict[str, Any]] | None = None,
        tool_choice: str | dict[str, Any] | None = None,
        parallel_tool_calls: bool | None = None,
        stream: Literal[True],
        **options: Unpack[CompletionOptions],
    ) -> Iterator[ChatCompletionChunk]: ...

    def create_chat_completion(
        self,
        messages: Messages,
        *,
        tools: Sequence[dict[str, Any]] | None = None,
        tool_choice: str | dict[str, Any] | None = None,
        parallel_tool_calls: bool | None = None,
        stream: bool = False,
        **options: Unpack[CompletionOptions],
    ) -> ChatCompletion | Iterator[ChatCompletionChunk]:
        """OpenAI's chat completion, in the shape of llama-cpp-python's method of this name.

        ``messages``: see :meth:`pyfastv.inputs.chat.ChatTemplate.render`; ``tools``, ``tool_choice``,
        ``parallel_tool_calls``: functions that the answer may call, or must, in OpenAI's shape; calls are told apart in
        the form of the model's chat template, or, where that knows no tools, as JSON that the model is asked for.
        ``options``: as in :meth:`ask`, and all that llama-cpp-python's method takes, of which what cannot be had is
        refused by its name (:class:`pyfastv.engine.llama_cpp_options.CompletionOptions`). Returns the completion, or an
        iterator of its chunks (:mod:`pyfastv.types`). The completion and the last chunk have one key more than
        OpenAI's: ``pyfastv``, the report. Raises as :meth:`ask` does.
        """
        asked, name = as_ours(options, printable(self._model.path.name))
        use = ToolUse.of(tools, tool_choice, parallel_tool_calls)
        if stream:
            return completion.chunks(self._start(messages, None, asked, tools=use), name)
        with self._desk.holding() as place:
            answering = self._start(messages, None, asked, tools=use, place=place)
            return completion.whole(answering.read(), name, answering.told_by)

    def _start(
        self,
        messages: Messages,
        progress: Progress | None,
        options: RequestOptions,
        *,
        tools: ToolUse | None = None,
        image_decode_ms: float = 0.0,
        place: Place | None = None,
    ) -> Stream:
        """Prefill, and a stream over the generation after it. ``tools``: that the answer may call.
        ``image_decode_ms``: spent on the pictures so far. ``place``: whose holder it is for; None: nobody's."""
        setting, sampling = of_request(options, self.setting)
        budget = Budget.of_options(options, self._model.budget)
        reply = reply_of(options)
        sampling = reply.constrained(sampling)
        variables = template_variables(options)
        self._refuse_closed()
        setting = self._model.fitted(setting)
        prompt, calls = self._model.render_for_calls(messages, tools, variables=variables)
        opened = open_thought(prompt.text)
        if calls is not None and sampling.grammar is not None:
            raise OptionError("grammar and tools: an answer can follow one of them")
        request, spent_ms, seen = self._model.request(prompt, setting, budget)
        image_decode_ms += spent_ms

        desk, engine = self._desk, self._engine
        place = place or Place()
        place.fastv = request["fastv"]
        with self._computing(place):
            desk.enter(place)
            engine.prefill(
                **request,
                progress=progress and desk.calling_back(progress),
                reserve=1,
                started=lambda number: desk.begin(place, number),
            )
            form = {} if calls is None else calls.sampling(opened)
            if reply.logprobs:
                form["n_probs"] = reply.n_probs
            engine.start(place.number, **{**self._model.sampling_options(sampling), **form})
        desk.pause(place)

        def next_token() -> tuple[bytes, TokenProb | None] | None:
            self._refuse_closed()
            with self._computing(place), desk.reading(place):
                if not reply.logprobs:
                    token = engine.next(place.number)
                    return None if token is None else (token[1], None)
                told = engine.next_with_probs(place.number)
                if told is None:
                    return None
                number, data, logprob, top = told
                return data, token_prob(number, data, logprob, top[: reply.n_top])

        def finish() -> tuple[Report, str]:
            self._refuse_closed()
            with self._computing(place), desk.reading(place):
                if place.result is None:
                    report = Report.of(
                        engine.report(place.number),
                        n_layer=engine.n_layer,
                        image_decode_ms=image_decode_ms,
                        setting=setting,
                        pictures=seen,
                    )
                    place.result = report, engine.reason(place.number) or "stop"
            desk.leave(place)
            return cast("tuple[Report, str]", place.result)

        stops = (*(sampling.stop or ()), *(calls.stops if calls is not None else ()))
        stream = Stream(next_token, finish, stops, lambda: desk.stop(place), reply)
        stream.told_by = None if calls is None else AnswerReader(opened, calls)
        return stream

    def _save_context(self, number: int | None) -> NDArray[np.uint8] | None:
        """What the context holds of a request that has ended; None: nothing, or others have had its slot since."""
        with self._lock:
            self._refuse_closed()
            try:
                return None if number is None else self._engine.save(number)
            except (ClosedError, OptionError):  # OptionError: it was cleared
                return None

    def _restore_context(self, fastv: str, state: NDArray[np.uint8]) -> Place:
        """Its place. Raises OptionError where it does not fit."""
        place = Place()
        place.fastv = fastv
        self._refuse_closed()
        self._desk.enter(place)
        try:
            place.number = self._engine.restore(state)
        finally:
            self._desk.leave(place)
        return place

    def _load_frames(self, video: Video | VideoSource | None) -> list[Frame]:
        return [] if video is None else load_frames(video, max_pixels=self._max_pixels)

    @contextmanager
    def _computing(self, place: Place) -> Iterator[None]:
        """Whatever is raised meanwhile ends the request, and leaves nothing of it in the context."""
        try:
            yield
        except BaseException:
            with suppress(Exception):  # the first error is the one to tell
                self._desk.give_up(place, self._engine.reset)
            raise

    @contextmanager
    def _engine_at_work(self) -> Iterator[_native.Engine]:
        """The engine, for this thread alone; whatever is raised meanwhile leaves it without a context."""
        with self._lock:
            self._refuse_closed()
            self._desk.wait_for_threads()
            self._refuse_closed()
            try:
                yield self._engine
            except BaseException:
                self._desk.clear()
                with suppress(Exception):  # the first error is the one to tell
                    self._engine.reset()
                raise

    def _refuse_closed(self) -> None:
        self._lock.refuse_inherited()
        if self._engine.closed:
            raise ClosedError("this runner is closed: make a new one")
