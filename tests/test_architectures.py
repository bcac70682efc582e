"""Which models run in stages, and that each computes what it should: what stock llama.cpp computes if nothing is
dropped, and else what a plain NumPy implementation computes whose later layers do not see the dropped tokens."""

from __future__ import annotations

import ctypes
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from gemma_e import GemmaE
from gguf import GGMLQuantizationType as Type
from llama4 import Llama4

from pyfastv import _native

import random_gguf
from c_api import OK, UNSUPPORTED, Context, Model, fastv, llama
from decoding import M_ROPE, NX, NY, PICTURE, decode, long_prompt_for, prompt_for, small_context
from hybrid import Cut, Hybrid, Rows
from hybrid import Result as HybridResult
from masked_reference import Part, Reference, Result, relative_rms, text

# Layers where a cut can be; the layer before it attends to everything.
CUT_LAYERS = {
    "llama": [1, 2, 3],
    "mistral3": [1, 2, 3],
    "qwen2": [1, 2, 3],
    "qwen3": [1, 2, 3],
    "phi3": [1, 2, 3],
    "gemma": [1, 2, 3],
    "gemma2": [2, 4],
    "gemma3": [6, 12],
    "gemma4 dense": [2, 4],
    "qwen2vl": [1, 2, 3],
    "qwen3vl": [3, 4, 5],
    "qwen35": [4, 8],
    "lfm2": [3, 6, 9],
    "gemma4 e": [2, 4],
    "llama4": [4, 8],
    "deepseek2": [1, 2, 3],
}
SUPPORTED = [
    *CUT_LAYERS,
    "gemma3 non-causal",
    "gemma4 dense non-causal",
]  # a picture whose rows see each other
# references that are given the rows that are there
BY_ROWS = {"qwen35": Hybrid, "lfm2": Hybrid, "gemma4 e": GemmaE, "llama4": Llama4}
NOT_TURNED = {**dict.fromkeys(M_ROPE, "M-RoPE"), "deepseek2": "latent attention"}  # back, for last-no-rope
REFUSED = ["mamba", "cogvlm"]

# ggml rounds the input and the output of GELU to float16; Gemma 4 E has two of them a layer, and is off by 1.5e-3 without
# stages.
NOISE = {"gemma": 1e-3, "gemma2": 1e-3, "gemma3": 1e-3, "gemma4 dense": 1e-3, "gemma4 e": 4e-3}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("architectures")


def model_path(folder: Path, arch: str) -> Path:
    path = folder / f"{arch}.gguf"
    if not path.exists():
        random_gguf.write(path, arch)
    return path


@pytest.fixture(scope="module", params=SUPPORTED)
def case(request: pytest.FixtureRequest, folder: Path) -> Iterator[Case]:
    case = Case(folder, request.param)
    yield case
    case.model.close()


class Case:
    """A model and a prompt with one picture."""

    def __init__(self, folder: Path, name: str) -> None:
        self.arch = name.removesuffix(" non-causal")
        path = model_path(folder, self.arch)
        self.model = Model(path)
        self._reference = BY_ROWS.get(self.arch, Reference)(path)
        self.prompt = prompt_for(self.arch, causal="non-causal" not in name)
        n_before, n_question = len(self.prompt[0].rows), len(self.prompt[-1].rows)
        self.visual = slice(n_before, -n_question)
        self.question = slice(-n_question, None)
        self.end = int(self.prompt[-1].positions[0, -1]) + 1  # the next position
        self.cuts = [CUT_LAYERS[self.arch][0], CUT_LAYERS[self.arch][-1]]
        self._whole: Result | HybridResult | None = None

    def context(self, **options: object) -> Context:
        return small_context(self.model, **options)

    def exact_context(self, **options: object) -> Context:
        return self.context(type_k=Type.F32, type_v=Type.F32, **options)

    @property
    def whole(self) -> Result | HybridResult:
        """The prompt, of which nothing is dropped."""
        if self._whole is None:
            self._whole = self.reference([])
        return self._whole

    def reference(self, kept: list[list[int]], *more: Part) -> Result | HybridResult:
        """The prompt and more; layers from cut i on see kept[i] of the visual tokens."""
        prompt = [*self.prompt, *more]
        visual = np.concatenate([np.full(len(part.rows), part.is_picture) for part in prompt])
        if not isinstance(self._reference, Reference):
            index = np.cumsum(visual) - 1  # among the visual ones
            cuts = [
                Cut(layer, np.flatnonzero(~visual | np.isin(index, indices)).tolist())
                for layer, indices in zip(self.cuts, kept, strict=False)
            ]
            return self._reference.run([Rows(part.rows, part.positions) for part in prompt], cuts)
        visible = np.ones((random_gguf.n_layer(self.arch), len(visual)), bool)
        for layer, indices in zip(self.cuts, kept, strict=False):
            visible[layer:, visual] = np.isin(np.arange(visual.sum()), indices)
        return self._reference.run(prompt, visible)

    @property
    def score_noise(self) -> float:
        """Absolute, of a share of attention."""
        return NOISE[self.arch] / 2 if self.arch in NOISE else 1e-4

    def assert_close(self, logits: np.ndarray, expected: np.ndarray) -> None:
        assert relative_rms(logits, expected) <= NOISE.get(self.arch, 1e-4)


