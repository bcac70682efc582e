"""`pyfastv info --check`: kernels that do not run, or are wrong, are found by a process that may die of them."""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from pyfastv import Error, ModelError, _native
from pyfastv.commands import demo
from pyfastv.commands.main import main
from pyfastv.models import bundled_model, check
from pyfastv.models.check import Findings, Result, build_options, run_checks
from pyfastv.models.check_child import STEPS, relative_error, tolerance

ROOT = Path(__file__).parents[1]

# A child with four cases: dies of the signal that its second one names, is wrong in the third.
CHILD = """
import json, os, resource, sys
def tell(**message):
    print(json.dumps(message), flush=True)
def second():
    print("last words", file=sys.stderr, flush=True)
    {second}
cases = [
    ("f32", lambda: None),
    ("q4_0", second),
    ("q4_K", lambda: tell(fault="differs", problem="differs by 0.3")),
    ("q8_0", lambda: tell(skip=True)),
    ("bf16", lambda: None),
]
for what, run in cases[int(sys.argv[1]):]:
    tell(case=[what, "AMX", "CPU"])
    tell(step="1 row")
    tell(step="2 rows")
    run()
tell(end=True)
"""


def run_child(second: str) -> list[Result]:
    return run_checks(lambda start: [sys.executable, "-c", CHILD.format(second=second), str(start)])


def dying_of(number: int) -> str:
    return f"resource.setrlimit(resource.RLIMIT_CORE, (0, 0)); os.kill(os.getpid(), {int(number)})"


# the machine that the tests run on


@pytest.fixture(scope="module")
def findings() -> Findings:
    return check.check_machine(str(bundled_model()))


def test_this_machine_is_right(findings: Findings) -> None:
    assert [result for result in findings.results if result.fault] == []
    assert findings.right
    assert findings.build_options == ""


def test_every_type_of_weights_is_tried_in_every_kind_of_buffer(findings: Findings) -> None:
    tried: dict[str, set[str]] = {}
    for result in findings.results:
        tried.setdefault(result.where, set()).add(result.what)
    types = {"f32", "f16", "bf16", *(f"q{n}_{k}" for n in (4, 5) for k in (0, 1)), "q8_0"}
    types |= {*(f"q{n}_K" for n in range(2, 7)), "iq4_nl", "iq4_xs", "iq3_s", "iq2_xxs", "iq1_m"}
    assert types <= tried["CPU"]
    features = _native.system_info()
    if "REPACK = 1" in features and "AVX2 = 1" in features:
        assert {"q4_0", "q4_K", "iq4_nl"} <= tried["CPU_REPACK"]
    if "AMX_INT8 = 1" in features:
        assert {"f16", "q4_0", "q8_0", "q4_K", "q6_K"} <= tried["AMX"]
    # the bundled pair, and the same as the model that was named
    assert [result.what for result in findings.results if result.where == bundled_model().name] == 2 * [
        "picture"
    ]


# gguf's Python code does not know the others
@pytest.mark.parametrize("kind", [kind for kind in _native.weight_types() if kind not in ("q1_0", "q2_0")])
def test_random_weights_are_what_their_blocks_say(kind: str) -> None:
    """Reference: gguf's own Python code."""
    weights, values = _native.random_weights(kind, 3, 512, seed=2)
    assert values.shape == (3, 512)
    known = next(known for known in gguf.GGMLQuantizationType if known.name.lower() == kind.lower())
    expected = gguf.dequantize(weights.view(np.float32) if kind == "f32" else weights, known)
    np.testing.assert_allclose(values, expected, rtol=1e-5, atol=1e-6)
    assert 0.05 < np.abs(values).mean() < 50


def test_other_weights_make_another_product() -> None:
    """A product is of what it is given."""
    (device, buffer), *_ = _native.kernel_places()[::-1]
    weights, values = _native.random_weights("q4_0", 32, 256, seed=0)
    inputs = np.random.default_rng(0).normal(size=(5, 256)).astype(np.float32)
    product = _native.multiply(device, buffer, "q4_0", weights, inputs, 1)
    assert product is not None
    assert relative_error(product, inputs.astype(float) @ values.T) < tolerance(device, "q4_0")
    assert relative_error(product, inputs.astype(float) @ values[::-1].T) > 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("CPU", "CPU", "q5", (4, 18), (1, 32)), '"q5" is not a type of weights'),
        (("CPU", "moon", "q4_0", (4, 18), (1, 32)), "no device CPU with buffers moon"),
        (("CPU", "CPU", "q4_0", (4, 18), (1, 31)), "a multiple of 32 columns; got 31"),
        (("CPU", "CPU", "q4_0", (4, 17), (1, 32)), "rows of 17 bytes; 32 columns of q4_0 have 18"),
        (("CPU", "CPU", "q4_0", (0, 18), (1, 32)), "weights must be a matrix with at least one row"),
        (("CPU", "CPU", "q4_0", (4, 18), (32,)), "inputs must be a matrix with at least one row"),
    ],
)
def test_products_that_do_not_fit_are_refused(arguments: tuple[Any, ...], message: str) -> None:
    device, buffer, kind, weights, inputs = arguments
    with pytest.raises(ValueError, match=message):
        _native.multiply(device, buffer, kind, np.zeros(weights, np.uint8), np.zeros(inputs, np.float32), 1)


