"""Temporary: JSON of any form as a grammar."""

from __future__ import annotations

from typing import Any

from ..errors import OptionError

__all__ = ["json_grammar", "schema_grammar"]

_JSON = r"""
object ::= "{" ws ( string ":" ws value ("," ws string ":" ws value)* )? "}"
value ::= (object | array | string | number | "true" | "false" | "null") ws
array ::= "[" ws ( value ("," ws value)* )? "]"
string ::= "\"" [^"\\\x00-\x1f]* "\"" ws
number ::= "-"? [0-9]+ ("." [0-9]+)?
ws ::= " "?
"""


def json_grammar() -> str:
    return "root ::= object" + _JSON


def schema_grammar(schema: dict[str, Any]) -> str:
    if schema.get("type") == "array" and schema.get("items") == {"type": "boolean"}:
        boolean = '("true" | "false")'
        return f'root ::= "[" {boolean} ("," {boolean}){{{schema["minItems"] - 1},}} "]"'
    properties = schema.get("properties")
    if schema.get("type") != "object" or not isinstance(properties, dict):
        raise OptionError("json_schema: only objects")
    pairs = ' "," ws '.join(f'"\\"{name}\\":" ws {_kind(name, part)} ws' for name, part in properties.items())
    return f'root ::= "{{" ws {pairs} "}}"' + _JSON


def _kind(name: str, part: Any) -> str:
    if isinstance(part, dict) and "enum" in part:
        return "(" + " | ".join(f'"\\"{value}\\""' for value in part["enum"]) + ")"
    kinds = {
        "string": "string",
        "integer": '"-"? [0-9]+',
        "number": "number",
        "object": "object",
        "array": "array",
    }
    kind = part.get("type") if isinstance(part, dict) else None
    if kind not in kinds:
        raise OptionError(f"json_schema: properties.{name}: type {kind!r} is not supported")
    return kinds[kind]
