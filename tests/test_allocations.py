"""Under a limit on address space, as batch systems set it, what cannot be allocated is an OutOfMemoryError or a 503."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import time
from typing import Any

import pytest
from test_option_ranges import ENGINE

from pyfastv import Sampling
from pyfastv.engine.active import Active
from pyfastv.engine.job_pool import JobPool
from pyfastv.models import bundled_examples

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="this machine is not Linux: RLIMIT_AS")

CLOCK = bundled_examples()[0]

# A runner under limits that leave it a little more each time, then under none again: one line for each.
RUNNER = """
import resource, sys
from pyfastv import OutOfMemoryError, Runner
from pyfastv.models import bundled_examples

def used():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[0]) * resource.getpagesize()

clock = bundled_examples()[0]
with Runner(n_ctx=2048, n_threads=1, encoder_cache_mb=0) as runner:
    for more_kb in map(int, sys.argv[1:]):
        resource.setrlimit(resource.RLIMIT_AS, (used() + more_kb * 1024, resource.RLIM_INFINITY))
        try:
            runner.ask(clock.picture, "Compare. " * 100, max_tokens=2)
            said = "answered"
        except (MemoryError, OutOfMemoryError) as error:
            said = type(error).__name__
        resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY,) * 2)
        right = runner.ask(clock.picture, clock.question).text == clock.answer
        print(more_kb, said, "right" if right else "wrong", flush=True)
"""

# Two threads where there is no room for the stack of the second, and then where there is.
WORKERS = """
import json, resource, sys
from pyfastv import Error, _native

def used():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[0]) * resource.getpagesize()

engine = _native.Engine(**json.loads(sys.argv[1]))
resource.setrlimit(resource.RLIMIT_AS, (used() + 3 * 2**20, resource.RLIM_INFINITY))
try:
    engine.prefill("x", [], [], None, True, 1)
except Error as error:
    print(type(error).__name__, error)
resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY,) * 2)
engine.prefill("x", [], [], None, True, 1)
print("answered", len(engine.logits()))
"""


def quiet() -> dict[str, str]:
    return {**os.environ, "GGML_NO_BACKTRACE": "1"}


def test_a_runner_that_had_no_memory_answers_when_there_is_some() -> None:
    limits = [0, 500, 2000, 9000]
    made = subprocess.run(
        [sys.executable, "-I", "-c", RUNNER, *map(str, limits)],
        env=quiet(),
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert made.returncode == 0, made.stderr[-2000:]
    lines = [line.split() for line in made.stdout.splitlines()]
    assert [int(line[0]) for line in lines] == limits
    assert "OutOfMemoryError" in {line[1] for line in lines}
    assert {line[2] for line in lines} == {"right"}


def test_workers_that_cannot_be_started_are_no_end_of_the_process() -> None:
    options = ENGINE | {"n_threads": 2}
    made = subprocess.run(
        [sys.executable, "-I", "-c", WORKERS, json.dumps(options)],
        env=quiet(),
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert made.returncode == 0, made.stderr[-2000:]
    refused, answered = made.stdout.splitlines()
    assert refused.startswith("OutOfMemoryError the system does not let 2 threads compute together")
    assert answered.startswith("answered")


@pytest.mark.parametrize(
    ("arguments", "megabytes"),
    [(["ask", str(CLOCK.picture), CLOCK.question], 320), (["serve", "--port", "0"], 400)],
    ids=["ask", "serve"],
)
def test_the_command_line_says_in_a_line_that_memory_is_short(arguments: list[str], megabytes: int) -> None:
    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_AS, (megabytes << 20,) * 2)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))

    made = subprocess.run(
        [sys.executable, "-I", "-m", "pyfastv", *arguments, "-c", "1024", "-t", "1"],
        env=quiet(),
        preexec_fn=limit,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert made.returncode == 1, made.stderr
    (said,) = made.stderr.splitlines()
    assert said.startswith("pyfastv: ")
    assert "memory" in said


def test_the_pool_ends_a_request_whose_event_finds_no_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    take, fails = Active.take, iter([True])

    def short_of_memory(self: Active, event: dict[str, Any], report: Any) -> None:
        if next(fails, False):
            raise MemoryError
        take(self, event, report)

    monkeypatch.setattr(Active, "take", short_of_memory)
    message = [{"role": "user", "content": "a"}]
    with JobPool(slots=1, n_ctx=256, n_threads=1) as pool:
        job = pool.submit(message, Sampling(max_tokens=4))
        given_up = time.monotonic() + 30
        while not job.done and time.monotonic() < given_up:
            time.sleep(0.01)
        assert job.done
        with pytest.raises(MemoryError):
            job.read()
        assert pool.submit(message, Sampling(max_tokens=4)).read()
