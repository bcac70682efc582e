"""A plugin for llm (https://llm.datasette.io): ``llm -m pyfastv -a picture.png "..."``.

Without configuration there is one model, ``pyfastv``, the bundled one. More are listed in ``pyfastv.yaml`` in llm's
folder (``llm logs path`` shows where that is), in the form of llm's own extra-openai-models.yaml:

    - model_id: llava
      model: /models/llava-v1.5-7b-Q4_K_M.gguf
      mmproj: /models/mmproj-llava-v1.5-7b-f16.gguf   # left out: the only mmproj*.gguf beside the model
      fastv: k=2,drop=0.5                             # left out: the package's default
      turbo: share=0.25                               # left out: off
      reduce: pool,window=2                           # left out: off
      n_ctx: 4096                                     # left out: what the model was trained for, at most 8192
      threads: 4                                      # left out: the physical cores
      aliases: [l]
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, cast

import click
import llm
import yaml  # type: ignore[import-untyped]
from pydantic import Field, ValidationInfo, field_validator

from .engine.runner import Runner
from .engine.sampling import RequestOptions
from .errors import Error
from .inputs.images import Picture
from .models import mmproj_beside
from .settings.presets import Recommended
from .settings.setting import SETTING_OPTIONS, Setting

__all__ = ["PyfastvModel", "register_models"]

_CONFIGURATION = "pyfastv.yaml"
_NUMBERS = ("n_ctx", "threads")
_KEYS = {"model_id", "model", "mmproj", *SETTING_OPTIONS, *_NUMBERS, "aliases"}

# what pyfastv.load_image reads, as llm tells types
_PICTURES = ("png", "jpeg", "webp", "gif", "bmp", "x-ms-bmp", "tiff", "avif", "jp2", "x-portable-pixmap")


@llm.hookimpl
def register_models(register: Callable[..., None]) -> None:
    """Called by llm."""
    register(PyfastvModel("pyfastv"))
    for entry in _configured():
        aliases = entry.pop("aliases", [])
        register(PyfastvModel(**entry), aliases=aliases)


class PyfastvModel(llm.Model):
    """A GGUF pair; loaded by its first prompt, and kept for the next ones of the same process."""

    can_stream = True
    attachment_types = frozenset(f"image/{kind}" for kind in _PICTURES)

    class Options(llm.Options):
        """``llm models --options -m pyfastv`` shows them."""

        max_tokens: int | None = Field(None, description="Most tokens to generate; none: no limit")
        temperature: float | None = Field(None, description="0, the default: always the likeliest token")
        top_k: int | None = Field(None, description="Only the k likeliest tokens; 0: all")
        top_p: float | None = Field(None, description="Only the likeliest tokens of this probability; 1: all")
        min_p: float | None = Field(None, description="Only tokens this likely beside the likeliest; 0: all")
        repeat_penalty: float | None = Field(None, description="Divides the logits of recent tokens; 1: off")
        seed: int | None = Field(None, description="Seed of the sampler")
        stop: str | None = Field(None, description="The answer ends before this string")
        fastv: str | None = Field(
            None, description="Which visual tokens the later layers see: k=2,drop=0.5, pyramiddrop, ..., off"
        )
        turbo: str | None = Field(None, description="Merge tokens in the vision encoder: share=0.5, ..., off")
        reduce: str | None = Field(
            None, description="Fewer visual tokens before the language model: pool,window=2, ..., off"
        )
        model: str | None = Field(None, description="Path of another GGUF model")
        mmproj: str | None = Field(None, description="Path of its vision encoder")
        n_ctx: int | None = Field(
            None, description="Context in tokens; 0: what the model was trained for, at most 8192"
        )
        threads: int | None = Field(None, description="CPU threads; none: the physical cores")

        @field_validator(*SETTING_OPTIONS)
        @classmethod
        def _check(cls, value: str | None, info: ValidationInfo) -> str | None:
            Setting.of(**{str(info.field_name): value})
            return value

    def __init__(
        self,
        model_id: str,
        model: str | None = None,
        mmproj: str | None = None,
        fastv: str | None = None,
        turbo: str | None = None,
        reduce: str | None = None,
        n_ctx: int = 0,
        threads: int | None = None,
    ) -> None:
        """``model`` None: the bundled one; ``fastv`` None: the package's default."""
        self._setting = Setting.of(Recommended() if fastv is None else fastv, turbo, reduce)
        self.model_id = model_id
        self._model, self._mmproj, self._n_ctx, self._threads = model, mmproj, n_ctx, threads
        self._runner: Runner | None = None
        self._loaded: tuple[Any, ...] = ()

    def __str__(self) -> str:
        return f"pyfastv: {self.model_id}"

    def execute(
        self, prompt: llm.Prompt, stream: bool, response: llm.Response, conversation: llm.Conversation | None
    ) -> Iterator[str]:
        """Pieces of the answer. The response's JSON is the report of :class:`pyfastv.Report`."""
        options = {name: value for name, value in prompt.options if value is not None}
        runner = self._load(*(options.pop(name, None) for name in ("model", "mmproj", "n_ctx", "threads")))
        asked = cast(RequestOptions, {**self._setting.options(), **options})
        chunks = runner.create_chat_completion(_messages(prompt), stream=True, **asked)
        pieces = []
        for chunk in chunks:
            piece = chunk["choices"][0]["delta"].get("content", "")
            if stream and piece:
                yield piece
            pieces.append(piece)
        if not stream:
            yield "".join(pieces)
        report = chunk["pyfastv"]
        response.response_json = {"pyfastv": report}
        response.set_usage(input=report["prompt_tokens"], output=report["generated_tokens"])

    def _load(self, model: str | None, mmproj: str | None, n_ctx: int | None, threads: int | None) -> Runner:
        if model is None:
            model, mmproj = self._model, mmproj or self._mmproj
        if model is not None and mmproj is None:
            mmproj = mmproj_beside(model)
        wanted = (
            model,
            mmproj,
            self._n_ctx if n_ctx is None else n_ctx,
            self._threads if threads is None else threads,
        )
        if (
            self._runner is None or self._runner.closed or wanted != self._loaded
        ):  # closed: of a parent process
            if self._runner is not None:
                self._runner.close()
                self._runner = None
            self._runner = Runner(model, mmproj, n_ctx=wanted[2], n_threads=wanted[3], fastv=None)
            self._loaded = wanted
        return self._runner


