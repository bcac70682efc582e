"""The lines of earlier conversations, under the arrow keys of a terminal."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from .._folders import user_folder

__all__ = ["line_history"]

_LINES = 1000


@contextmanager
def line_history(kept: bool) -> Iterator[None]:
    """Meanwhile input() has the keys of a terminal, and the lines of earlier calls. ``kept``: between processes, in a
    file of the user's."""
    try:
        import readline
    except ImportError:  # not everywhere
        yield
        return
    file = _file()
    if kept:
        with suppress(OSError):  # none yet
            readline.read_history_file(file)
    try:
        yield
    finally:
        if kept:
            with suppress(OSError):  # no place for it
                file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
                os.close(os.open(file, os.O_WRONLY | os.O_CREAT, 0o600))
                readline.set_history_length(_LINES)
                readline.write_history_file(file)


def _file() -> Path:
    folder = user_folder("XDG_STATE_HOME", "~/.local/state", "~/Library/Application Support")
    return folder / "chat_history"
