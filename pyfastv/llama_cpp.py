"""A chat handler for llama-cpp-python, on our libraries: pictures of an existing script get cheaper.

    from llama_cpp import Llama
    from pyfastv.llama_cpp import FastVChatHandler                       # before: Llava15ChatHandler

    llm = Llama("model.gguf", chat_handler=FastVChatHandler("mmproj.gguf"), n_ctx=4096)

llama-cpp-python loads its libraries when it is imported: import this module before it. Installing it needs no compiler,
since it loads ours:

    CMAKE_ARGS="-DLLAMA_BUILD=OFF -DLLAVA_BUILD=OFF" pip install llama-cpp-python==0.3.36
"""

from __future__ import annotations

import ctypes
import os
import sys
import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib import import_module, metadata
from pathlib import Path
from typing import Any

from . import _native
from ._about import lib_path
from ._checks import whole
from .engine import c_structures
from .engine.handler_pictures import Mtmd
from .engine.handler_sampling import samples_safely
from .engine.loaded import content_id
from .engine.process_lock import ProcessLock
from .errors import Error, ImageError, OptionError
from .inputs.budget import Budget, Fitted, SeenPicture, Shape, Sized, as_seen, fit
from .inputs.chat import ChatTemplate, Prompt
from .inputs.images import MAX_PIXELS, load_image, named_by_place
from .inputs.template import find_template
from .inputs.template_options import template_variables
from .inputs.typed import ControlToken
from .models.encoder_type import resolve
from .settings.presets import Recommended
from .settings.reduce import Reducer
from .settings.schedule import Schedule, fitted
from .settings.setting import InForce, Setting
from .settings.skip import Skip
from .settings.turbo import Turbo

__all__ = ["FastVChatHandler", "HandlerReport"]

_PIN = str(_native.build_info()["llama_cpp_python"])
_INSTALL = f'CMAKE_ARGS="-DLLAMA_BUILD=OFF -DLLAVA_BUILD=OFF" pip install llama-cpp-python=={_PIN}'
_VARIABLES = ("LLAMA_CPP_LIB_PATH", "MTMD_CPP_LIB")
# options that C takes as integers
_WHOLE = ("max_tokens", "top_k", "seed", "mirostat_mode", "top_logprobs")


def _check_version() -> None:
    try:
        found = metadata.version("llama-cpp-python")
    except metadata.PackageNotFoundError:
        raise Error(f"llama-cpp-python is not installed: {_INSTALL}") from None
    if found != _PIN:
        raise Error(
            f"llama-cpp-python is {found}, pyfastv's libraries are those of {_PIN}; their structures differ: {_INSTALL}"
        )


@contextmanager
def _our_libraries() -> Iterator[None]:
    """Meanwhile llama_cpp's modules load ours; the environment of child processes stays what it was."""
    before = {name: os.environ.get(name) for name in _VARIABLES}
    os.environ.update(dict.fromkeys(_VARIABLES, str(lib_path())))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _load() -> tuple[Any, Any]:
    """The modules llama_cpp.llama_chat_format and llama_cpp.mtmd_cpp, on our libraries."""
    early = "llama_cpp" in sys.modules
    _check_version()
    with _our_libraries():
        bindings = [import_module(f"llama_cpp.{name}") for name in ("llama_cpp", "mtmd_cpp")]
        chat_format = import_module("llama_cpp.llama_chat_format")
    for module, library in zip(bindings, ("_lib", "_libmtmd"), strict=True):
        loaded = Path(getattr(module, library)._name)
        if not loaded.parent.samefile(lib_path()):
            when = " before pyfastv.llama_cpp" if early else ""
            raise Error(
                f"llama_cpp was imported{when} with the libraries in {loaded.parent}: import pyfastv.llama_cpp first, or "
                f"set {' and '.join(_VARIABLES)} to what `pyfastv lib-path` prints"
            )
    return chat_format, bindings[1]


