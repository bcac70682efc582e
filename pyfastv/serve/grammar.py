"""What an answer has to look like: JSON schemas to GBNF grammars, with llama.cpp's own converter."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

from .. import _native
from .._checks import shown
from ..errors import OptionError

__all__ = ["json_grammar", "schema_grammar"]

# the converter recurses into a schema, and its regular expressions over strings
_MAX_DEPTH = 32
_MAX_STRING = 500
_MAX_NODES = 2500
# more repetitions of one thing than its grammars may have
_MAX_REPEATED = 1000
_MAX_INTEGER = 10**15

_COUNTS = ("minItems", "maxItems", "minLength", "maxLength")
# constraints that it would leave out without a word
_IGNORED = frozenset(
    {
        "contains", "dependentRequired", "dependentSchemas", "else", "if", "maxContains", "maxProperties", "minContains",
        "minProperties", "multipleOf", "not", "patternProperties", "propertyNames", "then", "unevaluatedItems",
        "unevaluatedProperties", "uniqueItems",
    }
)  # fmt: skip
_BOUNDS = ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum")
# under these stands a map of schemas, or a value
_MAPS = ("properties", "$defs", "definitions")
_VALUES = ("enum", "const", "default", "examples", "example", "required")


@cache
def json_grammar() -> str:
    """The grammar of any JSON object."""
    return schema_grammar({"type": "object"})


def schema_grammar(schema: Any) -> str:
    """A GBNF grammar of the JSON values that a JSON schema allows.

    ``schema``: an object, as from JSON; keywords that a grammar cannot express here are refused. Raises OptionError,
    with the place in the schema.
    """
    if not isinstance(schema, Mapping):
        raise OptionError(f"a JSON schema must be an object; got {shown(schema)}")
    _Check(schema).schema(schema, "#", 0)
    try:
        text = json.dumps(schema, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise OptionError(f"the JSON schema is not JSON: {error}") from None
    return _convert(text)


def _convert(schema: str) -> str:
    try:
        return _native.json_schema_to_gbnf(schema)
    except OptionError as error:
        raise OptionError(str(error).replace("\n", " ")) from None


class _Check:
    """Bounds a schema, and refuses what would be ignored."""

    def __init__(self, root: Mapping[Any, Any]) -> None:
        self._root = root
        self._nodes = 0

    def schema(self, schema: Any, path: str, depth: int) -> None:
        self._count(path, depth)
        if not isinstance(schema, Mapping):
            self.value(schema, path, depth)
            return
        self._refuse(schema, path)
        for key, part in schema.items():
            here = f"{path}/{key!s:.100}"
            self.value(key, here, depth)
            if key in _MAPS and isinstance(part, Mapping):
                for name, item in part.items():
                    self.value(name, f"{here}/{name!s:.100}", depth)
                    self.schema(item, f"{here}/{name!s:.100}", depth + 1)
            elif key in _VALUES:
                self.value(part, here, depth + 1)
            elif isinstance(part, Sequence) and not isinstance(part, str):
                for i, item in enumerate(part):
                    self.schema(item, f"{here}/{i}", depth + 1)
            else:
                self.schema(part, here, depth + 1)

    def value(self, value: Any, path: str, depth: int) -> None:
        self._count(path, depth)
        if isinstance(value, str) and len(value) > _MAX_STRING:
            raise OptionError(f"JSON schema, {path:.200}: a string of more than {_MAX_STRING} characters")
        if isinstance(value, Mapping):
            for key, item in value.items():
                self.value(key, path, depth)
                self.value(item, f"{path}/{key!s:.100}", depth + 1)
        elif isinstance(value, Sequence) and not isinstance(value, str):
            for i, item in enumerate(value):
                self.value(item, f"{path}/{i}", depth + 1)

    def _count(self, path: str, depth: int) -> None:
        self._nodes += 1
        if depth > _MAX_DEPTH:
            raise OptionError(f"JSON schema, {path:.200}: more than {_MAX_DEPTH} levels deep")
        if self._nodes > _MAX_NODES:
            raise OptionError(f"the JSON schema has more than {_MAX_NODES} parts")

    def _refuse(self, schema: Mapping[Any, Any], path: str) -> None:
        for keyword in schema:
            if keyword in _IGNORED:
                raise OptionError(f"JSON schema, {path:.200}: {keyword!r} is not supported")
            if keyword in _BOUNDS:
                self._refuse_bound(schema, keyword, path)
        for keyword in _COUNTS:
            count = schema.get(keyword, 0)
            if isinstance(count, (int, float)) and count > _MAX_REPEATED:
                raise OptionError(
                    f"JSON schema, {path:.200}: {keyword!r} can be at most {_MAX_REPEATED}; got {count!r:.40}"
                )
        if "pattern" in schema:
            self._refuse_pattern(schema["pattern"], path)
        if "$ref" in schema:
            self._refuse_circle(schema["$ref"], path)

    def _refuse_bound(self, schema: Mapping[Any, Any], keyword: str, path: str) -> None:
        bound = schema[keyword]
        if schema.get("type") != "integer":
            raise OptionError(f"JSON schema, {path:.200}: {keyword!r} is supported for type integer only")
        if not isinstance(bound, int) or abs(bound) > _MAX_INTEGER:
            raise OptionError(
                f"JSON schema, {path:.200}: {keyword!r} must be an integer of at most 10^15; got {bound!r:.40}"
            )

    def _refuse_pattern(self, pattern: Any, path: str) -> None:
        """The converter takes any string where it does not know a pattern."""
        known = isinstance(pattern, str) and pattern.startswith("^") and pattern.endswith("$")
        if known and len(pattern) <= _MAX_STRING:
            grammar = _convert(json.dumps({"type": "string", "pattern": pattern}))
            known = "root ::= string" not in grammar.splitlines()
        if not known:
            raise OptionError(
                f"JSON schema, {path:.200}: this 'pattern' is not supported; it must be anchored with ^ and $, and "
                f"without look-around or back-references; got {pattern!r:.100}"
            )

    def _refuse_circle(self, reference: Any, path: str) -> None:
        """References that lead to each other and nowhere else."""
        seen = set()
        while isinstance(reference, str):
            if reference in seen:
                raise OptionError(f"JSON schema, {path:.200}: '$ref' leads back to itself: {reference:.100}")
            seen.add(reference)
            target: Any = self._root
            for name in reference.split("/")[1:]:
                if isinstance(target, Sequence) and not isinstance(target, str):
                    target = target[int(name)] if name.isdecimal() and int(name) < len(target) else None
                else:
                    target = target.get(name) if isinstance(target, Mapping) else None
            reference = target.get("$ref") if isinstance(target, Mapping) else None
