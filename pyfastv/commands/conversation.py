"""The conversation on a terminal: ``pyfastv chat``."""

from __future__ import annotations

import difflib
import json
import re
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import Any, cast

import click

from ..engine.answer import Report
from ..engine.sampling import RequestOptions, SamplingOptions, of_request
from ..engine.session import Session
from ..errors import Error, OptionError
from ..inputs.budget import Budget
from ..inputs.images import Picture
from ..inputs.template_options import template_variables
from ..settings.presets import PRESETS
from ..settings.setting import SETTING_OPTIONS, Setting
from .bars import bar
from .completion import Completion, completions
from .lines import line_reader
from .media import dropped_paths, is_local_file, read_media
from .options import shows_progress
from .streams import tell
from .told import tell_error, tell_report

__all__ = ["Repl"]

HELP = """\
Ask a question and press Enter; Alt-Enter begins another line of it, Tab completes commands and paths.
Ctrl-C stops the answer, Ctrl-D ends the conversation.
/image PATH   a picture or a video for the next question; or drop the file on the terminal
/set          the options of answers; /set NAME VALUE changes one, as in /set temperature 0.7
/why          what was done for the last answer
/clear        a new conversation
/exit         ends
/help         this list"""

_SHORT_NAMES = {"temp": "temperature"}  # of options that the command line calls otherwise


class Repl:
    """Reads questions from stdin and answers them on stdout, until stdin ends."""

    def __init__(
        self,
        open_session: Callable[[], Session],
        pictures: Sequence[Picture],
        sampling: SamplingOptions,
        options: dict[str, Any],
    ) -> None:
        """``pictures``: come with the first question. ``options``: of the command line."""
        self._open_session = open_session
        self._chat = open_session()
        self._pictures = list(pictures)
        self._unread = False  # was there a picture for the next question that could not be read?
        self._request: dict[str, Any] = dict(sampling)
        self._options = options
        self._report: Report | None = None
        self._interactive = sys.stdin.isatty()
        self._commands: dict[str, Callable[[str], bool | None]] = {
            "/image": self._add,
            "/set": self._set,
            "/why": self._why,
            "/clear": self._clear,
            "/exit": lambda _: True,
            "/quit": lambda _: True,
            "/bye": lambda _: True,
            "/help": lambda _: tell(HELP),
        }

    def run(self) -> int:
        """Until Ctrl-D or /exit. Returns 1 where stdin is no terminal and a line of it failed, else 0."""
        try:
            return int(self._read_lines() and not self._interactive)
        finally:
            self._chat.close()

    def _read_lines(self) -> bool:
        """True if one of them failed."""
        failed = False
        if self._interactive:
            tell(HELP)
        read = line_reader(self._complete, kept=not self._options["no_history"])
        while True:
            try:
                line = read().strip()
            except EOFError:
                return failed
            except KeyboardInterrupt:
                continue
            try:
                if self._obey(line):
                    return failed
            except Error as error:
                tell_error(error, click.get_current_context().command)
                failed = True
            except KeyboardInterrupt:
                tell("\nstopped")

    def _obey(self, line: str) -> bool | None:
        """True: it was the last one."""
        word, _, argument = line.partition(" ")
        if word in self._commands:
            return self._commands[word](argument.strip())
        if line.startswith(("/", "~/", "'", '"', "file:")) and all(map(is_local_file, dropped_paths(line))):
            self._add(line)
        elif self._is_command(word, argument):
            tell(HELP)
            raise OptionError(f"there is no {word}; a question that begins with a slash needs more words")
        elif line:
            self._answer(line)
        return None

    def _complete(self, line: str) -> list[Completion]:
        settings = {name: ["default"] for name in (*SamplingOptions.__annotations__, *SETTING_OPTIONS)}
        settings["fastv"] += ["off", *PRESETS]
        return completions(line, list(self._commands), settings)

    def _is_command(self, word: str, argument: str) -> bool:
        """Or rather a question that begins with a path?"""
        if not re.fullmatch(r"/[A-Za-z?-]+", word):
            return False
        return not argument or bool(difflib.get_close_matches(word.lower(), list(self._commands), 1, 0.75))

    def _add(self, argument: str) -> None:
        if not argument:
            raise OptionError("/image needs the path of a picture, as in /image photo.jpg")
        self._unread = True
        self._pictures += read_media(dropped_paths(argument), self._options)
        self._unread = False

    def _why(self, _: str) -> None:
        click.echo("nothing was asked yet" if self._report is None else self._report)

    def _clear(self, _: str) -> None:
        self._chat.close()
        self._chat = self._open_session()
        self._pictures, self._unread, self._report = [], False, None
        tell("a new conversation: it knows no earlier picture and no earlier question")

    def _set(self, argument: str) -> None:
        if not argument:
            given = {name: value for name, value in self._request.items() if value is not None}
            click.echo("\n".join(f"{name:<18} {value}" for name, value in given.items()))
            return
        name, *values = re.split(r"\s*=\s*|\s+", argument, maxsplit=1)
        name = name.lstrip("-").replace("-", "_")
        name = _SHORT_NAMES.get(name, name)
        if name not in RequestOptions.__annotations__:
            raise OptionError(f"/set has no {name}; it has {', '.join(RequestOptions.__annotations__)}")
        if not values:
            raise OptionError(f"/set {name} needs a value, as in /set {name} VALUE; default: as without it")
        request = {key: value for key, value in self._request.items() if key != name}
        if values[0] != "default":
            request[name] = values[0] if name in (*SETTING_OPTIONS, "reasoning_effort") else _value(values[0])
        # told now, not by the next question
        of_request(cast(RequestOptions, request), Setting())
        template_variables(request)
        Budget.of_options(request, Budget())
        self._request = request

    def _answer(self, question: str) -> None:
        if self._unread:
            # at a terminal somebody has read what was wrong; in a pipe all that comes may be about the picture
            self._unread = not self._interactive
            again = ", or ask again without it" if self._interactive else ""
            raise OptionError(
                f"not asked, since its picture could not be read: /image with another path{again}"
            )
        with bar("Reading the prompt", shows_progress(self._options)) as reading:
            stream = self._chat.stream(
                self._pictures, question, progress=reading, **cast(RequestOptions, self._request)
            )
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
        if self._options["brief"]:
            tell_report(self._report, whole=False)


def _value(text: str) -> Any:
    """Numbers as numbers, "none" as None, the rest as text."""
    if text.lower() == "none":
        return None
    try:
        return json.loads(text)
    except ValueError:
        return text


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
