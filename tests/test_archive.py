"""What a context keeps of its visual tokens: counted as it is, freed with what it belongs to, and told at once."""

from __future__ import annotations

import ctypes
import gc
import time
from collections.abc import Callable, Iterator

import numpy as np
import pytest

import pyfastv

import random_gguf
from c_api import Context, Model, contexts, llama, read
from decoding import random_llama

ROW = 4 * random_gguf.WIDTH
ggml = ctypes.CDLL(str(next(pyfastv.lib_path().glob("libggml-base.*"))))
ggml.ggml_get_name.argtypes, ggml.ggml_get_name.restype = [ctypes.c_void_p], ctypes.c_char_p
QUESTION = [40, 41, 42, 43, 44, 45]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Model]:
    with random_llama(tmp_path_factory.mktemp("archive")) as model:
        yield model


@pytest.fixture
def make(model: Model) -> Iterator[Callable[..., Context]]:
    with contexts(model) as make:
        yield make


def rows_of(n: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(n, random_gguf.WIDTH)).astype(np.float32)


class _Mallinfo(ctypes.Structure):
    _fields_ = [
        (name, ctypes.c_size_t)
        for name in [
            "arena",
            "ordblks",
            "smblks",
            "hblks",
            "hblkhd",
            "usmblks",
            "fsmblks",
            "uordblks",
            "fordblks",
            "keepcost",
        ]
    ]


def in_use() -> int:
    """Bytes that malloc has given out."""
    mallinfo = getattr(ctypes.CDLL(None), "mallinfo2", None)
    if mallinfo is None:
        pytest.skip("this machine's C library is not glibc, and does not tell what malloc has given out")
    mallinfo.restype = _Mallinfo
    gc.collect()
    info = mallinfo()
    return int(info.uordblks + info.hblkhd)


def test_one_row_that_stays_does_not_keep_the_others_of_its_ubatch(make) -> None:
    """8 times 512 rows, of which one stays, are 2 MiB if it does."""
    context = make("fastv,k=1,drop=0.5")
    n_visual, sizes = 512, []
    for i in range(12):
        context.begin_picture()
        assert context.picture(rows_of(n_visual, i), i) == 0
        assert context.remove(i + 1, i + n_visual)
        assert context.report().n_pending == i + 1
        sizes.append(in_use())
    assert sizes[-1] - sizes[3] < 8 * n_visual * ROW // 4


@pytest.mark.parametrize(("score", "n_voters"), [("last", 1), ("question-max", len(QUESTION))])
def test_what_rows_paid_to_tokens_is_counted(make, score: str, n_voters: int) -> None:
    context = make(f"k=1,drop=0.5,score={score}")
    n_visual = 64
    assert context.picture(rows_of(n_visual), 0) == 0
    paid_by_picture = 4 * n_visual  # its last row
    assert context.report().archive_bytes == n_visual * ROW + paid_by_picture
    assert context.tokens(QUESTION, n_visual) == 0
    expected = (n_visual + len(QUESTION)) * ROW + paid_by_picture + n_voters * 4 * n_visual
    assert context.report().archive_bytes == expected
    read(context)
    assert context.report().archive_bytes == expected  # kept for taking the choice back


def test_a_copy_shares_rows_and_a_sequence_that_ends_gives_back_its_own(make) -> None:
    context = make("k=1,drop=0.5,pick=cover", n_seq_max=2)
    assert context.picture(rows_of(64), 0) == 0
    assert context.tokens(QUESTION, 64) == 0
    read(context)
    alone = context.report()
    context.copy(0, 1)
    both = context.report()
    paid = 4 * 64 * 64 + 4 * 64 * len(QUESTION)  # of several sequences every row of a ubatch may be read
    assert 0 <= both.archive_bytes - alone.archive_bytes <= paid
    assert both.similarity_bytes == alone.similarity_bytes == 4 * 64 * 64
    assert context.remove(0, -1, seq=0)
    assert (context.report().archive_bytes, context.report().similarity_bytes) == (
        alone.archive_bytes,
        alone.similarity_bytes,
    )
    assert context.remove(0, -1, seq=1)
    assert (context.report().archive_bytes, context.report().similarity_bytes) == (0, 0)


def test_a_state_that_is_loaded_is_counted_as_what_was_saved(make) -> None:
    context, other = make("k=1,drop=0.5,score=question-max"), make("k=1,drop=0.5,score=question-max")
    assert context.picture(rows_of(64), 0) == 0
    assert context.tokens(QUESTION, 64) == 0
    read(context)
    assert other.load(context.save()) > 0
    assert other.report().archive_bytes == context.report().archive_bytes


def test_memory_is_flat_over_questions_that_take_each_others_place(make) -> None:
    context = make("k=1,drop=0.5,score=question-max,pick=cover,weigh;k=3,drop=0.75,pick=cover,recall=0.1")
    assert context.picture(rows_of(200), 0) == 0
    sizes, reports = [], []
    for i in range(40):
        assert context.tokens([(7 * i + j) % 500 + 3 for j in range(6)], 200) == 0
        assert context.tokens([int(read(context).argmax())], 206) == 0
        read(context)
        assert context.tokens([(5 * i + j) % 500 + 3 for j in range(4)], 207) == 0
        read(context)
        report = context.report()
        reports.append((report.archive_bytes, report.similarity_bytes))
        sizes.append(in_use())
        assert context.remove(200, -1)
    assert max(report[0] for report in reports[20:]) <= max(report[0] for report in reports[:20])
    assert max(sizes[20:]) - max(sizes[:20]) < 50_000


def test_a_report_does_not_take_longer_for_more_rows(make) -> None:
    def seconds(context: Context) -> float:
        times = []
        for _ in range(200):
            begin = time.perf_counter()
            context.report()
            times.append(time.perf_counter() - begin)
        return min(times)

    few, many = make("fastv,k=1,drop=0.5"), make("fastv,k=1,drop=0.5", n_ctx=4096)
    assert few.picture(rows_of(16), 0) == 0
    assert many.picture(rows_of(4000), 0) == 0
    assert seconds(many) < 2 * seconds(few) + 20e-6


def test_behind_a_first_cut_only_rows_that_vote_are_scored(model, make) -> None:
    """And no rows of the picture in the same ubatch."""
    scored = []

    def look(node: int, ask: bool, data: object) -> bool:
        name = ggml.ggml_get_name(node).decode()
        if ask and name.startswith("pyfastv_scores"):
            # ggml_tensor: type, buffer, ne[4]
            scored.append((ctypes.c_int64 * 4).from_address(node + 16)[1])
        return False

    callback = llama.ggml_backend_sched_eval_callback(look)
    spec = "k=1,drop=0,score=none,pick=uniform;k=2,drop=0.5,score=question-max"
    context = make(spec, cb_eval=callback)
    assert context.picture(rows_of(100), 0) == 0
    assert context.tokens(QUESTION, 100) == 0
    scored.clear()
    read(context)
    assert sum(scored) == len(QUESTION)
