"""The encoder's outputs on disk: found by every process, never taken for another's, whatever lies in the folder."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pyfastv import ModelError, OptionError, Runner, _native, examples
from pyfastv.commands.main import main
from pyfastv.engine.job_pool import JobPool
from pyfastv.engine.loaded import _made_by
from pyfastv.engine.sampling import Sampling
from pyfastv.inputs.chat import user_message

import random_mmproj

RNG = np.random.default_rng(3)
PICTURES = [RNG.integers(0, 256, (112, 112, 3), dtype=np.uint8) for _ in range(6)]
OPTIONS: dict[str, Any] = {"n_ctx": 256, "n_threads": 1, "fastv": None, "flash_attn": False}
HEAD = 8 + 3 * 8  # magic, and how many bytes of the key, values and places follow

# what another process does, with the names of two files, of a folder and of a picture
SCRIPT = """
import json, sys
import numpy as np
from pyfastv import Runner

model, mmproj, folder, picture = sys.argv[1:]
with Runner(model, mmproj, n_ctx=256, n_threads=1, fastv=None, flash_attn=False, encoder_cache_dir=folder) as runner:
    answer = runner.ask(np.load(picture), "What is it?", max_tokens=4)
    report, logits = answer.report, runner._engine.logits()
counts = report.pictures_encoded, report.pictures_from_cache, report.pictures_from_disk
print(json.dumps([counts, report.encode_ms, logits.tobytes().hex()]))
"""


class Asked:
    """What became of a picture."""

    def __init__(self, of: Runner | _native.Engine, picture: np.ndarray, turbo: str = "") -> None:
        engine = of._engine if isinstance(of, Runner) else of
        engine.reset()
        name = picture.tobytes().hex()[:32]
        engine.prefill(
            f"{engine.media_marker}What?", [picture], [name], None, True, 8, turbo=turbo, reducer=""
        )
        report = engine.report()
        self.logits = engine.logits()
        self.encoded, self.from_disk = report.pictures_encoded, report.pictures_from_disk


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return random_mmproj.write_pair(tmp_path_factory.mktemp("model"), "LLaVA")


@pytest.fixture(scope="module")
def expected(files: tuple[Path, Path]) -> list[np.ndarray]:
    """Logits without a folder."""
    with Runner(*files, **OPTIONS) as runner:
        return [Asked(runner, picture).logits for picture in PICTURES]


Make = Callable[..., Runner]


@pytest.fixture
def make(files: tuple[Path, Path], tmp_path: Path) -> Iterator[Make]:
    """Runners that keep nothing in memory, with the folder "kept"."""
    made: list[Runner] = []

    def make(**options: Any) -> Runner:
        given = {"encoder_cache_mb": 0, "encoder_cache_dir": tmp_path / "kept", **OPTIONS, **options}
        made.append(Runner(*files, **given))
        return made[-1]

    yield make
    for runner in made:
        runner.close()


def kept(folder: Path) -> list[Path]:
    return sorted((folder / "kept").iterdir())


def test_another_process_needs_no_encoder(files: tuple[Path, Path], tmp_path: Path) -> None:
    np.save(tmp_path / "picture.npy", PICTURES[0])
    command = [
        sys.executable,
        "-c",
        SCRIPT,
        *map(str, files),
        str(tmp_path / "kept"),
        str(tmp_path / "picture.npy"),
    ]
    told = [json.loads(subprocess.run(command, check=True, capture_output=True).stdout) for _ in range(2)]
    assert [counts for counts, _, _ in told] == [[1, 0, 0], [0, 1, 1]]
    assert told[0][1] > told[1][1] == 0
    assert told[0][2] == told[1][2]


def test_rows_come_back_to_the_bit(make: Make, tmp_path: Path, expected: list[np.ndarray]) -> None:
    for turn in range(2):
        runner = make()
        for picture, logits in zip(PICTURES, expected, strict=True):
            asked = Asked(runner, picture)
            assert (asked.encoded, asked.from_disk) == ((0, 1) if turn else (1, 0))
            np.testing.assert_array_equal(asked.logits, logits)
    assert len(kept(tmp_path)) == len(PICTURES)


def test_memory_comes_first(make: Make) -> None:
    runner = make(encoder_cache_mb=16)
    assert [Asked(runner, PICTURES[0]).from_disk for _ in range(2)] == [0, 0]
    other = make(encoder_cache_mb=16)
    assert [Asked(other, PICTURES[0]).from_disk for _ in range(2)] == [1, 0]


def test_turbo_has_files_of_its_own(make: Make, tmp_path: Path) -> None:
    first = [Asked(make(), PICTURES[0], turbo).logits for turbo in ("", "share=0.5", "share=0.25")]
    assert len(kept(tmp_path)) == 3
    again = [Asked(make(), PICTURES[0], turbo) for turbo in ("", "share=0.5", "share=0.25")]
    assert [asked.from_disk for asked in again] == [1, 1, 1]
    for asked, logits in zip(again, first, strict=True):
        np.testing.assert_array_equal(asked.logits, logits)
    assert np.abs(first[0] - first[1]).max() > 1e-4


def test_another_encoder_has_files_of_its_own(make: Make, files: tuple[Path, Path], tmp_path: Path) -> None:
    Asked(make(), PICTURES[0])
    other = files[1].with_name("other.gguf")
    data = bytearray(files[1].read_bytes())
    data[-1000:] = bytes(1000)  # of the projector, the last in the file
    other.write_bytes(data)
    with Runner(files[0], other, encoder_cache_dir=tmp_path / "kept", **OPTIONS) as runner:
        assert Asked(runner, PICTURES[0]).encoded == 1


@pytest.mark.parametrize("name", ["file", "n_gpu_layers", "flash_attn", "PYFASTV_KERNELS"])
def test_what_rows_depend_on_is_in_the_key(
    name: str, files: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {"n_gpu_layers": 0, "flash_attn": "off"}
    one = _made_by(files[1], options)
    assert one == _made_by(files[1], options)
    if name == "PYFASTV_KERNELS":
        monkeypatch.setenv(name, "stock")
    other = {**options, "n_gpu_layers": -1} if name == "n_gpu_layers" else {**options, "flash_attn": "on"}
    assert one != _made_by(files[0 if name == "file" else 1], other if name in options else options)


def test_a_broken_file_is_none_and_is_replaced(
    make: Make, tmp_path: Path, expected: list[np.ndarray]
) -> None:
    runner = make()
    Asked(runner, PICTURES[0])
    [path] = kept(tmp_path)
    whole = path.read_bytes()
    n_key = int.from_bytes(whole[8:16], sys.byteorder)
    ends = [0, 1, 7, *range(8, HEAD + 1, 8), HEAD + n_key, len(whole) // 2, len(whole) - 8, len(whole) - 1]
    broken = [whole[:end] for end in ends]
    broken += [whole + b"\0", whole[8:] + whole[:8], bytes(len(whole))]
    for place in [*range(HEAD), HEAD, HEAD + n_key, *range(HEAD + n_key, len(whole), 997), len(whole) - 1]:
        changed = bytearray(whole)
        changed[place] ^= 0x10
        broken.append(bytes(changed))
    for data in broken:
        path.write_bytes(data)
        asked = Asked(runner, PICTURES[0])
        assert (asked.encoded, asked.from_disk) == (1, 0)
        np.testing.assert_array_equal(asked.logits, expected[0])
        assert path.read_bytes() == whole
    assert Asked(runner, PICTURES[0]).from_disk == 1


def test_another_picture_s_file_is_none(make: Make, tmp_path: Path, expected: list[np.ndarray]) -> None:
    runner = make()
    Asked(runner, PICTURES[0])
    [first] = kept(tmp_path)
    Asked(runner, PICTURES[1])
    [second] = set(kept(tmp_path)) - {first}
    shutil.copy(first, second)
    asked = Asked(runner, PICTURES[1])
    assert asked.encoded == 1
    np.testing.assert_array_equal(asked.logits, expected[1])


def a_folder(path: Path) -> None:
    path.mkdir()
    (path / "in it").write_bytes(b"")


def a_link(path: Path) -> None:
    """To what would be right."""
    path.symlink_to(path.parent.parent / "elsewhere")


@pytest.mark.parametrize("what", [a_folder, a_link, os.mkfifo, lambda path: path.symlink_to(path)])
def test_what_is_no_file_is_none(
    what: Callable[[Path], None], make: Make, tmp_path: Path, expected: list[np.ndarray]
) -> None:
    runner = make()
    Asked(runner, PICTURES[0])
    [path] = kept(tmp_path)
    whole = path.read_bytes()
    path.rename(tmp_path / "elsewhere")
    what(path)
    asked = Asked(runner, PICTURES[0])
    assert (asked.encoded, asked.from_disk) == (1, 0)
    np.testing.assert_array_equal(asked.logits, expected[0])
    assert (tmp_path / "elsewhere").read_bytes() == whole
    assert kept(tmp_path) == [path]
    if what is a_folder:
        assert list(path.iterdir()) == [path / "in it"]
    else:
        assert path.is_file()
        assert not path.is_symlink()


def test_another_user_s_file_is_none(make: Make, tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("this machine lets root alone give files away")
    runner = make()
    Asked(runner, PICTURES[0])
    [path] = kept(tmp_path)
    os.chown(path, 12345, -1)
    assert Asked(runner, PICTURES[0]).encoded == 1
    assert path.stat().st_uid == 0


def test_those_not_used_for_longest_go(files: tuple[Path, Path], make: Make, tmp_path: Path) -> None:
    runner = make()
    Asked(runner, PICTURES[0])
    [first] = kept(tmp_path)
    Asked(runner, PICTURES[1])
    [second] = set(kept(tmp_path)) - {first}
    size = first.stat().st_size
    for age, path in ((2000, first), (1000, second)):
        os.utime(path, (path.stat().st_mtime - age,) * 2)
    other, part = tmp_path / "kept" / "notes.txt", tmp_path / "kept" / ".abcdef.part"
    other.write_bytes(bytes(10 * size))  # not ours
    part.write_bytes(b"of a process that ended")
    os.utime(part, (part.stat().st_mtime - 7200,) * 2)

    engine = _native.Engine(
        model_path=files[0],
        mmproj_path=files[1],
        n_ctx=256,
        n_threads=1,
        flash_attn="off",
        encoder_cache_dir=tmp_path / "kept",
        encoder_cache_made_by=_made_by(files[1], {"n_gpu_layers": -1, "flash_attn": "off"}),
        encoder_cache_disk_bytes=int(2.5 * size),
    )
    assert Asked(engine, PICTURES[0]).from_disk == 1  # used now
    assert Asked(engine, PICTURES[2]).encoded == 1
    engine.close()
    [third] = set(kept(tmp_path)) - {first, other}
    assert third != second
    assert first.exists()


def test_what_is_larger_than_the_folder_may_be_is_not_kept(make: Make, tmp_path: Path) -> None:
    runner = make(encoder_cache_disk_mb=0)
    assert [Asked(runner, PICTURES[0]).encoded for _ in range(2)] == [1, 1]
    assert kept(tmp_path) == []


def test_two_at_once_write_the_same(make: Make, tmp_path: Path, expected: list[np.ndarray]) -> None:
    runners = [make(), make()]

    def ask(runner: Runner) -> list[np.ndarray]:
        return [Asked(runner, picture).logits for _ in range(3) for picture in PICTURES]

    with ThreadPoolExecutor(2) as threads:
        for found in threads.map(ask, runners):
            np.testing.assert_array_equal(found, expected * 3)
    assert [path.suffix for path in kept(tmp_path)] == [".rows"] * len(PICTURES)


def test_only_the_user_reads_them(make: Make, tmp_path: Path) -> None:
    runner = make(encoder_cache_dir=tmp_path / "not" / "there" / "kept")
    Asked(runner, PICTURES[0])
    folder = tmp_path / "not" / "there" / "kept"
    [path] = folder.iterdir()
    assert [each.stat().st_mode & 0o777 for each in (folder, path)] == [0o700, 0o600]


def test_a_folder_that_cannot_be_is_told_before_the_model_is_loaded(make: Make, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    for place in (tmp_path / "file", tmp_path / "file" / "kept", "/proc/nothing/kept"):
        with pytest.raises(OptionError, match=r"encoder_cache_dir.*cannot be written"):
            make(encoder_cache_dir=place)
    for place in ("", "a\0b", 5):
        with pytest.raises(OptionError, match="encoder_cache_dir"):
            make(encoder_cache_dir=place)
    with pytest.raises(OptionError, match="encoder_cache_disk_mb"):
        make(encoder_cache_disk_mb=-1)


def test_a_model_of_text_alone_has_no_folder(files: tuple[Path, Path], tmp_path: Path) -> None:
    with Runner(files[0], encoder_cache_dir=tmp_path / "kept", **OPTIONS) as runner:
        assert runner.ask(None, "Hello", max_tokens=1, grammar="root ::= [a-z]").text
    assert not (tmp_path / "kept").exists()
    with pytest.raises(ModelError):
        Runner(files[0], tmp_path / "none.gguf", encoder_cache_dir=tmp_path / "kept", **OPTIONS)


def test_a_pool_and_a_runner_share_them(files: tuple[Path, Path], make: Make, tmp_path: Path) -> None:
    with JobPool(*files, slots=1, encoder_cache_dir=tmp_path / "kept", **OPTIONS) as pool:
        job = pool.submit([user_message("What is it?", PICTURES[:1])], Sampling(max_tokens=1))
        job.read()
    report = make().ask(PICTURES[0], "What is it?", max_tokens=1).report
    assert (report.pictures_encoded, report.pictures_from_cache, report.pictures_from_disk) == (0, 1, 1)


def test_from_the_shell(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def from_disk(*options: str) -> int:
        assert main(["ask", str(examples.dice), "How many?", "--json", "-n", "1", *options]) == 0
        return int(json.loads(capsys.readouterr().out)["report"]["pictures_from_disk"])

    assert from_disk("--encoder-cache-dir", str(tmp_path / "kept")) == 0
    monkeypatch.setenv("PYFASTV_ENCODER_CACHE_DIR", str(tmp_path / "kept"))
    assert from_disk() == 1
