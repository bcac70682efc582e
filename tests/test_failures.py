"""What fails for one request ends that request alone: the thread, the slots and the other requests live on."""

from __future__ import annotations

import dataclasses
import mmap
import multiprocessing
import resource
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from pyfastv import ClosedError, OptionError, OutOfMemoryError, Runner, Sampling, _native
from pyfastv.engine.active import Active
from pyfastv.engine.job import Job
from pyfastv.engine.job_pool import JobPool
from pyfastv.inputs.chat import user_message

import random_gguf
import random_mmproj
from c_api import Model, contexts, llama, quiet, read

linux_only = pytest.mark.skipif(
    sys.platform != "linux", reason="this machine is not Linux, and does not limit a process's memory"
)


@contextmanager
def memory_left(n_bytes: int) -> Iterator[None]:
    """Meanwhile this process can get so much more memory; negative: none before it gives some back.

    What it is to lack must be more than 32 MB at once: malloc may have kept less."""
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (psutil.Process().memory_info().vms + n_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (hard, hard))


# the pool's thread


@pytest.fixture(scope="module")
def shared() -> Iterator[JobPool]:
    with JobPool(slots=2, n_ctx=512, n_threads=1) as pool:
        yield pool


@pytest.fixture
def pool(shared: JobPool) -> Iterator[JobPool]:
    yield shared
    assert ask(shared).wait(20)
    assert shared._slots.idle


def ask(pool: JobPool, question: str = "Hello", n: int = 8) -> Job:
    return pool.submit([user_message(question)], Sampling(max_tokens=n, grammar="root ::= [a-z ] root"))


def test_what_goes_wrong_with_an_answer_ends_it_and_no_other(
    pool: JobPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    take = Active.take

    def failing(self: Active, event: dict[str, Any], report: Any) -> None:
        if self.job is bad and len(self.job._pieces) > 2:
            raise ZeroDivisionError("a fault of ours")
        take(self, event, report)

    expected = ask(pool, n=40).read()
    monkeypatch.setattr(Active, "take", failing)
    bad, good = ask(pool, n=40), ask(pool, n=40)
    with pytest.raises(ZeroDivisionError):
        bad.read()
    assert good.read() == expected


class FailingSlots:
    """Slots of which one method raises, once."""

    def __init__(self, slots: _native.Engine, name: str, error: BaseException) -> None:
        self._slots, self._name, self._error = slots, name, error
        self.failed = threading.Event()

    def __getattr__(self, name: str) -> Any:
        if name == self._name and not self.failed.is_set():
            self.failed.set()
            raise self._error
        return getattr(self._slots, name)


def test_a_schedule_that_cannot_be_had_is_told_to_its_request(
    pool: JobPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beside another one: whether it fits cannot be asked for, so it is tried."""
    expected = ask(pool).read()
    monkeypatch.setattr(
        pool._batcher, "_slots", FailingSlots(pool._batcher._slots, "fits", MemoryError("what"))
    )
    with pool._batcher._changed:  # the thread sees both at once
        jobs = [ask(pool), pool.submit([user_message("Hello")], Sampling(max_tokens=2), fastv="fastv,k=4")]
    assert jobs[0].read() == expected
    with pytest.raises(OptionError, match="when no request runs; 1 do"):
        jobs[1].read()
    assert ask(pool).read() == expected


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_whoever_waits_for_a_thread_that_has_died_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    with JobPool(slots=1, n_ctx=512, n_threads=1) as pool:
        monkeypatch.setattr(
            pool._batcher, "_slots", FailingSlots(pool._batcher._slots, "step", GeneratorExit("what"))
        )
        with pool._batcher._changed:  # the thread sees both at once
            jobs = [ask(pool), ask(pool)]
        for job in jobs:
            assert job.wait(10)
            with pytest.raises(ClosedError, match="thread has ended"):
                job.read()
        with pytest.raises(ClosedError):
            ask(pool)
        monkeypatch.undo()


# memory that runs out


def in_a_process(work: Callable[..., None], *arguments: object) -> None:
    """One of its own: what others have given back would be found there."""
    process = multiprocessing.get_context("spawn").Process(target=work, args=arguments)
    process.start()
    process.join(120)
    assert process.exitcode == 0


@linux_only
def test_a_request_that_memory_runs_out_for_fails_alone(tmp_path: Path) -> None:
    in_a_process(a_request_runs_out_of_memory, tmp_path)


def a_request_runs_out_of_memory(folder: Path) -> None:
    """For the cosines of its picture's 3025 tokens, 37 MB."""
    large = dataclasses.replace(random_mmproj.FAMILIES["Janus-Pro"], image_size=770)
    random_mmproj.FAMILIES["Janus-Pro"] = large
    model, mmproj = random_mmproj.write_pair(folder, "Janus-Pro")
    slots = _native.Engine(
        model_path=str(model), mmproj_path=str(mmproj), n_slots=2, n_ctx=1024, n_batch=512, n_ubatch=512, n_threads=1,
        n_gpu_layers=0, flash_attn="on", type_k="f16", type_v="f16", encoder_cache_bytes=0, verbose=False, progress=None,
    )  # fmt: skip

    def start(text: str, *seeds: int) -> int:
        images = [
            np.random.default_rng(seed).integers(0, 256, (770, 770, 3), dtype=np.uint8) for seed in seeds
        ]
        request = slots.prepare(
            text.replace("*", slots.media_marker), images, [str(seed) for seed in seeds], True, max_tokens=60,
            temperature=0.0, top_k=40, top_p=0.95, min_p=0.05, typical_p=1.0, repeat_penalty=1.0, repeat_last_n=64,
            frequency_penalty=0.0, presence_penalty=0.0, seed=1, grammar=None, n_probs=0, reducer="divprune,keep=32",
        )  # fmt: skip
        return slots.start(request)

    def finish() -> dict[int, tuple[list[int], str | None, Exception | None]]:
        tokens: dict[int, list[int]] = {}
        ends = {}
        while not slots.idle:
            for event in slots.step():
                tokens.setdefault(event["id"], []).append(event["token"])
                if event["finish"] or event["error"]:
                    ends[event["id"]] = (tokens[event["id"]], event["finish"], event["error"])
        return ends

    alone = start("Hello")
    expected = finish()[alone]
    with_picture = start("*What", 1)
    picture = finish()[with_picture]
    assert picture[2] is None
    slots.reset()

    text, failing = start("Hello"), start("*What", 2)
    with memory_left(2**24):
        ends = finish()
    assert ends[text] == expected
    assert isinstance(ends[failing][2], OutOfMemoryError)
    again = start("*What", 1)
    assert finish()[again] == picture
    slots.close()


@linux_only
def test_a_runner_whose_memory_is_gone_says_so(tmp_path: Path) -> None:
    in_a_process(a_runner_loses_its_memory, tmp_path)


def a_runner_loses_its_memory(folder: Path) -> None:
    """Its KV cache is given back for those of the stages; then there is no room, neither for these nor for it."""
    random_gguf.write(folder / "model.gguf", "llama", vocab=random_mmproj.SPECIAL_TOKENS)
    with Runner(folder / "model.gguf", n_ctx=2**18, n_batch=8, n_ubatch=8, n_threads=1, fastv=None) as runner:
        size = runner._engine.report().kv_bytes_allocated[0]
        with memory_left(-size // 2), pytest.raises(OutOfMemoryError):
            runner.set_fastv("fastv,k=1,drop=0.5")
        for _ in range(2):
            with pytest.raises(OutOfMemoryError, match="load the model again"):
                runner._engine.prefill("Hello", [], [], None, True, 1, [])


@contextmanager
def memory_taken_behind(line: bytes) -> Iterator[None]:
    """Meanwhile whatever this process can still get is taken away, but for 24 MB, when llama.cpp logs this."""
    taken: list[mmap.mmap] = []

    def log(level: int, text: bytes, data: object) -> None:
        if line in text and not taken:
            left = resource.getrlimit(resource.RLIMIT_AS)[0] - psutil.Process().memory_info().vms
            taken.append(mmap.mmap(-1, left - 24 * 2**20))

    callback = llama.llama_log_callback(log)
    llama.llama_log_set(callback, None)
    try:
        with memory_left(2**28):
            yield
    finally:
        llama.llama_log_set(quiet, None)
    assert taken


@linux_only
@pytest.mark.parametrize("spec", ["", "fastv,k=2,drop=0.5"])
def test_llama_decode_returns_a_status_where_something_is_thrown(spec: str) -> None:
    in_a_process(compute_buffers_find_no_memory, spec)


def compute_buffers_find_no_memory(spec: str) -> None:
    """They are made anew. Who asks again has memory."""
    model = Model()
    question = [1, 300, 301]
    rows = np.random.default_rng(0).normal(size=(64, model.n_embd)).astype(np.float32)
    with contexts(model, n_ctx=8192) as make:
        context, undisturbed = make(spec), make(spec)
        for each in (context, undisturbed):
            assert each.picture(rows, 0) == 0
            assert each.tokens(question, 64) == 0
        expected = read(undisturbed)
        assert undisturbed.tokens(question, 67) == 0

        assert llama.llama_set_adapter_cvec(context.pointer, None, 0, model.n_embd, 0, 0) == 0
        with memory_taken_behind(b"reserving full memory module"):
            assert context.tokens(question, 67) < 0
        np.testing.assert_array_equal(read(context), expected)  # of the question before
        assert context.tokens(question, 67) == 0
        np.testing.assert_array_equal(read(context), read(undisturbed))
    model.close()


@linux_only
def test_a_picture_whose_scores_memory_runs_out_for_leaves_nothing(tmp_path: Path) -> None:
    in_a_process(scores_find_no_memory, tmp_path)


def scores_find_no_memory(folder: Path) -> None:
    """36 MB: what 2048 rows pay to 4352 tokens."""
    random_gguf.write(folder / "model.gguf", "llama")
    model = Model(folder / "model.gguf")
    rows = np.random.default_rng(0).normal(size=(2048, model.n_embd)).astype(np.float32)
    n = 2304
    with contexts(model, n_ctx=4608, n_ubatch=2048) as make:
        context = make("k=1,drop=0.5,score=all")
        assert context.tokens([1] * n, 0, logits=False) == 0
        assert context.picture(rows, n) == 0  # the compute buffers are there then
        assert context.remove(n, -1)
        with memory_left(2**22):
            assert context.picture(rows, n) < 0
        assert (context.last_position(), context.report().n_pending) == (n - 1, 0)
        assert context.picture(rows, n) == 0
    model.close()
