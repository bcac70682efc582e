"""How many threads compute where nobody says: as many as have a core, and CPU time, for themselves."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pyfastv import OptionError, Runner, _native
from pyfastv.commands import demo
from pyfastv.commands.main import main
from pyfastv.models import bundled_examples

CLOCK = bundled_examples()[0]
SIBLINGS = {0: "0,4", 1: "1,5", 2: "2-3", 3: "2-3", 4: "0,4", 5: "1,5"}
ALL = [*SIBLINGS]


def system(root: Path, files: Mapping[str, str], name: str = "core_cpus_list") -> str:
    """Three cores of two hyperthreads each, and files of control groups."""
    topology = {f"sys/devices/system/cpu/cpu{cpu}/topology/{name}": text for cpu, text in SIBLINGS.items()}
    for path, text in {**topology, **files}.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(f"{text}\n")
    return str(root)


# cores


@pytest.mark.parametrize("name", ["core_cpus_list", "thread_siblings_list"])
@pytest.mark.parametrize(
    ("cpus", "cores"), [(ALL, 3), ([0, 1, 2], 3), ([0, 4], 1), ([0, 1, 4], 2), ([2, 3], 1), ([5], 1)]
)
def test_hyperthreads_of_a_core_count_once(tmp_path: Path, name: str, cpus: list[int], cores: int) -> None:
    assert _native.usable_cores(system(tmp_path, {}, name), cpus) == cores


def test_where_the_system_does_not_say_every_cpu_is_a_core(tmp_path: Path) -> None:
    assert _native.usable_cores(str(tmp_path), [0, 1, 2, 3]) == 4


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="the system has no affinity")
def test_a_process_counts_the_cpus_that_it_may_run_on(tmp_path: Path) -> None:
    code = (
        "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})\n"
        "from pyfastv import _native; print(_native.usable_cores())"
    )
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path)
    assert int(done.stdout) == 1
    assert 1 <= _native.usable_cores() <= len(os.sched_getaffinity(0))


# quotas


@pytest.mark.parametrize(
    ("quota", "cores"), [("200000", 2), ("150000", 1), ("20000", 1), ("max", 3), ("900000", 3)]
)
@pytest.mark.parametrize(
    ("group", "file"),
    [
        ("0::/", "cpu.max"),  # of a container, which sees its own group as the root
        ("0::/app", "app/cpu.max"),
        ("0::/app/pod", "app/cpu.max"),  # what limits a group limits those in it
        ("0::/outside/of/the/container", "cpu.max"),
    ],
)
def test_a_quota_of_groups_v2(tmp_path: Path, group: str, file: str, quota: str, cores: int) -> None:
    files = {"proc/self/cgroup": group, f"sys/fs/cgroup/{file}": f"{quota} 100000"}
    assert _native.usable_cores(system(tmp_path, files), ALL) == cores


@pytest.mark.parametrize(("quota", "cores"), [(100000, 2), (70000, 1), (5000, 1), (-1, 3)])
@pytest.mark.parametrize("mount", ["cpu,cpuacct", "cpu"])
@pytest.mark.parametrize("group", ["/", "/docker/ab12"])
def test_a_quota_of_groups_v1(tmp_path: Path, mount: str, group: str, quota: int, cores: int) -> None:
    folder = f"sys/fs/cgroup/{mount}{group}".rstrip("/")
    files = {
        "proc/self/cgroup": f"5:memory:/docker/ab12\n4:{mount}:{group}\n0::/",
        f"{folder}/cpu.cfs_quota_us": str(quota),
        f"{folder}/cpu.cfs_period_us": "50000",
    }
    assert _native.usable_cores(system(tmp_path, files), ALL) == cores


def test_the_lowest_quota_of_a_group_and_those_above_it_counts(tmp_path: Path) -> None:
    files = {
        "proc/self/cgroup": "0::/a/b",
        "sys/fs/cgroup/a/b/cpu.max": "max 100000",
        "sys/fs/cgroup/a/cpu.max": "100000 100000",
        "sys/fs/cgroup/cpu.max": "200000 100000",
    }
    assert _native.usable_cores(system(tmp_path, files), ALL) == 1


@pytest.mark.parametrize("text", ["", "many few", "100000", "100000 0", "-1 100000", "0 100000"])
def test_files_that_make_no_sense_are_no_quota(tmp_path: Path, text: str) -> None:
    files = {"proc/self/cgroup": "0:\nnonsense\n::\n7:cpu:no/slash\n0::/x", "sys/fs/cgroup/x/cpu.max": text}
    assert _native.usable_cores(system(tmp_path, files), ALL) == 3


# what takes them


THREADS = """
import os, sys
from pyfastv import Runner
with Runner(encoder_cache_mb=0, n_ctx=1024, n_threads=1, **eval(sys.argv[3])) as runner:
    runner.ask(sys.argv[1], sys.argv[2], max_tokens=1)
    print(len(os.listdir("/proc/self/task")))
"""


@pytest.mark.skipif(not os.path.isdir("/proc/self/task"), reason="threads are counted in /proc")
def test_prompts_and_pictures_have_threads_of_their_own(tmp_path: Path) -> None:
    def count(options: str) -> int:
        command = [sys.executable, "-c", THREADS, str(CLOCK.picture), CLOCK.question, options]
        done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path)
        return int(done.stdout)

    assert count("{'n_threads_batch': 3}") == count("{}") + 2


@pytest.mark.parametrize("name", ["n_threads", "n_threads_batch"])
@pytest.mark.parametrize("n", [0, -1, 513, 1.5, "2"])
def test_a_number_of_threads_out_of_range_is_refused(name: str, n: Any) -> None:
    with pytest.raises(OptionError, match=name):
        Runner(**{name: n})


def test_threads_reach_the_engine(fake_engine: list[Any], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["ask", str(CLOCK.picture), "Q?", "-t", "2", "-tb", "4"]) == 0
    assert main(["ask", str(CLOCK.picture), "Q?"]) == 0
    told = [(engine.options["n_threads"], engine.options["n_threads_batch"]) for engine in fake_engine]
    assert told == [(2, 4), (0, 0)]


def test_the_demonstration_warns_of_a_busy_machine(
    fake_engine: list[Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its table compares times."""
    monkeypatch.setattr(demo, "check_machine", lambda: SimpleNamespace(right=True))
    monkeypatch.setattr(demo, "same_answer", lambda given, expected: True)
    for load, warned in ((900.0, True), (0.0, False)):
        monkeypatch.setattr(os, "getloadavg", lambda load=load: (load, 0, 0), raising=False)
        assert main(["demo"]) == 0
        assert ("wait until the machine is quiet" in capsys.readouterr().err) == warned
