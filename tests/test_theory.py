"""Counts of multiply-adds and bytes, against counts written out by hand."""

from __future__ import annotations

from pathlib import Path

import pytest

import pyfastv
from pyfastv import FastV, PyramidDrop, Schedule, theory
from pyfastv.models import bundled_examples, bundled_mmproj, bundled_model
from pyfastv.models.header import read_model

import random_gguf
from c_api import Model
from decoding import decode, prompt_for, small_context

LLAVA_7B = theory.Decoder.llama(layers=32, width=4096, kv_width=4096, ffn=11008, vocab=32000)
LLAVA_13B = theory.Decoder.llama(layers=40, width=5120, kv_width=5120, ffn=13824, vocab=32000)


def matrix_products(rows: list[int], d: int, d_kv: int, m: int, vocab: int) -> int:
    """One multiply-add after the other's product: (rows, in, out) of every product of a llama prefill."""
    products = []
    for number, n in enumerate(rows):
        is_last = number == len(rows) - 1
        products += [(n, d, d), (n, d, d_kv), (n, d, d_kv), (n, d, d)]  # Q, K, V, output
        products += [(1 if is_last else n, d, m)] * 2 + [(1 if is_last else n, m, d)]  # gate, up, down
        products += [(1, d, 1 + row) for row in range(n)] * 2  # Q.K and P.V, causal
    products.append((1, d, vocab))
    return sum(a * b * c for a, b, c in products)


@pytest.mark.parametrize(
    ("decoder", "layers", "d", "m"), [(LLAVA_7B, 32, 4096, 11008), (LLAVA_13B, 40, 5120, 13824)]
)
@pytest.mark.parametrize(("schedule", "kept"), [(None, 576), (FastV(2, 0.5), 288), (FastV(3, 0.75), 144)])
def test_flops_are_those_of_every_matrix_product(
    decoder: theory.Decoder, layers: int, d: int, m: int, schedule: FastV | None, kept: int
) -> None:
    k = layers if schedule is None else int(schedule.k)
    rows = theory.rows_by_layer(schedule, layers, [576], 14)
    assert rows == [590] * k + [kept + 14] * (layers - k)
    assert theory.flops(decoder, rows) == matrix_products(rows, d, d, m, 32000)


def test_paper_flops_of_llava_7b_by_hand() -> None:
    # one layer: 4*590*4096^2 + 2*590^2*4096 + 2*590*4096*11008
    layer = 39_594_229_760 + 2_851_635_200 + 53_204_746_240
    assert theory.paper_flops(LLAVA_7B, [590] * 32) == 32 * layer


def test_the_papers_setting_saves_45_percent_of_llava_13b() -> None:
    # its system message and a short question are 40 tokens
    rows = theory.rows_by_layer(FastV(2, 0.5), 40, [576], 40)
    saved = 1 - theory.paper_flops(LLAVA_13B, rows) / theory.paper_flops(LLAVA_13B, [616] * 40)
    assert saved == pytest.approx(0.45, abs=0.01)


@pytest.mark.parametrize(
    ("drop", "weights", "whole"), [(0.25, 1.30, 1.30), (0.5, 1.84, 1.85), (0.75, 3.19, 3.20)]
)
def test_ratios_of_the_benchmark(drop: float, weights: float, whole: float) -> None:
    pruned, everything = theory.rows_by_layer(FastV(2, drop), 32, [576], 14), [590] * 32
    for count, expected in ((theory.weight_flops, weights), (theory.flops, whole)):
        assert count(LLAVA_7B, everything) / count(LLAVA_7B, pruned) == pytest.approx(expected, abs=0.005)


@pytest.mark.parametrize(
    ("schedule", "visual"),
    [
        (None, [100] * 8),
        (PyramidDrop(), [100, 100, 50, 50, 25, 25, 12, 12]),  # 12.5 is halfway: to even
        (Schedule.parse("k=3,drop=1,score=none"), [100] * 3 + [0] * 5),
        (FastV(1, 0.999), [100] + [1] * 7),
    ],
)
def test_layers_see_what_the_cuts_leave(schedule: Schedule | None, visual: list[int]) -> None:
    assert theory.visual_by_layer(schedule, 8, [100]) == visual


def test_every_picture_is_rounded_alone() -> None:
    assert theory.visual_by_layer(FastV(1, 0.5), 2, [5, 5]) == [10, 4]  # 2.5 is 2, twice


def test_a_cut_behind_the_last_layer_is_refused() -> None:
    with pytest.raises(pyfastv.OptionError, match="8"):
        theory.visual_by_layer(FastV(8, 0.5), 8, [100])


# sizes from the header