_chat_format, _mtmd_cpp = _load()
_llama_cpp: Any = sys.modules["llama_cpp.llama_cpp"]
_fastv = _llama_cpp._lib
c_structures.declare(_fastv)
_turbo = c_structures.declare_turbo(_mtmd_cpp._libmtmd)
_shapes = c_structures.declare_shapes(_mtmd_cpp._libmtmd)
_skip = c_structures.declare_skip(_mtmd_cpp._libmtmd)
_MTMDChatHandler: Any = _chat_format.MTMDChatHandler

# libmtmd's log follows the Llama's verbose, as libllama's does
_log = sys.modules["llama_cpp._logger"].llama_log_callback
_mtmd_cpp.mtmd_helper_log_set(_log, ctypes.c_void_p(0))


@dataclass(frozen=True)
class HandlerReport(InForce):
    """What became of a request's pictures; the names are those of :class:`pyfastv.Report`, times milliseconds."""

    setting: Setting
    """What was in force; ``fastv``, ``turbo``, ``reduce`` and ``skip`` are its parts."""
    prompt_tokens: int
    """Visual tokens included."""
    encoded_tokens: int
    visual_tokens: int
    visual_tokens_kept: int
    """Those that the last layers see."""
    first_layers: tuple[int, ...]
    visual_tokens_in_stage: tuple[int, ...]
    pictures_encoded: int
    """Slices of a picture count each."""
    encode_ms: float
    reduce_ms: float
    stage0_ms: float
    choose_ms: float
    later_ms: float
    kv_bytes_used: tuple[int, ...]
    kv_bytes_used_stock: int
    pictures: tuple[SeenPicture, ...] = ()
    """Sizes, tiles and tokens of each, before Turbo and reducers."""


