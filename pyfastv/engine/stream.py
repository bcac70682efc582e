"""An answer while it is being written."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress

from ..errors import AnswerError, ClosedError, Error
from .answer import Answer, Report
from .pieces import TokenProb, TokenReader
from .reply import Reply
from .told import AnswerReader

__all__ = ["Stream"]


class Stream(Iterator[str]):
    """Pieces of an answer, as they are generated; made by :meth:`pyfastv.Runner.stream`.

    After the last piece ``answer`` and ``report`` are there. A stream may be left half-way. A later request that needs
    its slot ends it: continuing it then raises ClosedError.
    """

    def __init__(
        self,
        next_token: Callable[[], tuple[bytes, TokenProb | None] | None],
        finish: Callable[[], tuple[Report, str]],
        stop: Sequence[str],
        cancel: Callable[[], None] = lambda: None,
        reply: Reply = Reply(),  # noqa: B008 - frozen
    ) -> None:
        """``next_token``: its bytes, and how likely it was, None at the end. ``finish``: report and reason, then.
        ``cancel``: makes ``next_token`` come to its end, in whichever thread. ``reply``: that was asked for."""
        self._next_token = next_token
        self._finish = finish
        self._cancel = cancel
        self._reply = reply
        self._reader = TokenReader(stop)
        self._text: list[str] = []
        self._probs: list[TokenProb] = []
        self._answer: Answer | None = None
        self.told_by: AnswerReader | None = None
        """That tells its calls of tools from its text; None: it has none."""
        self._failure: str | None = None

    def __next__(self) -> str:
        while self._answer is None:
            token = self._next_token()
            piece = self._reader.finish() if token is None else self._reader.feed(*token)
            if piece is not None:
                self._text.append(piece.text)
                self._probs += piece.probs
            if token is None or self._reader.stopped:
                report, reason = self._finish()
                if reason == "stop" or self._reader.stopped:
                    self._failure = self._reply.failure(self.text)
                self._end(report, "length" if reason == "length" and not self._reader.stopped else "stop")
            if piece is not None and piece.text:
                return piece.text
        failure, self._failure = self._failure, None
        if failure is not None:
            raise AnswerError(f"the answer does not follow the schema, {failure}: ask again", self.text)
        raise StopIteration

    def _end(self, report: Report, reason: str) -> None:
        self._answer = Answer(self.text, report, reason, self.logprobs)

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
            self._end(report, "stop")
        return self.answer

    def close(self) -> None:
        """Leave the answer where it is: nothing more is generated, and iterating ends. Can be called again."""
        with suppress(ClosedError):  # a later request has ended it, or the runner is closed
            self.stop()

    @property
    def text(self) -> str:
        """The answer as far as it has come."""
        return "".join(self._text)

    @property
    def logprobs(self) -> tuple[TokenProb, ...] | None:
        """Of the tokens of the answer as far as it has come; None where they were not asked for."""
        return tuple(self._probs) if self._reply.logprobs else None

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
