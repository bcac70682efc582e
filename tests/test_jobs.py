"""What comes of jobs, as it comes: without a model."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from pyfastv.engine.job import Job, Piece, Progress, follow


def job() -> Job:
    return Job(lambda job: None)


def followed(jobs: list[Job], work: Callable[[], None], **options: Any) -> list[Any]:
    """What follow() gives while ``work`` runs in a thread."""

    async def main() -> list[Any]:
        thread = threading.Thread(target=work)
        thread.start()
        try:
            return [item async for item in follow(jobs, **options)]
        finally:
            thread.join()

    return asyncio.run(main())


def test_pieces_of_several_jobs_come_as_they_are_made() -> None:
    first, second = job(), job()

    def work() -> None:
        for part in "ab":
            time.sleep(0.02)
            first._add(Piece(part))
            second._add(Piece(part.upper()))
        second._end("stop", None)
        time.sleep(0.02)
        first._end("length", None)

    came = followed([first, second], work)
    assert [(i, item.text) for i, item in came if item is not None] == [
        (0, "a"),
        (1, "A"),
        (0, "b"),
        (1, "B"),
    ]
    assert [i for i, item in came if item is None] == [1, 0]
    assert first._listeners == second._listeners == []


def test_an_error_is_raised_and_nobody_listens_any_more() -> None:
    broken = job()
    with pytest.raises(ValueError, match="broken"):
        followed([broken, job()], lambda: broken._end(None, None, ValueError("broken")))
    assert broken._listeners == []


def test_progress_comes_on_request_before_the_first_piece() -> None:
    def work(of: Job) -> None:
        for done in (0, 0, 5):
            of._read_on(Progress(done, 10, 0))
            time.sleep(0.05)
        of._add(Piece("a"))
        time.sleep(0.05)
        of._read_on(Progress(10, 10, 0))
        of._end("stop", None)

    one, other = job(), job()
    told = followed([one], lambda: work(one), progress=True)
    assert [item.done for _, item in told if isinstance(item, Progress)] == [0, 5]
    assert followed([other], lambda: work(other)) == [(0, Piece("a")), (0, None)]


def test_a_lone_none_comes_when_nothing_else_has_come_for_a_while() -> None:
    slow = job()

    def work() -> None:
        for _ in range(3):  # of no interest to who did not ask for it
            time.sleep(0.15)
            slow._read_on(Progress(int(time.monotonic() * 1000), 10, 0))
        slow._end("stop", None)

    came = followed([slow], work, patience=0.1)
    assert came[-1] == (0, None)
    assert 2 <= came.count(None) <= 5
    assert followed([slow], lambda: None, patience=0.1) == [(0, None)]


def test_a_nudge_makes_one_come_at_once() -> None:
    waiting = job()
    begin = time.monotonic()

    async def main() -> list[Any]:
        nudges: list[Callable[[], None]] = []
        came = []
        items = follow([waiting], patience=60.0, begun=nudges.append)
        asyncio.get_running_loop().call_later(0.05, lambda: nudges[0]())
        async for item in items:
            came.append(item)
            if item is None:
                waiting._end("stop", None)
        return came

    assert asyncio.run(main()) == [None, (0, None)]
    assert time.monotonic() - begin < 10
