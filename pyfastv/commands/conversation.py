"""The conversation on a terminal: ``pyfastv chat``."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from types import FrameType

import click

from ..engine.answer import Report
from ..engine.sampling import SamplingOptions
from ..engine.session import Session
from ..errors import Error
from ..inputs.images import Picture, load_image
from .bars import bar
from .streams import tell

__all__ = ["Repl"]

HELP = """\
Ask a question and press Enter. Ctrl-C stops the answer, Ctrl-D ends the conversation.
/image PATH   a picture for the next question
/why          what was done for the last answer
/help         this list"""


class Repl:
    """Reads questions from stdin and answers them on stdout, until stdin ends."""

    def __init__(
        self, chat: Session, pictures: Sequence[Picture], sampling: SamplingOptions, progress: bool
    ) -> None:
        """``pictures``: come with the first question. ``progress``: bars while the prompt is read."""
        self._chat = chat
        self._pictures = list(pictures)
        self._sampling = sampling
        self._progress = progress
        self._report: Report | None = None

    def run(self) -> None:
        """Until Ctrl-D."""
        with suppress(ImportError):  # for the keys of input(); not everywhere
            import readline  # noqa: F401
        interactive = sys.stdin.isatty()
        if interactive:
            tell(HELP)
        while True:
            try:
                line = input("> " if interactive else "").strip()
            except EOFError:
                if interactive:
                    click.echo()
                return
            except KeyboardInterrupt:  # what was typed is left
                click.echo()
                continue
            try:
                self._obey(line)
            except Error as error:
                tell(f"pyfastv: {' '.join(str(error).split())}")
            except KeyboardInterrupt:
                tell("\nstopped")

    def _obey(self, line: str) -> None:
        command, _, argument = line.partition(" ")
        if command == "/image":
            self._pictures.append(load_image(os.path.expanduser(argument.strip())))
        elif command == "/why":
            click.echo("nothing was asked yet" if self._report is None else self._report)
        elif line.startswith("/"):
            tell(HELP)
        elif line:
            self._answer(line)

    def _answer(self, question: str) -> None:
        with bar("Reading the prompt", self._progress) as reading:
            stream = self._chat.stream(self._pictures, question, progress=reading, **self._sampling)
        self._pictures = []  # from here on the conversation has them
        # an exception inside of the engine would cost it the context
        with _ctrl_c_noted() as noted:
            for piece in stream:
                click.echo(piece, nl=False)
                if noted:
                    break
        click.echo()
        if noted:
            tell("stopped")
        self._report = stream.stop().report


@contextmanager
def _ctrl_c_noted() -> Iterator[list[int]]:
    """A list that Ctrl-C puts something into, in place of raising."""
    noted: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        noted.append(number)

    before = signal.signal(signal.SIGINT, note)
    try:
        yield noted
    finally:
        signal.signal(signal.SIGINT, before)