def attach(context: Context, spec: str) -> None:
    assert context.attach(spec) == OK, fastv.pyfastv_last_error().decode()


def test_without_stages_the_reference_is_llama_cpp(case: Case) -> None:
    context = case.exact_context()
    case.assert_close(decode(context, case.prompt), case.whole.logits)
    context.close()


@pytest.mark.parametrize("n_cuts", [1, 2])
def test_without_drop_it_is_stock_to_the_bit(case: Case, n_cuts: int) -> None:
    stock, staged = case.context(), case.context()
    attach(staged, ";".join(f"k={layer},drop=0,score=last" for layer in case.cuts[:n_cuts]))
    np.testing.assert_array_equal(decode(staged, case.prompt), decode(stock, case.prompt))
    for i in range(3):
        for context in (stock, staged):
            assert context.tokens([7 + i], case.end + i) == 0
        np.testing.assert_array_equal(staged.logits(), stock.logits())
    stock.close()
    staged.close()


@pytest.mark.parametrize("score", ["last", "question-mean", "question-max", "all", "last-no-rope"])
def test_scores_are_the_attention_of_the_layer_before_the_cut(case: Case, score: str) -> None:
    context = case.exact_context()
    spec = f"k={case.cuts[0]},drop=0.5,score={score}"
    if score == "last-no-rope" and case.arch in NOT_TURNED:
        assert context.attach(spec) == UNSUPPORTED
        assert NOT_TURNED[case.arch] in fastv.pyfastv_last_error().decode()
        context.close()
        return
    attach(context, spec)
    decode(context, case.prompt)

    result = case.whole
    attention = result.attention[case.cuts[0] - 1][:, case.visual]
    expected = {
        "last": attention[-1],
        "question-mean": attention[case.question].mean(axis=0),
        "question-max": attention[case.question].max(axis=0),
        "all": attention[case.visual.start :].mean(axis=0),
        "last-no-rope": result.without_rope[case.cuts[0] - 1][case.visual],
    }
    np.testing.assert_allclose(context.scores(0), expected[score], atol=case.score_noise)
    assert np.corrcoef(context.scores(0), expected[score])[0, 1] > 0.9999
    context.close()


