"""The type that the vision encoder's matrices are loaded in: what is written, what is kept, and that it sees the same."""

from __future__ import annotations

import logging
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from pyfastv import ModelError, OptionError, Runner, _native
from pyfastv.commands.main import main
from pyfastv.engine.job_pool import JobPool
from pyfastv.models import (
    bundled_examples,
    bundled_mmproj,
    bundled_model,
    encoder_gain,
    encoder_type,
    kept_encoders,
)
from pyfastv.models.encoder_type import ENCODER_TYPES, Encoder, choose, resolve
from pyfastv.models.quantize import quantize_mmproj
from pyfastv.models.quantize_plan import make_plan

import random_mmproj
from compare import relative_rms
from features import Encoding, encoding
from gguf_parts import read, write

CLOCK = str(bundled_examples()[0].picture)
FAMILIES_THAT_GROW = ("LLaVA", "Qwen2.5-VL", "Gemma 3", "Pixtral", "InternVL", "SmolVLM", "MiniCPM-V")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where encoders are kept."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.delenv("PYFASTV_KERNELS", raising=False)
    encoder_gain._gain.cache_clear()
    encoder_type._told.clear()
    return tmp_path / "cache" / "pyfastv" / "encoders"


Pair = tuple[Path, Path]


@pytest.fixture
def pair(tmp_path: Path) -> Pair:
    """A model and an mmproj in f32."""
    return random_mmproj.write_pair(tmp_path, "LLaVA")


@pytest.fixture
def worth_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """No encoder is too small for "auto", and q8_0 is faster."""
    monkeypatch.setattr(encoder_type, "_LEAST_WEIGHTS", 0)
    monkeypatch.setattr(encoder_type, "gain_of_q8_0", lambda: 2.0)


def kept(cache: Path) -> list[str]:
    return sorted(path.name for path in cache.iterdir()) if cache.exists() else []


def types_of(path: Path) -> set[str]:
    tensors = gguf.GGUFReader(path).tensors
    return {t.tensor_type.name.lower() for t in tensors if "ffn_up.weight" in t.name}


# what is taken


@pytest.mark.parametrize("kind", ["q8_0", "q5_1", "q5_0", "q4_1", "q4_0"])
def test_a_quantized_type_is_made_once(pair: Pair, cache: Path, kind: str) -> None:
    calls: list[tuple[float, float]] = []
    made = resolve(pair[1], kind, progress=lambda done, total: calls.append((done, total)))
    assert made.path.parent == cache
    assert types_of(made.path) == {kind}
    assert str(made) == f"{kind} (quantized from f32, kept in {cache})"
    assert calls[-1][0] == calls[-1][1] > 0
    before = made.path.stat()
    calls.clear()
    assert resolve(pair[1], kind, progress=lambda *call: calls.append(call)) == made
    assert not calls
    assert made.path.stat().st_mtime_ns == before.st_mtime_ns
    assert kept(cache) == [made.path.name]


def test_the_file_as_it_is_writes_nothing(pair: Pair, cache: Path) -> None:
    for kind in ("stock", "f16", "auto"):  # auto: it is small
        assert resolve(pair[1], kind) == Encoder(pair[1], "f32")
    assert not cache.exists()


def test_a_source_that_changes_is_quantized_again(pair: Pair, cache: Path) -> None:
    first = resolve(pair[1], "q8_0").path
    other = resolve(pair[1], "q4_0").path
    file = read(pair[1])
    file.tensor("mm.0.weight").data = bytes(len(file.tensor("mm.0.weight").data))
    write(file, pair[1])
    again = resolve(pair[1], "q8_0").path
    assert again != first
    assert kept(cache) == [again.name]  # those of the source as it was are gone
    assert not other.exists()


def test_a_kept_file_that_is_damaged_is_made_again(pair: Pair) -> None:
    made = resolve(pair[1], "q8_0").path
    whole = made.read_bytes()
    made.write_bytes(whole[:1000])
    assert resolve(pair[1], "q8_0").path == made
    assert made.read_bytes() == whole


