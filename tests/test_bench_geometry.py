"""Models with the sizes of published ones: what the files say, and that they run."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import gguf
import numpy as np
import pytest
from gguf import GGMLQuantizationType as Type

import pyfastv
from pyfastv import _native
from pyfastv.bench.geometry import files
from pyfastv.bench.geometry.files import TYPES, decoder_of, files_of, make_geometry
from pyfastv.bench.geometry.shapes import Decoder
from pyfastv.bench.geometry.sizes import GEOMETRIES
from pyfastv.bench.geometry.tensors import language_tensors, vision_tensors
from pyfastv.bench.geometry.weights import RandomTensors
from pyfastv.bench.picture import drawn_picture
from pyfastv.models.header import read_model

from narrow_geometry import narrow, write_narrow

# Published sizes: the language model's parameters, all of it, in millions (from the model cards and configurations), and
# the vision encoder's.
PARAMETERS = {
    "llava-1.5-7b": (6738, 313),
    "llava-1.5-13b": (13016, 322),
    "llava-next-7b": (7242, 313),
    "smolvlm2-500m": (409, 98),
    "qwen2.5-vl-3b": (3086, 669),
    "qwen3-vl-2b": (1721, 407),
    "gemma-3-4b": (3880, 420),
    "internvl3-1b": (630, 309),
    "qwen3.5-0.8b": (752, 100),
    "qwen3.5-4b": (4206, 334),
    "qwen3.6-27b": (26896, 461),
    "gemma-4-e2b": (4629, 168),
    "gemma-4-26b-a4b": (25233, 573),
    "lfm2-vl-1.6b": (1170, 413),
}


@pytest.mark.parametrize("name", PARAMETERS)
def test_parameters_are_those_of_the_published_model(name: str) -> None:
    geometry = GEOMETRIES[name]
    language = sum(np.prod(t.shape) for t in language_tensors(geometry.decoder, Type.Q4_0)) / 1e6
    vision = (
        sum(np.prod(t.shape) for t in vision_tensors(geometry.encoder, geometry.decoder.width, True)) / 1e6
    )
    assert (language, vision) == pytest.approx(PARAMETERS[name], rel=0.02)


@pytest.mark.parametrize(
    ("type_name", "gigabytes"), [("Q4_0", (3.83, 7.37)), ("Q4_K", (3.83, 7.37)), ("Q8_0", (7.16, 13.83))]
)
def test_files_are_as_large_as_quantized_ones(type_name: str, gigabytes: tuple[float, float]) -> None:
    """As published: llava-v1.5-7b-Q4_0 and llava-v1.5-13b-Q4_0 are of 3.83 and 7.37 GB."""
    for name, expected in zip(("llava-1.5-7b", "llava-1.5-13b"), gigabytes, strict=True):
        found = sum(t.n_bytes for t in language_tensors(GEOMETRIES[name].decoder, Type[type_name]))
        assert found / 1e9 == pytest.approx(expected, rel=0.01)


def test_the_13b_has_40_layers_of_its_widths() -> None:
    shapes = {
        t.name: (t.shape, t.type) for t in language_tensors(GEOMETRIES["llava-1.5-13b"].decoder, Type.Q4_K)
    }
    assert shapes["blk.39.attn_q.weight"] == ((5120, 5120), Type.Q4_K)
    assert shapes["blk.39.ffn_down.weight"] == ((5120, 13824), Type.Q4_K)
    assert shapes["output.weight"] == ((32000, 5120), Type.Q6_K)
    assert "blk.40.attn_q.weight" not in shapes


def test_rows_that_do_not_divide_into_blocks_have_llama_quantize_s_fallback() -> None:
    types = {t.name: t.type for t in language_tensors(GEOMETRIES["smolvlm2-500m"].decoder, Type.Q4_K)}
    assert types["blk.0.attn_q.weight"] == Type.Q5_0  # rows of 960
    assert types["blk.0.ffn_down.weight"] == Type.Q4_K  # of 2560
    assert types["output.weight"] == Type.Q8_0
    types = {t.name: t.type for t in language_tensors(GEOMETRIES["internvl3-1b"].decoder, Type.Q4_K)}
    assert types["blk.0.attn_q.weight"] == Type.Q5_0  # rows of 896
    assert types["blk.0.ffn_down.weight"] == Type.Q4_K  # of 4864
    assert types["output.weight"] == Type.Q8_0


@pytest.mark.parametrize("type_", [*(Type[name] for name in TYPES), Type.Q5_1])
def test_random_tensors_have_the_deviation_asked_for(type_: Type) -> None:
    raw = RandomTensors(3, 64 * 512).draw((64, 512), type_, 0.05)
    values = gguf.quants.dequantize(raw, type_)
    assert values.shape == (64, 512)
    assert float(values.std()) == pytest.approx(0.05, rel=0.05)
    assert abs(float(values.mean())) < 0.002


class Written(NamedTuple):
    name: str
    visual_tokens: int
    model: Path
    mmproj: Path


@pytest.fixture(scope="module", params=["tiny", *(name for name in PARAMETERS if "llava-1.5" not in name)])
def written(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Written:
    """A few narrow layers of each family: what is in the headers and in the picture's way is that of the whole."""
    name: str = request.param
    paths = write_narrow(name, tmp_path_factory.mktemp("geometry"))
    return Written(name, GEOMETRIES[name].visual_tokens, *paths)


