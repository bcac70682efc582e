"""``pyfastv plan``: what a model would cost, before it is run."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

import pyfastv
from pyfastv import FastV, Recommended, _native, theory
from pyfastv.bench import plan
from pyfastv.bench.speed import Speed, prefill_ms
from pyfastv.commands.main import main
from pyfastv.models import bundled_mmproj, bundled_model
from pyfastv.models.header import read_model
from pyfastv.settings.setting import Setting

import random_gguf


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    assert main(["plan", *arguments, "--json"]) == 0
    made: dict[str, Any] = json.loads(capsys.readouterr().out)
    return made


@pytest.fixture(scope="module")
def gqa(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A small text model with grouped queries."""
    path = tmp_path_factory.mktemp("plan") / "qwen2.gguf"
    random_gguf.write(path, "qwen2", vocab=[])
    return str(path)


def test_json_has_the_grid_with_off_first(capsys: pytest.CaptureFixture[str]) -> None:
    made = run(capsys, "--no-measure", "--tokens", "14")
    assert set(made) == {"prompt", "models", "comparison"}
    assert made["comparison"] is None
    (model,) = made["models"]
    settings = {entry["setting"]: entry for entry in model["settings"]}
    assert next(iter(settings)) == "off"
    grid = {f"K={k} drop {drop:g}" for k in (2, 3, 4) for drop in (0.25, 0.5, 0.75, 0.9)}
    assert set(settings) == {"off", *grid, "pyramiddrop", "feather", "vtw", "zipvl"}

    off, half = settings["off"], settings["K=2 drop 0.5"]
    decoder = theory.Decoder.llama(layers=12, width=512, kv_width=512, ffn=1280, vocab=2048)
    rows = [590] * 2 + [302] * 10
    assert (off["flops"], off["retained_share"]) == (theory.flops(decoder, [590] * 12), 1.0)
    assert (half["flops"], half["paper_flops"]) == (
        theory.flops(decoder, rows),
        theory.paper_flops(decoder, rows),
    )
    assert half["kv_bytes"] == (2 * 590 + 10 * 302) * 2 * 512 * 2
    assert half["schedule"] == Recommended(2, 0.5).spec()
    assert half["retained_share"] == pytest.approx((2 + 10 * 0.5) / 12)
    assert model["measured"] is None
    assert off["prefill_ms"] is None
    assert model["weight_bytes"] == read_model(str(bundled_model())).weight_bytes


def test_settings_of_one_s_own_replace_the_grid(capsys: pytest.CaptureFixture[str]) -> None:
    made = run(capsys, "--no-measure", "--settings", "k=5,drop=0.6", "--settings", "vtw")
    assert [entry["setting"] for entry in made["models"][0]["settings"]] == ["off", "k=5,drop=0.6", "vtw"]


def test_turbo_and_a_reducer_are_counted_as_they_run(
    capsys: pytest.CaptureFixture[str], runner: pyfastv.Runner, picture: dict[str, Path]
) -> None:
    settings = [
        "turbo:share=0.3 + k=2,drop=0.5",
        "turbo:r=7,layers=1-5",
        "turbo:r=100,once + reduce:divprune,keep=0.3",
        "reduce:pool,window=5",
    ]
    made = run(capsys, "--no-measure", *(word for text in settings for word in ("--settings", text)))
    off, *costs = made["models"][0]["settings"]
    assert [cost["setting"] for cost in costs] == settings
    assert (off["turbo"], off["reduce"], off["visual_tokens"]) == (None, None, 576)
    for text, cost in zip(settings, costs, strict=True):
        setting = Setting.parse(text)
        report = runner.ask(picture["clock"], "What?", max_tokens=1, **setting.options()).report
        assert cost["visual_tokens"] == report.visual_tokens
        seen = report.retained_share * report.visual_tokens / 576
        assert cost["retained_share"] == pytest.approx(seen)
        assert (cost["turbo"], cost["reduce"]) == (setting.specs()["turbo"], setting.specs()["reduce"])
        assert (cost["encoder_flops"] < off["encoder_flops"]) == (setting.turbo is not None)
        assert cost["flops"] < off["flops"]


def test_the_encoder_is_run_with_turbo(capsys: pytest.CaptureFixture[str]) -> None:
    (model,) = run(capsys, "--settings", "turbo:share=0.75,layers=0-1")["models"]
    _, merged = model["settings"]
    ((turbo, encode_ms),) = model["measured"]["encode_ms_by_turbo"].items()
    assert turbo == merged["turbo"]
    assert merged["first_token_ms"] == pytest.approx(merged["prefill_ms"] + encode_ms)


