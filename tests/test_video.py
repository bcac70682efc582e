"""Videos as frames: what is sampled, what the model is given, what the budgets leave of it."""

from __future__ import annotations

import json
import sys
import tracemalloc
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from pyfastv import (
    EVS,
    Frame,
    ImageError,
    OptionError,
    PLLaVA,
    Pool,
    Runner,
    Stride,
    VidCom2,
    Video,
    load_frames,
)
from pyfastv.commands.demo import same_answer
from pyfastv.commands.main import main
from pyfastv.inputs.images import load_image
from pyfastv.models import bundled_examples

av = pytest.importorskip("av")

SIZE = 336
WORDS = Path(__file__).parent / "recall_pairs" / "images" / "0018.png"
CLOCK = bundled_examples()[0]


def write(path: Path, frames: Sequence[NDArray[np.uint8]], fps: int = 10, codec: str = "mpeg4") -> Path:
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=fps)
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt = "yuv420p"
        stream.bit_rate = 8_000_000
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    return path


def gray(level: int, size: int = 64) -> NDArray[np.uint8]:
    return np.full((size, size, 3), level, np.uint8)


def levels(frames: Sequence[Frame]) -> list[int]:
    return [round(float(frame.pixels.mean()) / 4) for frame in frames]


@pytest.fixture(scope="module")
def ramp(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six seconds; frame i, of 60, is of gray level 4 i."""
    return write(tmp_path_factory.mktemp("video") / "ramp.mp4", [gray(4 * i) for i in range(60)])


@pytest.fixture(scope="module")
def word_clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four seconds: the clock, and in the last second a word."""
    clock, word = (load_image(source) for source in (CLOCK.picture, WORDS))
    return write(tmp_path_factory.mktemp("video") / "word.mp4", [clock] * 30 + [word] * 10)


@pytest.fixture(scope="module")
def off() -> Iterator[Runner]:
    with Runner(fastv=None, n_ctx=4096) as runner:
        yield runner


# sampling


def test_eight_frames_from_the_middles_of_equal_parts(ramp: Path) -> None:
    frames = load_frames(ramp)
    assert levels(frames) == [int(60 * (2 * i + 1) / 16) for i in range(8)]
    assert [frame.number for frame in frames] == list(range(8))
    assert len({frame.video for frame in frames}) == 1
    assert frames[0].pixels.shape == (64, 64, 3)


def test_so_many_frames_and_so_many_a_second(ramp: Path) -> None:
    assert levels(load_frames(Video(ramp, frames=3))) == [10, 30, 50]
    assert levels(load_frames(Video(ramp, fps=1))) == [0, 10, 20, 30, 40, 50]
    assert levels(load_frames(Video(ramp, fps=0.01))) == [0]


def test_frames_that_are_far_apart_are_sought(tmp_path: Path) -> None:
    path = write(tmp_path / "long.mp4", [gray(i // 2) for i in range(480)], fps=4)
    found = [round(float(frame.pixels.mean())) for frame in load_frames(Video(path, frames=3))]
    assert found == pytest.approx([40, 120, 200], abs=1)


def test_bytes_and_lists_are_videos_too(ramp: Path) -> None:
    from_bytes = load_frames(ramp.read_bytes())
    assert levels(from_bytes) == levels(load_frames(ramp))
    assert from_bytes[0].video == load_frames(ramp)[0].video
    pictures = [gray(4 * i) for i in range(20)]
    assert levels(load_frames(pictures)) == list(range(20))
    assert levels(load_frames(Video(pictures, frames=4))) == [2, 7, 12, 17]
    assert levels(load_frames(Video(pictures[:3], frames=8))) == [0, 1, 2]


def test_a_clip_shorter_than_its_frames_repeats_them(tmp_path: Path) -> None:
    path = write(tmp_path / "short.mp4", [gray(0), gray(200)], fps=2)
    assert levels(load_frames(Video(path, frames=4))) == [0, 0, 50, 50]


def test_only_the_sampled_frames_are_held(tmp_path: Path) -> None:
    size = 512
    path = write(tmp_path / "large.mp4", [gray(i, size) for i in range(100)])
    tracemalloc.start()
    try:
        frames = load_frames(Video(path, frames=4))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert len(frames) == 4
    assert peak < 7 * size * size * 3


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Video(5), "path, bytes"),  # type: ignore[arg-type]
        (lambda: Video([]), "at least one frame"),
        (lambda: Video("a.mp4", frames=0), "frames"),
        (lambda: Video("a.mp4", frames=513), "512"),
        (lambda: Video("a.mp4", fps=0), "fps"),
        (lambda: Video("a.mp4", frames=3, fps=1), "not both"),
        (lambda: Video([gray(0)], fps=1), "no times"),
    ],
)
def test_wrong_options_are_refused(make: Any, message: str) -> None:
    with pytest.raises(OptionError, match=message):
        make()


def test_what_is_no_video_is_named(tmp_path: Path, ramp: Path) -> None:
    text = tmp_path / "notes.mp4"
    text.write_bytes(b"no video at all" * 100)
    with pytest.raises(ImageError, match=r"notes\.mp4: cannot be read as a video"):
        load_frames(text)
    with pytest.raises(ImageError, match="no such file"):
        load_frames(tmp_path / "missing.mp4")
    with pytest.raises(ImageError, match=r"64 x 64 is 4,096 pixels a frame"):
        load_frames(ramp, max_pixels=1000)
    with pytest.raises(OptionError, match="600 frames"):
        load_frames(Video(ramp, fps=100))


def test_without_pyav_the_extra_is_named(monkeypatch: pytest.MonkeyPatch, ramp: Path) -> None:
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(OptionError, match=r"pyfastv\[video\]"):
        load_frames(ramp)
    assert levels(load_frames([gray(40)])) == [10]


# in the model


def places(runner: Runner, n: int = 576) -> list[NDArray[np.int32]]:
    """By frame: places fall where the next frame begins."""
    all_places = runner._engine.places()
    return np.split(all_places, np.flatnonzero(np.diff(all_places) <= 0) + 1)


def test_frames_are_slices_of_one_picture(off: Runner, ramp: Path) -> None:
    report = off.ask(video=Video(ramp, frames=3), question="What is it?", max_tokens=1).report
    assert (report.encoded_tokens, report.visual_tokens) == (3 * 576, 3 * 576)
    assert report.pictures_encoded == 1
    off.ask(video=Video(ramp, frames=3), question="What is it?", max_tokens=1, fastv="fastv,k=2,drop=0.5")
    assert off._engine.grids() == [[(24, 24)] * 3]


def test_reducers_share_the_budget_among_the_frames(off: Runner, word_clip: Path) -> None:
    video = Video(word_clip, frames=4)
    report = off.ask(video=video, question="Q?", max_tokens=1, reduce=VidCom2(0.25)).report
    assert (report.encoded_tokens, report.visual_tokens) == (4 * 576, 576)
    counts = [len(part) for part in places(off)]
    assert sum(counts) == 576
    assert counts[0] == counts[1] == counts[2] != counts[3]  # by what they show

    report = off.ask(video=video, question="Q?", max_tokens=1, reduce=EVS(0.5)).report
    assert report.visual_tokens == 2 * 576
    counts = [len(part) for part in places(off)]
    assert counts[0] == 576  # the first stays
    assert counts[3] > counts[1] + counts[2]  # what follows is the same, up to the word

    report = off.ask(video=video, question="Q?", max_tokens=1, reduce=PLLaVA(2, 2)).report
    assert report.visual_tokens == 2 * 144
    report = off.ask(video=video, question="Q?", max_tokens=1, reduce=Pool(keep=400)).report
    assert report.visual_tokens == 400
    assert off._engine.places().max() < 576


def test_a_question_about_the_word_of_one_frame_is_answered(off: Runner, word_clip: Path) -> None:
    video = [frame.pixels for frame in load_frames(Video(word_clip, frames=4))]
    for reducer in (EVS(0.5), VidCom2(0.3)):
        answer = off.ask(video=video[1:], question="What word do you see?", reduce=reducer)
        assert same_answer(answer.text, "shirt"), (reducer, answer.text)


def test_in_streams_sessions_and_behind_pictures(off: Runner, ramp: Path) -> None:
    video = Video(ramp, frames=2)
    stream = off.stream(CLOCK.picture, "What is it?", video=video, max_tokens=1, reduce=Stride(100))
    assert stream.read().report.visual_tokens == 200  # of the picture and of the video
    with off.session(reduce=EVS(0.4)) as chat:
        first = chat.ask("What is it?", video=video, max_tokens=2).report
        second = chat.ask("And now?", max_tokens=2).report
    assert first.visual_tokens == second.visual_tokens == round(0.6 * 1152)
    assert second.cached_tokens > first.visual_tokens
    assert second.pictures_encoded == 0


def test_the_same_video_is_not_encoded_again(off: Runner, ramp: Path) -> None:
    video = Video(ramp, frames=2)
    off.ask(video=video, question="What is it?", max_tokens=1, reduce=Pool(2))
    report = off.ask(video=video, question="What is it?", max_tokens=1, reduce=Pool(3)).report
    assert (report.pictures_encoded, report.pictures_from_cache) == (0, 1)
    other = off.ask(video=Video(ramp, frames=5), question="What is it?", max_tokens=1).report
    assert other.pictures_encoded == 1


def test_progress_comes_after_every_frame(off: Runner, ramp: Path) -> None:
    for reduce in (None, "evs,drop=0.5"):
        seen: list[int] = []
        off._engine.reset()
        off.ask(
            video=Video(ramp, frames=3),
            question="Q?",
            max_tokens=1,
            reduce=reduce,
            progress=lambda done, _, seen=seen: seen.append(done),
        )
        assert len(set(seen)) >= 3
        assert seen == sorted(seen)


def test_from_the_shell(word_clip: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    options = ["--off", "--json", "-n", "1"]
    assert (
        main(["ask", str(word_clip), "What is it?", "--frames", "2", "--reduce", "evs,drop=0.3", *options])
        == 0
    )
    report = json.loads(capsys.readouterr().out)["report"]
    assert (report["encoded_tokens"], report["visual_tokens"]) == (1152, 806)
    assert main(["ask", str(word_clip), "What is it?", "--frames", "0", *options]) == 1
    assert "frames must be an integer" in capsys.readouterr().err
    text = tmp_path / "notes.txt"
    text.write_text("Only text.\n" * 40)
    assert main(["ask", str(text), "What is it?", *options]) == 1
    assert "is not a picture" in capsys.readouterr().err


def test_a_question_is_needed(off: Runner, ramp: Path) -> None:
    with pytest.raises(OptionError, match="question must be a string"):
        off.ask(video=ramp)


@pytest.mark.parametrize(
    "data",
    [
        b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"/>',
        b"%PDF-1.7\n",
        b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + b"\0" * 100,
        b"\x1aE\xdf\xa3" + b"\0" * 100,
        b"RIFF\x10\0\0\0AVI LIST\0\0\0\0",
    ],
    ids=["svg", "pdf", "heic", "mkv", "avi"],
)
def test_what_is_passed_as_a_video_and_is_none_is_an_image_error(data: bytes, tmp_path: Path) -> None:
    (tmp_path / "thing").write_bytes(data)
    for source in (data, tmp_path / "thing"):
        with pytest.raises(ImageError, match=r"thing|the video of"):
            load_frames(source)
