"""Our products of quantized weights: against NumPy in double, against each other, and against llama.cpp's, to the bit."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from numpy.typing import NDArray

from pyfastv import _native

Array = NDArray[np.float32]

OURS = "CPU_PYFASTV"
PANEL = 16  # outputs; smaller matrices are llama.cpp's
SCALED = ("q4_0", "q5_0", "q8_0", "iq4_nl")  # activations have a scale for every 32
SHARED = ("q4_K", "q5_K", "q6_K")  # for every 256
TYPES = SCALED + SHARED


class Case(NamedTuple):
    type: str
    outputs: int
    columns: int
    rows: int
    threads: int = 1

    def weights(self) -> tuple[NDArray[np.uint8], Array]:
        return _native.random_weights(self.type, self.outputs, self.columns, 7)

    def inputs(self) -> Array:
        res = np.random.default_rng(self.columns).standard_normal((self.rows, self.columns), np.float32)
        res[0, :64] = 0  # a group without a largest number
        return res * np.float32(10.0) ** np.arange(-3, self.rows - 3).astype(np.float32)[:, None].clip(-3, 3)


def fuzz(seed: int, n: int) -> list[Case]:
    random = np.random.default_rng(seed)
    cases = []
    for _ in range(n):
        kind = TYPES[random.integers(len(TYPES))]
        columns = int(random.integers(1, 6)) * 256 if kind in SHARED else int(random.integers(1, 40)) * 32
        rows, outputs = int(random.integers(1, 45)), int(random.integers(1, 90))
        cases.append(Case(kind, outputs, columns, rows, int(random.integers(1, 4))))
    return cases


# rows: of one and of several tiles, fused and not, full and cut; outputs: less than a panel, one, cut, many; columns:
# less than a step, cut, more than a slice
CASES = [
    *(Case(kind, 40, 512, rows, 2) for kind in TYPES for rows in (1, 2, 4, 6, 7, 12, 18, 19, 25, 64)),
    *(Case(kind, outputs, 256, 3) for kind in TYPES for outputs in (1, 15, 16, 17, 33, 200)),
    *(
        Case(kind, 48, columns, rows)
        for kind in SCALED
        for columns in (32, 224, 288, 2080)
        for rows in (2, 21)
    ),
    *(Case(kind, 48, 2304, rows, 2) for kind in TYPES for rows in (1, 30)),
    *fuzz(3, 40),
]

CHILD = """
import sys
import numpy as np
from pyfastv import _native
from test_kernels import CASES, Case
products = {}
for i, case in enumerate(CASES):
    weights, _ = case.weights()
    for buffer in sys.argv[2:]:
        product = _native.multiply("CPU", buffer, case.type, weights, case.inputs(), case.threads)
        if product is not None:
            products[f"{i} {buffer}"] = product
np.savez(sys.argv[1], **products)
"""


def multiply(folder: Path, kernels: str, *buffers: str) -> dict[str, Array]:
    """The products of all cases by these kernels, by "case buffer"."""
    file = folder / f"{kernels}.npz"
    env = os.environ | {"PYFASTV_KERNELS": kernels, "PYTHONPATH": str(Path(__file__).parent)}
    done = subprocess.run(
        [sys.executable, "-c", CHILD, str(file), *buffers],
        env=env,
        capture_output=True,
        text=True,
        cwd=folder,
    )
    assert done.returncode == 0, done.stderr
    assert "PYFASTV_KERNELS" not in done.stderr
    with np.load(file) as arrays:
        return dict(arrays)


def kernels_here() -> list[str]:
    info = _native.kernels()
    return list(info["known"]) if info["chosen"] else []


HERE = kernels_here()
needs_kernels = pytest.mark.skipif(not HERE, reason="this machine has no kernels, or PYFASTV_KERNELS=stock")


@pytest.fixture(scope="module")
def products(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Array]]:
    folder = tmp_path_factory.mktemp("products")
    res = {kernels: multiply(folder, kernels, OURS, "CPU") for kernels in HERE}
    res["stock"] = multiply(folder, "stock", "CPU_REPACK", "CPU")
    return res


def rounded(inputs: Array, group: int, half: bool) -> NDArray[np.float64]:
    """To 8 bits with a scale for every group, as ggml's quantize_row_q8_0 and quantize_row_q8_K do."""
    groups = inputs.reshape(len(inputs), -1, group)
    most = np.abs(groups).max(-1, keepdims=True)
    with np.errstate(divide="ignore"):
        inverse = np.where(most > 0, np.float32(127) / most, np.float32(0))
    scale = most / np.float32(127)
    if half:
        scale = scale.astype(np.float16).astype(np.float32)
    return (np.rint(groups * inverse).astype(np.float64) * scale).reshape(inputs.shape)