@pytest.mark.parametrize("spec", ["turbo:layers=2-9", "turbo:share=2"])
def test_turbo_that_the_encoder_cannot_have_is_told(capfd: pytest.CaptureFixture[str], spec: str) -> None:
    assert main(["plan", "--no-measure", "--settings", spec]) == 1
    assert "turbo: " in capfd.readouterr().err


def test_turbo_of_an_encoder_by_hand() -> None:
    """12 patches, a quarter merged in the first of two blocks: 9 leave it."""
    encoder = theory.Encoder(
        width=2, layer_weights=(48, 48), patch_weights=3, projector_weights=5, patches=12, merged=1, cls=True
    )
    turbo = pyfastv.Turbo(share=0.25)
    assert theory.patches_by_block(turbo, 2, 12) == [12, 9, 9]
    attention = 13 * 16 + 2 * 13 * 13 * 2 + 10 * 16 + 2 * 10 * 10 * 2
    behind = 10 * 32 * 2
    assert encoder.flops(12, turbo=turbo) == 12 * 3 + attention + behind + 9 * 5
    # given back, they all run through the projector
    asked_for = pyfastv.Turbo(share=0.25, restore=True)
    assert encoder.flops(12, turbo=asked_for) == 12 * 3 + attention + behind + 12 * 5
    needed = replace(encoder, merged=4, needs_grid=True)
    assert needed.flops(3, turbo=turbo) == 12 * 3 + attention + behind + 3 * 5


def test_more_pictures_cost_more(capsys: pytest.CaptureFixture[str]) -> None:
    one, two = (run(capsys, "--no-measure", "--pictures", n)["models"][0] for n in "12")
    assert two["encoder_flops"] == 2 * one["encoder_flops"]
    assert two["settings"][0]["kv_bytes"] == (2 * 576 + 32) * 12 * 2 * 512 * 2


def test_the_table_has_every_setting(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "--no-measure"]) == 0
    out = capsys.readouterr().out
    assert all(name in out for name in ("off", "K=2 drop 0.5", "K=4 drop 0.9", "vtw"))
    assert "576 visual and 32 text tokens" in out
    assert "not measured: not asked for" in out


def test_the_larger_model_pruned_is_compared_with_the_smaller_one(
    capsys: pytest.CaptureFixture[str], gqa: str
) -> None:
    arguments = ("--against", gqa, "--visual-tokens", "576", "--no-measure")
    made = run(capsys, *arguments)
    comparison = made["comparison"]
    assert (comparison["larger"], comparison["smaller"]) == (bundled_model().name, "qwen2.gguf")
    large, small = made["models"]
    assert comparison["more_weight_bytes"] == sum(
        sign * (m["weight_bytes"] + m["mmproj_bytes"]) for sign, m in ((1, large), (-1, small))
    )
    for entry, cost in zip(comparison["settings"], large["settings"], strict=True):
        off = small["settings"][0]
        assert entry["paper_flops"] == cost["paper_flops"] / off["paper_flops"]
        assert entry["flops"] == (cost["flops"] + large["encoder_flops"]) / off["flops"]
        assert entry["time"] is None
    # the order of the two does not matter
    assert (
        main(["plan", gqa, "--against", str(bundled_model()), "--visual-tokens", "576", "--no-measure"]) == 0
    )
    out = capsys.readouterr().out
    assert f"Is {bundled_model().name} pruned cheaper than qwen2.gguf without pruning?" in " ".join(
        out.split()
    )


def test_13b_pruned_is_cheaper_than_7b() -> None:
    large = theory.Decoder.llama(layers=40, width=5120, kv_width=5120, ffn=13824, vocab=32000)
    small = theory.Decoder.llama(layers=32, width=4096, kv_width=4096, ffn=11008, vocab=32000)
    rows = theory.rows_by_layer(FastV(2, 0.75), 40, [576], 14)
    assert theory.flops(large, rows) < theory.flops(small, [590] * 32)
    rows = theory.rows_by_layer(FastV(2, 0.25), 40, [576], 14)
    assert theory.flops(large, rows) > theory.flops(small, [590] * 32)


# predictions


def test_prediction_is_exact_where_the_rate_is_constant() -> None:
    decoder = theory.Decoder.llama(layers=4, width=64, kv_width=64, ffn=128, vocab=100)
    speed = Speed((10, 100), (1000.0, 1000.0), 0.0, 5.0, 1.0, None, None)
    rows = [100, 100, 40, 40]
    layers = theory.flops(decoder, rows) - decoder.output_weights
    assert prefill_ms(decoder, rows, speed) == pytest.approx(layers / 1000.0 + 5.0)


