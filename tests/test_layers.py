"""A cut at a layer where it cannot be is at the next where it can, and it is said; only C takes layers as they are."""

from __future__ import annotations

import ctypes
import json
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pyfastv import FastV, OptionError, PyramidDrop, Recommended, Runner, Schedule, UnsupportedModelError
from pyfastv.bench.lowlevel.bindings import FastvParams
from pyfastv.commands.main import main
from pyfastv.engine.job_pool import JobPool
from pyfastv.engine.sampling import Sampling
from pyfastv.inputs.chat import user_message
from pyfastv.settings.schedule import LayerWarning

import random_gguf
import random_mmproj
from c_api import BAD_PARAMS, OK, UNSUPPORTED, Context, Model, fastv, last_error, logged

PICTURE = np.random.default_rng(3).integers(0, 256, (168, 224, 3), dtype=np.uint8)
SMALL: dict[str, Any] = {"n_ctx": 512, "n_threads": 1}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("layers")


#
# C
#


@pytest.fixture(scope="module", params=["qwen35", "gemma3", "qwen3vl", "lfm2", "llama"])
def model(request: pytest.FixtureRequest, folder: Path) -> Iterator[Model]:
    random_gguf.write(folder / f"{request.param} alone.gguf", request.param)
    model = Model(folder / f"{request.param} alone.gguf")
    yield model
    model.close()


def parsed(model: Model, spec: str) -> FastvParams:
    params = FastvParams()
    assert fastv.pyfastv_parse(spec.encode(), model.n_layer, ctypes.byref(params)) == OK, last_error()
    return params


def layers(params: FastvParams) -> list[int]:
    return [cut.layer for cut in params.cuts[: params.n_cuts]]


def fitted(model: Model, spec: str) -> list[int]:
    params = parsed(model, spec)
    before = bytes(params)
    assert fastv.pyfastv_fit_layers(model.pointer, ctypes.byref(params)) == OK, last_error()
    moved = layers(params)
    for cut, layer in zip(params.cuts, layers(FastvParams.from_buffer_copy(before)), strict=False):
        cut.layer = layer
    assert bytes(params) == before  # all else is as it was
    return moved


def allowed(model: Model, rule: str) -> list[int]:
    """By trying."""
    context = Context(model, n_ctx=256)
    found = [k for k in range(1, model.n_layer) if context.attach(f"k={k},drop=0.5,{rule}") == OK]
    context.close()
    return found


@pytest.mark.parametrize("rule", ["score=last", "score=random7"])
def test_each_layer_moves_to_the_first_that_can_be_attached(model: Model, rule: str) -> None:
    possible = allowed(model, rule)
    assert possible
    for k in range(1, model.n_layer):
        later = [layer for layer in possible if layer >= k]
        assert fitted(model, f"k={k},drop=0.5,{rule}") == (later[:1] or [k])


def test_cuts_keep_their_order_and_stay_apart(model: Model) -> None:
    possible = allowed(model, "score=last")
    assert fitted(model, "k=1,drop=0.5;k=2,drop=0.75") == possible[:2]
    whole = ";".join(f"k={layer},drop=0.5" for layer in possible[:8])
    assert fitted(model, whole) == possible[:8]
    mixed = fitted(model, "k=1,drop=0.5,score=random7;k=2,drop=0.75,score=last")
    assert mixed[0] < mixed[1] in possible


def test_where_one_cut_finds_no_layer_none_moves(folder: Path) -> None:
    path = folder / "qwen35 again.gguf"
    random_gguf.write(path, "qwen35")
    model = Model(path)
    assert fitted(model, "k=2,drop=0.5;k=3,drop=0.5;k=5,drop=0.5") == [2, 3, 5]  # 4, 8, and no third
    assert fitted(model, "k=2,drop=0.5;k=9,drop=0.75") == [2, 9]
    context = Context(model, n_ctx=256)
    assert context.attach("k=9,drop=0.5") == UNSUPPORTED
    assert "layer 9 is not possible" in last_error()
    context.close()
    model.close()


def test_what_is_out_of_range_is_refused_and_stays(folder: Path) -> None:
    path = folder / "llama again.gguf"
    random_gguf.write(path, "llama")
    model = Model(path)
    for field, value, reason in (("layer", 4, "k = 4"), ("drop", 1.5, "drop"), ("score", 99, "score")):
        params = parsed(model, "k=2,drop=0.5")
        setattr(params.cuts[0], field, value)
        before = bytes(params)
        assert fastv.pyfastv_fit_layers(model.pointer, ctypes.byref(params)) == BAD_PARAMS
        assert reason in last_error()
        assert bytes(params) == before
    params = parsed(model, "k=2,drop=0.5")
    params.size -= 8
    assert fastv.pyfastv_fit_layers(model.pointer, ctypes.byref(params)) == BAD_PARAMS
    model.close()