class FastVChatHandler(_MTMDChatHandler):
    """Answers as llama-cpp-python's own multimodal handlers do, with a schedule on the Llama's context.

    ``Llama.create_chat_completion`` takes and gives what it does with those: several pictures, several turns, streaming,
    tools, response formats. Prompts are :class:`pyfastv.Runner`'s: the model's own chat template, with its placeholders
    for pictures, or the form of LLaVA-1.5 where a model has none; names of control tokens in messages are text.
    Pictures are read as by :func:`pyfastv.load_image`, and, as there, fetched from http(s) addresses. As there, the
    context is cleared for every request and the whole conversation evaluated; :class:`pyfastv.Session` is cheaper.

    One handler serves one Llama.
    """

    mtmd_ctx: Any  # None: before the first request, and when the Llama is closed

    def __init__(
        self,
        clip_model_path: str | os.PathLike[str],
        verbose: bool = True,
        use_gpu: bool = True,
        *,
        fastv: Schedule | str | None = Recommended(),  # noqa: B008 - frozen
        turbo: Turbo | str | None = None,
        reduce: Reducer | str | None = None,
        skip: Skip | str | None = None,
        chat_template: str | os.PathLike[str] | None = None,
        max_pixels: int = MAX_PIXELS,
        encoder_type: str = "auto",
        image_tokens: int | Sequence[int] | str | None = None,
        enlarge: bool | None = None,
    ) -> None:
        """``clip_model_path``, ``verbose``, ``use_gpu``: as in llama_cpp.llama_chat_format.MTMDChatHandler.

        ``fastv``, ``turbo``, ``reduce``, ``skip``, ``encoder_type``, ``chat_template``, ``image_tokens``, ``enlarge``: as
        in :class:`pyfastv.Runner`.
        ``max_pixels``: largest picture taken.

        Raises ValueError (no such file), OptionError. A setting that the model cannot have is told by the first
        request: OptionError, UnsupportedModelError, OutOfMemoryError.
        """
        self._setting = Setting.of(fastv, turbo, reduce, skip)
        _check_known("turbo", self._setting.turbo, _turbo)
        _check_known("skip", self._setting.skip, _skip)
        self._chat_template = find_template(chat_template)
        self._max_pixels = max_pixels
        self._budget = Budget.of(image_tokens, enlarge)
        self._seen: list[SeenPicture] = []
        mmproj = Path(os.fsdecode(clip_model_path))
        encoder = resolve(mmproj, encoder_type, n_gpu_layers=-1 if use_gpu else 0)
        super().__init__(str(encoder.path), verbose, use_gpu)
        self._mtmd_cpp: Any = Mtmd(
            _mtmd_cpp, _llama_cpp, self._setting.reduce, merges=self._setting.turbo is not None
        )
        self._llama: weakref.ref[Any] | None = None
        self._process = ProcessLock("handler")
        self._template: ChatTemplate | None = None
        self._prompt: Prompt | None = None
        self._report: HandlerReport | None = None

    @property
    def fastv(self) -> Schedule | None:
        """The schedule; one that is set holds from the next request on."""
        return self._setting.fastv

    @fastv.setter
    def fastv(self, value: Schedule | str | None) -> None:
        setting = self._setting.but(fastv=value)
        llama = self._serving()
        if llama is not None:
            setting = self._attach(llama, setting)
        self._setting = setting

    @property
    def report(self) -> HandlerReport:
        """Of the last request; a streamed answer must have begun. Raises Error if there is none."""
        llama = self._serving()
        if llama is not None and self._mtmd_cpp.tokens:
            self._report = self._make_report(llama)
        if self._report is None:
            raise Error("there is no answer yet to report on")
        return self._report

    def __call__(self, *, llama: Any, messages: Sequence[Mapping[str, Any]], **options: Any) -> Any:
        """What ``Llama.create_chat_completion`` calls."""
        self._init_mtmd_context(llama)
        self._prompt = self._mtmd_cpp.prompt = self._render(llama, messages, options)
        _fastv.pyfastv_reset_report(llama.ctx)
        self._mtmd_cpp.reset()
        self._report = None
        self._seen = []
        options |= {name: whole(options[name]) for name in _WHOLE if name in options}
        return super().__call__(llama=llama, messages=messages, **options)

    # what MTMDChatHandler calls, in this order

    def _init_mtmd_context(self, llama_model: Any) -> None:
        serving = self._serving()
        if serving is llama_model:
            return
        if serving is not None:
            raise OptionError("this handler serves another Llama already: make one handler for each")
        super()._init_mtmd_context(llama_model)
        try:
            self._attach_to_encoder()
            self._setting = self._attach(llama_model, self._setting)
        except BaseException:
            _mtmd_cpp.mtmd_free(self.mtmd_ctx)
            self.mtmd_ctx = None
            raise
        bos, eos = (
            _text_of(llama_model, token) for token in (llama_model.token_bos(), llama_model.token_eos())
        )
        source = self._chat_template or llama_model.metadata.get("tokenizer.chat_template")
        self._template = ChatTemplate(
            source or None, bos_token=bos, eos_token=eos, control_tokens=_control_tokens(llama_model)
        )
        samples_safely(llama_model, _llama_cpp)
        self._llama = weakref.ref(llama_model)
        llama_model._stack.callback(self._release)

    def get_image_urls(self, messages: Sequence[Mapping[str, Any]]) -> list[Any]:
        """The request's pictures."""
        assert self._prompt is not None
        return list(self._prompt.pictures)

    def _get_chat_template(self, llama_model: Any) -> str:
        return "{{ messages[0] }}"  # rendered already

    def _get_template_messages(self, messages: Any, media_marker: str) -> list[Any]:
        assert self._prompt is not None
        return [self._prompt.text]

    def _postprocess_template_text(self, text: str, image_urls: list[Any], media_marker: str) -> str:
        assert self._prompt is not None
        return self._prompt.text

    def load_image(self, image_url: Any) -> Any:
        """The bytes behind an http(s) address; everything else as it is."""
        if isinstance(image_url, Sized):
            return Sized(self.load_image(image_url.picture), image_url.detail)
        if isinstance(image_url, str) and image_url.lower().startswith(("http://", "https://")):
            return super().load_image(image_url)
        return image_url

    def _create_bitmap_from_bytes(self, image_bytes: Any) -> Any:
        number = self._mtmd_cpp.number()
        of = number if self._prompt is None else len(self._prompt.pictures)
        given = image_bytes if isinstance(image_bytes, Sized) else Sized(image_bytes, "auto")
        budget = self._budget.with_detail(given.detail)
        with named_by_place(number, of):
            rgb, told = as_seen(load_image(given.picture, max_pixels=self._max_pixels), budget, self._fit)
        self._seen += [] if told is None else [told]
        height, width, _ = rgb.shape
        bitmap = _mtmd_cpp.mtmd_bitmap_init(width, height, rgb.ctypes.data_as(ctypes.POINTER(ctypes.c_uint8)))
        # slices of one picture are known by their common id
        name = f"{content_id(rgb)}#{number}"
        _mtmd_cpp.mtmd_bitmap_set_id(bitmap, name.encode())
        _shapes.pyfastv_set_enlarge(bitmap, budget.enlarge)
        return bitmap

    # our own

    def _fit(self, width: int, height: int, budget: Budget) -> Fitted:
        def shape_of(width: int, height: int) -> Shape:
            shape = c_structures.PictureShape()
            if not _shapes.pyfastv_shape_of(
                self.mtmd_ctx, width, height, budget.enlarge, ctypes.byref(shape)
            ):
                raise ImageError(f"a picture of {width} x {height} cannot be prepared for the vision encoder")
            return Shape(shape.n_tokens, shape.n_slices, shape.width, shape.height)

        return fit(width, height, budget, shape_of)

    def _serving(self) -> Any:
        """The open Llama that this handler is attached to, or None. Raises ClosedError in a child of a fork."""
        if self._llama is None or self.mtmd_ctx is None:
            return None
        self._process.refuse_inherited()
        return self._llama()

    def _release(self) -> None:
        llama = None if self._llama is None else self._llama()
        if llama is not None and llama.ctx is not None and self._mtmd_cpp.tokens:
            self._report = self._make_report(llama)
        self._llama = None

    def _render(
        self, llama: Any, messages: Sequence[Mapping[str, Any]], options: Mapping[str, Any]
    ) -> Prompt:
        assert self._template is not None
        functions = options.get("functions") or ()
        tools = options.get("tools") or [{"type": "function", "function": one} for one in functions]
        prompt = self._template.render(
            messages,
            _mtmd_cpp.mtmd_default_marker().decode(),
            tools=tools,
            variables=template_variables(options),
        )
        # mtmd_tokenize adds the begin-of-sequence token; where the template has written it, there would be two
        bos = _text_of(llama, llama.token_bos())
        adds_bos = _llama_cpp.llama_vocab_get_add_bos(llama._model.vocab)
        if not prompt.add_bos and adds_bos:
            return prompt.without_bos(bos)
        return prompt

    def _attach_to_encoder(self) -> None:
        """Turbo, and what is left out before it."""
        for name, library, params, wanted in (
            ("turbo", _turbo, c_structures.TurboParams(), self._setting.turbo),
            ("skip", _skip, c_structures.SkipParams(), self._setting.skip),
        ):
            if wanted is None:
                continue
            parse, attach, last_error = (
                getattr(library, f"pyfastv_{name}_{what}") for what in ("parse", "attach", "last_error")
            )
            status = parse(wanted.spec().encode(), ctypes.byref(params))
            if not status:
                status = attach(self.mtmd_ctx, ctypes.byref(params))
            if status:
                c_structures.raise_error(status, last_error())

    def _attach(self, llama: Any, setting: Setting) -> Setting:
        """What is in force then: cuts move to layers where the model can be cut."""
        schedule, params = setting.fastv, None
        if schedule is not None:
            params = c_structures.FastvParams()
            n_layer = _llama_cpp.llama_model_n_layer(llama.model)
            status = _fastv.pyfastv_parse(schedule.spec().encode(), n_layer, ctypes.byref(params))
            asked = [cut.layer for cut in params.cuts[: params.n_cuts]]
            status = status or _fastv.pyfastv_fit_layers(llama.model, ctypes.byref(params))
            if status:
                c_structures.raise_error(status, _fastv.pyfastv_last_error())
            taken = [cut.layer for cut in params.cuts[: params.n_cuts]]
            layers = list(zip(asked, taken, strict=True))
            setting = replace(setting, fastv=fitted(schedule, layers, Path(llama.model_path).name))
        status = _fastv.pyfastv_attach(llama.ctx, None if params is None else ctypes.byref(params))
        # attaching replaces the memory, also where it fails
        llama._ctx.memory = _llama_cpp.llama_get_memory(llama.ctx)
        llama.reset()
        if status:
            c_structures.raise_error(status, _fastv.pyfastv_last_error())
        return setting

    def _make_report(self, llama: Any) -> HandlerReport:
        native, counts = c_structures.report_of(_fastv, llama.ctx), self._mtmd_cpp
        if native.n_pending:
            raise Error("the answer has not begun: read from the stream first")
        kept = [_fastv.pyfastv_get_kept(llama.ctx, 0, cut, None, 0) for cut in range(native.n_stages - 1)]
        return HandlerReport(
            setting=self._setting,
            prompt_tokens=counts.tokens,
            encoded_tokens=counts.encoded_tokens,
            visual_tokens=counts.visual_tokens,
            visual_tokens_kept=[counts.visual_tokens, *kept][-1],
            first_layers=tuple(native.first_layer[: native.n_stages]),
            visual_tokens_in_stage=(counts.visual_tokens, *kept),
            pictures_encoded=counts.encoded,
            encode_ms=counts.encode_ms,
            reduce_ms=counts.reduce_ms,
            stage0_ms=native.t_stage0_ms,
            choose_ms=native.t_choose_ms,
            later_ms=native.t_later_ms,
            kv_bytes_used=tuple(native.kv_bytes_used[: native.n_stages]),
            kv_bytes_used_stock=native.kv_bytes_used_stock,
            pictures=tuple(self._seen),
        )


