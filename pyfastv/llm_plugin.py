"""A plugin for llm (https://llm.datasette.io): ``llm -m pyfastv -a picture.png "..."``.

Without configuration there is one model, ``pyfastv``: that of ``PYFASTV_MODEL``, else the bundled one. More are those
that the commands of pyfastv know by name (:mod:`pyfastv.models.named`), and, in the same form, those of
``pyfastv.yaml`` in llm's folder (``llm logs path`` shows where that is).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import click
import llm
from pydantic import Field, ValidationInfo, field_validator

from .engine.runner import Runner
from .engine.sampling import RequestOptions
from .errors import DataError, Error
from .inputs.budget import Budget
from .inputs.images import Picture
from .models.named import NamedModel, find_files, named_models, read_models, wanted
from .settings.presets import Recommended
from .settings.setting import SETTING_OPTIONS, Setting

__all__ = ["PyfastvModel", "register_models"]

_CONFIGURATION = "pyfastv.yaml"

# what pyfastv.load_image reads, as llm tells types
_PICTURES = ("png", "jpeg", "webp", "gif", "bmp", "x-ms-bmp", "tiff", "avif", "jp2", "x-portable-pixmap")


@llm.hookimpl
def register_models(register: Callable[..., None]) -> None:
    """Called by llm."""
    register(PyfastvModel("pyfastv"))
    for entry in _configured():
        register(PyfastvModel(entry.model_id, entry), aliases=entry.aliases)


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
        skip: str | None = Field(
            None, description="Leave out patches that neighbours predict: tau=8, ..., off"
        )
        image_tokens: str | int | None = Field(
            None, description="Most visual tokens of a picture, or the least and the most: 256, 64-256"
        )
        enlarge: bool | None = Field(
            None, description="May a model that scales every picture to one size enlarge it?"
        )
        model: str | None = Field(None, description="Path of another GGUF model, or its name")
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

        @field_validator("image_tokens")
        @classmethod
        def _check_tokens(cls, value: str | int | None) -> str | int | None:
            Budget.of(value)
            return value

    def __init__(self, model_id: str, entry: NamedModel | None = None) -> None:
        """``entry`` None: of ``PYFASTV_MODEL``, else the bundled model."""
        self.model_id = model_id
        self._entry = entry
        self._runner: Runner | None = None
        self._loaded: tuple[Any, ...] = ()

    def __str__(self) -> str:
        return f"pyfastv: {self.model_id}"

    def execute(
        self, prompt: llm.Prompt, stream: bool, response: llm.Response, conversation: llm.Conversation | None
    ) -> Iterator[str]:
        """Pieces of the answer. The response's JSON is the report of :class:`pyfastv.Report`."""
        options = {name: value for name, value in prompt.options if value is not None}
        entry = self._chosen(options.pop("model", None))
        runner = self._load(entry, *(options.pop(name, None) for name in ("mmproj", "n_ctx", "threads")))
        asked = cast(RequestOptions, {**_setting(entry).options(), **options})
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

    def _chosen(self, model: str | None) -> NamedModel | None:
        return self._entry if model is None and self._entry is not None else wanted(model, None)

    def _load(
        self, entry: NamedModel | None, mmproj: str | None, n_ctx: int | None, threads: int | None
    ) -> Runner:
        if entry is not None:
            n_ctx = entry.n_ctx if n_ctx is None else n_ctx
            threads = entry.threads if threads is None else threads
        loaded = (*find_files(entry, mmproj), n_ctx, threads)
        if (
            self._runner is None or self._runner.closed or loaded != self._loaded
        ):  # closed: of a parent process
            if self._runner is not None:
                self._runner.close()
                self._runner = None
            self._runner = Runner(*loaded[:2], n_ctx=n_ctx, n_threads=threads, fastv=None)
            self._loaded = loaded
        return self._runner


def _setting(entry: NamedModel | None) -> Setting:
    """What is not said is the package's default."""
    default = Setting(Recommended())
    return default if entry is None else default.but(**entry.options())


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


def _configured() -> list[NamedModel]:
    """The entries of pyfastv.yaml, and those of the commands whose names are not taken by then."""
    try:
        own = read_models(Path(llm.user_dir()) / _CONFIGURATION)
        taken = {"pyfastv", *(entry.model_id for entry in own)}
        return [*own, *(entry for entry in named_models() if entry.model_id not in taken)]
    except DataError as error:
        raise click.ClickException(str(error)) from error