def expected_product(
    kind: str, values: Array, inputs: Array
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The product in double, and what the errors are measured by: the sum of the absolute products."""
    x = rounded(inputs, 256 if kind in SHARED else 32, half=kind in SCALED)
    weights = values.astype(np.float64)
    return (
        np.einsum("rk,ok->ro", x, weights),
        np.einsum("rk,ok->ro", np.abs(x), np.abs(weights)) + 1e-30,
    )


@needs_kernels
@pytest.mark.parametrize("kind", TYPES)
def test_a_product_is_that_of_the_rounded_activations(
    products: dict[str, dict[str, Array]], kind: str
) -> None:
    """By the first kernels; the others' are the same."""
    wrong, found = [], products[HERE[0]]
    for i, case in enumerate(CASES):
        if case.outputs < PANEL:
            assert f"{i} {OURS}" not in found  # llama.cpp's
        elif case.type == kind:
            exact, size = expected_product(kind, case.weights()[1], case.inputs())
            for buffer in (OURS, "CPU"):
                error = float((np.abs(found[f"{i} {buffer}"] - exact) / size).max())
                if not error < 1e-6:
                    wrong.append((case, buffer, error))
    assert wrong == []


@needs_kernels
def test_all_kernels_give_the_same_bits(products: dict[str, dict[str, Array]]) -> None:
    first = products[HERE[0]]
    assert all(products[kernels].keys() == first.keys() for kernels in HERE)
    different = [
        (kernels, CASES[int(name.split()[0])], name)
        for kernels in HERE[1:]
        for name, product in products[kernels].items()
        if product.tobytes() != first[name].tobytes()
    ]
    assert different == []


@needs_kernels
@pytest.mark.parametrize("kind", ["q4_0", "iq4_nl"])
def test_bits_are_those_of_llama_cpps_repacked_products(
    products: dict[str, dict[str, Array]], kind: str
) -> None:
    compared = 0
    for i, case in enumerate(CASES):
        stock = products["stock"].get(f"{i} CPU_REPACK")
        if case.type == kind and stock is not None and case.outputs >= PANEL:
            assert stock.tobytes() == products[HERE[0]][f"{i} {OURS}"].tobytes(), case
            compared += 1
    if compared == 0:
        pytest.skip(f"this machine: llama.cpp does not repack {kind}")


@needs_kernels
@pytest.mark.parametrize("kind", TYPES)
def test_a_row_does_not_depend_on_those_beside_it(kind: str) -> None:
    weights, _ = _native.random_weights(kind, 40, 768, 1)
    inputs = np.random.default_rng(2).standard_normal((30, 768), np.float32)
    together = _native.multiply("CPU", OURS, kind, weights, inputs, 2)
    for rows in (slice(0, 1), slice(3, 5), slice(7, 21), slice(29, 30)):
        alone = _native.multiply("CPU", OURS, kind, weights, np.ascontiguousarray(inputs[rows]), 1)
        assert together[rows].tobytes() == alone.tobytes(), rows


def ask(kernels: str, expression: str, folder: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", f"from pyfastv import _native; print({expression})"]
    env = os.environ | {"PYFASTV_KERNELS": kernels}
    return subprocess.run(command, env=env, capture_output=True, text=True, check=True, cwd=folder)


def test_stock_has_no_kernels_and_no_buffers_of_ours(tmp_path: Path) -> None:
    done = ask("stock", "_native.kernels()['chosen'], _native.kernel_places()", tmp_path)
    assert done.stdout.startswith("None ")
    assert OURS not in done.stdout


def test_kernels_that_are_not_there_are_told_and_llama_cpps_run(tmp_path: Path) -> None:
    done = ask("avx1024", "_native.kernels()['chosen']", tmp_path)
    assert done.stdout == "None\n"
    assert "PYFASTV_KERNELS=avx1024: there are no such kernels" in done.stderr