def test_prediction_takes_the_rate_of_each_layer_s_rows() -> None:
    decoder = theory.Decoder.llama(layers=2, width=64, kv_width=64, ffn=128, vocab=100)
    speed = Speed((10, 100), (500.0, 1000.0), 0.0, 0.0, 1.0, None, None)
    first, last = (theory.layer_flops(decoder, il, n) for il, n in ((0, 100), (1, 10)))
    assert prefill_ms(decoder, [100, 10], speed) == pytest.approx(first / 1000.0 + last / 500.0)


def test_the_bundled_model_is_measured(capsys: pytest.CaptureFixture[str]) -> None:
    (model,) = run(capsys, "--settings", "k=2,drop=0.75")["models"]
    measured = model["measured"]
    off, pruned = model["settings"]
    assert measured["rows"][-1] >= 576
    assert 0 < pruned["prefill_ms"] < off["prefill_ms"]
    assert off["first_token_ms"] == pytest.approx(off["prefill_ms"] + measured["encode_ms"])
    assert measured["generate_ms"] > 0


def test_a_picture_tells_how_many_tokens_it_has(
    capsys: pytest.CaptureFixture[str], picture: dict[str, Path]
) -> None:
    (model,) = run(capsys, "--picture", str(picture["clock"]), "--settings", "k=2,drop=0.5")["models"]
    assert model["visual_tokens"] == 576


# excerpts


def test_an_excerpt_is_the_first_layers(tmp_path: Path, gqa: str) -> None:
    out = tmp_path / "excerpt.gguf"
    _native.write_excerpt([gqa], 2, str(out))
    whole, part = gguf.GGUFReader(gqa), gguf.GGUFReader(str(out))
    kept = {t.name for t in whole.tensors if not t.name.startswith(("blk.2.", "blk.3."))}
    assert {t.name for t in part.tensors} == kept
    data = {t.name: t.data for t in whole.tensors}
    for tensor in part.tensors:
        np.testing.assert_array_equal(tensor.data, data[tensor.name])
    assert part.fields["qwen2.block_count"].contents() == 2
    with pyfastv.Runner(out, fastv=None, n_ctx=64) as runner:
        assert runner.info["n_layer"] == 2


def test_values_of_every_layer_are_cut_off_too(tmp_path: Path) -> None:
    path, out = tmp_path / "gemma4.gguf", tmp_path / "excerpt.gguf"
    random_gguf.write(path, "gemma4 dense")
    _native.write_excerpt([str(path)], 3, str(out))
    metadata = _native.gguf_header(str(out))["metadata"]
    assert metadata["gemma4.attention.sliding_window_pattern"] == [True, False, True]


