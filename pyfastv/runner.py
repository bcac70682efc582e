"""A model that answers questions about pictures."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, cast, overload

from . import _native, completion
from ._checks import integer, utf8
from ._native_options import (
    MAX_N_CTX,
    PathLike,
    content_id,
    engine_options,
    model_files,
    sampling_options,
    seed_of,
)
from ._process_lock import ProcessLock
from .answer import Answer, Report
from .chat import ChatTemplate, system_message, user_message
from .errors import ClosedError, Error, ModelError, OptionError, printable
from .images import MAX_PIXELS, Frame, Picture, Pictures, as_list, load_image
from .options import RequestOptions, Sampling, SamplingOptions
from .presets import Recommended, to_schedule
from .reduce import Reducer, to_reducer
from .schedule import Schedule
from .session import Session
from .stream import Stream
from .turbo import Turbo, to_turbo
from .video import Video, VideoSource, load_frames

if TYPE_CHECKING:
    from types import TracebackType

    import numpy as np
    from numpy.typing import NDArray
    from typing_extensions import Self, Unpack

__all__ = ["Runner"]

Progress: TypeAlias = "Callable[[int, int], object]"


class Runner:
    """One model with its vision encoder and one context; a context manager.

    >>> with Runner() as runner:                                            # the bundled model
    ...     print(runner.ask("clock.png", "What time is it?"))

    Several runners can live in one process. One runner serves one request at a time: calls from several
    threads wait for each other, except that a request ends a stream that is still open (continuing it raises
    ClosedError). After an error, and after Ctrl-C, the runner stays usable. In a child of ``os.fork()`` it is closed.

    Raises the classes of :mod:`pyfastv.errors`.
    """

    def __init__(
        self,
        model_path: PathLike | None = None,
        mmproj_path: PathLike | None = None,
        *,
        n_ctx: int = 0,
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
        """Load a model.

        ``model_path``, ``mmproj_path``: GGUF files of the language model and of its vision encoder; without a
        model the bundled one, without an mmproj text only.
        ``n_ctx``: context in tokens, 0: what the model was trained for. ``n_batch``, ``n_ubatch``: most
        tokens in a logical and in a physical batch. ``n_threads``: None: one for each core
        that the system shows, hyperthreads included.
        ``n_gpu_layers``: layers on the GPU if there is one, -1: all. ``type_k``, ``type_v``: ggml types of
        the KV cache.
        ``seed``: of requests that bring none. ``verbose``: llama.cpp's log on stderr.
        ``fastv``: which visual tokens the later layers see: a :class:`pyfastv.Schedule`, text as in
        ``LLAMA_FASTV`` ("k=2,drop=0.5"), or the name of a preset ("pyramiddrop"); None or "off": all, as in stock
        llama.cpp.
        ``turbo``: merge tokens in the vision encoder: a :class:`pyfastv.Turbo` or text as in ``LLAMA_TURBO``
        ("share=0.5"); None or "off": none.
        ``reduce``: fewer visual tokens before the language model: a :class:`pyfastv.Reducer`, or text such as
        "divprune,keep=288"; None or "off": all.
        ``progress``: called with 0..1 while loading; an exception in it ends the loading.
        ``max_pixels``: largest picture taken, in pixels. ``encoder_cache_mb``: memory for the vision encoder's
        outputs, so that a picture that comes again is not encoded again; 0: none.
        ``encoder_type``: of the vision encoder's matrices, one of :data:`pyfastv.encoder_type.ENCODER_TYPES`. "auto" is
        q8_0 where this machine's products with it are faster than with f16, "stock" the file as it is. Where the file
        has to be quantized, that is done once, and kept in the user's cache.

        Raises ModelError, UnsupportedModelError (with ``fastv=None`` such a model runs), OptionError,
        OutOfMemoryError.
        """
        self._lock = ProcessLock("runner")
        self._computing = False
        self._request = 0  # of the newest request; a stream of an older one is stale
        self._seed = seed_of(seed)
        self._max_pixels = integer("max_pixels", max_pixels, 1, 2**62)
        schedule, merging = to_schedule(fastv), to_turbo(turbo)
        self._reduce = to_reducer(reduce)
        self._model_path, self._mmproj_path = model_files(model_path, mmproj_path)
        context: dict[str, Any] = {
            "n_ctx": integer("n_ctx", n_ctx, 0, MAX_N_CTX),
            "type_k": utf8("type_k", type_k),
            "type_v": utf8("type_v", type_v),
        }
        options, self._encoder = engine_options(
            self._model_path,
            self._mmproj_path,
            n_batch=n_batch,
            n_ubatch=n_ubatch,
            n_threads=n_threads,
            n_gpu_layers=n_gpu_layers,
            flash_attn=flash_attn,
            encoder_cache_mb=encoder_cache_mb,
            encoder_type=encoder_type,
            verbose=verbose,
        )
        self._engine = _native.Engine(**options, **context, progress=progress)
        self._fastv: Schedule | None = None  # of requests that bring none
        self._in_force: Schedule | None = None  # what the engine has
        self._turbo: Turbo | None = None
        self._turbo_in_force: Turbo | None = None
        try:
            if schedule is not None:
                self.set_fastv(schedule)
            if merging is not None:
                self.set_turbo(merging)
            if self._reduce is not None:
                self.set_reduce(self._reduce)
        except BaseException:
            self._engine.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<pyfastv.Runner {printable(self._model_path.name)}, {self._fastv or 'fastv off'}>"

    def close(self) -> None:
        """Free the model and the context. Can be called again; anything else then raises ClosedError."""
        if self._lock.inherited:
            return
        with self._lock:
            self._refuse_reentry()
            self._request += 1
            self._engine.close()

    @property
    def closed(self) -> bool:
        """True after :meth:`close`, and in a child of ``os.fork()``."""
        return self._engine.closed

    @property
    def fastv(self) -> Schedule | None:
        """The schedule of requests that bring none of their own; None: off."""
        return self._fastv

    def set_fastv(self, fastv: Schedule | str | None) -> None:
        """Change the schedule, None: off, without loading the model again. Clears the context.

        Raises OptionError (a cut is not below the number of layers), UnsupportedModelError, OutOfMemoryError.
        """
        schedule = to_schedule(fastv)
        with self._engine_at_work() as engine:
            self._request += 1
            self._put_in_force(engine, schedule)
            self._fastv = schedule

    @property
    def turbo(self) -> Turbo | None:
        """The merging of requests that bring none of their own; None: off."""
        return self._turbo

    def set_turbo(self, turbo: Turbo | str | None) -> None:
        """Change the merging in the vision encoder, None: off. Clears the context.

        Raises OptionError (blocks that the encoder does not have), UnsupportedModelError (another kind of encoder).
        """
        merging = to_turbo(turbo)
        with self._engine_at_work() as engine:
            self._request += 1
            self._put_turbo_in_force(engine, merging)
            self._turbo = merging

    def _put_turbo_in_force(self, engine: _native.Engine, turbo: Turbo | None) -> None:
        if turbo is None:
            engine.clear_turbo()
        else:
            engine.set_turbo(turbo.spec())
        self._turbo_in_force = turbo

    @property
    def reduce(self) -> Reducer | None:
        """The reducer of requests that bring none of their own; None: off."""
        return self._reduce

    def set_reduce(self, reduce: Reducer | str | None) -> None:
        """Change the reducer, None: off. Raises OptionError, UnsupportedModelError (CDPruner)."""
        reducer = to_reducer(reduce)
        with self._engine_at_work() as engine:
            self._request += 1
            _set_reducer(engine, reducer)
            self._reduce = reducer

    def _put_in_force(self, engine: _native.Engine, schedule: Schedule | None) -> None:
        try:
            if schedule is None:
                engine.clear_fastv()
            else:
                engine.set_fastv(schedule.spec())
        except OptionError:  # nothing has changed
            raise
        except BaseException:  # the context has no stages
            self._in_force = None
            raise
        self._in_force = schedule

    @property
    def info(self) -> dict[str, Any]:
        """``model`` and ``mmproj`` (file names), ``encoder`` (the type that its matrices are loaded in, and where from),
        ``description``, ``n_layer``, ``n_ctx``, ``fastv``, ``turbo``, ``reduce``."""
        with self._engine_at_work() as engine:
            return {
                "model": self._model_path.name,
                "mmproj": None if self._mmproj_path is None else self._mmproj_path.name,
                "encoder": None if self._encoder is None else str(self._encoder),
                "description": engine.description,
                "n_layer": engine.n_layer,
                "n_ctx": engine.n_ctx,
                "fastv": self._fastv,
                "turbo": self._turbo,
                "reduce": self._reduce,
            }

    def ask(
        self,
        image: Pictures = None,
        question: str | None = None,
        *,
        video: Video | VideoSource | None = None,
        system: str | None = None,
        progress: Progress | None = None,
        **options: Unpack[RequestOptions],
    ) -> Answer:
        """Answer a question about a picture, about several (a list), about a video, or about none (None).

        ``image``: as :func:`pyfastv.load_image` takes it. ``video``: a path, bytes, a list of frames, or a
        :class:`pyfastv.Video`, which says what frames are taken; it comes behind the pictures. ``system``: a system
        message. ``progress``: called with (prompt tokens done, prompt tokens) during prefill, after every picture and
        every frame. ``options``: see :class:`pyfastv.Sampling`; and ``fastv``, ``turbo`` and ``reduce``, a schedule, a
        merging and a reducer for this request alone.

        What the context or the encoder's cache still holds of an earlier request is not computed again. The visual
        tokens are chosen anew, as by a new runner; only rounding may differ.

        Raises ImageError, OptionError, ContextLengthError (the prompt does not fit), OutOfMemoryError,
        DecodeError, ClosedError.
        """
        with self._lock:
            stream = self.stream(image, question, video=video, system=system, progress=progress, **options)
            return stream.read()

    def stream(
        self,
        image: Pictures = None,
        question: str | None = None,
        *,
        video: Video | VideoSource | None = None,
        system: str | None = None,
        progress: Progress | None = None,
        **options: Unpack[RequestOptions],
    ) -> Stream:
        """As :meth:`ask`, piece by piece. Prefill is done when this returns, and its errors raised."""
        self._refuse_closed()
        begin = time.perf_counter()
        pictures = [*as_list(image), *self._load_frames(video)]
        image_decode_ms = (time.perf_counter() - begin) * 1000.0
        messages = [user_message(question, pictures)]
        if system is not None:
            messages.insert(0, system_message(system))
        return self._start(messages, progress, options, image_decode_ms=image_decode_ms)

    def session(self, *, system: str | None = None, **options: Unpack[RequestOptions]) -> Session:
        """A conversation: later questions may be about earlier pictures, and know the earlier answers.

        ``options``: of every question that brings none of its own. Several sessions may share a runner; each time
        that another one asks, the context is evaluated anew, save for what both have in common at the beginning.
        """
        self._refuse_closed()
        return Session(self, system, **options)

    @overload
    def create_chat_completion(
        self,
        messages: Sequence[dict[str, Any]],
        *,
        stream: Literal[False] = False,
        **options: Unpack[RequestOptions],
    ) -> dict[str, Any]: ...

    @overload
    def create_chat_completion(
        self,
        messages: Sequence[dict[str, Any]],
        *,
        stream: Literal[True],
        **options: Unpack[RequestOptions],
    ) -> Iterator[dict[str, Any]]: ...

    def create_chat_completion(
        self, messages: Sequence[dict[str, Any]], *, stream: bool = False, **options: Unpack[RequestOptions]
    ) -> dict[str, Any] | Iterator[dict[str, Any]]:
        """OpenAI's chat completion, in the shape of llama-cpp-python's method of this name.

        ``messages``: see :meth:`pyfastv.chat.ChatTemplate.render`; ``options``: as in :meth:`ask`. Returns the
        completion, or an iterator of its chunks. The completion and the last chunk have one key more than
        OpenAI's: ``pyfastv``, the report. Raises as :meth:`ask` does.
        """
        with self._lock:
            pieces = self._start(messages, None, options)
            if stream:
                return completion.chunks(pieces, printable(self._model_path.name))
            return completion.whole(pieces.read(), printable(self._model_path.name))

    def _start(
        self,
        messages: Sequence[dict[str, Any]],
        progress: Progress | None,
        options: RequestOptions,
        *,
        image_decode_ms: float = 0.0,
    ) -> Stream:
        """Prefill, and a stream over the generation after it. ``image_decode_ms``: spent on the pictures so far."""
        fastv = to_schedule(options["fastv"]) if "fastv" in options else self._fastv
        turbo = to_turbo(options["turbo"]) if "turbo" in options else self._turbo
        reduce = to_reducer(options["reduce"]) if "reduce" in options else self._reduce
        rest = {k: v for k, v in options.items() if k not in ("fastv", "turbo", "reduce")}
        sampling = Sampling(**cast(SamplingOptions, rest))
        self._refuse_closed()
        prompt = self._template.render(messages, self._engine.media_marker)
        begin = time.perf_counter()
        images = self._load_images(prompt.pictures)
        image_decode_ms += (time.perf_counter() - begin) * 1000.0
        with self._engine_at_work() as engine:
            if fastv != self._in_force:
                self._put_in_force(engine, fastv)
            if turbo != self._turbo_in_force:
                self._put_turbo_in_force(engine, turbo)
            _set_reducer(engine, reduce)
            frames = [picture if isinstance(picture, Frame) else None for picture in prompt.pictures]
            engine.prefill(
                prompt.text,
                images,
                [
                    content_id(image) if f is None else f.video
                    for image, f in zip(images, frames, strict=True)
                ],
                progress,
                prompt.add_bos,
                1,
                [0 if f is None else f.number for f in frames],
            )
            engine.start(**sampling_options(sampling, self._seed))
            self._request += 1
            request = self._request

        def next_bytes() -> bytes | None:
            with self._engine_at_work(request) as engine:
                token = engine.next()
                return None if token is None else token[1]

        def finish() -> tuple[Report, str]:
            with self._engine_at_work(request) as engine:
                report = Report.of(
                    engine.report(),
                    n_layer=engine.n_layer,
                    image_decode_ms=image_decode_ms,
                    fastv=fastv,
                    turbo=turbo,
                    reduce=reduce,
                )
                return report, engine.finish_reason or "stop"

        return Stream(next_bytes, finish, sampling.stop or ())

    def _load_images(self, pictures: Sequence[Picture]) -> list[NDArray[np.uint8]]:
        if pictures and self._mmproj_path is None:
            raise ModelError(
                f"{self._model_path.name} was loaded without a vision encoder: pass its mmproj_path to Runner"
            )
        return [load_image(picture, max_pixels=self._max_pixels) for picture in pictures]

    def _load_frames(self, video: Video | VideoSource | None) -> list[Frame]:
        return [] if video is None else load_frames(video, max_pixels=self._max_pixels)

    @cached_property
    def _template(self) -> ChatTemplate:
        engine = self._engine
        return ChatTemplate(engine.chat_template, bos_token=engine.bos_token, eos_token=engine.eos_token)

    @contextmanager
    def _engine_at_work(self, request: int | None = None) -> Iterator[_native.Engine]:
        """The engine, for this thread alone; whatever is raised meanwhile leaves it without a context."""
        with self._lock:
            self._refuse_reentry()
            self._refuse_closed()
            if request is not None and request != self._request:
                raise ClosedError("this stream was ended by a later request to the same runner")
            try:
                self._computing = True
                yield self._engine
            except BaseException:
                self._request += 1
                with suppress(Exception):  # the first error is the one to tell
                    self._engine.reset()
                raise
            finally:
                self._computing = False

    def _refuse_closed(self) -> None:
        self._lock.refuse_inherited()
        if self._engine.closed:
            raise ClosedError("this runner is closed: make a new one")

    def _refuse_reentry(self) -> None:
        if self._computing:
            raise Error("a runner cannot be used from within its own progress callback")


def _set_reducer(engine: _native.Engine, reducer: Reducer | None) -> None:
    if reducer is None:
        engine.clear_reducer()
    else:
        engine.set_reducer(reducer.spec())
