"""Videos in requests: what is seen of them, where they may come from, and how large they may be."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

anyio = pytest.importorskip("anyio", reason="needs the extra serve")
pytest.importorskip("fastapi", reason="needs the extra serve")
av = pytest.importorskip("av", reason="needs the extra video")

from pyfastv import Frame, Runner, Video  # noqa: E402
from pyfastv.inputs import video  # noqa: E402
from pyfastv.inputs.images import load_image  # noqa: E402
from pyfastv.serve.chat import ChatRequest  # noqa: E402
from pyfastv.serve.errors import ApiError  # noqa: E402
from pyfastv.serve.pictures import PictureReader  # noqa: E402
from pyfastv.serve.settings import Settings  # noqa: E402

from serving import CHAT, CLOCK, Server, data_uri  # noqa: E402


def write(path: Path, frames: list[NDArray[np.uint8]], fps: int = 2) -> Path:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=fps)
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt = "yuv420p"
        stream.bit_rate = 8_000_000
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    return path


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three seconds of the clock, 6 frames."""
    return write(tmp_path_factory.mktemp("clip") / "clip.mp4", [load_image(CLOCK.picture)] * 6)


@pytest.fixture(scope="module")
def ramp(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """Six seconds, 12 frames; frame i is of gray level 20 i."""
    frames = [np.full((64, 48, 3), 20 * i, np.uint8) for i in range(12)]
    return write(tmp_path_factory.mktemp("ramp") / "ramp.mp4", frames).read_bytes()


def part(url: str, **sampled: Any) -> dict[str, Any]:
    return {"type": "video_url", "video_url": {"url": url, **sampled}}


def asked(clip: dict[str, Any]) -> list[dict[str, Any]]:
    return [{"role": "user", "content": [clip, {"type": "text", "text": CLOCK.question}]}]


# a server


def test_a_video_is_seen_as_the_runner_sees_it(server: Server, runner: Runner, clip: Path) -> None:
    alone = runner.ask(video=Video(clip, frames=2), question=CLOCK.question)
    answer = server.chat(asked(part(data_uri(clip, "video/mp4"), frames=2)), max_tokens=40)
    assert answer["usage"]["visual_tokens"] == 2 * 576 == alone.report.visual_tokens
    assert answer["usage"]["visual_tokens_kept"] == alone.report.visual_tokens_kept
    assert answer["choices"][0]["message"]["content"] == str(alone)


def test_frames_go_to_reducers_as_one_picture(server: Server, clip: Path) -> None:
    seen = part(data_uri(clip, "video/mp4"), fps=1)
    answer = server.chat(asked(seen), max_tokens=1, reduce="evs,drop=0.5", fastv=False)
    assert answer["usage"]["visual_patches"] == 3 * 576
    assert answer["usage"]["visual_tokens"] == 3 * 576 // 2


def test_a_video_of_the_servers_folder_is_read(server: Server, clip: Path) -> None:
    assert server.folder is not None
    (server.folder / "clip.mp4").write_bytes(clip.read_bytes())
    answer = server.chat(asked(part(f"file://{server.folder}/clip.mp4", frames=1)), max_tokens=1)
    assert answer["usage"]["visual_tokens"] == 576
    status, _, data = server.request("POST", CHAT, {"messages": asked(part("file:///etc/passwd"))})
    assert status == 400
    assert "no such file in the folder" in json.loads(data)["error"]["message"]


def test_responses_have_videos_too(server: Server, clip: Path) -> None:
    content = [
        {"type": "input_video", "video_url": data_uri(clip, "video/mp4"), "frames": 2},
        {"type": "input_text", "text": CLOCK.question},
    ]
    body = {"input": [{"role": "user", "content": content}], "max_output_tokens": 1}
    status, _, data = server.request("POST", "/v1/responses", body)
    assert status == 200, data
    assert json.loads(data)["usage"]["visual_tokens"] == 2 * 576


def test_a_template_has_a_mark_for_each_frame(server: Server) -> None:
    def marks(**sampled: Any) -> int:
        body = {"messages": asked(part("data:,", **sampled))}
        status, _, data = server.request("POST", "/apply-template", body)
        assert status == 200, data
        return json.loads(data)["prompt"].count("<__media__>")

    assert (marks(), marks(frames=3)) == (8, 3)
    status, _, data = server.request("POST", "/apply-template", {"messages": asked(part("data:,", fps=1))})
    assert (status, "fps" in json.loads(data)["error"]["message"]) == (400, True)


# what is read


def read(*videos: dict[str, Any], **settings: Any) -> list[list[Any]]:
    """The pictures and frames of each message, one for each part."""
    request = ChatRequest.model_validate({"messages": [{"role": "user", "content": [one]} for one in videos]})

    async def run() -> list[list[Any]]:
        reader = PictureReader(Settings(**settings))
        async with reader.read(request.messages) as messages:
            return [[part["image"] for part in message["content"]] for message in messages]

    found: list[list[Any]] = anyio.run(run)
    return found


def levels(frames: list[Frame]) -> list[int]:
    return [round(float(frame.pixels.mean()) / 20) for frame in frames]


@pytest.fixture(scope="module")
def address(ramp: bytes) -> str:
    return data_uri(ramp, "video/mp4")


@pytest.mark.parametrize(
    ("sampled", "expected"),
    [
        ({}, [0, 2, 3, 5, 6, 8, 9, 11]),
        ({"frames": 3}, [2, 6, 10]),
        ({"fps": 1}, [0, 2, 4, 6, 8, 10]),
        ({"fps": 0.5}, [0, 4, 8]),
    ],
)
def test_which_frames_are_seen_is_said_in_the_address_or_beside_it(
    address: str, sampled: dict[str, Any], expected: list[int]
) -> None:
    inside = part(address, **sampled)
    beside = {**part(address), **sampled}
    short = {"type": "video_url", "video_url": address, **sampled}
    found = read(inside, beside, short)
    assert [levels(frames) for frames in found] == [expected] * 3
    assert len({frame.video for frames in found for frame in frames}) == 1


def test_videos_and_pictures_keep_their_places(address: str) -> None:
    picture = {"type": "image_url", "image_url": {"url": data_uri(CLOCK.picture)}}
    first, second, third = read(part(address, frames=2), picture, part(address, frames=1))
    assert (levels(first), levels(third)) == ([3, 9], [6])
    assert [placed.picture for placed in second] == [CLOCK.picture.read_bytes()]


PLAYLIST = (
    "#EXTM3U\nAVI \n#EXT-X-VERSION:3\n#EXT-X-TARGETDURATION:10\n#EXT-X-MEDIA-SEQUENCE:0\n#EXTINF:10,\n"
    "file:///etc/hostname\n#EXT-X-ENDLIST\n"
)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (part("data:,hello"), "not a video"),
        (part(data_uri(CLOCK.picture)), "not a video"),
        (part(data_uri(b"#EXTM3U\n#EXTINF:10,\nfile:///etc/hostname\n", "video/mp4")), "not a video"),
        (part(data_uri(PLAYLIST.encode(), "video/mp4")), "cannot be read as a video"),
        (part(data_uri(b"\0\0\0\x18ftypisom" + bytes(100), "video/mp4")), "cannot be read as a video"),
        (part("data:video/mp4;base64,@@@@"), "base64"),
        (part("http://example.com/a.mp4"), "--allow-remote-images"),
        (part("file:///a.mp4"), "--allow-local-files"),
        (part("/a.mp4"), "data:video/mp4"),
        (part("data:,", frames=65), "the limit is 64: .*--max-frames"),
    ],
)
def test_what_is_no_video_that_may_be_read_is_refused(given: dict[str, Any], words: str) -> None:
    with pytest.raises(ApiError, match=words) as caught:
        read(given)
    assert caught.value.status_code == 400


