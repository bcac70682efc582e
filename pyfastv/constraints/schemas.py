"""JSON schemas in the part of the language that llama.cpp's converter knows.

What only describes a value is left out. What the converter lacks is written as a grammar here: its place is held by a
string with a pattern of its own, whose rule is replaced behind the converter. Where a schema allows more than can be
said, less is allowed: every answer follows it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import Any

from .._checks import shown, whole
from ..errors import OptionError
from . import gbnf, patterns

__all__ = ["Prepared", "Unsayable", "is_of_type", "resolved", "same_value"]

# the converter recurses into a schema, and its regular expressions over strings
_MAX_DEPTH = 32
_MAX_STRING = 500
_MAX_NODES = 2500
# more repetitions of one thing than its grammars may have
_MAX_REPEATED = 1000
_MAX_INTEGER = 10**15

_TYPES = ("object", "array", "string", "integer", "number", "boolean", "null")
_NOT_SUPPORTED = (
    "contains", "dependentRequired", "dependentSchemas", "dependencies", "else", "if", "maxContains", "minContains",
    "not", "patternProperties", "then", "unevaluatedItems",
)  # fmt: skip
# by which a schema without a type tells it
_OF_TYPE = {
    "object": (
        "properties",
        "required",
        "additionalProperties",
        "propertyNames",
        "minProperties",
        "maxProperties",
    ),
    "array": ("items", "prefixItems", "minItems", "maxItems", "uniqueItems"),
    "string": ("pattern", "minLength", "maxLength", "format"),
    "number": ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"),
}
_ALTERNATIVES = ("anyOf", "oneOf")
_CONSTRAINTS = {
    *("$ref", "allOf", "type", "enum", "const", "unevaluatedProperties"),
    *_ALTERNATIVES,
    *_NOT_SUPPORTED,
    *(keyword for keywords in _OF_TYPE.values() for keyword in keywords),
}
_OF_CONVERTER = ("date", "time", "date-time", "uuid", "uuid1", "uuid2", "uuid3", "uuid4", "uuid5")
_FORMATS = {
    "email": r"^[A-Za-z0-9._+-]{1,64}@([A-Za-z0-9-]{1,63}\.){1,5}[A-Za-z]{2,24}$",
    "uri": r"^[A-Za-z][A-Za-z0-9+.-]{1,20}://[^\s<>\\^`{|}\"]{1,1000}$",
    "ipv4": r"^((25[0-5]|2[0-4]\d|1\d\d|[1-9]?\d)\.){3}(25[0-5]|2[0-4]\d|1\d\d|[1-9]?\d)$",
    "duration": r"^-?P(\d{1,9}D(T\d{1,9}H)?|T(\d{1,9}H)?\d{1,9}M(\d{1,9}S)?|T\d{1,9}[HMS])$",
}


class Unsayable(OptionError):
    """A grammar cannot say it, or no value can follow it."""


class _TooLarge(OptionError):
    """Beyond what is read of a schema."""


class Prepared:
    """A schema for the converter.

    ``schema``: to be converted; ``rules``: of strings whose pattern is ``^pyfastv<number>$`` the grammar. ``checked``:
    the answer has to be looked at: a grammar cannot say all of it. Raises OptionError, with the place in the schema.
    """

    def __init__(self, root: Mapping[str, Any], first: int = 0) -> None:
        """``first``: number of the first rule, where several schemas make one grammar."""
        self.rules: list[str] = []
        self._first = first
        self.checked = False
        self._root = root
        self._nodes = 0
        self._names: dict[str, str] = {}  # of what is referred to
        self._waiting: list[str] = []
        schema = self._node(root, "#", 0)
        definitions: dict[str, Any] = {}
        while self._waiting:
            reference = self._waiting.pop()
            definitions[self._names[reference]] = self._node(self._target(reference, "#"), reference, 0)
        self.schema = {**schema, "$defs": definitions} if definitions else schema

    @property
    def size(self) -> int:
        """Its parts."""
        return self._nodes

    def _count(self, path: str, depth: int) -> None:
        self._nodes += 1
        if depth > _MAX_DEPTH:
            raise _TooLarge(f"JSON schema, {path:.200}: more than {_MAX_DEPTH} levels deep")
        if self._nodes > _MAX_NODES:
            raise _TooLarge(f"the JSON schema has more than {_MAX_NODES} parts")

    def _value(self, value: Any, path: str, depth: int) -> None:
        """Counts what stands in a schema for itself."""
        self._count(path, depth)
        if isinstance(value, str) and len(value) > _MAX_STRING:
            raise _TooLarge(f"JSON schema, {path:.200}: a string of more than {_MAX_STRING} characters")
        if isinstance(value, Mapping):
            for key, item in value.items():
                self._value(key, path, depth)
                self._value(item, path, depth + 1)
        elif isinstance(value, (list, tuple)):
            for item in value:
                self._value(item, path, depth + 1)

    def _rule(self, rule: str) -> dict[str, Any]:
        self.rules.append(rule)
        return {"type": "string", "pattern": f"^pyfastv{self._first + len(self.rules) - 1}$"}

    def _node(self, schema: Any, path: str, depth: int) -> dict[str, Any]:
        self._count(path, depth)
        if schema is True:
            return {}
        if schema is False:
            raise _never(path)
        if not isinstance(schema, Mapping):
            raise OptionError(
                f"JSON schema, {path:.200}: must be an object, true or false; got {shown(schema):.100}"
            )
        schema = {key: value for key, value in schema.items() if key in _CONSTRAINTS}
        if "$ref" in schema and len(schema) == 1:
            return self._reference(schema["$ref"], path)
        if "$ref" in schema or "allOf" in schema:
            return self._node(self._all_of(schema, path), path, depth + 1)
        for keyword in _ALTERNATIVES:
            if keyword in schema:
                return self._any_of(keyword, schema, path, depth)
        for keyword in _NOT_SUPPORTED:
            if keyword in schema:
                raise Unsayable(f"JSON schema, {path:.200}: {keyword!r} is not supported")
        if schema.get("unevaluatedProperties", False) not in (True, False):
            raise Unsayable(f"JSON schema, {path:.200}: 'unevaluatedProperties' is not supported")
        types = _types(schema, path)
        if "const" in schema or "enum" in schema:
            return self._enum(schema, types, path, depth)
        if not types:
            return {}
        if len(types) > 1:
            alternatives = [{**schema, "type": name} for name in types]
            return self._any_of("anyOf", {"anyOf": alternatives}, path, depth)
        kind = types[0]
        if kind in ("integer", "number"):
            return self._number(schema, kind, path)
        if kind in ("boolean", "null"):
            return {"type": kind}
        return {"object": self._object, "array": self._array, "string": self._string}[kind](
            schema, path, depth
        )

    # references, and schemas of several parts

    def _reference(self, reference: Any, path: str) -> dict[str, Any]:
        self._target(reference, path)
        if reference not in self._names:
            self._names[reference] = f"part{len(self._names)}"
            self._waiting.append(reference)
        return {"$ref": f"#/$defs/{self._names[reference]}"}

    def _target(self, reference: Any, path: str) -> Any:
        """What it leads to, not another reference alone."""
        seen = []
        while True:
            if reference in seen:
                raise OptionError(
                    f"JSON schema, {path:.200}: '$ref' leads back to itself: {reference!s:.100}"
                )
            seen.append(reference)
            target = resolved(self._root, reference, path)
            if not isinstance(target, Mapping) or set(target) & _CONSTRAINTS != {"$ref"}:
                return target
            reference = target["$ref"]

    def _all_of(self, schema: Mapping[str, Any], path: str) -> dict[str, Any]:
        """One schema that says what all parts say."""
        parts = schema.get("allOf", [])
        if not isinstance(parts, Sequence) or isinstance(parts, str) or ("allOf" in schema and not parts):
            raise OptionError(f"JSON schema, {path:.200}: 'allOf' must be a list of schemas")
        if "$ref" in schema:
            parts = [{"$ref": schema["$ref"]}, *parts]
        merged: dict[str, Any] = {key: value for key, value in schema.items() if key not in ("$ref", "allOf")}
        for part in parts:
            self._count(path, 0)
            if isinstance(part, Mapping) and "$ref" in part:
                target = self._target(part["$ref"], path)
                others = {key: value for key, value in part.items() if key != "$ref"}
                part = {**others, "allOf": [*others.get("allOf", []), target]} if others else target
            if isinstance(part, Mapping) and "allOf" in part:
                part = self._all_of({key: part[key] for key in part if key in _CONSTRAINTS}, path)
            merged = _merged(merged, part, path)
        return merged

    def _any_of(self, keyword: str, schema: Mapping[str, Any], path: str, depth: int) -> dict[str, Any]:
        alternatives = schema[keyword]
        if not isinstance(alternatives, list) or not alternatives:
            raise OptionError(f"JSON schema, {path:.200}: {keyword!r} must be a list of schemas")
        rest = {key: value for key, value in schema.items() if key != keyword}
        found: list[dict[str, Any]] = []
        failures: list[Unsayable] = []
        for number, alternative in enumerate(alternatives):
            # what cannot be said is not among what may be answered
            try:
                part = {"allOf": [rest, alternative]} if rest else alternative
                found.append(self._node(part, f"{path}/{keyword}/{number}", depth + 1))
            except Unsayable as error:
                failures.append(error)
        if not found:
            raise failures[0]
        return found[0] if len(found) == 1 else {"anyOf": found}

    # values

    def _enum(self, schema: Mapping[str, Any], types: Sequence[str], path: str, depth: int) -> dict[str, Any]:
        values = schema.get("enum", [schema.get("const")])
        if not isinstance(values, list):
            raise OptionError(f"JSON schema, {path:.200}: 'enum' must be a list; got {shown(values):.100}")
        if "const" in schema and "enum" in schema:
            values = [value for value in values if same_value(value, schema["const"])]
        self._value(values, path, depth)
        values = [value for value in values if not types or any(is_of_type(value, kind) for kind in types)]
        if not values:
            raise _never(path)
        return {"enum": values}

    def _object(self, schema: Mapping[str, Any], path: str, depth: int) -> dict[str, Any]:
        properties = schema.get("properties", {})
        required = [name for name in _list(schema, "required", path) if isinstance(name, str)]
        others = schema.get("additionalProperties", schema.get("unevaluatedProperties", True))
        if not isinstance(properties, Mapping):
            raise OptionError(f"JSON schema, {path:.200}: 'properties' must be an object")
        # where nothing is said of others, and some are named, there are none, as in the converter
        additional = others if "additionalProperties" in schema or "properties" not in schema else False
        if "propertyNames" in schema:
            properties, additional = self._named(schema["propertyNames"], properties, additional, path)
            others = additional
        found: dict[str, Any] = {}
        for name, part in properties.items():
            here = f"{path}/properties/{name!s:.100}"
            self._value(name, here, depth)
            if part is not False:
                found[name] = self._node(part, here, depth + 1)
        for name in required:
            if name not in found:
                if others is False or properties.get(name) is False:
                    raise _never(f"{path}/required")
                self._value(name, path, depth)
                found[name] = self._node(others, f"{path}/additionalProperties", depth + 1)
        least, most = _size(schema, "minProperties", path) or 0, _size(schema, "maxProperties", path)
        if least > len(required):
            raise Unsayable(
                f"JSON schema, {path:.200}: 'minProperties' is not supported above the number of required ones"
            )
        if most is not None and (additional is not False or len(found) > most):
            raise Unsayable(f"JSON schema, {path:.200}: 'maxProperties' is not supported")
        res: dict[str, Any] = {"type": "object"}
        if found or additional is False:
            res |= {"properties": found, "required": required}
        if additional is not False:
            res["additionalProperties"] = (
                True
                if additional is True
                else self._node(additional, f"{path}/additionalProperties", depth + 1)
            )
        return res

    def _named(self, names: Any, properties: Any, additional: Any, path: str) -> tuple[Any, Any]:
        """Properties of all names that there can be."""
        if isinstance(names, Mapping) and "$ref" in names:
            names = self._target(names["$ref"], path)
        if isinstance(names, Mapping) and set(names) & _CONSTRAINTS <= {"type"}:
            return properties, additional
        values = (
            names.get("enum", [names["const"]] if "const" in names else None)
            if isinstance(names, Mapping)
            else None
        )
        if not isinstance(values, list) or properties:
            raise Unsayable(f"JSON schema, {path:.200}: 'propertyNames' is supported with 'enum' only")
        return {name: additional for name in values if isinstance(name, str)}, False

    def _array(self, schema: Mapping[str, Any], path: str, depth: int) -> dict[str, Any]:
        prefix, items = schema.get("prefixItems", []), schema.get("items", True)
        if isinstance(items, list):  # as older drafts have it
            prefix, items = items, True
        if not isinstance(prefix, list):
            raise OptionError(f"JSON schema, {path:.200}: 'prefixItems' must be a list of schemas")
        least, most = _size(schema, "minItems", path) or 0, _size(schema, "maxItems", path)
        if items is False:
            most = len(prefix) if most is None else min(most, len(prefix))
        if most is not None and least > most:
            raise _never(path)
        if schema.get("uniqueItems") is True and most != 1:
            self.checked = True
        if prefix:
            wanted = max(least, len(prefix)) if most is None else max(least, min(len(prefix), most))
            if wanted > _MAX_REPEATED:
                raise _TooLarge(f"JSON schema, {path:.200}: 'minItems' can be at most {_MAX_REPEATED} here")
            parts = [*prefix, *[items] * (wanted - len(prefix))][:wanted]
            made = [self._node(part, f"{path}/{i}", depth + 1) for i, part in enumerate(parts)]
            return {"type": "array", "prefixItems": made} if made else {"type": "array", "maxItems": 0}
        res: dict[str, Any] = {"type": "array"}
        if items is not True and items is not False:
            res["items"] = self._node(items, f"{path}/items", depth + 1)
        return res | self._counts(("minItems", least), ("maxItems", most))

    def _string(self, schema: Mapping[str, Any], path: str, depth: int) -> dict[str, Any]:
        least, most = _size(schema, "minLength", path) or 0, _size(schema, "maxLength", path)
        if most is not None and least > most:
            raise _never(path)
        form = schema.get("format")
        pattern = schema.get("pattern", _FORMATS.get(form) if isinstance(form, str) else None)
        if pattern is None and form not in _OF_CONVERTER:
            return {"type": "string", **self._counts(("minLength", least), ("maxLength", most))}
        self.checked = self.checked or least > 0 or most is not None
        if pattern is None:
            return {"type": "string", "format": form}
        if not isinstance(pattern, str):
            raise OptionError(
                f"JSON schema, {path:.200}: 'pattern' must be a string; got {shown(pattern):.100}"
            )
        try:
            return self._rule(patterns.json_string(pattern))
        except patterns.Unsupported as error:
            raise Unsayable(
                f"JSON schema, {path:.200}: this 'pattern' is not supported ({error}); got {pattern!r:.100}"
            ) from None

    def _counts(self, least: tuple[str, int], most: tuple[str, int | None]) -> dict[str, Any]:
        """Of characters or items, as far as a grammar can count."""
        res: dict[str, Any] = {}
        if least[1] > 0:
            res[least[0]] = min(least[1], _MAX_REPEATED)
        if most[1] is not None and most[1] <= _MAX_REPEATED:
            res[most[0]] = most[1]
        if least[1] > _MAX_REPEATED or (most[1] or 0) > _MAX_REPEATED:
            self.checked = True
        return res

    def _number(self, schema: Mapping[str, Any], kind: str, path: str) -> dict[str, Any]:
        low, low_open = _bound(schema, "minimum", "exclusiveMinimum", path, max)
        high, high_open = _bound(schema, "maximum", "exclusiveMaximum", path, min)
        decimals = _decimals(schema, kind, path)
        if kind == "integer":
            return _integer(low, low_open, high, high_open, path)
        if low is None and high is None and decimals is None:
            return {"type": "number"}
        # as of integers: no more digits are written
        if (low or 0) > _MAX_INTEGER or (high or 0) < -_MAX_INTEGER:
            raise OptionError(f"JSON schema, {path:.200}: numbers can be at most 10^15")
        low, high = (
            bound if bound is not None and abs(bound) <= _MAX_INTEGER else None for bound in (low, high)
        )
        decimals = gbnf.DECIMALS if decimals is None else decimals
        rule = gbnf.number(low, high, low_open=low_open, high_open=high_open, decimals=decimals)
        if rule is None:
            raise _never(path)
        return self._rule(rule)


def resolved(root: Mapping[str, Any], reference: Any, path: str) -> Any:
    """What a reference in a document points to. Raises OptionError."""
    if not isinstance(reference, str) or not (reference == "#" or reference.startswith("#/")):
        raise OptionError(
            f"JSON schema, {path:.200}: unsupported $ref {shown(reference):.100}, only references into the same document "
            "are supported"
        )
    target: Any = root
    for name in reference.split("/")[1:]:
        name = name.replace("~1", "/").replace("~0", "~")
        if isinstance(target, list) and name.isdecimal() and int(name[:9]) < len(target):
            target = target[int(name[:9])]
        elif isinstance(target, Mapping) and name in target:
            target = target[name]
        else:
            raise OptionError(
                f"JSON schema, {path:.200}: cannot resolve $ref {reference:.100}: {name:.50} not found"
            )
    return target


def _never(path: str) -> Unsayable:
    return Unsayable(f"JSON schema, {path:.200}: no value can follow it")


def _types(schema: Mapping[str, Any], path: str) -> list[str]:
    """That a value may have; none: any."""
    given = schema.get("type")
    if given is None:
        return [
            kind for kind, keywords in _OF_TYPE.items() if any(keyword in schema for keyword in keywords)
        ][:1]
    types = given if isinstance(given, list) else [given]
    for kind in types:
        if kind not in _TYPES:
            raise OptionError(f"JSON schema, {path:.200}: unrecognized type {shown(kind):.100}")
    if not types:
        raise OptionError(f"JSON schema, {path:.200}: type must not be empty")
    # every integer is a number
    return [kind for kind in dict.fromkeys(types) if kind != "integer" or "number" not in types]


def _list(schema: Mapping[str, Any], keyword: str, path: str) -> list[Any]:
    value = schema.get(keyword, [])
    if not isinstance(value, list):
        raise OptionError(f"JSON schema, {path:.200}: {keyword!r} must be a list; got {shown(value):.100}")
    return value


def _size(schema: Mapping[str, Any], keyword: str, path: str) -> int | None:
    value = whole(schema.get(keyword))
    if value is None:
        return None
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise OptionError(
            f"JSON schema, {path:.200}: {keyword!r} must be a non-negative integer; got {shown(value):.40}"
        )
    return value


def _bound(
    schema: Mapping[str, Any], keyword: str, exclusive: str, path: str, tighter: Any
) -> tuple[Decimal | None, bool]:
    """The tightest one, and whether it is excluded."""
    if isinstance(schema.get(exclusive), bool):  # as the oldest draft has it
        return _decimal(schema, keyword, path), bool(schema[exclusive])
    found = [(_decimal(schema, name, path), name == exclusive) for name in (keyword, exclusive)]
    bounds = [(bound, is_open) for bound, is_open in found if bound is not None]
    if not bounds:
        return None, False
    best = tighter(bound for bound, _ in bounds)
    return best, any(is_open for bound, is_open in bounds if bound == best)


def _decimal(schema: Mapping[str, Any], keyword: str, path: str) -> Decimal | None:
    value = schema.get(keyword)
    if value is None:
        return None
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    # not isfinite() of integers: they may be too large for a float
    if not is_number or (isinstance(value, float) and not math.isfinite(value)):
        raise OptionError(f"JSON schema, {path:.200}: {keyword!r} must be a number; got {shown(value):.40}")
    return Decimal(repr(value))


def _decimals(schema: Mapping[str, Any], kind: str, path: str) -> int | None:
    """Digits behind the point that ``multipleOf`` leaves."""
    of = _decimal(schema, "multipleOf", path)
    if of is None or (kind == "integer" and of in (1, Decimal("0.1"), Decimal("0.01"))):
        return None
    digits = -of.normalize().adjusted() if of > 0 and of.normalize().as_tuple().digits == (1,) else -1
    if kind == "integer" or not 0 <= digits <= 15:
        raise Unsayable(
            f"JSON schema, {path:.200}: 'multipleOf' is supported for 1, 0.1, 0.01 and so on; got {of}"
        )
    return digits


def _integer(
    low: Decimal | None, low_open: bool, high: Decimal | None, high_open: bool, path: str
) -> dict[str, Any]:
    least = None if low is None else math.floor(low) + 1 if low_open else math.ceil(low)
    most = None if high is None else math.ceil(high) - 1 if high_open else math.floor(high)
    # no integer that the converter writes has more digits
    least = None if least is not None and least < -_MAX_INTEGER else least
    most = None if most is not None and most > _MAX_INTEGER else most
    if (least or 0) > _MAX_INTEGER or (most or 0) < -_MAX_INTEGER:
        raise OptionError(f"JSON schema, {path:.200}: integers can be at most 10^15")
    if least is not None and most is not None and least > most:
        raise _never(path)
    bounds = {"minimum": least, "maximum": most}
    return {"type": "integer", **{name: bound for name, bound in bounds.items() if bound is not None}}


def _merged(first: Mapping[str, Any], second: Any, path: str) -> dict[str, Any]:
    """What follows both."""
    if second is True:
        return dict(first)
    if not isinstance(second, Mapping):
        raise _never(path) if second is False else OptionError(f"JSON schema, {path:.200}: must be an object")
    res = dict(first)
    for key, value in second.items():
        if key not in _CONSTRAINTS:
            continue
        other = res.get(key)
        if key not in res or same_value(other, value):
            res[key] = value
        elif key == "properties" and isinstance(other, Mapping) and isinstance(value, Mapping):
            both = {name: {"allOf": [other[name], value[name]]} for name in value if name in other}
            res[key] = {**other, **value, **both}
        elif key == "required" and isinstance(other, list) and isinstance(value, list):
            res[key] = [*other, *(name for name in value if name not in other)]
        elif key in ("minimum", "exclusiveMinimum", "minLength", "minItems"):
            res[key] = max(other, value)
        elif key in ("maximum", "exclusiveMaximum", "maxLength", "maxItems"):
            res[key] = min(other, value)
        elif key == "enum" and isinstance(other, list) and isinstance(value, list):
            res[key] = [one for one in other if any(same_value(one, another) for another in value)]
        elif key == "type":
            res[key] = _common_types(other, value, path)
        else:
            raise Unsayable(f"JSON schema, {path:.200}: 'allOf' with two different {key!r} is not supported")
    return res


def _common_types(first: Any, second: Any, path: str) -> list[str]:
    one, two = (value if isinstance(value, list) else [value] for value in (first, second))
    common = [kind for kind in one if kind in two or (kind == "integer" and "number" in two)]
    common += [kind for kind in two if kind == "integer" and "number" in one and "integer" not in one]
    if not common:
        raise _never(path)
    return common


def same_value(first: Any, second: Any) -> bool:
    """As values of JSON: 1 is not true."""
    return isinstance(first, bool) == isinstance(second, bool) and bool(first == second)


def is_of_type(value: Any, kind: str) -> bool:
    if kind in ("integer", "number"):
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            return False
        return kind == "number" or isinstance(value, int) or value.is_integer()
    python = {"object": Mapping, "array": list, "string": str, "boolean": bool, "null": type(None)}
    return isinstance(value, python[kind])