def test_files_of_one_name_in_two_folders_are_two(pair: Pair, tmp_path: Path, cache: Path) -> None:
    other = tmp_path / "other" / pair[1].name
    other.parent.mkdir()
    shutil.copy2(pair[1], other)
    assert resolve(pair[1], "q8_0").path != resolve(other, "q8_0").path
    assert len(kept(cache)) == 2


def test_parts_that_nobody_writes_to_any_more_go(pair: Pair, cache: Path) -> None:
    cache.mkdir(parents=True)
    old, new = cache / ".pyfastv-1-a.part", cache / ".pyfastv-2-b.part"
    for part in (old, new):
        part.write_bytes(b"x")
    os.utime(old, (0, 0))
    resolve(pair[1], "q8_0")
    assert (old.exists(), new.exists()) == (False, True)


RESOLVING = "import sys; from pathlib import Path; from pyfastv.models.encoder_type import resolve;"


def test_two_processes_at_once_make_one_file(pair: Pair, cache: Path) -> None:
    code = f"{RESOLVING} print(resolve(Path(sys.argv[1]), 'q8_0').path)"
    processes = [
        subprocess.Popen([sys.executable, "-c", code, str(pair[1])], stdout=subprocess.PIPE, cwd=cache.anchor)
        for _ in range(2)
    ]
    told = {process.communicate()[0] for process in processes}
    assert [process.returncode for process in processes] == [0, 0]
    assert len(told) == 1
    assert [name.encode() for name in kept(cache)] == [os.path.basename(next(iter(told)).strip())]


# auto


def test_auto_is_q8_0_where_that_is_faster(pair: Pair, worth_it: None) -> None:
    assert choose(pair[1], "auto") == ("f32", "q8_0")


