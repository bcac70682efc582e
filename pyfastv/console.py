"""What is written to a terminal, a pipe or a file: in any encoding; progress bars on stderr, where somebody looks at it."""

from __future__ import annotations

import codecs
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

__all__ = ["Update", "bar", "take_any_text"]


class Update(Protocol):
    """Moves a bar to ``done`` of ``total``."""

    def __call__(self, done: float, total: float = 1.0) -> None: ...


@contextmanager
def bar(title: str, enabled: bool = True) -> Iterator[Update | None]:
    """A bar that vanishes when done; gives the function that moves it, or None where none is shown."""
    console = Console(stderr=True)
    if not enabled or not console.is_terminal:
        yield None
        return
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task(title, total=None)

        def update(done: float, total: float = 1.0) -> None:
            progress.update(task, completed=done, total=total)

        yield update


def take_any_text() -> None:
    """From here on no text ends the process: what stdout's encoding does not have is written as "?", and what comes from
    stdin in another encoding than stdin's is kept, byte by byte, for whoever looks at it."""
    codecs.register_error("pyfastv", _replace)
    for stream, errors in ((sys.stdout, "pyfastv"), (sys.stdin, "surrogateescape")):
        if getattr(stream, "errors", "") == "strict":
            stream.reconfigure(errors=errors)  # type: ignore[union-attr]


def _replace(error: UnicodeError) -> tuple[bytes | str, int]:
    """Bytes of file names that are no text are written as they are."""
    assert isinstance(error, UnicodeEncodeError)
    code = ord(error.object[error.start])
    return bytes([code - 0xDC00]) if 0xDC80 <= code <= 0xDCFF else "?", error.start + 1
