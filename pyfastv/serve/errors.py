"""Everything that goes wrong, in OpenAI's form: ``{"error": {"message", "type", "param", "code"}}``; where clients of
another protocol ask, in theirs."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse

from ..engine.job_pool import PoolBusy
from ..errors import (
    ClosedError,
    ContextLengthError,
    Error,
    ImageError,
    ModelError,
    OptionError,
    OutOfMemoryError,
)
from .addresses import address

__all__ = [
    "FORMS",
    "ApiError",
    "add_handlers",
    "as_api_error",
    "error_body",
    "error_response",
    "error_text",
    "invalid",
    "validation_error",
]

logger = logging.getLogger("pyfastv.serve")

_LONGEST = 1000  # characters of a message: it may quote the request
_TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}
_CODES = {
    401: "invalid_api_key",
    404: "not_found",
    405: "method_not_allowed",
    408: "timeout",
    413: "too_large",
    415: "unsupported_media_type",
    421: "host_not_allowed",
    429: "rate_limit_exceeded",
}


class ApiError(HTTPException):
    """An answer that is an error."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(status, message, headers)
        self.param = param
        self.code = code or _CODES.get(status)


def invalid(message: str, param: str | None = None, code: str | None = None) -> ApiError:
    """A request that cannot be answered as it is: 400."""
    return ApiError(400, message, param=param, code=code)


def as_api_error(error: Exception) -> ApiError:
    """The HTTP form of whatever was raised; what is not expected is logged, and its text kept inside."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, PoolBusy):
        seconds = str(max(1, round(error.retry_after)))
        return ApiError(429, str(error), headers={"Retry-After": seconds})
    if isinstance(error, ContextLengthError):
        return invalid(str(error), "messages", "context_length_exceeded")
    if isinstance(error, ImageError):
        return invalid(str(error), error.place or "messages", "invalid_image")
    if isinstance(
        error, (OptionError, ModelError)
    ):  # ModelError: no vision encoder, no stages, a template fails
        return invalid(str(error), code="invalid_value" if isinstance(error, OptionError) else "unsupported")
    if isinstance(error, ClosedError):
        return ApiError(503, "the server is shutting down", code="unavailable")
    if isinstance(error, RuntimeError) and "start new thread" in str(error):
        return ApiError(503, f"out of memory, or of threads: {error}", code="out_of_memory")
    if isinstance(error, (OutOfMemoryError, MemoryError)):
        return ApiError(503, str(error) or "out of memory", code="out_of_memory")
    if isinstance(error, Error):
        logger.error("%s: %s", type(error).__name__, error)
        return ApiError(500, str(error), code="computation_failed")
    if isinstance(error, HTTPException):
        return ApiError(error.status_code, str(error.detail), headers=error.headers)
    logger.error("unexpected error", exc_info=error)
    return ApiError(500, "an internal error; the server's log has it", code="internal_error")


FORMS: dict[str, Callable[[ApiError], dict[str, Any]]] = {}
"""Of errors, by what an address begins with; any other has OpenAI's."""


def error_text(error: ApiError) -> str:
    """What a client is told."""
    message = str(error.detail)
    if len(message) > _LONGEST:
        message = f"{message[:_LONGEST]}..."
    # a lone surrogate of the request cannot be sent back
    return message.encode("utf-8", "replace").decode("utf-8")


def error_body(error: ApiError) -> dict[str, Any]:
    """OpenAI's error object."""
    message = error_text(error)
    kind = _TYPES.get(
        error.status_code, "server_error" if error.status_code >= 500 else "invalid_request_error"
    )
    return {"error": {"message": message, "type": kind, "param": error.param, "code": error.code}}


def error_response(error: ApiError, path: str) -> JSONResponse:
    """The error as a response, in the form that clients of an address expect."""
    form = next((form for begin, form in FORMS.items() if address(path).startswith(begin)), error_body)
    return JSONResponse(form(error), error.status_code, error.headers)


def add_handlers(app: FastAPI) -> None:
    """Makes every error of an application one that its client can read."""

    async def from_http(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, HTTPException)
        if not isinstance(error, ApiError):
            where = f"{request.method} {request.url.path}"
            what = {404: f"no such address: {where}", 405: f"wrong method: {where}"}.get(error.status_code)
            error = ApiError(error.status_code, what or str(error.detail), headers=error.headers)
        return error_response(error, request.scope["path"])

    async def from_validation(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, RequestValidationError)
        return error_response(validation_error(error.errors()), request.scope["path"])

    async def from_any(request: Request, error: Exception) -> JSONResponse:
        return error_response(as_api_error(error), request.scope["path"])

    app.add_exception_handler(HTTPException, from_http)
    app.add_exception_handler(RequestValidationError, from_validation)
    app.add_exception_handler(Error, from_any)
    app.add_exception_handler(Exception, from_any)


def validation_error(errors: Sequence[Mapping[str, Any]]) -> ApiError:
    """One of pydantic's errors, told by its path; the others are counted."""
    first = errors[0]
    path = ".".join(str(step) for step in first["loc"] if step != "body") or "body"
    got = first.get("input")
    shown = f"; got {got!r:.100}" if isinstance(got, (str, int, float, bool)) else ""
    more = f" (and {len(errors) - 1} more)" if len(errors) > 1 else ""
    if first["type"] == "missing" and first["loc"] == ("body",):
        return invalid("the request has no body: send a JSON object", code="invalid_json")
    return invalid(f"{path}: {first['msg']}{shown}{more}", path, "invalid_value")
