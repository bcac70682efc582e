"""What pyfastv raises. The native module raises these same classes."""

from __future__ import annotations

__all__ = [
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


class Error(Exception):
    """Base of everything that pyfastv raises on purpose."""


class OptionError(Error, ValueError):
    """An option, a sampling parameter or a message is outside of what is allowed."""


class ModelError(Error):
    """A model cannot be loaded: missing, truncated, not a GGUF file, or the mmproj of another model."""


class UnsupportedModelError(ModelError):
    """The model loads, but cannot be run in stages; without pruning it runs (``fastv=None``)."""


class ImageError(Error, ValueError):
    """A picture that cannot be read, or is larger than allowed."""


class DataError(Error, ValueError):
    """A dataset, a file of answers or a profile that is not as it has to be."""


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


class ClosedError(Error):
    """The runner is closed, or a stream was continued after a later request had ended it."""