# what is right


def test_rounding_is_told_from_a_fault() -> None:
    rng = np.random.default_rng(0)
    inputs, weights = rng.normal(size=(8, 512)), rng.normal(size=(512, 64))
    expected = inputs @ weights
    rounded = np.round(inputs / np.abs(inputs).max() * 127) * np.abs(inputs).max() / 127  # to 8 bits
    assert relative_error((rounded @ weights).astype(np.float32), expected) < tolerance("CPU", "q4_K")
    inputs[:, :16] = 0  # a part of a block is left out
    assert relative_error((inputs @ weights).astype(np.float32), expected) > tolerance("CPU", "q4_K")


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_product_that_is_no_number_is_a_fault(bad: float) -> None:
    expected = np.ones((2, 3))
    product = expected.astype(np.float32)
    product[1, 2] = bad
    assert not relative_error(product, expected) <= tolerance("CPU", "f16")


def test_steps_have_vectors_tiles_and_rests() -> None:
    rows = {step.rows for step in STEPS}
    assert min(rows) == 1
    assert any(n % 16 for n in rows if n > 16)
    assert any(n % 32 == 0 for n in rows)
    assert {step.threads for step in STEPS} == {1, 2}


# a process that dies


@pytest.mark.parametrize("number", [signal.SIGILL, signal.SIGSEGV, signal.SIGABRT])
def test_what_a_process_died_of_is_named_and_the_rest_is_tried(number: signal.Signals) -> None:
    results = run_child(dying_of(number))
    assert [(result.what, result.fault) for result in results] == [
        ("f32", ""),
        ("q4_0", "died"),
        ("q4_K", "differs"),
        ("bf16", ""),
    ]
    assert f"2 rows: died of {number.name}" in results[1].problem
    assert "last words" in results[1].problem
    assert results[2].problem == "2 rows: differs by 0.3"


def test_a_process_that_the_system_ends_is_no_fault_of_a_kernel() -> None:
    results = run_child(dying_of(signal.SIGKILL))
    assert (results[1].fault, "SIGKILL" in results[1].problem) == ("failed", True)
    assert build_options(results[:2], "-march=native") == ""


def test_a_process_that_raises_has_failed() -> None:
    results = run_child("raise MemoryError('none left')")
    assert (results[1].fault, results[1].problem) == (
        "failed",
        "2 rows: ended with status 1: MemoryError: none left",
    )


def test_a_process_that_dies_as_llama_starts_is_not_started_for_ever() -> None:
    """As a build for another CPU does."""
    program = """
import json, os, resource, sys
resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
if sys.argv[1] == "0":
    print(json.dumps({"case": ["start", "CPU", "CPU"]}), flush=True)
    print(json.dumps({"step": "devices"}), flush=True)
os.kill(os.getpid(), 4)
"""
    results = run_checks(lambda start: [sys.executable, "-c", program, str(start)])
    assert [(result.what, result.fault) for result in results] == [("start", "died")]
    findings = Findings(results, build_options(results, "-march=native"))
    assert (findings.starts, findings.build_options) == (False, PORTABLE)