def test_auto_is_the_file_where_q8_0_is_not_faster(
    pair: Pair, worth_it: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(encoder_type, "gain_of_q8_0", lambda: 1.1)
    assert choose(pair[1], "auto") == ("f32", None)


def test_auto_is_the_file_with_the_stock_kernels(
    pair: Pair, worth_it: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYFASTV_KERNELS", "stock")
    assert choose(pair[1], "auto") == ("f32", None)
    assert choose(pair[1], "q8_0") == ("f32", "q8_0")


def test_auto_is_the_file_on_a_gpu(pair: Pair, worth_it: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_native, "backends", lambda: [{"type": "gpu", "description": "", "name": ""}])
    assert choose(pair[1], "auto", -1) == ("f32", None)
    assert choose(pair[1], "auto", 0) == ("f32", "q8_0")


def test_the_gain_is_measured_once(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gain = encoder_gain.gain_of_q8_0()
    assert 0.1 < gain < 100
    assert len(list(cache.parent.glob("q8_0-gain-*.json"))) == 1
    encoder_gain._gain.cache_clear()
    monkeypatch.setattr(_native, "product_seconds", None)
    assert encoder_gain.gain_of_q8_0() == gain


# quantized files, and what is no file


def test_quantized_matrices_are_taken_as_they_are(pair: Pair, tmp_path: Path, cache: Path) -> None:
    q4_0 = tmp_path / "q4_0.gguf"
    quantize_mmproj(pair[1], q4_0, "q4_0")
    for kind in ("auto", "stock", "q4_0"):
        assert resolve(q4_0, kind) == Encoder(q4_0, "q4_0")
    for kind in ("f16", "q8_0"):
        with pytest.raises(OptionError, match=f"encoder_type is '{kind}'.*q4_0.gguf are q4_0 already"):
            resolve(q4_0, kind)
    assert not cache.exists()


@pytest.mark.parametrize("value", ["Q8_0", "q6_k", "", None, 8, ["q8_0"]])
def test_an_unknown_type_is_refused_at_every_door(value: Any) -> None:
    for load in (
        lambda: Runner(encoder_type=value),
        lambda: JobPool(encoder_type=value),
        lambda: resolve(bundled_mmproj(), value),
    ):
        with pytest.raises(OptionError, match=f"encoder_type must be one of {', '.join(ENCODER_TYPES)}"):
            load()


def test_what_cannot_be_read_is_left_to_the_loading(tmp_path: Path) -> None:
    missing = tmp_path / "missing.gguf"
    assert resolve(missing, "q8_0") == Encoder(missing, None)
    with pytest.raises(ModelError, match=r"missing\.gguf: no such file"):
        Runner(bundled_model(), missing, encoder_type="q8_0")


def test_weights_that_are_not_finite_are_told_by_who_asks_for_a_type(pair: Pair, worth_it: None) -> None:
    file = read(pair[1])
    file.tensor("mm.2.weight").data = b"\xff" * len(file.tensor("mm.2.weight").data)
    write(file, pair[1])
    assert resolve(pair[1], "auto").path == pair[1]
    with pytest.raises(ModelError, match=r"mm\.2\.weight has values that are not finite"):
        resolve(pair[1], "q8_0")


# a cache that cannot be written


def test_without_a_cache_the_file_is_taken_and_that_is_told_once(
    pair: Pair, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "cache").write_text("a file, no folder")  # root may write to folders that are read-only
    with caplog.at_level(logging.WARNING, "pyfastv"):
        for _ in range(2):
            assert resolve(pair[1], "q8_0") == Encoder(pair[1], "f32")
    (told,) = [record.getMessage() for record in caplog.records]
    assert "stays f32, since as q8_0 it cannot be kept" in told


def test_a_full_disk_leaves_nothing(
    pair: Pair, cache: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(kept_encoders, "_SPARE_BYTES", 1 << 62)
    assert resolve(pair[1], "q8_0").path == pair[1]
    assert "are free" in caplog.text
    assert kept(cache) == []


def test_ctrl_c_leaves_nothing(pair: Pair, cache: Path) -> None:
    def interrupt(done: float, total: float) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        resolve(pair[1], "q8_0", progress=interrupt)
    assert kept(cache) == []


# the doors


def test_a_runner_tells_what_it_has(pair: Pair, cache: Path) -> None:
    with Runner(*pair, n_ctx=256, fastv=None, encoder_type="q8_0") as runner:
        assert runner.info["mmproj"] == pair[1].name
        assert runner.info["encoder"] == f"q8_0 (quantized from f32, kept in {cache})"
        assert runner.ask(CLOCK, "Q?", max_tokens=1).report.pictures_encoded == 1
    with JobPool(*pair, n_ctx=256, slots=1, fastv=None, encoder_type="q8_0") as pool:
        assert pool.encoder is not None
        assert pool.encoder.type == "q8_0"
    with Runner(n_ctx=256) as runner:
        assert runner.info["encoder"] == "q8_0 (the file as it is)"


def test_the_command_line(pair: Pair, cache: Path, capfd: pytest.CaptureFixture[str]) -> None:
    model, mmproj = map(str, pair)
    arguments = ["ask", CLOCK, "Q?", "-m", model, "--mmproj", mmproj, "-c", "256", "-n", "1", "--off"]
    assert main([*arguments, "--encoder-type", "q5_0"]) == 0
    assert [name.split(".")[-2] for name in kept(cache)] == ["q5_0"]
    assert main([*arguments, "--encoder-type", "q3_k"]) == 2
    assert "q3_k" in capfd.readouterr().err
    assert main(["info", model, "--mmproj", mmproj]) == 0
    assert "encoder         f32 (the file as it is)" in capfd.readouterr().out


# wider feed-forward blocks


def write_width(folder: Path, name: str, width: int, monkeypatch: pytest.MonkeyPatch) -> Pair:
    """A pair whose encoder is so wide inside."""
    monkeypatch.setattr(random_mmproj, "FFN", width)
    return random_mmproj.write_pair(folder, name)


def swapped(mmproj: Path) -> None:
    """The names as older files have them."""
    file = read(mmproj)
    for tensor in file.tensors:
        name = tensor.name.decode()
        if "ffn_up" in name or "ffn_down" in name:
            other = name.replace("up", "#").replace("down", "up").replace("#", "down")
            tensor.name = other.encode()
    write(file, mmproj)


def widened(mmproj: Path, type: str, multiple: int) -> Path:
    """Of the same type, wider."""
    target = mmproj.with_name(f"{mmproj.stem}-{type}-{multiple}.gguf")
    plan = make_plan(_native.gguf_header(mmproj), type, multiple)
    _native.rewrite_gguf(mmproj, target, tensors=plan.tensors, keys=plan.keys)
    return target


@pytest.fixture(scope="module")
def process() -> Iterator[Encoding]:
    with encoding() as process:
        yield process


@pytest.fixture
def seen(tmp_path: Path, process: Encoding) -> Callable[[Path, Path], np.ndarray]:
    """What an encoder makes of a picture."""
    picture = tmp_path / "picture.png"
    pixels = np.random.default_rng(5).integers(0, 256, (168, 224, 3), dtype=np.uint8)
    from PIL import Image

    Image.fromarray(pixels).save(picture)
    return lambda model, mmproj: process.features(model, mmproj, picture, tmp_path / "rows.npy")


@pytest.mark.parametrize("type", ["f32", "f16"])
@pytest.mark.parametrize(
    ("name", "names"),
    [
        *((name, "new") for name in FAMILIES_THAT_GROW),
        *((name, "old") for name in FAMILIES_THAT_GROW if name not in ("Pixtral", "InternVL")),
    ],
)
def test_zeros_change_no_bit(
    tmp_path: Path, seen: Callable[[Path, Path], np.ndarray], name: str, type: str, names: str
) -> None:
    """128 wide, and then 192: whole vectors of every CPU, so that sums are added up in the same order."""
    model, mmproj = random_mmproj.write_pair(tmp_path, name)
    if names == "old":
        swapped(mmproj)
    plain, wide = widened(mmproj, type, 1), widened(mmproj, type, 192)
    (tensor,) = (t for t in gguf.GGUFReader(wide).tensors if t.name == "v.blk.1.ffn_up.weight")
    assert sorted(tensor.shape.tolist()) == [64, 192]
    assert _native.gguf_header(wide)["metadata"]["clip.vision.feed_forward_length"] == 192
    assert np.array_equal(seen(model, plain), seen(model, wide))


@pytest.mark.parametrize("name", FAMILIES_THAT_GROW)
def test_widths_that_are_no_whole_blocks_become_so(
    tmp_path: Path, seen: Callable[[Path, Path], np.ndarray], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """As 4304 and 3420 of published models."""
    model, mmproj = write_width(tmp_path, name, 140, monkeypatch)
    f16, q8_0 = tmp_path / "f16.gguf", tmp_path / "q8_0.gguf"
    quantize_mmproj(mmproj, f16, "f16")
    made = quantize_mmproj(mmproj, q8_0, "q8_0")
    assert made.matrices_f16 == 0
    error = relative_rms(seen(model, widened(mmproj, "f32", 32)), seen(model, mmproj))
    assert error < 1e-5  # sums in another order
    exact = seen(model, f16)
    a, b = exact.ravel().astype(np.float64), seen(model, q8_0).ravel().astype(np.float64)
    cosine = a @ b / (np.linalg.norm(a) * np.linalg.norm(b))
    print(f"{name}: cosine {cosine:.6f}")
    assert cosine >= 0.999


def test_a_width_that_would_hide_which_matrix_is_which_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """llama.cpp tells swapped names by the columns of ffn_down: the encoder's width, 64."""
    _, mmproj = write_width(tmp_path, "LLaVA", 40, monkeypatch)
    made = quantize_mmproj(mmproj, tmp_path / "q8_0.gguf")
    assert made.matrices_f16 == random_mmproj.LAYERS
    assert _native.gguf_header(tmp_path / "q8_0.gguf")["metadata"]["clip.vision.feed_forward_length"] == 40