def test_sizes_of_the_bundled_model() -> None:
    files = read_model(str(bundled_model()), str(bundled_mmproj()))
    assert files.decoder == theory.Decoder.llama(layers=12, width=512, kv_width=512, ffn=1280, vocab=2048)
    assert files.weight_bytes < bundled_model().stat().st_size
    assert files.weight_bytes > 0.98 * bundled_model().stat().st_size
    encoder = files.encoder
    assert encoder is not None
    # CLIP, 336 pixels in patches of 14, 256 wide, features of the last layer but one
    layer = 4 * 256 * 256 + 2 * 256 * 1024
    assert set(encoder.layer_weights) == {layer}
    rows = 577
    by_hand = 576 * 3 * 14 * 14 * 256
    by_hand += len(encoder.layer_weights) * (rows * layer + 2 * rows * rows * 256)
    by_hand += 576 * (256 * 512 + 512 * 512)
    assert encoder.flops(576) == by_hand


@pytest.mark.parametrize(
    ("arch", "q", "kv", "vocab"),
    [("qwen2", 128, 64, 512), ("phi3", 128, 64, 512), ("mistral3", 192, 64, 512), ("gemma", 128, 64, 512)],
)
def test_grouped_queries_fused_and_tied_matrices_are_counted(
    arch: str, q: int, kv: int, vocab: int, tmp_path: Path
) -> None:
    path = tmp_path / f"{arch}.gguf"
    random_gguf.write(path, arch)
    decoder = read_model(str(path)).decoder
    d, m = random_gguf.WIDTH, random_gguf.FFN
    assert decoder.attention_weights == (d * q + 2 * d * kv + q * d,) * 4
    assert decoder.ffn_weights == (3 * d * m,) * 4
    assert (decoder.width, decoder.ffn) == (d, m)
    assert decoder.pair_width == (2 * q,) * 4
    assert decoder.kv_width == (2 * kv,) * 4
    assert decoder.output_weights == d * vocab


def test_recurrent_layers_have_no_pairs_and_no_cells(tmp_path: Path) -> None:
    path = tmp_path / "qwen35.gguf"
    random_gguf.write(path, "qwen35")
    decoder = read_model(str(path)).decoder
    d, q, kv = random_gguf.WIDTH, 128, 64
    attends = [il % 4 == 3 for il in range(12)]
    assert decoder.pair_width == tuple(2 * q if attention else 0 for attention in attends)
    assert decoder.kv_width == tuple(2 * kv if attention else 0 for attention in attends)
    with_attention = d * 2 * q + 2 * d * kv + q * d  # queries have gates
    recurrent = (
        d * (256 + 128 + 4 + 4) + 256 * 4 + 128 * d
    )  # what is convolved, gates, decays; the convolution
    assert decoder.attention_weights == tuple(with_attention if found else recurrent for found in attends)


@pytest.mark.parametrize("arch", ["qwen35", "lfm2", "gemma4 e"])
def test_what_is_kept_of_a_prompt_is_what_a_context_keeps(arch: str, tmp_path: Path) -> None:
    """Cells, and states of recurrent layers; layers that share a cache have none."""
    path = tmp_path / f"{arch}.gguf"
    random_gguf.write(path, arch)
    decoder = read_model(str(path)).decoder
    model = Model(path)
    context = small_context(model)
    decode(context, prompt_for(arch))
    rows = [sum(len(part.rows) for part in prompt_for(arch))] * decoder.n_layer
    assert theory.kv_bytes(decoder, rows) == context.report().kv_bytes_used[0]
    context.close()
    model.close()


def test_latent_keys_are_of_all_heads(tmp_path: Path) -> None:
    path = tmp_path / "deepseek2.gguf"
    random_gguf.write(path, "deepseek2")
    decoder = read_model(str(path)).decoder
    rank, rotated = 32, 16
    assert decoder.kv_width == (rank + rotated,) * 4
    assert decoder.pair_width == (4 * (rank + rotated + rank),) * 4


@pytest.mark.parametrize("arch", ["mamba", "cogvlm"])
def test_a_model_that_cannot_be_staged_is_not_counted(arch: str, tmp_path: Path) -> None:
    path = tmp_path / f"{arch}.gguf"
    random_gguf.write(path, arch)
    with pytest.raises(pyfastv.UnsupportedModelError, match=arch):
        read_model(str(path))


def test_kv_bytes_are_those_of_the_cache(runner: pyfastv.Runner) -> None:
    decoder = read_model(str(bundled_model()), str(bundled_mmproj())).decoder
    example = bundled_examples()[0]
    for fastv in (None, FastV(2, 0.75), PyramidDrop()):
        # one token more would be in the cache if it were evaluated
        report = runner.ask(example.picture, example.question, fastv=fastv, max_tokens=1).report
        rows = theory.rows_by_layer(fastv, 12, [576], report.prompt_tokens - 576)
        assert theory.kv_bytes(decoder, rows) == sum(report.kv_bytes_used)