def test_nothing_is_asked_of_a_build_that_cannot_start(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    results = [Result("start", "CPU", "CPU", "died", "devices: died of SIGILL")]
    monkeypatch.setattr("pyfastv.commands.info.check_machine", lambda *_: Findings(results, PORTABLE))
    monkeypatch.delattr("pyfastv.commands.info.gather")  # would die
    assert main(["info", "--check"]) == 1
    assert "start in CPU, devices: died of SIGILL" in capsys.readouterr().out
    assert main(["info", "--check", "--json"]) == 1
    assert list(json.loads(capsys.readouterr().out)) == ["check"]


def test_a_file_that_is_no_model_is_told_before_anything_is_tried(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delattr(check, "run_checks")
    with pytest.raises(ModelError, match=r"nothing\.gguf"):
        check.check_machine(str(tmp_path / "nothing.gguf"))


def test_a_process_that_cannot_begin_is_an_error() -> None:
    with pytest.raises(Error, match=r"the check cannot be run: its process ended with status 1: .*nothing"):
        run_checks(lambda start: [sys.executable, "-c", "raise SystemExit('nothing')"])


# what to build with instead


def fault(where: str, device: str = "CPU") -> Result:
    return Result("q4_0", where, device, "died", "2 rows: died of SIGILL")


NO_AMX = "-DCMAKE_C_FLAGS=-mno-amx-int8 -DCMAKE_CXX_FLAGS=-mno-amx-int8"
PORTABLE = "-DGGML_NATIVE=OFF"


@pytest.mark.parametrize(
    ("results", "flags", "options"),
    [
        ([], "-march=native", ""),
        ([Result("f32", "CPU", "CPU")], "-march=native", ""),
        ([fault("AMX"), fault("model.gguf", "")], "-march=native", NO_AMX),
        ([fault("AMX")], "-mavx512f -mamx-tile -mamx-int8", "-DGGML_AMX_INT8=OFF"),
        ([fault("CPU_REPACK")], "-march=native", "-DGGML_CPU_REPACK=OFF"),
        ([fault("CPU_REPACK"), fault("AMX")], "-march=native", f"-DGGML_CPU_REPACK=OFF {NO_AMX}"),
        ([fault("AMX"), fault("CPU")], "-march=native", PORTABLE),
        ([fault("model.gguf", "")], "-march=native", PORTABLE),
        ([fault("MTL0", "MTL0"), fault("CUDA1", "CUDA1")], "", "-DGGML_CUDA=OFF -DGGML_METAL=OFF"),
    ],
)
def test_options_leave_out_what_is_at_fault(results: list[Result], flags: str, options: str) -> None:
    assert build_options(results, flags) == options


def test_a_portable_build_at_fault_is_built_without_avx() -> None:
    options = build_options([fault("CPU")], "-msse4.2 -mf16c -mfma -mbmi2 -mavx -mavx2")
    assert {"-DGGML_NATIVE=OFF", "-DGGML_AVX=OFF", "-DGGML_AVX2=OFF"} <= set(options.split())


def test_options_exist() -> None:
    build = (ROOT / "third_party" / "llama.cpp" / "ggml" / "CMakeLists.txt").read_text()
    known = set(re.findall(r"option\((GGML_\w+)", build))
    results = [fault(where, where) for where in ("CUDA0", "MTL0", "Vulkan0", "BLAS", "ROCm0")]
    results += [fault(where) for where in ("AMX", "CPU", "CPU_REPACK", "CPU_KLEIDIAI")]
    for flags in ("-march=native", "-mavx2", "-mamx-int8"):
        for some in (results, [fault("AMX")]):
            named = set(re.findall(r"-D(GGML_\w+)", build_options(some, flags)))
            assert named - known == set()


@pytest.mark.skipif(platform.machine() != "x86_64", reason="this machine is not x86")
def test_the_flag_against_amx_wins_over_native() -> None:
    """CMAKE_CXX_FLAGS come before -march=native on the command line."""
    compiler = shutil.which(os.environ.get("CXX", "c++"))
    assert compiler is not None
    macros = [compiler, "-dM", "-E", "-x", "c++", os.devnull]
    plain = subprocess.run([*macros, "-march=sapphirerapids"], capture_output=True, text=True)
    if plain.returncode:
        pytest.skip("this machine's compiler does not know AMX")
    assert "__AMX_INT8__" in plain.stdout
    without = subprocess.run(
        [*macros, "-mno-amx-int8", "-march=sapphirerapids"], capture_output=True, text=True, check=True
    )
    assert "__AMX_INT8__" not in without.stdout
    assert "__AVX512VNNI__" in without.stdout


# what people see


@pytest.fixture
def broken(monkeypatch: pytest.MonkeyPatch) -> Findings:
    results = [Result("f32", "CPU", "CPU"), fault("AMX")]
    findings = Findings(results, build_options(results, "-march=native"))
    for module in ("pyfastv.commands.info", "pyfastv.commands.demo"):
        monkeypatch.setattr(f"{module}.check_machine", lambda *_: findings)
    return findings


def test_info_says_what_died_and_what_to_build_with(
    broken: Findings, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["info", "--check"]) == 1
    out = capsys.readouterr().out
    assert "right           CPU: f32\n" in out
    assert "wrong           q4_0 in AMX, 2 rows: died of SIGILL\n" in out
    assert f'CMAKE_ARGS="{NO_AMX}" pip install' in out
    assert main(["info", "--check", "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["check"] == broken.to_dict()


def test_info_is_done_where_all_is_right(
    findings: Findings, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pyfastv.commands.info.check_machine", lambda *_: findings)
    assert main(["info", "--check"]) == 0
    out = capsys.readouterr().out
    assert "right           CPU: f32, f16, " in out
    assert f"right           {bundled_model().name}: picture" in out
    assert "CMAKE_ARGS" not in out


def test_the_demonstration_says_it_instead_of_dying(
    broken: Findings, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(demo, "Runner")  # not reached
    assert main(["demo"]) == 1
    out = capsys.readouterr().out
    assert "q4_0 in AMX, 2 rows: died of SIGILL" in out
    assert NO_AMX in out


def test_the_model_that_is_named_is_tried_with_what_lies_beside_it(monkeypatch: pytest.MonkeyPatch) -> None:
    commands: list[list[str]] = []

    def remember(command: check.Command) -> list[Result]:
        commands.append(list(command(3))[4:])
        return []

    monkeypatch.setattr(check, "run_checks", remember)
    monkeypatch.setattr(_native, "gguf_header", lambda path: {})
    check.check_machine()
    check.check_machine("model.gguf", "mmproj.gguf")
    check.check_machine(None, "mmproj.gguf")
    assert commands == [
        ["3"],
        ["3", "model.gguf", "mmproj.gguf"],
        ["3", str(bundled_model()), "mmproj.gguf"],
    ]
