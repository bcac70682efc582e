"""Pictures and videos on the command line: what is what, without PyAV, too."""

from __future__ import annotations

import io
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pyfastv.commands.main import main
from pyfastv.models import bundled_examples

CLOCK = bundled_examples()[0].picture


def of_pillow(form: str, **options: Any) -> bytes:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noise).save(buffer, form, **options)
    return buffer.getvalue()


def still(path: Path) -> Path:
    """A video of one frame."""
    av = pytest.importorskip("av", reason="needs the extra video")
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.height = stream.width = 64
        stream.pix_fmt = "yuv420p"
        frame = av.VideoFrame.from_ndarray(np.full((64, 64, 3), 90, np.uint8), format="rgb24")
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


FILES = {
    "heic": (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + b"\0" * 100, "HEIC"),
    "pdf": (b"%PDF-1.7\n1 0 obj\n<<>>\nendobj\n", "PDF document"),
    "tga": (of_pillow("TGA"), "TGA"),
    "svg": (b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"/>', "SVG drawing"),
    "jpg": (of_pillow("JPEG")[:1500], "truncated"),
    "png": (of_pillow("PNG")[:1500], "truncated"),
    "psd": (b"8BPS\0\1" + b"\0" * 300, "Photoshop"),
    "txt": (b"Only text.\n" * 40, "is not a picture"),
    "gif": (of_pillow("GIF")[:200], "truncated"),
    "exr": (b"v/1\x01" + b"\0" * 300, "OpenEXR"),
}


@pytest.mark.parametrize("without_pyav", [False, True], ids=["with PyAV", "without PyAV"])
@pytest.mark.parametrize("suffix", FILES)
@pytest.mark.parametrize("command", [["ask"], ["chat"]], ids=["ask", "chat"])
def test_a_picture_that_cannot_be_read_is_not_taken_for_a_video(
    command: list[str],
    suffix: str,
    without_pyav: bool,
    fake_engine: list[Any],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    if without_pyav:
        monkeypatch.setitem(sys.modules, "av", None)
    data, words = FILES[suffix]
    path = tmp_path / f"thing.{suffix}"
    path.write_bytes(data)
    questions = ["What is it?"] if command == ["ask"] else []
    assert main([*command, str(path), *questions]) == 1
    printed = capsys.readouterr()
    assert path.name in printed.err
    assert words in printed.err
    assert "PyAV" not in printed.err
    assert printed.err.count("\n") == 1
    assert fake_engine == []


def test_without_pyav_a_video_names_the_extra(
    fake_engine: list[Any],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    path = still(tmp_path / "clip.mp4")
    monkeypatch.setitem(sys.modules, "av", None)
    assert main(["ask", str(path), "What is it?"]) == 1
    assert "pyfastv[video]" in capsys.readouterr().err


def test_a_video_of_one_frame_is_one_picture(
    fake_engine: list[Any], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    path = still(tmp_path / "clip.mp4")
    assert main(["ask", str(path), "What is it?"]) == 0
    assert len(dict(fake_engine[0].calls)["prefill"]["images"]) == 1
    assert main(["ask", path.as_uri(), "What is it?", "--frames", "3"]) == 0
    assert len(dict(fake_engine[1].calls)["prefill"]["images"]) == 3


def test_a_broken_file_among_several_is_named_by_its_place(
    fake_engine: list[Any], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["ask", str(CLOCK), "data:image/png;base64,AAAA", "What is it?"]) == 1
    assert capsys.readouterr().err.startswith("pyfastv: picture 2 of 2: data URI (image/png;base64): ")


def test_a_picture_comes_from_standard_input(
    fake_engine: list[Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for data, status in ((CLOCK.read_bytes(), 0), (b"hello", 1), (b"", 1)):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))
        assert main(["ask", "-", "What is it?"]) == status
    assert len(dict(fake_engine[0].calls)["prefill"]["images"]) == 1
    errors = capsys.readouterr().err.splitlines()[-2:]
    assert errors[0].startswith("pyfastv: standard input: the picture of 5 bytes: is not a picture")
    assert errors[1] == "pyfastv: standard input: the picture of 0 bytes: is empty (0 bytes)"