def test_the_environment_s_layers_move_and_the_log_says_so(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = folder / "qwen35 in the environment.gguf"
    random_gguf.write(path, "qwen35")
    model = Model(path)
    monkeypatch.setenv("LLAMA_FASTV", "recommended")
    with logged() as lines:
        context = Context(model, n_ctx=256)
    assert list(context.report().first_layer)[:2] == [0, 4]
    assert any("cut at layer 4, the next possible for layer 2" in line for line in lines)
    context.close()
    model.close()


#
# Python, the server's pool, the command line
#


@pytest.fixture(scope="module")
def files(folder: Path) -> tuple[Path, Path]:
    return random_mmproj.write_pair(folder, "Qwen3.5")


MOVED = r"Qwen3\.5\.gguf cannot be cut at layer 2: the cut is at layer 4, the next that is possible"


def test_the_default_runs_at_the_next_layer_and_the_report_has_it(files: tuple[Path, Path]) -> None:
    with pytest.warns(LayerWarning, match=MOVED):
        runner = Runner(*files, **SMALL)
    with runner:
        assert runner.fastv == Recommended(4)
        assert str(runner.fastv).startswith("Recommended k=4")
        report = runner.ask(PICTURE, "what?", max_tokens=1).report
        assert report.first_layers == (0, 4)
        assert report.fastv == Recommended(4)
        assert report.to_dict()["fastv"] == Recommended(4).spec()
        assert report.visual_tokens_in_stage == (48, 24)

        with pytest.warns(LayerWarning, match=r"layer 3: the cut is at layer 4"):
            other = runner.ask(PICTURE, "what?", max_tokens=1, fastv=FastV(3, 0.75)).report
        assert other.fastv == FastV(4, 0.75)
        assert other.visual_tokens_in_stage == (48, 12)
        with pytest.warns(LayerWarning):
            runner.set_fastv("k=2,drop=0.5;k=50%,drop=0.75")
        assert runner.fastv == Schedule.parse("k=4,drop=0.5;k=8,drop=0.75")

        runner.set_fastv("k=4,drop=0.5;k=8,drop=0.75")  # nothing moves, nobody warns
        runner.set_fastv("k=2,drop=0.5,score=random7")
        assert runner.ask(PICTURE, "what?", max_tokens=1).report.first_layers == (0, 2)


def test_what_has_no_later_layer_is_refused(files: tuple[Path, Path]) -> None:
    with Runner(*files, **SMALL, fastv=None) as runner:
        for fastv in ("k=9,drop=0.5", PyramidDrop()):  # 3, 6 and 9 of 12
            with pytest.raises(
                UnsupportedModelError, match="is not possible: the layer before it is recurrent"
            ):
                runner.set_fastv(fastv)
        with pytest.raises(OptionError, match="k = 12 is out of range"):
            runner.ask(PICTURE, "what?", fastv="k=12,drop=0.5")
        assert runner.ask(PICTURE, "what?", max_tokens=1).report.fastv is None


def test_the_pool_takes_it_too(files: tuple[Path, Path]) -> None:
    with pytest.warns(LayerWarning, match=MOVED):
        pool = JobPool(*files, slots=1, **SMALL)
    with pool:
        assert pool.setting.fastv == Recommended(4)
        with pytest.warns(LayerWarning, match="layer 2"):
            job = pool.submit([user_message("what?", PICTURE)], Sampling(max_tokens=1), fastv="k=2,drop=0.75")
        job.read()
        assert job.report is not None
        assert job.report.fastv == Recommended(4, 0.75)
        assert job.report.first_layers == (0, 4)


def test_where_all_layers_can_be_cut_a_preset_is_itself(runner: Runner) -> None:
    preset = Recommended()
    runner.set_fastv(preset)
    assert runner.fastv is preset


@pytest.mark.parametrize("told", [[], ["-v"], ["--report"]])
def test_the_command_line_says_it_where_it_tells_what_was_done(
    files: tuple[Path, Path], tmp_path: Path, capfd: pytest.CaptureFixture[str], told: list[str]
) -> None:
    from PIL import Image

    picture = tmp_path / "picture.png"
    Image.fromarray(PICTURE).save(picture)
    options = ["-m", str(files[0]), "--mmproj", str(files[1]), "-c", "512", "-t", "1", "-n", "1"]
    with warnings.catch_warnings():
        warnings.simplefilter("default")
        assert main(["ask", str(picture), "what?", *options, *told]) == 0
    said = [line for line in capfd.readouterr().err.splitlines() if "cannot be cut at layer 2" in line]
    assert len(said) == bool(told)
    assert all(line.startswith("pyfastv: Qwen3.5.gguf cannot be cut at layer 2") for line in said)


def test_plan_counts_the_layers_where_it_would_be_cut(
    files: tuple[Path, Path], capfd: pytest.CaptureFixture[str]
) -> None:
    def planned(*settings: str) -> tuple[dict[str, dict[str, Any]], str]:
        with warnings.catch_warnings():
            warnings.simplefilter("default")
            arguments = ["--no-measure", "--visual-tokens", "48", "--json", *settings]
            assert main(["plan", str(files[0]), "--mmproj", str(files[1]), *arguments]) == 0
        told = capfd.readouterr()
        return {cost["setting"]: cost for cost in json.loads(told.out)["models"][0]["settings"]}, told.err

    grid, said = planned()
    assert {name.split()[0] for name in grid if name.startswith("K=")} == {"K=4", "K=8"}
    assert "cannot be cut" not in said
    asked, said = planned("--settings", "k=2,drop=0.5")
    assert asked["k=2,drop=0.5"]["flops"] == grid["K=4 drop 0.5"]["flops"] > grid["K=4 drop 0.75"]["flops"]
    assert "cannot be cut at layer 2: the cut is at layer 4" in said