def test_videos_that_are_too_large_are_refused_before_they_are_decoded(
    address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def decoded(*_: Any, **__: Any) -> Iterator[Any]:
        raise AssertionError("decoded")

    from pyfastv.serve import pictures

    monkeypatch.setattr(pictures, "load_frames", decoded)
    with pytest.raises(ApiError, match=r"messages.0.content.0: 48 x 64 is 3,072 pixels, the limit is 3,000"):
        read(part(address), max_pixels=3000)
    with pytest.raises(ApiError, match="15,360 pixels; the limit is 12,400 together"):
        read(part(address, frames=5), max_pixels=3100)
    with pytest.raises(ApiError, match="6 frames of videos in one request; the limit is 5"):
        read(part(address, fps=1), max_frames=5)
    with pytest.raises(ApiError, match="10 frames of videos in one request; the limit is 9"):
        read(part(address, frames=5), part(address, frames=5), max_frames=9)
    with pytest.raises(ApiError, match="2 pictures and videos in one request; the limit is 1"):
        read(part(address), part(address), max_images=1)
    with pytest.raises(ApiError, match="frames or fps, not both"):
        read(part(address, fps=1, frames=1))


def test_a_video_whose_pictures_grow_is_not_larger_than_it_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two streams of MPEG-1, one behind the other: the second has pictures of four times the size."""

    def stream(size: int) -> bytes:
        path = tmp_path / f"{size}.m1v"
        with av.open(str(path), "w", format="mpeg1video") as container:
            stream = container.add_stream("mpeg1video", rate=25)
            stream.width = stream.height = size
            stream.pix_fmt = "yuv420p"
            for _ in range(10):
                frame = av.VideoFrame.from_ndarray(np.full((size, size, 3), 90, np.uint8), format="rgb24")
                container.mux(stream.encode(frame))
            container.mux(stream.encode())
        return path.read_bytes()

    # FFmpeg guesses that of a stream without a container
    monkeypatch.setattr(video, "_duration", lambda *_: 0.8)
    [small] = read(part(data_uri(stream(64), "video/mpeg"), frames=2))
    assert {frame.pixels.shape for frame in small} == {(64, 64, 3)}
    with pytest.raises(ApiError, match="128 x 128 is 16,384 pixels a frame, the limit is 4,096"):
        read(part(data_uri(stream(64) + stream(128), "video/mpeg"), frames=2))