def test_per_layer_embeddings_are_counted_and_not_measured(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "gemma4.gguf"
    random_gguf.write(path, "gemma4 e", vocab=[])
    (model,) = run(capsys, str(path), "--visual-tokens", "40", "--settings", "k=2,drop=0.5")["models"]
    assert model["measured"] is None
    assert "per-layer embeddings: its first layers do not run alone" in model["unmeasured"]
    off, pruned = model["settings"]
    kv = 2 * 2 * 32 * 2  # bytes of a row in each of the six layers that have a cache
    assert off["kv_bytes"] == 72 * 6 * kv
    assert pruned["kv_bytes"] == (2 * 72 + 4 * 52) * kv


def test_recurrent_layers_are_measured_and_their_states_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "qwen35.gguf"
    random_gguf.write(path, "qwen35", vocab=[])
    (model,) = run(capsys, str(path), "--visual-tokens", "40", "--settings", "k=4,drop=0.5")["models"]
    off, pruned = model["settings"]
    assert 0 < pruned["prefill_ms"] < off["prefill_ms"]
    cell = (
        2 * 2 * 32 * 2
    )  # in each of three layers; each of the other nine has a convolution and a state in f32
    states = 9 * 4 * (3 * (2 * 64 + 128) + 4 * 32 * 32)
    assert off["kv_bytes"] == 3 * 72 * cell + states
    assert pruned["kv_bytes"] == (72 + 2 * 52) * cell + states


@pytest.mark.parametrize(("n_layers", "words"), [(0, "has 4 layers, not 0"), (5, "has 4 layers, not 5")])
def test_an_excerpt_of_layers_that_are_not_there_is_refused(
    n_layers: int, words: str, tmp_path: Path, gqa: str
) -> None:
    with pytest.raises(pyfastv.ModelError, match=words):
        _native.write_excerpt([gqa], n_layers, str(tmp_path / "out.gguf"))


def test_an_excerpt_of_a_truncated_file_is_refused(tmp_path: Path, gqa: str) -> None:
    path = tmp_path / "short.gguf"
    data = Path(gqa).read_bytes()
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(pyfastv.ModelError, match=r"short\.gguf"):
        _native.write_excerpt([str(path)], 4, str(tmp_path / "out.gguf"))
    with pytest.raises(pyfastv.ModelError, match="cannot be written"):
        _native.write_excerpt([gqa], 1, str(tmp_path / "missing" / "out.gguf"))


def test_a_model_in_parts_counts_all_of_them(tmp_path: Path, gqa: str) -> None:
    # as llama-gguf-split writes it
    reader = gguf.GGUFReader(gqa)
    half = len(reader.tensors) // 2
    for number, tensors in enumerate((reader.tensors[:half], reader.tensors[half:])):
        writer = gguf.GGUFWriter(tmp_path / f"m-0000{number + 1}-of-00002.gguf", "qwen2")
        if number == 0:
            for field in reader.fields.values():
                if field.name.startswith(("qwen2.", "tokenizer.")):
                    kind = field.types[0]
                    sub = field.types[-1] if kind == gguf.GGUFValueType.ARRAY else None
                    writer.add_key_value(field.name, field.contents(), kind, sub)
        writer.add_uint16("split.no", number)
        writer.add_uint16("split.count", 2)
        writer.add_int32("split.tensors.count", len(reader.tensors))
        for tensor in tensors:
            writer.add_tensor(tensor.name, tensor.data)
        random_gguf.write_file(writer)
    first = str(tmp_path / "m-00001-of-00002.gguf")
    split, whole = read_model(first), read_model(gqa)
    assert (split.decoder, split.weight_bytes) == (whole.decoder, whole.weight_bytes)
    out = tmp_path / "excerpt.gguf"
    _native.write_excerpt(split.paths, 1, str(out))
    with pyfastv.Runner(out, fastv=None, n_ctx=64) as runner:
        assert runner.info["n_layer"] == 1


def test_experts_that_are_active_are_counted() -> None:
    d, m, experts, used = 64, 32, 8, 2
    shapes = {
        "token_embd.weight": (100, d),
        "blk.0.attn_q.weight": (d, d),
        "blk.0.attn_k.weight": (16, d),
        "blk.0.attn_v.weight": (16, d),
        "blk.0.attn_output.weight": (d, d),
        "blk.0.ffn_gate_inp.weight": (experts, d),
        "blk.0.ffn_gate_exps.weight": (experts, m, d),
        "blk.0.ffn_up_exps.weight": (experts, m, d),
        "blk.0.ffn_down_exps.weight": (experts, d, m),
        "blk.0.ffn_gate_shexp.weight": (m, d),
        "blk.0.ffn_up_shexp.weight": (m, d),
        "blk.0.ffn_down_shexp.weight": (d, m),
    }
    from pyfastv.models.header import _decoder

    values = {"embedding_length": d, "expert_count": experts, "expert_used_count": used}
    decoder = _decoder("moe", values, shapes, 1)
    assert decoder.ffn_weights == (experts * d + (used + 1) * 3 * d * m,)
    assert decoder.ffn == (used + 1) * m


# bad input


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--tokens", "0"], "text_tokens"),
        (["--pictures", "0"], "pictures"),
        (["--visual-tokens", "-3"], "visual_tokens"),
        (["--settings", "k=12,drop=0.5"], "k=12,drop=0.5"),
        (["--settings", "nonsense"], "nonsense"),
        (["missing.gguf"], "missing.gguf"),
        (["--picture", "missing.png"], "missing.png"),
    ],
)
def test_bad_input_is_one_line(arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", *arguments, *([] if "--picture" in arguments else ["--no-measure"])]) == 1
    printed = capsys.readouterr()
    assert words in printed.err
    assert printed.err.count("\n") == 1
    assert printed.out == ""


def test_a_model_whose_pictures_vary_needs_their_tokens(capsys: pytest.CaptureFixture[str], gqa: str) -> None:
    assert main(["plan", gqa, "--no-measure"]) == 1
    assert "--visual-tokens" in capsys.readouterr().err


def test_an_mmproj_needs_its_model(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "--against-mmproj", str(bundled_mmproj())]) == 2
    assert "--against" in capsys.readouterr().err


def test_without_a_measurement_the_counts_stand(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise pyfastv.ModelError("no room for an excerpt")

    monkeypatch.setattr("pyfastv.commands.plan.measure", fail)
    (model,) = run(capsys, "--settings", "vtw")["models"]
    assert model["unmeasured"] == "no room for an excerpt"
    assert model["settings"][1]["flops"] < model["settings"][0]["flops"]


def test_settings_reach_as_deep_as_the_model() -> None:
    assert {name for name in plan.default_settings(3) if name.startswith("K=")} == {
        f"K=2 drop {drop:g}" for drop in (0.25, 0.5, 0.75, 0.9)
    }
