"""A chat template as Hugging Face defines them: Jinja2 in a sandbox, with what transformers adds to it; and where one
comes from."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, NoReturn

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from ..errors import ModelError, OptionError
from .messages import Message
from .named_templates import NAMED, VICUNA

__all__ = ["Template", "find_template"]


class _Refusal(jinja2.TemplateError):
    """The template called ``raise_exception``."""


class _Generation(Extension):
    """``{% generation %}...{% endgeneration %}``: what the assistant says, marked for training; here only its body."""

    tags = {"generation"}  # noqa: RUF012 - as jinja2 declares it

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        return nodes.Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True), lineno=line)


class Template:
    """A template that is ready to be rendered."""

    def __init__(self, source: str | None, **variables: Any) -> None:
        """``source``: Jinja2 text, None for the form of LLaVA-1.5. ``variables``: of each rendering. Raises ModelError if
        it does not parse."""
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols]
        )
        environment.filters["tojson"] = _to_json
        environment.globals.update(raise_exception=_raise_exception, strftime_now=_strftime_now)
        self._variables = {"tools": None, "documents": None, "add_generation_prompt": True, **variables}
        try:
            self._template = environment.from_string(VICUNA if source is None else source)
        except (jinja2.TemplateError, RecursionError) as error:
            raise ModelError(f"the chat template does not parse: {error}") from error

    def run(self, messages: Sequence[Message], variables: Mapping[str, Any] | None = None) -> str:
        """The text. Raises OptionError where the template refuses the messages, ModelError where it fails."""
        try:
            return self._template.render({**self._variables, **(variables or {}), "messages": messages})
        except _Refusal as error:
            raise OptionError(f"the model's chat template refuses these messages: {error}") from error
        except Exception as error:  # a template is a foreign program
            raise ModelError(
                f"the model's chat template fails: {type(error).__name__}: {error}; "
                "load the model with another one (chat_template)"
            ) from error

    def try_out(self, messages: Sequence[Message], variables: Mapping[str, Any] | None = None) -> str:
        """The text, empty where there is none."""
        try:
            return self.run(messages, variables)
        except (ModelError, OptionError):
            return ""


def find_template(given: str | os.PathLike[str] | None) -> str | None:
    """Jinja2 text of what a user names: the text itself, one of :data:`NAMED`, or a file (a template, or a JSON of
    transformers that has one). Raises OptionError."""
    if given is None:
        return None
    if isinstance(given, str) and ("{{" in given or "{%" in given):
        return _checked(given, "chat_template")
    if isinstance(given, str) and given in NAMED:
        return NAMED[given]
    if not isinstance(given, (str, os.PathLike)):
        raise OptionError(f"chat_template must be a template, its name or a file; got {given!r:.200}")
    path = os.fsdecode(given)
    names = ", ".join(NAMED)
    try:
        with open(path, encoding="utf-8") as file:
            text = file.read()
    except UnicodeDecodeError:
        raise OptionError(f"chat_template: {path} is not UTF-8") from None
    except (OSError, ValueError) as error:  # ValueError: a null character
        reason = getattr(error, "strerror", None) or error
        raise OptionError(
            f"chat_template: {path!r:.200} cannot be read ({reason}), and is no name of a template: {names}"
        ) from None
    return _checked(_of_json(text, path), path)


def _of_json(text: str, path: str) -> str:
    """The template in tokenizer_config.json or chat_template.json; text that is no JSON is a template itself."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return text
    found = found.get("chat_template") if isinstance(found, dict) else None
    if isinstance(found, list):
        by_name = {entry.get("name"): entry.get("template") for entry in found if isinstance(entry, dict)}
        found = by_name.get("default")
    if not isinstance(found, str):
        raise OptionError(f"chat_template: {path} is JSON without a chat_template")
    return found


def _checked(source: str, name: str) -> str:
    try:
        Template(source)
    except ModelError as error:
        raise OptionError(f"{name}: {error}") from error
    return source


def _raise_exception(message: str) -> NoReturn:
    raise _Refusal(message)


def _strftime_now(form: str) -> str:
    return datetime.now().strftime(form)


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | str | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Transformers' ``tojson``: Jinja2's own escapes for HTML, and takes these in another order."""
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )
