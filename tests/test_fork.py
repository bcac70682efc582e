"""Children of a fork: what their parent has made is told from what they make, and the examples in docs/python.md hold."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path

import pytest

from pyfastv import ClosedError, Runner, Sampling
from pyfastv.engine.job_pool import JobPool
from pyfastv.inputs.chat import user_message

ROOT = Path(__file__).resolve().parents[1]
SMALL = {"n_ctx": 512, "n_threads": 2}  # with one, ggml computes in the thread that asks
OPTIONS = {"max_tokens": 2}

pytestmark = [
    pytest.mark.skipif(not hasattr(os, "fork"), reason="this machine has no fork"),
    # Python 3.12 on, of a fork while there are threads
    pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning"),
]


def in_child(check: Callable[[], object], seconds: int = 60) -> None:
    """Run a check in a child, which is ended if it takes longer; what it raises is on stderr."""
    sys.stdout.flush()
    child = os.fork()
    if not child:
        status = 1
        try:
            check()
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)
    end = time.monotonic() + seconds
    while (done := os.waitpid(child, os.WNOHANG)) == (0, 0):
        if time.monotonic() > end:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            pytest.fail("the child hangs")
        time.sleep(0.01)
    assert done[1] == 0


@pytest.fixture(scope="module")
def used() -> Runner:
    """A runner whose threads have computed; closed by nobody, as by a child that ends."""
    runner = Runner(**SMALL)
    runner.ask(question="Hello.", **OPTIONS)
    return runner


def test_a_runner_of_the_parent_raises_in_the_child(used: Runner) -> None:
    session, stream = used.session(), used.stream(question="Hello.", **OPTIONS)

    def check() -> None:
        told = "this runner was made before this process was forked, .* make one in the child, or .* spawn"
        for use in (
            lambda: used.ask(question="Hello.", **OPTIONS),
            lambda: used.stream(question="Hello."),
            lambda: used.set_fastv(None),
            lambda: used.info,
            lambda: used.session(),
            lambda: session.ask("Hello."),
            lambda: next(stream),
            lambda: used._engine.reset(),
        ):
            with pytest.raises(ClosedError, match=told):
                use()
        assert used.closed

    in_child(check)
    assert not used.closed
    assert stream.read().text == used.ask(question="Hello.", **OPTIONS).text


def test_a_runner_held_by_another_thread_raises_in_the_child(used: Runner) -> None:
    """As where a thread computes: the child has no such thread, and its lock is held for ever."""
    from threading import Event, Thread

    held, done = Event(), Event()

    def hold() -> None:
        with used._lock:
            held.set()
            done.wait()

    thread = Thread(target=hold)
    thread.start()
    held.wait()

    def check() -> None:
        with pytest.raises(ClosedError):
            used.ask(question="Hello.")
        used.close()

    try:
        in_child(check)
    finally:
        done.set()
        thread.join()


def test_closing_and_collecting_in_the_child_leave_the_parent_alone() -> None:
    runner = Runner(**SMALL)
    before = runner.ask(question="Hello.", **OPTIONS).text

    def check() -> None:
        nonlocal runner
        with runner:
            pass
        runner.close()
        del runner

    in_child(check)
    assert runner.ask(question="Hello.", **OPTIONS).text == before
    runner.close()


def test_a_runner_made_in_the_child_answers(used: Runner) -> None:
    """GNU's OpenMP alone would wait there for the threads of the parent."""
    expected = used.ask(question="Hello.", **OPTIONS).text

    def check() -> None:
        with Runner(**SMALL) as own:
            assert own.ask(question="Hello.", **OPTIONS).text == expected

    in_child(lambda: (check(), in_child(check)))
    assert used.ask(question="Hello.", **OPTIONS).text == expected


def test_a_pool_of_the_parent_raises_in_the_child() -> None:
    hello = [user_message("Hello.", [])]
    with JobPool(slots=1, **SMALL) as pool:
        job = pool.submit(
            hello, Sampling(max_tokens=200, temperature=9.0, top_k=0, top_p=1.0, min_p=0.0, seed=1)
        )
        next(iter(job))

        def check() -> None:
            for use in (
                lambda: pool.submit(hello, Sampling()),
                pool.stats,
                job.read,
                job.wait,
                job.cancel,
                pool._slots.step,
            ):
                with pytest.raises(ClosedError, match="made before this process was forked"):
                    use()
            pool.close()

        in_child(check)
        job.cancel()
        assert pool.submit(hello, Sampling(**OPTIONS)).read()


def example(name: str) -> str:
    found = re.search(
        rf"^```python {name}\n(.*?)^```", (ROOT / "docs" / "python.md").read_text("utf-8"), re.M | re.S
    )
    assert found is not None
    return found[1]


def test_the_example_for_preloading_servers_answers_in_their_workers(used: Runner) -> None:
    """As gunicorn --preload does: imported by the parent, called in its children."""
    application: dict[str, Callable[..., list[bytes]]] = {}
    exec(example("wsgi.py"), application)

    def check() -> None:
        told: list[str] = []
        (body,) = application["app"]({"QUERY_STRING": "Hello."}, lambda status, headers: told.append(status))
        assert told == ["200 OK"]
        assert body

    in_child(check)


def test_the_example_with_processes_runs(tmp_path: Path) -> None:
    (tmp_path / "ask.py").write_text(example("ask.py"))
    command = [sys.executable, "ask.py"]
    made = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert (made.returncode, made.stderr) == (0, "")
    assert made.stdout == "['It is 9:10.', 'It is 9:10.']\n"