def _check_known(name: str, wanted: Turbo | Skip | None, library: Any) -> None:
    if wanted is not None and library is None:
        raise OptionError(
            f"{name}={wanted.spec()!r}: these libraries have no {type(wanted).__name__}: leave it out, or build a newer "
            "pyfastv"
        )


def _control_tokens(llama: Any) -> list[ControlToken]:
    vocab = llama._model.vocab
    found: list[ControlToken] = []
    if _llama_cpp.llama_vocab_type(vocab) == _llama_cpp.LLAMA_VOCAB_TYPE_NONE:
        return found
    for token in range(_llama_cpp.llama_vocab_n_tokens(vocab)):
        attr = _llama_cpp.llama_vocab_get_attr(vocab, token)
        if attr & (_llama_cpp.LLAMA_TOKEN_ATTR_CONTROL | _llama_cpp.LLAMA_TOKEN_ATTR_UNKNOWN):
            name = _llama_cpp.llama_vocab_get_text(vocab, token).decode("utf-8", "replace")
            strips = (_llama_cpp.LLAMA_TOKEN_ATTR_LSTRIP, _llama_cpp.LLAMA_TOKEN_ATTR_RSTRIP)
            found.append(ControlToken(name, *(bool(attr & side) for side in strips)))
    return found


def _text_of(llama: Any, token: int) -> str:
    return "" if token < 0 else str(llama._model.token_get_text(token))
