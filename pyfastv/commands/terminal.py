"""A terminal's line with the keys of an editor, by prompt_toolkit."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path

from prompt_toolkit import PromptSession
from prompt_toolkit.completion import CompleteEvent, Completer
from prompt_toolkit.completion import Completion as Shown
from prompt_toolkit.document import Document
from prompt_toolkit.enums import DEFAULT_BUFFER
from prompt_toolkit.filters import has_focus
from prompt_toolkit.history import History, InMemoryHistory
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent

from .._folders import user_folder
from ..errors import DataError
from ..output import Output
from .completion import Completion

__all__ = ["KeptHistory", "prompt"]

_LINES = 1000  # that are kept, at least


def prompt(complete: Callable[[str], list[Completion]], kept: bool) -> Callable[[], str]:
    """See :func:`pyfastv.commands.lines.line_reader`. Enter ends the text, Alt-Enter begins a line of it."""
    keys = KeyBindings()
    of_text = has_focus(DEFAULT_BUFFER)  # not of a search

    @keys.add("enter", filter=of_text)
    def end(event: KeyPressEvent) -> None:
        event.current_buffer.validate_and_handle()

    @keys.add("escape", "enter", filter=of_text)
    def begin_line(event: KeyPressEvent) -> None:
        event.current_buffer.insert_text("\n")

    session: PromptSession[str] = PromptSession(
        "> ",
        multiline=True,
        prompt_continuation="  ",
        key_bindings=keys,
        completer=_Completer(complete),
        complete_while_typing=False,
        history=KeptHistory(_file()) if kept else InMemoryHistory(),
    )
    return session.prompt


class _Completer(Completer):
    def __init__(self, complete: Callable[[str], list[Completion]]) -> None:
        self._complete = complete

    def get_completions(self, document: Document, complete_event: CompleteEvent) -> Iterable[Shown]:
        if "\n" not in document.text:
            for length, text, shown in self._complete(document.text_before_cursor):
                yield Shown(text, start_position=-length, display=shown)


class KeptHistory(History):
    """In a file that the user alone can read: a text in JSON on each line. Where there is no place for it, in memory."""

    def __init__(self, file: Path) -> None:
        super().__init__()
        self._path = file

    def load_history_strings(self) -> Iterable[str]:
        """The newest first. Called by prompt_toolkit, as what follows."""
        try:
            lines = self._path.read_text("utf-8", "replace").splitlines()
        except OSError:  # none yet
            return []
        if len(lines) > 2 * _LINES:
            lines = lines[-_LINES:]
            with suppress(DataError):
                Output(self._path).write("".join(f"{line}\n" for line in lines))
        return [_text(line) for line in reversed(lines)]

    def store_string(self, string: str) -> None:
        with suppress(OSError):
            self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
            with os.fdopen(os.open(self._path, flags, 0o600), "w", encoding="utf-8") as file:
                # ASCII: splitlines() finds more ends than "\n"
                file.write(f"{json.dumps(string)}\n")


def _text(line: str) -> str:
    """Of a line that another program has written, the line."""
    try:
        text = json.loads(line)
    except ValueError:
        return line
    return text if isinstance(text, str) else line


def _file() -> Path:
    folder = user_folder("XDG_STATE_HOME", "~/.local/state", "~/Library/Application Support")
    return folder / "chat_history"
