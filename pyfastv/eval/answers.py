"""The file of answers: a JSON object a line, appended to while a run goes on, and read when it is resumed."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

from ..errors import DataError, OptionError
from ..output import Output
from .settings import same_as

__all__ = ["AnswerFile", "Given"]


@dataclass(frozen=True)
class Given:
    """What was answered to one question with one setting."""

    setting: str
    id: str
    """Of the question."""
    answer: str
    share: float | None
    """Retained share of the visual tokens that the encoder would make, mean over the layers; None without a picture."""
    asked: str | None = None
    """Fingerprint of the model, the text and the options it was asked with; None: of a file that does not say."""
    visual: int | None = None
    """Visual tokens that entered the language model; None: of a file that does not say."""


class AnswerFile:
    """Answers by setting and question, in memory and, with a path, in a file that every answer is added to.

    A last line that was cut off is removed when the next answer is written. Settings that mean the same share their
    answers, however they are written.
    Lines whose setting this version does not know are left alone. A pipe or a device is written to, and not read.
    """

    def __init__(self, path: str | os.PathLike[str] | None = None) -> None:
        """Raises DataError: the file cannot be read or written, or a line before the last is not an answer."""
        self._path = None if path is None else Path(os.fsdecode(path))
        self._output: Output | None = None
        self._given: dict[tuple[str, str], Given] = {}
        self._cut_at: int | None = None  # bytes of whole lines, where there may be more
        if self._path is None:
            return
        self._output = Output(self._path)
        try:
            text = self._path.read_bytes() if self._path.is_file() else b""
            complete = text.rpartition(b"\n")[0]
            for number, line in enumerate(complete.splitlines(), 1):
                self._read(line, f"{self._path}, line {number}")
            self._cut_at = len(complete) + bool(complete)
        except OSError as error:
            raise DataError(f"{self._path}: cannot be read: {error.strerror}") from None

    def _read(self, line: bytes, where: str) -> None:
        if not line.strip():
            return
        try:
            value = json.loads(line)
            given = Given(
                value["setting"],
                str(value["id"]),
                value["answer"],
                value["share"],
                value.get("asked"),
                value.get("visual"),
            )
            if not isinstance(given.setting, str) or not isinstance(given.answer, str):
                raise TypeError
        except (ValueError, KeyError, TypeError, RecursionError):
            raise DataError(f'{where}: is not {{"setting", "id", "answer", "share"}}') from None
        try:
            setting = same_as(given.setting)
        except OptionError:
            return
        self._given[setting, given.id] = given

    def find(self, setting: str, question: str, asked: str | None = None) -> Given | None:
        """The answer, if there is one. Raises DataError when it was asked otherwise than ``asked`` (None: any)."""
        given = self._given.get((same_as(setting), question))
        if given is not None and None not in (asked, given.asked) and asked != given.asked:
            raise DataError(
                f"{self._path}: question {question} was asked otherwise there: another model, text or number of tokens. "
                "Use another file of answers"
            )
        return given

    def add(self, answers: Iterable[Given]) -> None:
        """Keep them, and write them before returning. Raises DataError: they cannot be written; those before are."""
        lines, n_before = [], len(self._given)
        for given in answers:
            self._given[same_as(given.setting), given.id] = given
            values = asdict(given)
            for name in ("asked", "visual"):
                if values[name] is None:
                    del values[name]
            lines.append(json.dumps(values) + "\n")
        if self._output is None:
            return
        try:
            self._append("".join(lines), self._output)
        except DataError as error:
            raise DataError(
                f"{error}; {n_before} answers are there: when it can be written, the same command goes on from them"
            ) from None

    def _append(self, text: str, output: Output) -> None:
        with output.appended() as file:
            if stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                if self._cut_at is not None:
                    file.truncate(self._cut_at)
                self._cut_at = file.seek(0, os.SEEK_END)
            file.write(text.encode())
        self._cut_at = None
