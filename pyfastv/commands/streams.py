"""stdin, stdout and stderr of the command line, closed, full, or of an encoding that lacks letters, too."""

from __future__ import annotations

import codecs
import errno
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import TextIOWrapper
from typing import TextIO

import click

from ..errors import printable

__all__ = ["reason_of", "stderr_lost", "tell", "usable_streams"]

_ENCODING_ERRORS = "pyfastv"
_OF_WRITING = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EBADF)


def tell(message: str = "") -> None:
    """A line on stderr; lost where that cannot be written: nothing that is told there is worth the work it is about."""
    with stderr_lost():
        click.echo(message, err=True)


@contextmanager
def stderr_lost() -> Iterator[None]:
    """What cannot be written to stderr meanwhile is lost."""
    try:
        yield
    except OSError:
        _silence(sys.stderr)


@contextmanager
def usable_streams() -> Iterator[None]:
    """Meanwhile all three are there, and take every text. Paths are written byte by byte, letters that an encoding lacks
    as escapes; what comes from stdin in another encoding than stdin's is kept, byte by byte, for whoever looks at it."""
    _open_closed()
    changed = []
    for stream, errors in (
        (sys.stdin, "surrogateescape"),
        (sys.stdout, _ENCODING_ERRORS),
        (sys.stderr, _ENCODING_ERRORS),
    ):
        # reconfigure(): what else stands in for them has ways of its own
        if isinstance(stream, TextIOWrapper) and stream.errors in ("strict", "surrogateescape"):
            changed.append((stream, stream.errors))
            stream.reconfigure(errors=errors)
    try:
        yield
    finally:
        with stderr_lost():
            sys.stderr.flush()
        for stream, before in changed:
            with suppress(OSError, ValueError):  # full, or closed meanwhile
                stream.reconfigure(errors=before)


def reason_of(error: OSError) -> str:
    """What the system refused; if it was stdout, that is silent from here on: Python writes what is left at its end."""
    try:
        sys.stdout.flush()
        # of stdout, where that is not buffered, or of another file
        if error.filename is None and error.errno in _OF_WRITING:
            sys.stdout.write("\n")
            sys.stdout.flush()
    except OSError as of_stdout:
        _silence(sys.stdout)
        return f"stdout cannot be written: {of_stdout.strerror}"
    name = error.filename
    if name is None and error.errno == errno.ENOENT and _is_nowhere():
        return "the current folder does not exist any more: change to another one"
    where = "" if name is None else f"{os.fsdecode(name) if isinstance(name, (str, bytes)) else name}: "
    return printable(f"{where}{error.strerror or error}")


def _is_nowhere() -> bool:
    try:
        os.getcwd()
    except FileNotFoundError:
        return True
    return False


def _open_closed() -> None:
    """The system gives the number of a closed stream to the next file that is opened, a model for one."""
    # stdout for reading: to write to a closed one is an error
    for number, name, flags in (
        (0, "stdin", os.O_RDONLY),
        (1, "stdout", os.O_RDONLY),
        (2, "stderr", os.O_WRONLY),
    ):
        if getattr(sys, name) is not None:
            continue
        null = os.open(os.devnull, flags)
        if null > 2 and _is_open(number):
            number = null
        elif null != number:
            os.dup2(null, number)
            os.close(null)
        setattr(sys, name, os.fdopen(number, "r" if name == "stdin" else "w", closefd=False))


def _is_open(descriptor: int) -> bool:
    try:
        os.fstat(descriptor)
    except OSError:
        return False
    return True


def _silence(stream: TextIO) -> None:
    """What is written to it from here on, and what it still holds, is lost."""
    with suppress(OSError, ValueError):  # it is no file
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, stream.fileno())
        os.close(null)


def _escape(error: UnicodeError) -> tuple[str | bytes, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    made = b""
    for letter in error.object[error.start : error.end]:
        code = ord(letter)
        # a byte of a path, as os.fsdecode() gives it
        made += (
            bytes([code - 0xDC00]) if 0xDC80 <= code <= 0xDCFF else letter.encode("ascii", "backslashreplace")
        )
    return made, error.end


codecs.register_error(_ENCODING_ERRORS, _escape)
