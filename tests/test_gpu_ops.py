"""No node of our graphs is left to the CPU by the CUDA and Metal backends: each is shown to their own ``supports_op``.

Scores, and Turbo in the encoder. What llama.cpp's own graph of a model has that a backend refuses is not ours.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from ggml_ops import Ops

import random_gguf
import random_mmproj
from c_api import OK, Context, Model, last_error, llama
from decoding import decode, prompt_for, small_context
from gpu_support import GpuSupport
from vision_api import Encoder
from vision_api import last_error as turbo_error

RULES = ["last", "question-max", "all", "last-no-rope"]
# of each kind of attention and memory, a layer behind which there are scores
LAYERS = {"llama": 2, "gemma2": 2, "qwen2vl": 2, "qwen35": 4, "lfm2": 3, "deepseek2": 2}


@pytest.fixture(scope="module")
def gpus(tmp_path_factory: pytest.TempPathFactory) -> GpuSupport:
    return GpuSupport(tmp_path_factory.mktemp("gpus"))


@pytest.fixture(scope="module", params=LAYERS)
def arch(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def model(arch: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Model]:
    path = tmp_path_factory.mktemp("models") / "model.gguf"
    random_gguf.write(path, arch)
    model = Model(path)
    yield model
    model.close()


def refused(gpus: GpuSupport, model: Model, arch: str, spec: str, *, flash_attn: bool) -> set[str]:
    """What they refuse of a question about a picture with this schedule; "": none."""
    callback = llama.ggml_backend_sched_eval_callback(lambda node, ask, data: gpus.on_node(node, ask))
    context: Context = small_context(model, flash_attn=flash_attn, cb_eval=callback)
    if spec:
        assert context.attach(spec) == OK, last_error()
        gpus.forget()
    decode(context, prompt_for(arch))
    context.close()
    return gpus.refused


@pytest.mark.parametrize("flash_attn", [False, True])
def test_stages_and_scores_run_on_the_gpu(
    gpus: GpuSupport, model: Model, arch: str, flash_attn: bool
) -> None:
    gpus.forget()
    of_stock = refused(gpus, model, arch, "", flash_attn=flash_attn)
    assert len(gpus.asked) > 5
    for rule in RULES:
        if rule == "last-no-rope" and arch in ("qwen2vl", "qwen35", "deepseek2"):
            continue  # which refuse it
        spec = f"k={LAYERS[arch]},drop=0.5,score={rule}"
        assert refused(gpus, model, arch, spec, flash_attn=flash_attn) <= of_stock, rule
        assert any(name.startswith("pyfastv_scores") for name in gpus.names)


@pytest.mark.parametrize("flash_attn", [False, True])
@pytest.mark.parametrize("family", ["LLaVA", "Janus-Pro"])  # with CLS and without
def test_turbo_runs_on_the_gpu(gpus: GpuSupport, tmp_path: Path, family: str, flash_attn: bool) -> None:
    path, mmproj = random_mmproj.write_pair(tmp_path, family)
    model = Model(path)
    picture = np.random.default_rng(8).integers(0, 256, (112, 112, 3), dtype=np.uint8)
    encoder = Encoder(model, mmproj, flash_attn=flash_attn, on_node=gpus.on_node)
    gpus.forget()
    encoder.encode(picture)
    stock = gpus.refused
    for spec in ("share=0.5", "share=0.66,alpha=0.1,once", "share=0.25,alpha=0"):
        assert encoder.attach(spec) == OK, turbo_error()
        gpus.forget()
        encoder.encode(picture)
        assert "ARGSORT i32, f32" in gpus.asked
        assert gpus.refused <= stock
    encoder.close()
    model.close()


def test_what_a_gpu_cannot_do_is_seen(gpus: GpuSupport) -> None:
    """Or the tests above would show nothing."""
    ops = Ops()
    halves = ops.tensor(np.ones((2, 4), np.float16))
    turned = ops.make("ggml_transpose", ops.tensor(np.ones((2, 4), np.float32)))
    for tensor, expected in (
        (ops.make("ggml_sum_rows", halves), {"cuda: SUM_ROWS f16, f16"}),
        (
            ops.make("ggml_clamp", turned, ctypes.c_float(0), ctypes.c_float(1)),
            {"cuda: CLAMP f32, f32 strided", "metal: CLAMP f32, f32 strided"},
        ),
    ):
        gpus.forget()
        gpus.on_node(tensor.value, True)
        assert gpus.refused == expected
    ops.close()
