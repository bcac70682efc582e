"""A model in memory, and what a request for it is to the native engine: for a runner and the pool alike."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import fields, replace
from functools import cached_property, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeAlias, TypedDict

from .. import _native
from .._about import __version__, lib_path
from .._checks import INT32_MAX, integer, utf8
from ..constraints.tools import CallFormat, CallFormats, ToolUse
from ..errors import ContextLengthError, ModelError, OptionError, printable
from ..inputs.budget import Budget, Fitted, SeenPicture, Shape, Sized, as_seen, fit
from ..inputs.chat import ChatTemplate, Prompt, system_message
from ..inputs.continued import render_continued
from ..inputs.images import MAX_PIXELS, Frame, Limits, Picture, Placed, load_within, named_by_place
from ..inputs.template import find_template
from ..inputs.thinking import THOUGHT_TAGS
from ..models import bundled_mmproj, bundled_model
from ..models.encoder_type import Encoder, check_encoder_type, resolve
from ..settings.schedule import fitted
from ..settings.setting import Setting
from .sampling import Sampling
from .saved_session import fingerprint

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from ..types import Messages

__all__ = [
    "MAX_N_CTX",
    "MAX_THREADS",
    "LoadOptions",
    "LoadedModel",
    "PathLike",
    "Request",
    "content_id",
    "model_files",
    "setting_options",
]

PathLike: TypeAlias = "str | os.PathLike[str]"

MAX_THREADS = 512  # ggml's GGML_MAX_N_THREADS
MAX_N_CTX = 2**31 - 256  # llama.cpp rounds a context up to 256 tokens, and counts them in an int32
_RANDOM_SEED = 2**32 - 1  # llama.cpp's LLAMA_DEFAULT_SEED
_FLASH_ATTENTION = {"auto": "auto", True: "on", False: "off", "on": "on", "off": "off"}


class LoadOptions(TypedDict, total=False):
    """How a model is loaded: keywords of :class:`pyfastv.Runner`, which describes them."""

    n_batch: int
    n_ubatch: int
    n_threads: int | None
    n_threads_batch: int | None
    n_gpu_layers: int
    flash_attn: bool | Literal["auto", "on", "off"]
    type_k: str
    type_v: str
    seed: int | None
    verbose: bool
    progress: Callable[[float], object] | None
    max_pixels: int
    shrink_pixels: int | None
    encoder_cache_mb: int
    encoder_cache_dir: PathLike | None
    encoder_cache_disk_mb: int
    checkpoint_mb: int
    encoder_type: str
    chat_template: PathLike | None
    image_tokens: int | Sequence[int] | str | None
    enlarge: bool | None


_SIZES_KEPT = 1024  # whose shapes are known


class Request(NamedTuple):
    """What a prompt is to the native engine."""

    keywords: dict[str, Any]
    """Of its prefill() and prepare()."""
    image_decode_ms: float
    """That reading and scaling the pictures took."""
    pictures: tuple[SeenPicture, ...]


class LoadedModel:
    """A model with its vision encoder, in a native engine; ``engine`` is the caller's to close."""

    def __init__(
        self,
        path: Path,
        mmproj: Path | None,
        *,
        n_slots: int,
        n_ctx: int | None,
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
        progress: Callable[[float], object] | None = None,
        max_pixels: int = MAX_PIXELS,
        shrink_pixels: int | None = None,
        encoder_cache_mb: int = 256,
        encoder_cache_dir: PathLike | None = None,
        encoder_cache_disk_mb: int = 1024,
        checkpoint_mb: int = 512,
        encoder_type: str = "auto",
        chat_template: PathLike | None = None,
        image_tokens: int | Sequence[int] | str | None = None,
        enlarge: bool | None = None,
    ) -> None:
        """See :class:`pyfastv.Runner`. ``n_slots`` is checked. ``shrink_pixels``: a picture with more is scaled down to
        so many; None: none is."""
        self.guard: AbstractContextManager[Any] = nullcontext()
        """Held where the engine is asked before a request has its place: whoever closes the engine holds it, too."""
        self.budget = Budget.of(image_tokens, enlarge)
        """Of requests that bring none of their own."""
        self.path, self.mmproj = path, mmproj
        self._seed = None if seed is None else integer("seed", seed, 0, 2**32 - 1)
        self._max_pixels = integer("max_pixels", max_pixels, 1, 2**62)
        self._shrink_pixels = (
            None if shrink_pixels is None else integer("shrink_pixels", shrink_pixels, 1, 2**62)
        )
        self._template_source = find_template(chat_template)
        if flash_attn not in _FLASH_ATTENTION:
            raise OptionError(f"flash_attn must be 'auto', True or False; got {flash_attn!r}")
        options: dict[str, Any] = {
            "n_slots": n_slots,
            "n_ctx": 0 if n_ctx is None else integer("n_ctx", n_ctx, 0, MAX_N_CTX),
            "n_batch": integer("n_batch", n_batch, 1),
            "n_ubatch": integer("n_ubatch", n_ubatch, 1),
            "n_threads": _threads("n_threads", n_threads),
            "n_threads_batch": _threads("n_threads_batch", n_threads_batch),
            "n_gpu_layers": integer("n_gpu_layers", n_gpu_layers, -1),
            "flash_attn": _FLASH_ATTENTION[flash_attn],
            "type_k": utf8("type_k", type_k),
            "type_v": utf8("type_v", type_v),
            "encoder_cache_bytes": integer("encoder_cache_mb", encoder_cache_mb, 0) * 2**20,
            "checkpoint_bytes": integer("checkpoint_mb", checkpoint_mb, 0) * 2**20,
            "verbose": bool(verbose),
        }
        disk_bytes = integer("encoder_cache_disk_mb", encoder_cache_disk_mb, 0) * 2**20
        folder = None if encoder_cache_dir is None else _folder("encoder_cache_dir", encoder_cache_dir)
        check_encoder_type(encoder_type)
        self.encoder = None if mmproj is None else Encoder(mmproj, None)
        """The vision encoder's file that was loaded, and its type; None: there is none."""
        if mmproj is not None and path.is_file():  # it may take a minute
            self.encoder = resolve(mmproj, encoder_type, n_gpu_layers=n_gpu_layers)
        encoder_path = None if self.encoder is None else str(self.encoder.path)
        if folder is not None and self.encoder is not None:
            options |= {
                "encoder_cache_dir": folder,
                "encoder_cache_made_by": _made_by(self.encoder.path, options),
                "encoder_cache_disk_bytes": disk_bytes,
            }
        self.engine = _native.Engine(
            model_path=str(path), mmproj_path=encoder_path, **options, progress=progress
        )
        self._fitted = lru_cache(_SIZES_KEPT)(self._fit)
        self._shape = lru_cache(_SIZES_KEPT)(self._ask_shape)
        try:
            self._check_budget(self.budget)
        except OptionError:
            self.engine.close()
            raise

    @cached_property
    def template(self) -> ChatTemplate:
        """The model's own, or the one that was named for it."""
        engine = self.engine
        source = self._template_source or engine.chat_template
        return ChatTemplate(
            source,
            bos_token=engine.bos_token,
            eos_token=engine.eos_token,
            control_tokens=engine.control_tokens,
        )

    def render(
        self,
        messages: Messages,
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        variables: Mapping[str, Any] | None = None,
        continues: bool = False,
    ) -> Prompt:
        """See :meth:`pyfastv.inputs.chat.ChatTemplate.render`. Raises ContextLengthError where so many messages can never
        fit: templates may take a time that grows with their square. ``continues``: see
        :func:`pyfastv.inputs.continued.render_continued`."""
        n_ctx = self.engine.n_ctx
        if isinstance(messages, Sequence) and len(messages) > n_ctx:
            raise ContextLengthError(
                f"{len(messages)} messages have at least as many tokens, but n_ctx is {n_ctx}: use a larger n_ctx, or "
                "leave older messages out",
                n_tokens=len(messages),
                n_ctx=n_ctx,
            )
        options: dict[str, Any] = {"tools": tools, "variables": variables}
        if continues:
            return render_continued(self.template, messages, self.engine.media_marker, **options)
        return self.template.render(messages, self.engine.media_marker, **options)

    @cached_property
    def _call_formats(self) -> CallFormats:
        engine = self.engine
        source = self._template_source or engine.chat_template
        return CallFormats(source, engine.bos_token, engine.eos_token, tuple(THOUGHT_TAGS))

    def render_for_calls(
        self,
        messages: Messages,
        use: ToolUse | None,
        *,
        variables: Mapping[str, Any] | None = None,
        continues: bool = False,
    ) -> tuple[Prompt, CallFormat | None]:
        """As :meth:`render`, with tools; and how the answer has its calls, None: it may have none. A template that knows
        no tools gets them in a system message."""
        if use is None or not use.offers:
            tools = None if use is None else use.tools
            return self.render(messages, tools=tools, variables=variables, continues=continues), None
        form = self._call_formats.of_template(use, variables)
        if form is not None:
            prompt = self.render(messages, tools=use.tools, variables=variables, continues=continues)
            if all(name in prompt.text for name in use.names):
                return prompt, form
        form = self._call_formats.generic(use)
        told = [system_message(form.instructions), *messages]
        return self.render(told, variables=variables, continues=continues), form

    def load_images(self, pictures: Sequence[Picture]) -> list[NDArray[np.uint8]]:
        """Raises ImageError; ModelError without a vision encoder."""
        return [pixels for pixels, _ in self._load(pictures)]

    def _load(self, pictures: Sequence[Picture]) -> list[tuple[NDArray[np.uint8], tuple[int, int]]]:
        """And their sizes before they were shrunk to ``shrink_pixels``."""
        if pictures and self.mmproj is None:
            raise ModelError(f"{self.path.name} was loaded without a vision encoder: pass its mmproj_path")
        images = []
        for number, picture in enumerate(pictures, 1):
            with nullcontext() if isinstance(picture, Placed) else named_by_place(number, len(pictures)):
                limits = Limits(self._max_pixels, self._shrink_pixels)
                images.append((load_within(picture, limits), limits.size))
        return images

    def shape_of(self, width: int, height: int, enlarge: bool = True) -> Shape:
        """What the model's preprocessor makes of a picture of so many pixels; see
        :meth:`pyfastv._native.Engine.picture_shape`."""
        return self._shape(width, height, enlarge)

    def _ask_shape(self, width: int, height: int, enlarge: bool) -> Shape:
        with self.guard:
            return Shape(*self.engine.picture_shape(width, height, enlarge))

    def _check_budget(self, budget: Budget) -> None:
        n_ctx = self.engine.n_ctx
        tokens = budget.least if budget.most == INT32_MAX else budget.most or budget.least
        if tokens > n_ctx:
            raise OptionError(
                f"image_tokens: {tokens} tokens of a picture do not fit, n_ctx is {n_ctx}: ask for fewer, or use a "
                "larger n_ctx"
            )

    def _fit(self, width: int, height: int, budget: Budget) -> Fitted:
        return fit(width, height, budget, lambda w, h: self._shape(w, h, budget.enlarge))

    def request(self, prompt: Prompt, setting: Setting, budget: Budget | None = None) -> Request:
        """``budget``: of each picture; None: the model's own.

        Raises as :meth:`load_images`; OptionError: a picture cannot have as many tokens as the budget says."""
        begin = time.perf_counter()
        of_all = self.budget if budget is None else budget
        self._check_budget(of_all)
        given = [
            picture if isinstance(picture, Sized) else Sized(picture, "auto") for picture in prompt.pictures
        ]
        loaded = self._load([picture for picture, _ in given])
        images, ids, frames, contents, enlarge, seen = [], [], [], [], [], []
        for (picture, detail), (image, size) in zip(given, loaded, strict=True):
            wanted = of_all.with_detail(detail)
            image, told = self.as_seen(image, wanted, size)
            if isinstance(picture, Frame):
                ids.append(
                    picture.video if told is None or not told.was_scaled else f"{picture.video} {told.scaled}"
                )
                frames.append(picture.number)
                contents.append(content_id(image))
            else:
                ids.append(content_id(image))
                frames.append(0)
                contents.append("")
            images.append(image)
            enlarge.append(wanted.enlarge)
            seen += [] if told is None else [told]
        image_decode_ms = (time.perf_counter() - begin) * 1000.0
        keywords: dict[str, Any] = {
            "prompt": prompt.text,
            "images": images,
            "image_ids": ids,
            "add_bos": prompt.add_bos,
            "frames": frames,
            "answers": prompt.answers,
            "literal": prompt.literal,
            **({"contents": contents} if any(contents) else {}),
            "enlarge": enlarge,
            **setting_options(setting),
        }
        return Request(keywords, image_decode_ms, tuple(seen))

    def as_seen(
        self, image: NDArray[np.uint8], budget: Budget, size: tuple[int, int] | None = None
    ) -> tuple[NDArray[np.uint8], SeenPicture | None]:
        """See :func:`pyfastv.inputs.budget.as_seen`."""
        return as_seen(image, budget, self._fitted, size)

    def fitted(self, setting: Setting) -> Setting:
        """With every cut at a layer where the model can be cut: its own, or the next, of which a LayerWarning tells.
        Raises OptionError: the model has no such layer."""
        if setting.fastv is None:
            return setting
        layers = self.engine.fit_layers(setting.fastv.spec())
        return replace(setting, fastv=fitted(setting.fastv, layers, printable(self.path.name)))

    def sampling_options(self, sampling: Sampling) -> dict[str, Any]:
        """Keywords of the native start() and prepare()."""
        values = {
            field.name: getattr(sampling, field.name) for field in fields(sampling) if field.name != "stop"
        }
        if values["max_tokens"] is None:
            values["max_tokens"] = -1
        if values["seed"] is None:
            values["seed"] = _RANDOM_SEED if self._seed is None else self._seed
        values["logit_bias"] = list(values["logit_bias"])
        return values


