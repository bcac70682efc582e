"""Does a value follow a JSON schema? In the keywords that :mod:`pyfastv.constraints.schemas` takes, but for
``pattern`` and ``format``, which its grammars hold to."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from fractions import Fraction
from typing import Any

from .schemas import is_of_type, resolved, same_value

__all__ = ["failures"]


def failures(schema: Any, value: Any, root: Mapping[str, Any], path: str = "#") -> Iterator[str]:
    """What is wrong, by its place in the value."""
    if schema is False:
        yield f"{path}: nothing may be there"
    if not isinstance(schema, Mapping):
        return
    if "$ref" in schema:
        yield from failures(resolved(root, schema["$ref"], path), value, root, path)
    for part in schema.get("allOf", []):
        yield from failures(part, value, root, path)
    for keyword in ("anyOf", "oneOf"):
        alternatives = [list(failures(part, value, root, path)) for part in schema.get(keyword, [])]
        if alternatives and all(alternatives):
            yield min(alternatives, key=len)[0]
    types = schema.get("type", [])
    types = types if isinstance(types, list) else [types]
    if types and not any(is_of_type(value, kind) for kind in types):
        yield f"{path}: not of the type {' or '.join(map(str, types))}"
    if "enum" in schema and not any(same_value(value, one) for one in schema["enum"]):
        yield f"{path}: not one of the values"
    if "const" in schema and not same_value(value, schema["const"]):
        yield f"{path}: not the value"
    if isinstance(value, dict):
        yield from _of_object(schema, value, root, path)
    elif isinstance(value, list):
        yield from _of_array(schema, value, root, path)
    elif isinstance(value, str):
        yield from _of_size(schema, "Length", len(value), "characters", path)
    elif isinstance(value, (int, float)) and not isinstance(value, bool):
        yield from _of_number(schema, value, path)


def _of_object(
    schema: Mapping[str, Any], value: dict[str, Any], root: Mapping[str, Any], path: str
) -> Iterator[str]:
    properties, others = schema.get("properties", {}), schema.get("additionalProperties", True)
    yield from (f"{path}: no {name!r}" for name in schema.get("required", []) if name not in value)
    for name, item in value.items():
        yield from failures(properties.get(name, others), item, root, f"{path}/{name:.100}")
    yield from _of_size(schema, "Properties", len(value), "properties", path)


def _of_array(
    schema: Mapping[str, Any], value: list[Any], root: Mapping[str, Any], path: str
) -> Iterator[str]:
    prefix, others = schema.get("prefixItems", []), schema.get("items", True)
    if isinstance(others, list):
        prefix, others = others, schema.get("additionalItems", True)
    for i, item in enumerate(value):
        yield from failures(prefix[i] if i < len(prefix) else others, item, root, f"{path}/{i}")
    yield from _of_size(schema, "Items", len(value), "items", path)
    if schema.get("uniqueItems") is True:
        spelt = [json.dumps(item, sort_keys=True) for item in value]
        if len(set(spelt)) < len(spelt):
            yield f"{path}: the same item twice"


def _of_size(schema: Mapping[str, Any], keyword: str, size: int, what: str, path: str) -> Iterator[str]:
    least, most = schema.get(f"min{keyword}"), schema.get(f"max{keyword}")
    if least is not None and size < least:
        yield f"{path}: {size} {what}, at least {least} are wanted"
    if most is not None and size > most:
        yield f"{path}: {size} {what}, at most {most} are allowed"


def _of_number(schema: Mapping[str, Any], value: float, path: str) -> Iterator[str]:
    for keyword, follows in (
        ("minimum", lambda bound: value >= bound),
        ("maximum", lambda bound: value <= bound),
        ("exclusiveMinimum", lambda bound: isinstance(bound, bool) or value > bound),
        ("exclusiveMaximum", lambda bound: isinstance(bound, bool) or value < bound),
        ("multipleOf", lambda of: _is_multiple(value, of)),
    ):
        if schema.get(keyword) is not None and not follows(schema[keyword]):
            yield f"{path}: {value}, {keyword} is {schema[keyword]}"


def _is_multiple(value: float, of: float) -> bool:
    """As they are spelt, however far apart; nothing is one of 0, which a schema may say beside what it can have."""
    if of == 0 or not all(isinstance(number, int) or math.isfinite(number) for number in (value, of)):
        return False
    return Fraction(repr(value)) % Fraction(repr(of)) == 0
