"""OpenAI's ``response_format``."""

from __future__ import annotations

from collections.abc import Mapping

from .._checks import shown
from ..errors import OptionError
from .grammar import Grammar, of_schema

__all__ = ["response_grammar"]

_TYPES = "text, json_object or json_schema"


def response_grammar(given: object) -> Grammar | None:
    """What an answer has to follow by it; None: nothing.

    ``given``: ``{"type": "text"}`` or None; ``{"type": "json_object"}``, with ``schema`` as llama-cpp-python takes it;
    ``{"type": "json_schema", "json_schema": {"schema": ...}}``. Raises OptionError, with the place in the schema.
    """
    if given is None:
        return None
    kind = given.get("type") if isinstance(given, Mapping) else None
    if not isinstance(given, Mapping) or not isinstance(kind, str):
        raise OptionError(f'response_format must be {{"type": ...}}, {_TYPES}; got {shown(given)}')
    if kind == "text":
        return None
    if kind == "json_object":
        schema = given.get("schema")
        return of_schema({"type": "object"} if schema is None else schema)
    if kind == "json_schema":
        form = given.get("json_schema")
        if not isinstance(form, Mapping) or "schema" not in form:
            raise OptionError(
                'response_format must be {"type": "json_schema", "json_schema": {"name": ..., "schema": {...}}}; '
                f"got {shown(given)}"
            )
        return of_schema(form["schema"])
    raise OptionError(f"response_format: the type must be {_TYPES}; got {shown(kind)}")
