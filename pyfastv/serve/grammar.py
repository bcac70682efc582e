"""What an answer has to look like: OpenAI's ``response_format`` to a GBNF grammar."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from typing import Any

from .. import _native
from ..errors import OptionError

__all__ = ["grammar_of_format", "grammar_of_schema"]

# llama.cpp's converter recurses into a schema, and its regular expressions over strings
_MAX_DEPTH = 32
_MAX_STRING = 1000
_MAX_NODES = 5000

# a constraint that it would leave out without a word
_IGNORED = frozenset(
    {
        "contains", "dependentRequired", "dependentSchemas", "else", "exclusiveMaximum", "exclusiveMinimum", "if",
        "maxContains", "maxProperties", "minContains", "minProperties", "multipleOf", "not", "patternProperties",
        "propertyNames", "then", "unevaluatedItems", "unevaluatedProperties", "uniqueItems",
    }
)  # fmt: skip


def grammar_of_format(response_format: Any) -> str | None:
    """The grammar for a request's ``response_format``; None: anything goes.

    ``{"type": "text"}``, ``{"type": "json_object"}`` (llama-server's ``schema`` beside it is understood), or
    ``{"type": "json_schema", "json_schema": {"schema": ...}}``. Raises OptionError.
    """
    if response_format is None:
        return None
    if not isinstance(response_format, Mapping):
        raise OptionError(f"response_format must be an object with a type; got {response_format!r:.200}")
    kind = response_format.get("type")
    if kind == "text":
        return None
    if kind == "json_object":
        schema = response_format.get("schema")
        return _any_object() if schema is None else grammar_of_schema(schema)
    if kind == "json_schema":
        described = response_format.get("json_schema")
        if not isinstance(described, Mapping) or "schema" not in described:
            raise OptionError(
                'response_format of type json_schema needs {"json_schema": {"schema": ...}}; '
                f"got {described!r:.200}"
            )
        return grammar_of_schema(described["schema"])
    raise OptionError(f"response_format type must be text, json_object or json_schema; got {kind!r:.200}")


def grammar_of_schema(schema: Any) -> str:
    """A GBNF grammar of the JSON values that a JSON schema allows, made by llama.cpp.

    ``schema``: a dict, as from JSON. Raises OptionError, with the keyword's name where one is not supported.
    """
    if not isinstance(schema, Mapping):
        raise OptionError(f"a JSON schema must be an object; got {schema!r:.200}")
    _check(schema)
    try:
        text = json.dumps(schema, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise OptionError(f"the JSON schema is not JSON: {error}") from None
    return _native.json_schema_to_gbnf(text)


@cache
def _any_object() -> str:
    return grammar_of_schema({"type": "object"})


def _check(schema: Any) -> None:
    """Bounds, and nothing that would be ignored."""
    nodes = 0
    # (value, depth, whether it is a schema itself and not, say, a map of schemas)
    stack: list[tuple[Any, int, bool]] = [(schema, 0, True)]
    while stack:
        value, depth, is_schema = stack.pop()
        nodes += 1
        if depth > _MAX_DEPTH:
            raise OptionError(f"the JSON schema is nested more than {_MAX_DEPTH} levels deep")
        if nodes > _MAX_NODES:
            raise OptionError(f"the JSON schema has more than {_MAX_NODES} parts")
        if isinstance(value, str) and len(value) > _MAX_STRING:
            raise OptionError(f"a string in the JSON schema has more than {_MAX_STRING} characters")
        if isinstance(value, Mapping):
            stack += [(str(key), depth, False) for key in value]
            if is_schema:
                _refuse_ignored(value)
            for key, item in value.items():
                stack.append((item, depth + 1, not _is_data(str(key), is_schema)))
        elif isinstance(value, (list, tuple)):
            stack += [(item, depth + 1, is_schema) for item in value]


def _refuse_ignored(schema: Mapping[Any, Any]) -> None:
    for keyword in schema:
        if keyword not in _IGNORED:
            continue
        if keyword in ("exclusiveMinimum", "exclusiveMaximum") and schema.get("type") == "integer":
            continue
        raise OptionError(f"the JSON schema's {keyword!r} is not supported: a grammar cannot express it here")
    kind = schema.get("type")
    if (kind == "number" or (isinstance(kind, list) and "number" in kind)) and (
        "minimum" in schema or "maximum" in schema
    ):
        raise OptionError("the JSON schema's 'minimum' and 'maximum' are supported for integers only")


def _is_data(key: str, is_schema: bool) -> bool:
    """Is what stands under this key of a schema no schema: a value, or a map of named schemas?"""
    return is_schema and key in (
        "properties",
        "$defs",
        "definitions",
        "enum",
        "const",
        "default",
        "examples",
        "example",
    )