def _messages(prompt: llm.Prompt) -> list[dict[str, Any]]:
    """The conversation up to the prompt; in each message the pictures first, as models are trained."""
    try:
        from llm.parts import AttachmentPart, TextPart
    except ImportError as error:  # told here, since a plugin that cannot be imported ends every call of llm
        raise Error("pyfastv needs llm 0.36 or newer: llm install -U llm") from error
    messages = []
    for message in prompt.messages:
        pictures = [_picture(part.attachment) for part in message.parts if isinstance(part, AttachmentPart)]
        text = "\n".join(part.text for part in message.parts if isinstance(part, TextPart))
        content: list[dict[str, Any]] = [{"type": "image", "image": picture} for picture in pictures]
        messages.append({"role": message.role, "content": [*content, {"type": "text", "text": text}]})
    return messages


def _picture(attachment: Any) -> Picture:
    if attachment.path and not attachment.content:
        return str(attachment.path)
    return bytes(attachment.content_bytes())  # llm fetches addresses


def _configured() -> list[dict[str, Any]]:
    """The entries of pyfastv.yaml, checked: keyword arguments of PyfastvModel, and ``aliases``."""
    path = Path(llm.user_dir()) / _CONFIGURATION
    if not path.exists():
        return []
    try:
        entries = yaml.safe_load(path.read_text(encoding="utf-8")) or []
    except (yaml.YAMLError, OSError, UnicodeDecodeError) as error:
        raise click.ClickException(f"{path}: {' '.join(str(error).split())}") from error
    if not isinstance(entries, list):
        raise click.ClickException(f"{path}: must be a list of models, each with model_id and model")
    return [_checked(path, entry) for entry in entries]


def _checked(path: Path, entry: Any) -> dict[str, Any]:
    wrong = None
    if not isinstance(entry, Mapping) or not {"model_id", "model"} <= set(entry):
        wrong = "a model needs model_id and model"
    elif unknown := sorted(map(str, set(entry) - _KEYS)):
        wrong = f"{', '.join(unknown)} is none of {', '.join(sorted(_KEYS))}"
    elif not all(isinstance(entry.get(name, ""), str) for name in _KEYS - {*_NUMBERS, "aliases"}):
        wrong = f"all but {', '.join(_NUMBERS)} and aliases must be text"
    elif not all(isinstance(entry.get(name, 0), int) for name in _NUMBERS):
        found = next(name for name in _NUMBERS if not isinstance(entry.get(name, 0), int))
        wrong = f"{found} must be a number"
    elif not isinstance(entry.get("aliases", []), list):
        wrong = "aliases must be a list"
    else:
        try:
            Setting.of(*(entry.get(name) for name in SETTING_OPTIONS))
        except ValueError as error:
            wrong = str(error)
    if wrong is not None:
        raise click.ClickException(f"{path}: {wrong}; got {entry!r}")
    files = {name: os.path.expanduser(entry[name]) for name in ("model", "mmproj") if name in entry}
    return {**entry, **files}
