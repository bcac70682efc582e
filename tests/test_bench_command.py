"""pyfastv bench: the command itself, on the bundled model and on what is wrong."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import pyfastv
from pyfastv import _native
from pyfastv.bench import measure as measuring
from pyfastv.bench.geometry.files import files_of
from pyfastv.bench.summary import PARTS
from pyfastv.bench.worker import start_library_worker, start_runner_worker
from pyfastv.commands import bench
from pyfastv.commands.main import main
from pyfastv.errors import Error
from pyfastv.models import bundled_examples, bundled_mmproj, bundled_model
from pyfastv.settings.setting import parse_settings

MODEL, MMPROJ = str(bundled_model()), str(bundled_mmproj())
PICTURE = str(bundled_examples()[0].picture)
STOCK_LIBRARIES = Path(
    os.environ.get("PYFASTV_STOCK_LIB", str(Path(__file__).parents[1] / "build" / "stock" / "lib"))
)


@pytest.fixture
def quick() -> list[str]:
    return ["--rounds", "1", "--threads", "1", "--generate", "2", "--prompt-tokens", "20"]


def test_the_command_measures_the_bundled_model(
    quick: list[str], capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    json_file, plot_file = tmp_path / "bench.json", tmp_path / "bench.png"
    outputs = ["--json", str(json_file), "--plot", str(plot_file)]
    stock = ["--stock", str(STOCK_LIBRARIES)] if STOCK_LIBRARIES.exists() else []
    assert main(["bench", "--settings", "k=2,drop=0.75", *quick, *outputs, *stock]) == 0
    printed = capfd.readouterr()
    assert "576 visual and 20 text tokens" in printed.out
    assert "one round: no telling" in " ".join(printed.out.split())
    made = json.loads(json_file.read_text())
    assert set(made) == {
        *("machine", "options", "prompt", "stock", "rule", "interrupted", "summary", "measurements"),
    }
    rows = {row["setting"]: row for row in made["summary"]}
    assert set(rows) == {"off", "k=2,drop=0.75", *(["stock"] if stock else [])}
    assert made["options"]["n_ctx"] == 1024  # 576 + 20 + 2, and 256 to spare, in steps of 256
    off, pruned = rows["off"], rows["k=2,drop=0.75"]
    assert pruned["visual_tokens_in_stage"] == [576, 144]
    assert pruned["kv_bytes"] < off["kv_bytes"]
    # the whole and its parts, each from its own clock
    for row in rows.values():
        times = {name: spread["median"] for name, spread in row["times"].items()}
        assert sum(times[part] for part in PARTS) == pytest.approx(times["first_token_ms"], rel=0.05)
        assert times["prefill_ms"] > 0
        assert times["encoder_ms"] > 0
        assert times["first_token_cpu_ms"] > 0
        assert row["peak_bytes"] > 40e6  # of weights
    assert pruned["times"]["later_ms"]["median"] > 0
    # the theory is 2.6; half of it is beyond what a busy machine makes of it
    assert pruned["ratios"]["off"]["prefill"]["median"] > 1.3
    assert pruned["theory"]["off"]["prefill"] == pytest.approx(2.6, abs=0.2)
    assert plot_file.read_bytes().startswith(b"\x89PNG")


@pytest.mark.skipif(
    not STOCK_LIBRARIES.exists(), reason=f"{STOCK_LIBRARIES}: no stock libraries: `make stock` builds them"
)
def test_stock_libraries_answer_in_a_process_of_their_own() -> None:
    options = {"model": MODEL, "mmproj": MMPROJ, "picture": PICTURE, "prompt": "<image>aaaa"}
    with start_library_worker("stock", options | {"libraries": str(STOCK_LIBRARIES)}) as worker:
        info = worker.request("info")
        assert not info["has_fastv"]
        assert info["n_visual"] == 576
        measured = worker.request("measure", generate=1)
        assert measured["first_token_ms"] > measured["prefill_ms"] + measured["encoder_ms"]
        with pytest.raises(Error, match="not pyfastv's libraries"):
            worker.request("attach", spec="k=2")
        assert worker.request("info") == info  # it goes on


def test_our_own_libraries_are_refused_as_stock(quick: list[str], capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "--stock", str(pyfastv.lib_path()), "--settings", "off", *quick]) == 1
    assert "not stock ones" in capfd.readouterr().err


def test_a_folder_without_libraries_is_told(
    quick: list[str], capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert main(["bench", "--stock", str(tmp_path), "--settings", "off", *quick]) == 1
    assert "no libllama" in capfd.readouterr().err


def test_what_the_process_refuses_is_told(quick: list[str], capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "--settings", "k=12,drop=0.5", *quick]) == 1
    error = capfd.readouterr().err
    assert "12" in error.splitlines()[-1]
    assert "Traceback" not in error


def test_a_process_that_dies_is_told() -> None:
    options = {
        **{"model": MODEL, "mmproj": MMPROJ, "picture": PICTURE, "n_ctx": 1024, "n_threads": 1},
        **{"n_gpu_layers": 0, "flash_attn": "auto"},
    }
    with start_runner_worker(options) as worker:
        worker._process.send_signal(signal.SIGKILL)
        with pytest.raises(Error, match="out of memory"):
            worker.request("measure", generate=1)


@pytest.mark.parametrize(
    ("arguments", "status", "told"),
    [
        (["--settings", "k=0"], 1, "k"),
        (["--settings", "turbo + turbo"], 1, "twice"),
        (["--rounds", "0"], 2, "--rounds"),
        (["--geometry", "llava-3"], 1, "llava-1.5-7b"),
        (["--geometry", "tiny", "--type", "Q1"], 1, "Q4_0"),
        (["model.gguf", "--geometry", "tiny"], 2, "excludes"),
        (["model.gguf", "--layers", "2"], 2, "--layers needs --geometry"),
        (["--geometry", "tiny", "--layers", "5"], 1, "of tiny there can be 2 to 4"),
        (["model.gguf", "--mmproj", "nothing.gguf"], 1, "no such file"),
        (["--picture", "nothing.png"], 1, "nothing.png"),
        (["--json", "nowhere/out.json"], 2, "no folder"),
        (["--stock", "nowhere"], 2, "nowhere"),
    ],
)
def test_bad_input_is_told_before_anything_is_measured(
    arguments: list[str],
    status: int,
    told: str,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def started(*_: Any) -> None:
        raise AssertionError("a process was started")

    monkeypatch.setattr(measuring, "start_runner_worker", started)
    assert main(["bench", *arguments]) == status
    assert told in capfd.readouterr().err


def test_an_extra_that_is_missing_is_named(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for module, arguments in (("matplotlib", ["--plot", "plot.png"]), ("gguf", ["--geometry", "tiny"])):
        monkeypatch.setitem(sys.modules, module, None)
        assert main(["bench", *arguments]) == 1
        assert "pyfastv[bench]" in capfd.readouterr().err


def test_ctrl_c_prints_what_was_measured() -> None:
    # a parent may have made SIGINT ignored
    code = (
        f"import signal, sys; sys.path[:] = {sys.path!r}; "
        "signal.signal(signal.SIGINT, signal.default_int_handler); "
        "from pyfastv.commands.main import main; sys.exit(main(sys.argv[1:]))"
    )
    options = [
        "--rounds",
        "1000",
        "--threads",
        "1",
        "--generate",
        "0",
        "--n-ctx",
        "1024",
        "--settings",
        "k=1,drop=1",
    ]
    process = subprocess.Popen(
        [sys.executable, "-c", code, "bench", *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stderr is not None
    lines = iter(process.stderr.readline, "")
    assert any("round 2/1000: off" in line for line in lines)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does it: to all of the group
    out, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "interrupted" in errors
    assert "Traceback" not in errors
    assert "times as fast as off" in out


def test_the_geometries_are_listed(capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "--list"]) == 0
    assert "llava-1.5-13b    40 layers, 5120 wide, 40 heads" in capfd.readouterr().out


PAGES = [
    Path(__file__).parents[1] / name
    for name in ("docs/performance.md", "docs/pin.md", "benchmarks/README.md")
]


def test_the_commands_of_the_pages_are_understood(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "build" / "stock" / "lib").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    commands = [
        shlex.split(line, comments=True)[2:]
        for page in PAGES
        for line in page.read_text("utf-8").splitlines()
        if line.strip().startswith("pyfastv bench ")
    ]
    assert len(commands) >= 6
    for arguments in commands:
        options = bench.bench.make_context("bench", arguments).params
        parse_settings(options["settings"])
        if options["geometry"] is not None:
            files_of(options["geometry"], tmp_path, options["type_name"], layers=options["layers"])


def test_the_title_says_which_layers_were_measured() -> None:
    assert bench._first_layers({"layers": None, "geometry": "tiny"}) == ""
    assert bench._first_layers({"layers": 2, "geometry": "tiny"}) == ", the first 2 of 4 layers alone"


def test_a_busy_machine_is_warned_of(monkeypatch: pytest.MonkeyPatch) -> None:
    # of those that the process may use, which share a physical core with others of the machine
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    monkeypatch.setattr(_native, "usable_cores", lambda: 4)
    monkeypatch.setattr(os, "getloadavg", lambda: (3.0, 0, 0), raising=False)
    assert bench.busy_warning(1) is None
    assert "quiet" in (bench.busy_warning(4) or "")