def test_a_picture_has_as_many_tokens_as_told_and_is_pruned(written: Written) -> None:
    with pyfastv.Runner(
        written.model, written.mmproj, n_ctx=4096, n_threads=1, fastv="k=2,drop=0.5,score=random"
    ) as runner:
        report = runner.ask(drawn_picture(), "aaaa", max_tokens=1).report
    assert report.visual_tokens == written.visual_tokens
    assert report.visual_tokens_kept == written.visual_tokens // 2
    # what mtmd writes around tiles is one token each, as in the published vocabularies
    assert report.prompt_tokens - report.visual_tokens < 70


def test_headers_tell_the_sizes(written: Written) -> None:
    info = _native.model_info(str(written.model))
    d = narrow(GEOMETRIES[written.name].decoder)
    assert (info["n_layer"], info["n_embd"], info["unsupported_reason"]) == (d.layers, 256, None)
    read = read_model(str(written.model), str(written.mmproj))
    assert read.decoder.kv_width == tuple(
        kv_width(d, il) if d.attends(il) and d.has_cache(il) else 0 for il in range(d.layers)
    )
    assert read.encoder is not None
    assert len(read.encoder.layer_weights) == 2
    assert read.encoder.merged == GEOMETRIES[written.name].encoder.merge ** 2
    # every matrix is counted once
    matrices = [t.n_elements for t in gguf.GGUFReader(written.mmproj).tensors if t.tensor_type == Type.F16]
    encoder = read.encoder
    assert sum(encoder.layer_weights) + encoder.patch_weights + encoder.projector_weights == sum(matrices)


def kv_width(d: Decoder, il: int) -> int:
    """By hand: two heads of 64, but of 32 where Gemma 4 sees a window."""
    return 2 * 2 * (32 if d.gemma4 is not None and il % 2 == 0 else 64)


def test_what_is_not_whole_has_the_first_layers(tmp_path: Path) -> None:
    whole, first = (
        {t.name: t.shape for t in language_tensors(decoder_of("gemma-4-e2b", n), Type.Q4_0)}
        for n in (None, 17)
    )
    assert first.pop("per_layer_token_embd.weight") == (262144, 17 * 256)
    assert first.pop("per_layer_model_proj.weight") == (17 * 256, 1536)
    assert first.items() < whole.items()
    assert "blk.16.ffn_up.weight" in first
    assert "blk.17.ffn_up.weight" not in first
    assert "blk.16.attn_k.weight" not in whole  # it shares a cache
    assert files_of("gemma-4-e2b", tmp_path, layers=17) != files_of("gemma-4-e2b", tmp_path)
    assert files_of("gemma-4-e2b", tmp_path, layers=35) == files_of("gemma-4-e2b", tmp_path)
    for layers in (1, 36):
        with pytest.raises(pyfastv.errors.OptionError, match="of gemma-4-e2b there can be 2 to 35"):
            files_of("gemma-4-e2b", tmp_path, layers=layers)


def test_files_are_written_once_and_the_same(tmp_path: Path) -> None:
    told: list[tuple[float, float]] = []
    first = make_geometry("tiny", tmp_path / "a", progress=lambda done, total: told.append((done, total)))
    assert told[-1][0] == told[-1][1] == sum(path.stat().st_size for path in first) - _headers(first)
    assert told == sorted(told)
    again = make_geometry("tiny", tmp_path / "b")
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in again]
    stamp = first[0].stat().st_mtime_ns
    told.clear()
    make_geometry("tiny", tmp_path / "a", progress=lambda done, total: told.append((done, total)))
    assert first[0].stat().st_mtime_ns == stamp
    assert told == []


def _headers(paths: tuple[Path, Path]) -> int:
    """Bytes that are not tensors: headers, and the padding behind tensors, which the tiny geometry does not need."""
    return sum(
        path.stat().st_size - sum(int(t.n_bytes) for t in gguf.GGUFReader(path).tensors) for path in paths
    )


def test_an_interrupted_write_leaves_no_broken_model(tmp_path: Path) -> None:
    def stop(done: float, total: float) -> None:
        if done > total / 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make_geometry("tiny", tmp_path, progress=stop)
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_told_before_writing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Usage(NamedTuple):
        free: int = 10**9

    monkeypatch.setattr(files.shutil, "disk_usage", lambda folder: Usage())
    with pytest.raises(pyfastv.Error, match=r"needs 8\.0 GB .* 1\.0 GB are free"):
        make_geometry("llava-1.5-13b", tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(pyfastv.Error, match="name another folder"):
        make_geometry("tiny", tmp_path / "file" / "geometry")


@pytest.mark.parametrize(
    ("name", "type_name", "told"), [("llava-3", "Q4_0", "llava-1.5-7b"), ("tiny", "Q3_K", ", ".join(TYPES))]
)
def test_what_is_no_geometry_is_told(name: str, type_name: str, told: str, tmp_path: Path) -> None:
    with pytest.raises(pyfastv.errors.OptionError, match=told):
        make_geometry(name, tmp_path, type_name)
