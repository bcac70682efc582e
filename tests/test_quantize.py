"""pyfastv quantize-mmproj: what changes, what stays, and that the result still sees."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import gguf
import numpy as np
import pytest
from gguf import GGMLQuantizationType as Kind

import pyfastv
from pyfastv import ModelError, OptionError
from pyfastv.commands.main import main
from pyfastv.models import bundled_examples, bundled_mmproj, bundled_model
from pyfastv.models.quantize import TYPES, quantize_mmproj

import random_mmproj
from compare import relative_rms
from dequantize import dequantize
from features import Encoding, encoding
from random_mmproj import FAMILIES

CLOCK = bundled_examples()[0]

# Relative rms of the features against f32 weights. The f32 file here has the values of the bundled q8_0 one.
ERROR = {"f16": 5e-4, "q8_0": 1e-2, "q5_1": 2e-2, "q5_0": 2.5e-2, "q4_1": 5e-2, "q4_0": 5e-2}


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundled encoder in f32."""
    path = tmp_path_factory.mktemp("f32") / "mmproj-f32.gguf"
    dequantize(bundled_mmproj(), path)
    return path


Written = Callable[[str], Path]


@pytest.fixture(scope="module")
def written(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Written:
    folder = tmp_path_factory.mktemp("quantized")

    def write(kind: str) -> Path:
        path = folder / f"mmproj-{kind}.gguf"
        if not path.exists():
            quantize_mmproj(source, path, kind)
        return path

    return write


@pytest.mark.parametrize("kind", TYPES)
def test_matrices_change_and_everything_else_stays(source: Path, written: Written, kind: str) -> None:
    before, after = gguf.GGUFReader(source), gguf.GGUFReader(written(kind))
    assert [tensor.name for tensor in after.tensors] == [tensor.name for tensor in before.tensors]
    changed = set()
    for old, new in zip(before.tensors, after.tensors, strict=True):
        assert new.shape.tolist() == old.shape.tolist()
        if new.tensor_type == old.tensor_type:
            assert np.array_equal(new.data, old.data)
        else:
            assert new.tensor_type is Kind[kind.upper()]
            changed.add(new.name)
    matrices = ("attn_q", "attn_k", "attn_v", "attn_out", "ffn_up", "ffn_down")
    blocks = {f"v.blk.{il}.{name}.weight" for il in range(7) for name in matrices}
    assert changed == blocks | {"mm.0.weight", "mm.2.weight"}

    values = [{name: field.contents() for name, field in file.fields.items()} for file in (before, after)]
    assert values[1].pop("general.file_type") == TYPES[kind]
    assert values[1].pop("general.quantization_version") == gguf.GGML_QUANT_VERSION
    for facts in values:
        for name in ("general.file_type", "general.quantization_version", "GGUF.kv_count"):
            facts.pop(name, None)
    assert values[0] == values[1]


def test_q8_0_gives_back_the_values_that_q8_0_had(written: Written) -> None:
    """Which the f32 file was made from."""
    bundled, made = gguf.GGUFReader(bundled_mmproj()), gguf.GGUFReader(written("q8_0"))
    for old, new in zip(bundled.tensors, made.tensors, strict=True):
        old_values, new_values = (gguf.quants.dequantize(t.data, t.tensor_type) for t in (old, new))
        np.testing.assert_allclose(new_values, old_values, rtol=1e-3, atol=1e-6)


def test_sizes_shrink_with_the_bits(written: Written) -> None:
    sizes = {kind: written(kind).stat().st_size for kind in TYPES}
    assert sizes["q4_0"] < sizes["q4_1"] < sizes["q5_0"] < sizes["q5_1"] < sizes["q8_0"] < sizes["f16"]


@pytest.fixture(scope="module")
def encoder() -> Iterator[Encoding]:
    with encoding() as encoder:
        yield encoder


@pytest.fixture(scope="module")
def exact(encoder: Encoding, source: Path) -> np.ndarray:
    """What the encoder in f32 makes of the clock."""
    return encoder.features(bundled_model(), source, CLOCK.picture, source.with_name("exact.npy"))


@pytest.mark.parametrize("kind", TYPES)
def test_features_are_close_and_the_clock_is_read(
    encoder: Encoding, exact: np.ndarray, written: Written, tmp_path: Path, kind: str
) -> None:
    made = encoder.features(bundled_model(), written(kind), CLOCK.picture, tmp_path / "made.npy")
    assert made.shape == (576, 512)
    error = relative_rms(made, exact)
    print(f"{kind}: relative rms {error:.4f}")
    assert error < ERROR[kind]
    with pyfastv.Runner(bundled_model(), written(kind), n_ctx=1024) as runner:
        assert runner.ask(CLOCK.picture, CLOCK.question).text == CLOCK.answer


@pytest.mark.parametrize("name", FAMILIES)
def test_encoders_of_other_families_still_run(encoder: Encoding, tmp_path: Path, name: str) -> None:
    """With random weights. What ggml cannot do with a quantized matrix would end the process."""
    model, mmproj = random_mmproj.write_pair(tmp_path, name)
    made = quantize_mmproj(mmproj, tmp_path / "q4_0.gguf", "q4_0")
    assert made.matrices > 0
    picture = tmp_path / "picture.png"
    pixels = np.random.default_rng(5).integers(0, 256, (168, 224, 3), dtype=np.uint8)
    pyfastv.inputs.images.Image.fromarray(pixels).save(picture)
    exact, rows = (
        encoder.features(model, file, picture, tmp_path / "rows.npy")
        for file in (mmproj, tmp_path / "q4_0.gguf")
    )
    assert rows.shape == exact.shape
    assert 0 < relative_rms(rows, exact) < 0.5


def test_rows_that_are_no_whole_blocks_become_f16(tmp_path: Path) -> None:
    source = tmp_path / "odd.gguf"
    writer = gguf.GGUFWriter(source, "clip")
    rng = np.random.default_rng(7)
    for name, shape in {
        "v.blk.0.attn_q.weight": (8, 48),
        "v.blk.0.ffn_up.weight": (8, 64),
        "mm.0.weight": (4, 64, 2, 2),  # a convolution
        "mm.input_projection.weight": (64, 64),
        "v.position_embd.weight": (9, 64),
        "v.blk.0.ln1.weight": (64,),
    }.items():
        writer.add_tensor(name, rng.normal(size=shape).astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()

    made = quantize_mmproj(source, tmp_path / "q.gguf", "q5_0")
    assert (made.matrices, made.matrices_f16, made.tensors_kept) == (1, 1, 4)
    types = {tensor.name: tensor.tensor_type for tensor in gguf.GGUFReader(tmp_path / "q.gguf").tensors}
    assert types.pop("v.blk.0.attn_q.weight") is Kind.F16
    assert types.pop("v.blk.0.ffn_up.weight") is Kind.Q5_0
    assert set(types.values()) == {Kind.F32}


# what is refused


def test_bad_input_is_refused_by_name(source: Path, written: Written, tmp_path: Path) -> None:
    out = tmp_path / "out.gguf"
    noise, cut, empty = tmp_path / "noise", tmp_path / "cut", tmp_path / "empty"
    noise.write_bytes(bytes(range(256)) * 64)
    cut.write_bytes(source.read_bytes()[: source.stat().st_size // 2])
    empty.write_bytes(b"")
    for path, words in (
        (bundled_model(), "its architecture is llama"),
        (written("q8_0"), "is quantized already"),
        (tmp_path / "nowhere", "no such file"),
        (tmp_path, "cannot be read"),
        (noise, "not a GGUF file"),
        (cut, "damaged"),
        (empty, "not a GGUF file"),
    ):
        with pytest.raises(ModelError, match=words) as caught:
            quantize_mmproj(path, out)
        assert str(path) in str(caught.value)
    with pytest.raises(OptionError, match=r"f16, q4_0.*got 'q3_k'"):
        quantize_mmproj(source, out, "q3_k")
    assert not list(tmp_path.glob("out*"))


def test_weights_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    source = tmp_path / "nan.gguf"
    writer = gguf.GGUFWriter(source, "clip")
    writer.add_tensor("mm.0.weight", np.full((4, 32), np.nan, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(ModelError, match=r"mm\.0\.weight has values that are not finite"):
        quantize_mmproj(source, tmp_path / "out.gguf")
    assert [path.name for path in tmp_path.iterdir()] == ["nan.gguf"]


def test_a_file_that_exists_stays_unless_forced(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.gguf"
    out.write_text("mine")
    with pytest.raises(OptionError, match="exists already"):
        quantize_mmproj(source, out)
    assert out.read_text() == "mine"
    quantize_mmproj(source, out, force=True)
    assert len(gguf.GGUFReader(out).tensors) == 121
    with pytest.raises(OptionError, match="is the file to read"):
        quantize_mmproj(source, source, force=True)


def test_an_interrupted_call_leaves_the_old_file(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.gguf"
    out.write_text("mine")
    steps: list[float] = []

    def interrupt(done: float, total: float) -> None:
        steps.append(done / total)
        if done > total / 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        quantize_mmproj(source, out, force=True, progress=interrupt)
    assert steps == sorted(steps)
    assert [path.name for path in tmp_path.iterdir()] == ["out.gguf"]
    assert out.read_text() == "mine"


def test_the_command(source: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    out = str(tmp_path / "out.gguf")
    digest = hashlib.sha256(source.read_bytes()).hexdigest()
    assert main(["quantize-mmproj", str(source), out, "--type", "q4_0"]) == 0
    printed = capfd.readouterr().out
    assert printed.startswith(f"{out}: 4.6 MB, 19% of {source}; 44 matrices q4_0, 0 f16, 77 other")
    assert main(["quantize-mmproj", str(source), out]) == 1
    assert "--force" in capfd.readouterr().err
    assert main(["quantize-mmproj", str(source), out, "--force"]) == 0
    assert main(["quantize-mmproj", str(source), out, "--type", "q2_k"]) == 2
    assert hashlib.sha256(source.read_bytes()).hexdigest() == digest


def test_no_further_package_is_needed(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gguf", None)
    assert quantize_mmproj(source, tmp_path / "out.gguf").matrices == 44