def model_files(model: PathLike | None, mmproj: PathLike | None) -> tuple[Path, Path | None]:
    """Of the language model and its vision encoder; no model is the bundled one. Raises ModelError: that is no path."""
    if model is None:
        model, mmproj = bundled_model(), mmproj or bundled_mmproj()
    for path in (model, mmproj):
        if path is not None and "\0" in os.fsdecode(path):
            raise ModelError(f"{os.fsdecode(path)!r}: a path has no null character")
    return Path(os.fsdecode(model)), None if mmproj is None else Path(os.fsdecode(mmproj))


def _threads(name: str, n: int | None) -> int:
    """0: as the native module has it where nobody says."""
    return 0 if n is None else integer(name, n, 1, MAX_THREADS)


def _folder(name: str, path: PathLike) -> str:
    """Absolute: a process may go to another folder later."""
    try:
        text = os.fsdecode(path)
    except TypeError:
        raise OptionError(f"{name} must be a path; got {type(path).__name__}") from None
    if not text or "\0" in text:
        raise OptionError(f"{name}: {text!r} is no path of a folder")
    return os.path.abspath(text)


def _made_by(encoder: Path, options: Mapping[str, Any]) -> str:
    """A hash of all that the encoder's rows depend on but the picture and Turbo: its file, the libraries, the machine's
    kernels. What cannot be read is left to those who load it."""
    libraries = [*lib_path().glob("libmtmd*"), *lib_path().glob("libggml*"), Path(str(_native.__file__))]
    try:
        files = [fingerprint(path) for path in (encoder, *sorted(libraries))]
    except OSError:
        return ""
    facts = [
        __version__,
        files,
        _native.build_info(),
        _native.system_info(),
        _native.backends(),
        [os.environ.get("PYFASTV_KERNELS"), _native.kernels()["chosen"]],
        [options[name] for name in ("n_gpu_layers", "flash_attn")],
    ]
    return hashlib.blake2b(json.dumps(facts).encode(), digest_size=16).hexdigest()


def setting_options(setting: Setting) -> dict[str, str]:
    """Keywords of the native prefill() and prepare(); empty: none."""
    specs = setting.specs()
    return {
        "fastv": specs["fastv"] or "",
        "turbo": specs["turbo"] or "",
        "reducer": specs["reduce"] or "",
        "skip": specs["skip"] or "",
    }


def content_id(image: NDArray[np.uint8]) -> str:
    """A hash of an image's pixels and size."""
    digest = hashlib.blake2b(repr(image.shape).encode(), digest_size=16)
    digest.update(image.data)
    return digest.hexdigest()
