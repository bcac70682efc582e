"""The lines that ``pyfastv chat`` reads: typed at a terminal, or from a pipe or a file."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable

import click

from .completion import Completion

__all__ = ["line_reader"]

_NO_EDITOR = ("", "dumb")  # values of TERM

Complete = Callable[[str], "list[Completion]"]


def line_reader(complete: Complete, kept: bool) -> Callable[[], str]:
    """What gives the next line; it raises EOFError at the end, and KeyboardInterrupt.

    At a terminal there are the keys of an editor, Tab with ``complete`` (of the text in front of the cursor), texts of
    several lines where they are pasted, and the lines of earlier conversations, ``kept`` in a file of the user's.
    """
    if not sys.stdin.isatty():
        return lambda: _plain("")
    if not sys.stdout.isatty() or os.environ.get("TERM", "") in _NO_EDITOR:
        return lambda: _plain("> ")
    from .terminal import prompt  # here, since it takes a while to be loaded

    return prompt(complete, kept)


def _plain(prompt: str) -> str:
    try:
        return input(prompt)
    except EOFError:
        if prompt:
            click.echo()
        raise
    except KeyboardInterrupt:  # what was typed is left
        click.echo()
        raise
