"""Memory of scoring: rows that vote are scored in blocks, and all of it is taken when stages are attached."""

from __future__ import annotations

import re
import resource
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import random_gguf
from c_api import Context, Model, Row, llama, logged, read

N_CTX, N_QUESTION = 4096, 512
N_VISUAL = 3072
MIB = 1 << 20
HEADS = random_gguf.KINDS["llama"].heads

ONE_CUT = "k=1,drop=0.5,score={}"
BEHIND_ANOTHER = "k=1,drop=0,score=none,pick=uniform;k=2,drop=0.5,score={}"


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("scoring") / "llama.gguf"
    random_gguf.write(path, "llama")
    return path


@pytest.fixture(scope="module")
def model(path: Path) -> Iterator[Model]:
    model = Model(path)
    yield model
    model.close()


def attached(model: Model, spec: str, *, n_ctx: int = N_CTX, **options: object) -> Context:
    """With flash attention, which has no scores of its own."""
    context = Context(model, n_ctx=n_ctx, flash_attn=True, **options)  # type: ignore[arg-type]
    assert context.attach(spec) == 0
    return context


def pictures(model: Model, n: int = N_VISUAL) -> np.ndarray:
    return np.random.default_rng(0).normal(size=(n, model.n_embd)).astype(np.float32)


def question(n: int = N_QUESTION) -> list[int]:
    return [3 + i % 500 for i in range(n)]


def compute_buffers(context: Context) -> tuple[float, float]:
    """MiB now and when reserved; llama.cpp tells them when it frees a context, which this does."""
    with logged() as lines:
        context.close()
    sizes = [re.search(r"compute buffer size \D*([\d.]+) MiB\D*([\d.]+) MiB", line) for line in lines]
    [(now, reserved)] = [match.groups() for match in sizes if match]
    return float(now), float(reserved)


@pytest.mark.parametrize("spec", [ONE_CUT, BEHIND_ANOTHER])
@pytest.mark.parametrize("score", ["last", "last-no-rope", "question-mean", "question-max", "all"])
def test_compute_buffers_stay_as_reserved(model, spec, score):
    context = attached(model, spec.format(score), n_ctx=1024)
    assert context.picture(pictures(model, 500), 0) == 0
    assert context.tokens(question(), 500) == 0
    read(context)
    now, reserved = compute_buffers(context)
    assert now == reserved


@pytest.mark.parametrize("spec", [ONE_CUT, BEHIND_ANOTHER])
def test_compute_buffers_of_several_sequences_stay_as_reserved(model, spec):
    context = attached(model, spec.format("last"), n_ctx=1024, n_seq_max=2)
    rows = pictures(model, 250)
    for seq in range(2):
        assert context.picture(rows, 0, seq=seq) == 0
    texts = [Row(seq, 250 + i, token) for seq in range(2) for i, token in enumerate(question(250))]
    assert context.rows(texts) == 0
    read(context)
    now, reserved = compute_buffers(context)
    assert now == reserved


def test_a_new_rule_and_an_adapter_reserve_anew(model):
    context = attached(model, ONE_CUT.format("none,pick=uniform"), n_ctx=1024)
    assert context.attach(ONE_CUT.format("question-max")) == 0
    assert context.picture(pictures(model, 500), 0) == 0
    control = np.zeros(model.n_embd * (model.n_layer - 1), np.float32)
    pointer = control.ctypes.data_as(llama.ctypes.POINTER(llama.ctypes.c_float))
    assert (
        llama.llama_set_adapter_cvec(context.pointer, pointer, control.size, model.n_embd, 1, model.n_layer)
        == 0
    )
    assert context.tokens(question(), 500) == 0
    read(context)
    now, reserved = compute_buffers(context)
    assert now == reserved


def test_many_rows_take_a_block_and_their_scores(model):
    """All rows at once, before the mean over the heads and after it transposed for that, are 64 MiB."""
    sizes = {}
    for score in ("last", "question-max"):
        context = attached(model, ONE_CUT.format(score))
        assert context.picture(pictures(model), 0) == 0
        assert context.tokens(question(), N_VISUAL) == 0
        sizes[score], _ = compute_buffers(context)
    scores = N_CTX * N_QUESTION * 4 / MIB
    block = HEADS * N_CTX * 32 * 4 / MIB
    assert sizes["question-max"] <= sizes["last"] + scores + block


def asked(model: Model) -> Context:
    context = attached(model, BEHIND_ANOTHER.format("question-max"))
    assert context.picture(pictures(model), 0) == 0
    assert context.tokens(question(), N_VISUAL) == 0
    return context


def read_without_memory(model_path: str, logits_path: str) -> None:
    """In a process of its own: the logits of asked(), read when 16 MiB more are all there is. These are for the rows on
    their way, 6 MiB of them what 512 rows paid to 3,072 tokens."""
    context = asked(Model(Path(model_path)))
    n_pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = n_pages * resource.getpagesize() + 16 * MIB
    resource.setrlimit(resource.RLIMIT_AS, (limit, resource.RLIM_INFINITY))
    np.save(logits_path, read(context))


@pytest.mark.skipif(
    sys.platform != "linux", reason="this machine is not Linux, and does not limit address space"
)
def test_logits_are_read_when_memory_has_run_out(model, path, tmp_path):
    given = tmp_path / "logits.npy"
    code = f"import test_scoring_memory as t; t.read_without_memory({str(path)!r}, {str(given)!r})"
    subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parent, check=True)
    context = asked(model)
    np.testing.assert_array_equal(np.load(given), read(context))
    context.close()


@pytest.mark.parametrize("arch", ["llama", "mistral3"])  # 4 and 6 heads
@pytest.mark.parametrize("score", ["question-mean", "question-max", "all"])
def test_blocks_score_as_rows_alone(tmp_path, arch, score):
    path = tmp_path / "model.gguf"
    random_gguf.write(path, arch)
    model = Model(path)
    scores = []
    for n_ubatch in (16, 512):
        context = attached(model, ONE_CUT.format(score), n_ctx=512, n_ubatch=n_ubatch)
        assert context.picture(pictures(model, 100), 0) == 0
        assert context.tokens(question(300), 100) == 0
        read(context)
        scores.append(context.scores())
        context.close()
    model.close()
    assert scores[0].max() > 1e-4
    np.testing.assert_allclose(scores[0], scores[1], atol=1e-7)