def test_one_cut_by_fastv_s_rule_is_the_reference(case: Case) -> None:
    context = case.exact_context()
    attach(context, f"k={case.cuts[0]},drop=0.5,score=last,pick=top-k")
    logits = decode(context, case.prompt)

    whole = case.whole.attention[case.cuts[0] - 1][-1, case.visual]
    kept = context.kept(0)
    assert kept == sorted(np.argsort(-whole, kind="stable")[: PICTURE // 2].tolist())
    case.assert_close(logits, case.reference([kept]).logits)
    context.close()


def test_one_cut_by_the_question_in_windows_is_the_reference(case: Case) -> None:
    context = case.exact_context()
    attach(context, f"k={case.cuts[0]},drop=0.75,score=question-max,pick=window4")
    logits = decode(context, case.prompt)

    whole = case.whole.attention[case.cuts[0] - 1]
    scores = whole[case.question, case.visual].max(axis=0)
    kept = context.kept(0)
    expected = _native.choose(scores.astype(np.float32), "drop=0.75,pick=window4", grids=[(NX, NY)])
    assert kept == expected.tolist()
    case.assert_close(logits, case.reference([kept]).logits)
    context.close()


@pytest.mark.parametrize("rule", ["score=last,pick=top-k", "score=question-max,pick=window4"])
def test_two_cuts_are_the_reference(case: Case, rule: str) -> None:
    context = case.exact_context()
    first, second = case.cuts
    attach(context, f"k={first},drop=0.5,{rule};k={second},drop=0.75,{rule}")
    logits = decode(context, case.prompt)

    kept = [context.kept(0), context.kept(1)]
    assert [len(indices) for indices in kept] == [PICTURE // 2, PICTURE // 4]
    assert set(kept[1]) < set(kept[0])
    result = case.reference(kept)
    case.assert_close(logits, result.logits)
    rows = slice(-1, None) if "last" in rule else case.question
    for cut, layer in enumerate(case.cuts):
        expected = result.attention[layer - 1][rows, case.visual].max(axis=0)
        np.testing.assert_allclose(context.scores(cut), expected, atol=case.score_noise)
    context.close()


def test_generation_goes_on_as_in_the_reference(case: Case) -> None:
    context = case.exact_context()
    attach(context, f"fastv,k={case.cuts[0]},drop=0.5")
    decode(context, case.prompt)
    kept = context.kept(0)
    answer = text([7, 8, 9], case.end)
    for token, position in zip(answer.rows, answer.positions[0], strict=True):
        assert context.tokens([token], position) == 0
    case.assert_close(context.logits(), case.reference([kept], answer).logits)
    context.close()


@pytest.mark.parametrize("name", ["gemma2", "gemma3", "gemma3 non-causal", "gemma4 e"])
@pytest.mark.parametrize("drop", [0, 0.5])
def test_a_prompt_may_be_longer_than_the_cache_of_the_window_layers(
    folder: Path, name: str, drop: float
) -> None:
    case = Case(folder, name)
    case.prompt = long_prompt_for(case.arch, n_pictures=7, causal="non-causal" not in name)  # > 256 cells
    context = case.exact_context(n_ctx=512, n_ubatch=64, swa_full=False)
    attach(context, f"fastv,k={case.cuts[0]},drop={drop}")
    logits = decode(context, case.prompt)
    kept = context.kept(0)
    assert len(kept) == 7 * PICTURE * (1 - drop)
    case.assert_close(logits, case.reference([kept]).logits)
    context.close()
    case.model.close()


def test_a_cut_without_attention_may_be_behind_a_window_layer(folder: Path) -> None:
    case = Case(folder, "gemma3")
    case.cuts = [3]
    context = case.exact_context()
    attach(context, "k=3,drop=0.5,score=random7")
    logits = decode(context, case.prompt)
    kept = context.kept(0)
    assert len(kept) == PICTURE // 2
    case.assert_close(logits, case.reference([kept]).logits)
    context.close()
    case.model.close()


def test_no_cut_may_be_where_visual_features_are_still_added(folder: Path) -> None:
    case = Case(folder, "qwen3vl")
    context = case.context()
    assert context.attach("k=2,drop=0.5,score=random7") == UNSUPPORTED
    assert b"deepstack" in fastv.pyfastv_last_error()
    context.close()
    case.model.close()


@pytest.mark.parametrize("arch", CUT_LAYERS)
def test_says_which_layers_a_cut_can_be_at(folder: Path, arch: str) -> None:
    path = model_path(folder, arch)
    model = Model(path)
    assert fastv.pyfastv_unsupported_reason(model.pointer) is None
    for layer in range(1, random_gguf.n_layer(arch)):
        reason = fastv.pyfastv_unsupported_layer(model.pointer, layer)
        context = small_context(model)
        if layer in CUT_LAYERS[arch]:
            assert reason is None
            attach(context, f"fastv,k={layer},drop=0.5")
        else:
            assert reason
            assert context.attach(f"fastv,k={layer},drop=0.5") == UNSUPPORTED
            assert reason in fastv.pyfastv_last_error()
            decode(context, prompt_for(arch))  # as without stages
        context.close()
    model.close()

    info = _native.model_info(str(path))
    assert info["unsupported_reason"] is None
    assert info["cut_layers"] == CUT_LAYERS[arch]


@pytest.mark.parametrize("arch", REFUSED)
def test_another_kind_is_refused_with_the_reason_and_runs_without_stages(folder: Path, arch: str) -> None:
    path = model_path(folder, arch)
    model = Model(path)
    plain, refused = small_context(model), small_context(model)
    reason = fastv.pyfastv_unsupported_reason(model.pointer)
    assert reason
    assert _native.model_info(str(path))["unsupported_reason"] == reason.decode()
    assert refused.attach("fastv,k=2,drop=0.5") == UNSUPPORTED
    assert reason in fastv.pyfastv_last_error()
    np.testing.assert_array_equal(decode(refused, prompt_for(arch)), decode(plain, prompt_for(arch)))
    plain.close()
    refused.close()
    model.close()


def test_the_page_of_models_lists_what_is_tested() -> None:
    page = Path(__file__).parents[1] / "docs" / "models.md"
    assert set(re.findall(r"^\| `(\w+)`", page.read_text("utf-8"), re.M)) == {
        name.split()[0] for name in (*CUT_LAYERS, *REFUSED)
    }


CACHES = {
    "f16": {"type_k": Type.F16, "type_v": Type.F16},
    "q8_0 keys": {"type_k": Type.Q8_0, "type_v": Type.F16},
    "q4_0 keys": {"type_k": Type.Q4_0, "type_v": Type.F16},
    "f16, flash": {"flash_attn": True, "type_k": Type.F16, "type_v": Type.F16},
    "q8_0, flash": {"flash_attn": True, "type_k": Type.Q8_0, "type_v": Type.Q8_0},
    "q4_0, flash": {"flash_attn": True, "type_k": Type.Q4_0, "type_v": Type.Q4_0},
}


@pytest.fixture(scope="module", params=["qwen3", "gemma3", "qwen35"])
def one(request: pytest.FixtureRequest, folder: Path) -> Iterator[Case]:
    case = Case(folder, request.param)
    yield case
    case.model.close()


@pytest.mark.parametrize("cache", CACHES)
def test_any_cache_without_drop_is_stock(one: Case, cache: str) -> None:
    stock, staged = one.context(**CACHES[cache]), one.context(**CACHES[cache])
    attach(staged, f"k={one.cuts[0]},drop=0,score=last;k={one.cuts[1]},drop=0,score=last")
    logits, expected = decode(staged, one.prompt), decode(stock, one.prompt)
    if "flash" in cache:  # ggml takes another kernel for another number of rows
        assert relative_rms(logits, expected) <= 5e-3
    else:
        np.testing.assert_array_equal(logits, expected)
    stock.close()
    staged.close()


@pytest.mark.parametrize("cache", CACHES)
def test_any_cache_with_drop_chooses_by_about_the_same_scores(one: Case, cache: str) -> None:
    context = one.context(**CACHES[cache])
    attach(context, f"fastv,k={one.cuts[0]},drop=0.5")
    logits = decode(context, one.prompt)
    assert np.isfinite(logits).all()
    assert len(context.kept(0)) == PICTURE // 2
    expected = one.whole.attention[one.cuts[0] - 1][-1, one.visual]
    assert np.corrcoef(context.scores(0), expected)[0, 1] > 0.95
    context.close()


def add_lora(context: Context, folder: Path) -> None:
    path = folder / "lora.gguf"
    random_gguf.write_lora(path, "llama")
    adapter = llama.llama_adapter_lora_init(context.model.pointer, str(path).encode())
    assert adapter
    adapters, scales = (llama.llama_adapter_lora_p_ctypes * 1)(adapter), (ctypes.c_float * 1)(0.5)
    assert llama.llama_set_adapters_lora(context.pointer, adapters, 1, scales) == 0


def add_control_vector(context: Context, folder: Path) -> None:
    width, n_layer = random_gguf.WIDTH, random_gguf.n_layer("llama")
    values = np.random.default_rng(4).normal(size=(n_layer - 1, width)).astype(np.float32)
    data = values.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
    assert llama.llama_set_adapter_cvec(context.pointer, data, values.size, width, 1, n_layer - 1) == 0


@pytest.mark.parametrize("add", [add_lora, add_control_vector])
def test_adapters_work_in_every_stage(folder: Path, add: Callable[[Context, Path], None]) -> None:
    case = Case(folder, "llama")
    plain, stock, staged = case.context(), case.context(), case.context()
    add(stock, folder)
    attach(staged, "k=1,drop=0,score=last;k=3,drop=0,score=last")
    add(staged, folder)
    logits = decode(staged, case.prompt)
    np.testing.assert_array_equal(logits, decode(stock, case.prompt))
    assert relative_rms(logits, decode(plain, case.prompt)) > 0.1
    for context in (plain, stock, staged):
        context.close()
    case.model.close()
