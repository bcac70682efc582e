"""A request's body: bytes to JSON, with limits on what its parsed form can weigh."""

from __future__ import annotations

import json
from collections.abc import Callable, Coroutine
from typing import Any, NoReturn

from anyio import to_thread
from fastapi import Request, Response
from fastapi.routing import APIRoute

from .errors import ApiError, invalid
from .settings import Settings

__all__ = ["BoundedJsonRoute", "parse_json"]

_IN_A_THREAD = 2**20  # bytes: parsing larger bodies would hold up the others
_WHOLE_BELOW = 2.0**63


def parse_json(body: bytes, settings: Settings) -> Any:
    """The value of a JSON text. Raises ApiError: not JSON, NaN or infinite, too deep, or too many values."""
    nodes = sum(body.count(sign) for sign in (b"[", b"{", b","))
    if nodes > settings.max_nodes:
        raise ApiError(
            413,
            f"the body has more than {settings.max_nodes:,} brackets and commas: make it smaller, or see "
            "--max-body-mb, which allows 8,192 of them for each MiB",
        )
    try:
        value = json.loads(body, parse_constant=_refuse_constant, parse_float=_number)
    except ApiError:
        raise
    except RecursionError:
        raise _too_deep(settings) from None
    except UnicodeDecodeError as error:
        raise invalid(f"the body is not UTF-8: {error.reason}", code="invalid_json") from None
    except ValueError as error:  # JSONDecodeError, and integers of thousands of digits
        raise invalid(f"the body is not JSON: {error}", code="invalid_json") from None
    _check_depth(value, settings)
    if b"\\u" in body:
        _check_texts(value)
    return value


def _number(text: str) -> float | int:
    """JSON has one kind of number, and clients in languages with one write 5 as 5.0."""
    value = float(text)
    return int(value) if value.is_integer() and abs(value) < _WHOLE_BELOW else value


def _refuse_constant(name: str) -> NoReturn:
    raise invalid(f"{name} is not JSON: numbers are finite", code="invalid_json")


def _too_deep(settings: Settings) -> ApiError:
    return invalid(f"the body is nested deeper than {settings.max_depth}", code="invalid_json")


def _check_depth(value: Any, settings: Settings) -> None:
    level = [value]
    for _ in range(settings.max_depth + 1):
        level = [
            child
            for parent in level
            if isinstance(parent, (dict, list))
            for child in (parent.values() if isinstance(parent, dict) else parent)
        ]
        if not level:
            return
    raise _too_deep(settings)


def _check_texts(value: Any) -> None:
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise invalid(
            "a text of the body has half of a character (a lone surrogate)", code="invalid_json"
        ) from None


class _Request(Request):
    async def json(self) -> Any:
        if not hasattr(self, "_parsed"):
            body = await self.body()
            settings: Settings = self.app.state.settings
            if len(body) > _IN_A_THREAD:
                self._parsed = await to_thread.run_sync(parse_json, body, settings)
            else:
                self._parsed = parse_json(body, settings)
        return self._parsed


class BoundedJsonRoute(APIRoute):
    """A route that reads its body by :func:`parse_json`."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handler = super().get_route_handler()

        async def bounded(request: Request) -> Response:
            return await handler(_Request(request.scope, request.receive))

        return bounded
