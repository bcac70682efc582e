"""Under a limit on address space, as batch systems set it, what cannot be allocated is an OutOfMemoryError or a 503."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from pyfastv.models import bundled_examples

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="RLIMIT_AS")

CLOCK = bundled_examples()[0]

# A runner under limits that leave it a little more each time, then under none again: one line for each.
RUNNER = """
import gc, resource, sys
from pyfastv import OutOfMemoryError, Runner
from pyfastv.models import bundled_examples

def used():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[0]) * resource.getpagesize()

clock, other = bundled_examples()[:2]
n_threads = int(sys.argv[1])
with Runner(n_ctx=2048, n_threads=n_threads, encoder_cache_mb=0) as runner:
    for more_kb in map(int, sys.argv[2:]):
        resource.setrlimit(resource.RLIMIT_AS, (used() + more_kb * 1024, resource.RLIM_INFINITY))
        try:
            runner.ask([clock.picture, other.picture], "Compare." * 40, max_tokens=4)
            said = "answered"
        except (MemoryError, OutOfMemoryError) as error:
            said = type(error).__name__
        resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY,) * 2)
        right = runner.ask(clock.picture, clock.question).text == clock.answer
        print(more_kb, said, "right" if right else "wrong", flush=True)
"""


def quiet() -> dict[str, str]:
    return {**os.environ, "GGML_NO_BACKTRACE": "1"}


@pytest.mark.parametrize("n_threads", [1, 2])
def test_a_runner_that_had_no_memory_answers_when_there_is_some(n_threads: int) -> None:
    limits = [0, 200, 1000, 4000, 12000, 30000]
    made = subprocess.run(
        [sys.executable, "-I", "-c", RUNNER, str(n_threads), *map(str, limits)],
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
