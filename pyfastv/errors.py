"""What pyfastv raises. The native module raises these same classes."""

from __future__ import annotations

import re

__all__ = [
    "AnswerError",
    "ClosedError",
    "ContextLengthError",
    "DataError",
    "DecodeError",
    "Error",
    "ImageError",
    "ModelError",
    "OptionError",
    "OutOfMemoryError",
    "UnsupportedModelError",
]

_SURROGATES = re.compile("[\ud800-\udfff]")


def printable(text: str) -> str:
    """``text`` with lone surrogates as escapes: what Python makes of the bytes of a path that is not UTF-8 ("\\xe9")."""

    def escape(found: re.Match[str]) -> str:
        code = ord(found[0])
        return f"\\x{code - 0xDC00:02x}" if 0xDC80 <= code <= 0xDCFF else f"\\u{code:04x}"

    return _SURROGATES.sub(escape, text)


class Error(Exception):
    """Base of everything that pyfastv raises on purpose. Its text can be printed and sent, whatever file it names."""

    def __str__(self) -> str:
        return printable(super().__str__())


class OptionError(Error, ValueError):
    """An option, a sampling parameter or a message is outside of what is allowed."""


class ModelError(Error):
    """A model cannot be loaded: missing, truncated, not a GGUF file, or the mmproj of another model."""


class UnsupportedModelError(ModelError):
    """The model loads, but cannot be run in stages; without pruning it runs (``fastv=None``)."""


class ImageError(Error, ValueError):
    """A picture that cannot be read, or is larger than allowed.

    ``place``: which of several it is, as the message says; empty: there is no other.
    """

    def __init__(self, message: str = "", place: str = "") -> None:
        super().__init__(message)
        self.place = place


class DataError(Error, ValueError):
    """A dataset, a file of answers, a profile or a saved conversation that is not as it has to be, or an output that
    cannot be written."""


class ContextLengthError(Error, ValueError):
    """The prompt, pictures included, does not fit into the context.

    ``n_tokens``: length of the prompt (of a text far too long: at least so many), ``n_ctx``: size of the context, both in
    tokens; None where unknown.
    """

    def __init__(self, message: str, n_tokens: int | None = None, n_ctx: int | None = None) -> None:
        super().__init__(message)
        self.n_tokens = n_tokens
        self.n_ctx = n_ctx


class OutOfMemoryError(Error, MemoryError):
    """The model, its context or a computation could not get the memory that it needs."""


class DecodeError(Error):
    """llama.cpp could not evaluate a batch."""


class AnswerError(Error):
    """An answer came to its end and does not follow its ``response_format`` in something that a grammar cannot say.

    ``text``: the answer.
    """

    def __init__(self, message: str, text: str = "") -> None:
        super().__init__(message)
        self.text = text


class ClosedError(Error):
    """The runner is closed, or made before this process was forked, or a stream was continued after a later request had
    ended it."""
