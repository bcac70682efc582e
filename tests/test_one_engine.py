"""Several requests to one runner, from threads and from an event loop; and what a runner and a pool have in common."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pyfastv import ClosedError, ModelError, Report, Runner, Sampling, _native
from pyfastv.commands.demo import same_answer
from pyfastv.engine.job_pool import JobPool
from pyfastv.inputs.chat import user_message
from pyfastv.inputs.images import Frame
from pyfastv.models import bundled_examples, bundled_model

EXAMPLES = bundled_examples()
CLOCK = EXAMPLES[0]
ENDLESS = "root ::= [a-z ] root"
COVER = "k=2,drop=0.5,pick=cover"
OPTIONS: dict[str, Any] = {"n_ctx": 1024, "n_threads": 1}


@pytest.fixture(scope="module")
def two() -> Iterator[Runner]:
    with Runner(n_slots=2, **OPTIONS) as runner:
        yield runner


@pytest.fixture(scope="module")
def one() -> Iterator[Runner]:
    with Runner(**OPTIONS) as runner:
        yield runner


def is_right(runner: Runner, example: Any) -> bool:
    return same_answer(runner.ask(example.picture, example.question).text, example.answer)


# threads


def test_a_stream_goes_on_beside_requests_that_have_a_slot(two: Runner) -> None:
    stream = two.stream(CLOCK.picture, CLOCK.question)
    first = next(stream)
    assert is_right(two, EXAMPLES[3])
    assert same_answer(first + "".join(stream), CLOCK.answer)


def test_a_request_without_a_slot_ends_the_stream_that_nobody_reads(two: Runner) -> None:
    streams = [two.stream(None, "Hello", grammar=ENDLESS) for _ in range(2)]
    for stream in streams:
        next(stream)
    assert is_right(two, CLOCK)
    with pytest.raises(ClosedError, match="later request"):
        next(streams[0])
    assert next(streams[1])
    streams[1].close()


def test_conversations_with_a_slot_each_keep_what_they_hold(two: Runner) -> None:
    with two.session() as first, two.session() as second:
        for session, example in ((first, CLOCK), (second, EXAMPLES[3])):
            session.ask(example.question, example.picture)
        for session in (first, second):
            report = session.ask("Background color?").report
            assert report.cached_tokens > 576
            assert report.pictures_encoded == report.pictures_from_cache == 0


def test_each_of_five_threads_gets_its_answer(two: Runner) -> None:
    """More than there are slots, some with a schedule of their own."""
    asked = [(example, None if i % 3 == 2 else "fastv,k=2,drop=0.5") for i, example in enumerate(EXAMPLES)][
        :5
    ]

    def ask(case: Any) -> Any:
        example, fastv = case
        return two.ask(example.picture, example.question, fastv=fastv)

    with ThreadPoolExecutor(5) as threads:
        answers = list(threads.map(ask, asked))
    for (example, fastv), answer in zip(asked, answers, strict=True):
        assert same_answer(answer.text, example.answer)
        assert answer.report.visual_tokens_kept == (576 if fastv is None else 288)


def test_answers_beside_each_other_share_their_batches(two: Runner) -> None:
    """A token of each at a time: while one is answered there are as many batches as it has tokens, nearly."""
    n = 120
    together = threading.Barrier(2)

    def generate(_: int) -> Report:
        together.wait(10)
        return two.ask(None, "Hello", grammar=ENDLESS, max_tokens=n).report

    with ThreadPoolExecutor(2) as threads:
        reports = list(threads.map(generate, range(2)))
    # those of the context; nearly all use the graph of the one before
    assert all(0.7 * n < report.graphs_reused < 1.3 * n for report in reports)


def test_a_stream_is_stopped_from_another_thread(one: Runner) -> None:
    """In a token, or between two; who reads it has reached its end, with what has come so far."""
    stream = one.stream(None, "Hello", grammar=ENDLESS)
    read: list[str] = []
    thread = threading.Thread(target=lambda: read.extend(stream))
    thread.start()
    while not stream.text:
        time.sleep(0.001)
    answer = stream.stop()
    thread.join(10)
    assert not thread.is_alive()
    assert answer.text.startswith("".join(read))
    assert (answer.finish_reason, stream.answer) == ("stop", answer)
    assert is_right(one, CLOCK)


def test_a_stream_that_was_left_gives_its_cells_to_a_request_without_room() -> None:
    """The later layers have 1024 for both."""
    with Runner(n_slots=2, n_ctx=1024, n_threads=1, fastv="fastv,k=2,drop=0.75,cells=1024") as runner:
        left = runner.stream(None, "Describe the image. " * 150, grammar=ENDLESS)
        next(left)
        report = runner.ask(None, "Background color? " * 150, max_tokens=2).report
        assert report.generated_tokens == 2
        with pytest.raises(ClosedError):
            next(left)
        assert is_right(runner, CLOCK)


# an event loop


def test_tasks_wait_in_order_and_get_their_answers(one: Runner) -> None:
    async def ask() -> list[Any]:
        return await asyncio.gather(*(one.aask(each.picture, each.question) for each in EXAMPLES[::2]))

    for example, answer in zip(EXAMPLES[::2], asyncio.run(ask()), strict=True):
        assert same_answer(answer.text, example.answer)


def test_pieces_come_to_a_loop_that_goes_on_meanwhile(one: Runner) -> None:
    expected = list(one.stream(CLOCK.picture, CLOCK.question))

    async def read() -> tuple[list[str], int]:
        ticks = 0

        async def tick() -> None:
            nonlocal ticks
            while True:
                await asyncio.sleep(0.001)
                ticks += 1

        ticking = asyncio.create_task(tick())
        pieces = [piece async for piece in one.astream(CLOCK.picture, CLOCK.question)]
        ticking.cancel()
        return pieces, ticks

    pieces, ticks = asyncio.run(read())
    assert pieces == expected
    assert ticks > 3


def test_two_tasks_stream_side_by_side(two: Runner) -> None:
    async def read(example: Any) -> str:
        return "".join([piece async for piece in two.astream(example.picture, example.question)])

    async def both() -> list[str]:
        return await asyncio.gather(read(CLOCK), read(EXAMPLES[3]))

    for example, text in zip((CLOCK, EXAMPLES[3]), asyncio.run(both()), strict=True):
        assert same_answer(text, example.answer)


@pytest.mark.parametrize("delay", [0.0, 0.02, 0.1, 0.3])
def test_a_task_that_is_cancelled_stops_its_computation(one: Runner, delay: float) -> None:
    """While it waits, prepares, sees its picture, or answers."""

    async def cancel() -> float:
        task = asyncio.create_task(one.aask(CLOCK.picture, "Describe.", grammar=ENDLESS))
        await asyncio.sleep(delay)
        begin = time.perf_counter()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        return time.perf_counter() - begin

    one.set_fastv(one.fastv)  # nothing is known
    assert asyncio.run(cancel()) < 0.5
    assert is_right(one, CLOCK)


def test_leaving_an_asynchronous_stream_frees_its_slot(one: Runner) -> None:
    async def leave() -> None:
        pieces = one.astream(None, "Hello", grammar=ENDLESS)
        assert await anext(pieces)
        await pieces.aclose()
        assert (await one.aask(CLOCK.picture, CLOCK.question)).text

    asyncio.run(leave())


def test_errors_come_to_who_awaits(one: Runner) -> None:
    with pytest.raises(ValueError, match="grammar"):
        asyncio.run(one.aask(None, "Hello", grammar="root ::= ("))
    assert is_right(one, CLOCK)


# one engine


def test_what_is_kept_for_later_questions_is_counted_alike(one: Runner) -> None:
    with JobPool(slots=1, fastv=COVER, **OPTIONS) as pool:
        job = pool.submit([user_message(CLOCK.question, CLOCK.picture)], Sampling())
        job.read()
    assert job.report is not None
    mine = one.ask(CLOCK.picture, CLOCK.question, fastv=COVER).report
    assert job.report.archive_bytes == mine.archive_bytes > 576 * 576 * 4


def test_frames_of_a_video_are_one_picture_to_a_pool() -> None:
    pixels = [np.full((336, 336, 3), 60 * i, np.uint8) for i in range(3)]
    frames = [Frame(each, "video", i) for i, each in enumerate(pixels)]
    with JobPool(slots=1, n_ctx=2048, n_threads=1, encoder_cache_mb=0) as pool:
        job = pool.submit([user_message("What?", frames)], Sampling(max_tokens=1), details=True)
        job.read()
    assert job.details is not None
    assert [len(slices) for slices in job.details["pictures"]] == [3]


def test_what_a_pool_reduces_is_encoded_once() -> None:
    """There is text between the frames."""
    frames = [Frame(np.full((336, 336, 3), 80 * i, np.uint8), "video", i) for i in range(3)]
    with JobPool(slots=1, n_ctx=2048, n_threads=1, encoder_cache_mb=0, reduce="pool,window=3") as pool:
        job = pool.submit([user_message("What?", frames)], Sampling(max_tokens=1))
        job.read()
    assert job.report is not None
    assert (job.report.pictures_encoded, job.report.pictures_from_cache) == (1, 0)


def test_a_damaged_model_is_told_alike(tmp_path: Path) -> None:
    """Numbers that are none, in the middle of a matrix: the tensor is named by both."""
    path, tensor = tmp_path / "model.gguf", "blk.5.ffn_down.weight"
    data = bytearray(bundled_model().read_bytes())
    tensors = _native.gguf_header(bundled_model())["tensors"]
    sizes = {name: -(-size // 32) * 32 for name, (_, _, size) in tensors.items()}
    from_here = sum(list(sizes.values())[list(sizes).index(tensor) :])
    at = len(data) - from_here + sizes[tensor] // 2
    data[at : at + 1024] = b"\xff" * 1024
    path.write_bytes(data)

    options: dict[str, Any] = {"n_ctx": 256, "n_threads": 1, "fastv": None}
    with Runner(path, **options) as runner, pytest.raises(ModelError, match=rf"damaged.*{tensor}"):
        runner.ask(None, "Hello", max_tokens=4)
    with JobPool(path, slots=2, **options) as pool:
        jobs = [pool.submit([user_message("Hello")], Sampling(max_tokens=4)) for _ in range(2)]
        for job in jobs:
            with pytest.raises(ModelError, match=rf"damaged.*{tensor}"):
                job.read()


def test_options_have_names() -> None:
    options = _native.EngineOptions(model_path="a", n_ctx=7)
    assert (str(options.model_path), options.mmproj_path, options.n_ctx, options.n_slots) == ("a", None, 7, 1)
    assert _native.SamplingOptions(top_k=3).top_k == 3
    with pytest.raises(TypeError, match="there is no option 'n_gtx'"):
        _native.EngineOptions(n_gtx=1)
