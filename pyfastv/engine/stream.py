"""An answer while it is being written."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress

from ..errors import ClosedError, Error
from .answer import Answer, Report
from .pieces import PieceReader
from .told import AnswerReader

__all__ = ["Stream"]


class Stream(Iterator[str]):
    """Pieces of an answer, as they are generated; made by :meth:`pyfastv.Runner.stream`.

    After the last piece ``answer`` and ``report`` are there. A stream may be left half-way. A later request that needs
    its slot ends it: continuing it then raises ClosedError.
    """

    def __init__(
        self,
        next_bytes: Callable[[], bytes | None],
        finish: Callable[[], tuple[Report, str]],
        stop: Sequence[str],
        cancel: Callable[[], None] = lambda: None,
    ) -> None:
        """``next_bytes``: of the next token, None at the end. ``finish``: report and reason, then. ``cancel``: makes
        ``next_bytes`` come to its end, in whichever thread."""
        self._next_bytes = next_bytes
        self._finish = finish
        self._cancel = cancel
        self._reader = PieceReader(stop)
        self._text: list[str] = []
        self._answer: Answer | None = None
        self.told_by: AnswerReader | None = None
        """That tells its calls of tools from its text; None: it has none."""

    def __next__(self) -> str:
        while self._answer is None:
            data = self._next_bytes()
            piece = self._reader.finish() if data is None else self._reader.feed(data)
            if piece:
                self._text.append(piece)
            if data is None or self._reader.stopped:
                report, reason = self._finish()
                reason = "stop" if self._reader.stopped or reason == "cancelled" else reason
                self._answer = Answer(self.text, report, reason)
            if piece:
                return piece
        raise StopIteration

    def read(self) -> Answer:
        """Read what is left, and give the whole answer."""
        for _ in self:
            pass
        return self.answer

    def stop(self) -> Answer:
        """End the answer where it is; what comes later is not generated. From any thread: iterating ends there."""
        if self._answer is None:
            self._cancel()
            report, _ = self._finish()
            self._answer = Answer(self.text, report, "stop")
        return self._answer

    def close(self) -> None:
        """Leave the answer where it is: nothing more is generated, and iterating ends. Can be called again."""
        with suppress(ClosedError):  # a later request has ended it, or the runner is closed
            self.stop()

    @property
    def text(self) -> str:
        """The answer as far as it has come."""
        return "".join(self._text)

    @property
    def answer(self) -> Answer:
        """The whole answer. Raises Error before the stream has ended."""
        if self._answer is None:
            raise Error("the answer is not finished: read the stream to its end first")
        return self._answer

    @property
    def report(self) -> Report:
        """What was done. Raises Error before the stream has ended."""
        return self.answer.report
