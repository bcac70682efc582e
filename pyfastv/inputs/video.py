"""Videos as frames: sampled with PyAV (the extra ``video``), each frame a slice of one picture."""

from __future__ import annotations

import hashlib
import io
import math
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import ModuleType
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from .._checks import integer, real
from ..errors import ImageError, OptionError
from .images import MAX_PIXELS, Frame, Picture, load_image, named_by_place
from .signatures import HEAD, video_format
from .uris import local_path

__all__ = [
    "DEFAULT_FRAMES",
    "MAX_FRAMES",
    "Video",
    "VideoSize",
    "VideoSource",
    "is_still",
    "is_video",
    "load_frames",
    "video_size",
]

MAX_FRAMES = 512
"""Most frames of one video: they are all held until the prompt is read."""

DEFAULT_FRAMES = 8
"""Of a video of which nobody says how many."""

_SEEK_SECONDS = 4.0  # what is further away is sought, not decoded to

# By their signatures. A demuxer that is found by a file's content can be one of playlists (HLS, DASH), which opens other
# files and addresses: their marks may stand behind another container's signature.
_DEMUXERS = {
    "MP4 or QuickTime": "mov",
    "QuickTime": "mov",
    "Matroska or WebM": "matroska",
    "AVI": "avi",
    "Flash": "flv",
    "MPEG": "mpeg",
    "MPEG transport stream": "mpegts",
    "Windows Media": "asf",
    "Ogg": "ogg",
    "YUV4MPEG2": "yuv4mpegpipe",
    "IVF": "ivf",
    "H.264": "h264",
    "H.265": "hevc",
}
_MPEG_WITHOUT_CONTAINER = b"\x00\x00\x01\xb3"

VideoSource: TypeAlias = "str | os.PathLike[str] | bytes | bytearray | memoryview | Sequence[Picture]"
"""A path, a file's bytes, or the frames themselves, each as :func:`pyfastv.load_image` takes it."""


@dataclass(frozen=True)
class Video:
    """A video, and which of its frames the model sees. Raises OptionError."""

    source: VideoSource
    frames: int | None = None
    """So many, evenly spaced, from the middles of equal parts; 8 if ``fps`` is not given. A list of frames is taken whole
    if neither is."""
    fps: float | None = None
    """So many a second instead, from the start on; not for a list of frames, which has no times."""

    def __post_init__(self) -> None:
        is_list = isinstance(self.source, (list, tuple))
        if not is_list and not isinstance(self.source, (str, os.PathLike, bytes, bytearray, memoryview)):
            raise OptionError(
                f"a video must be a path, bytes, or a list of frames; got {type(self.source).__name__}"
            )
        if is_list and not self.source:
            raise OptionError("a video needs at least one frame; got an empty list")
        if self.frames is not None and self.fps is not None:
            raise OptionError(f"a video takes frames or fps, not both; got {self.frames!r} and {self.fps!r}")
        if self.frames is not None:
            object.__setattr__(self, "frames", integer("frames", self.frames, 1, MAX_FRAMES))
        if self.fps is not None:
            fps = real("fps", self.fps, "a number of frames a second, above 0", 0.0)
            if fps == 0.0 or is_list:
                raise OptionError(
                    "fps must be above 0" if fps == 0.0 else "fps: a list of frames has no times: use frames"
                )
            object.__setattr__(self, "fps", fps)


def load_frames(
    video: Video | VideoSource,
    *,
    max_pixels: int = MAX_PIXELS,
    progress: Callable[[int, int], object] | None = None,
) -> list[Frame]:
    """The sampled frames, in order of time. No more than these, and the one being decoded, are held in memory.

    ``max_pixels`` limits width times height of a frame. ``progress``: called with (frames read, frames). Raises
    ImageError for what cannot be read as a video, OptionError without PyAV (``pip install "pyfastv[video]"``) or for
    more than MAX_FRAMES frames.
    """
    video = video if isinstance(video, Video) else Video(video)
    if isinstance(video.source, (list, tuple)):
        found = _pictures(_spread(video.source, video.frames), max_pixels)
    else:
        found = _decode(video, max_pixels)
    pixels = []
    for count, frame in found:
        pixels.append(frame)
        if progress is not None:
            progress(len(pixels), count)
    digest = hashlib.blake2b(b"video", digest_size=16)
    for frame in pixels:
        digest.update(repr(frame.shape).encode())
        digest.update(frame.data)
    return [Frame(frame, digest.hexdigest(), number) for number, frame in enumerate(pixels)]


class VideoSize(NamedTuple):
    """What a video will be in memory."""

    frames: int
    """That are taken of it."""
    width: int
    height: int

    @property
    def pixels(self) -> int:
        """Of all of them."""
        return self.frames * self.width * self.height


def video_size(video: Video) -> VideoSize:
    """By the container of a path or of bytes, before a frame is taken; a video that does not tell how long it is is
    decoded once. Raises as :func:`load_frames`."""
    with _opened(video) as (name, container, stream):
        context = stream.codec_context
        return VideoSize(len(_times(video, name, container, stream)), context.width, context.height)


def is_video(source: str | os.PathLike[str] | bytes) -> bool:
    """Has a file, or the bytes of one, the signature of a video? PyAV is not needed for that."""
    if isinstance(source, bytes):
        return video_format(source[:HEAD]) is not None
    try:
        with open(_path(source), "rb") as file:
            return video_format(file.read(HEAD)) is not None
    except (OSError, ValueError):  # ValueError: a NUL in the path
        return False


def is_still(source: str | os.PathLike[str] | bytes) -> bool:
    """Has a video one frame alone? Raises OptionError without PyAV; what cannot be read is none."""
    av = _av()
    try:
        file: Any = io.BytesIO(source) if isinstance(source, bytes) else _path(source)
        with av.open(file, format=_demuxer(source)) as container:
            stream = container.streams.video[0]
            if stream.codec_context is None:
                return False
            frames = container.decode(stream)
            return next(frames, None) is not None and next(frames, None) is None
    except (OSError, ValueError, av.FFmpegError, IndexError):  # IndexError: sound alone
        return False


def _path(source: str | os.PathLike[str]) -> str:
    return local_path(source) if isinstance(source, str) else os.fsdecode(source)


def _av() -> ModuleType:
    try:
        import av
    except ImportError:
        raise OptionError('reading a video needs PyAV: pip install "pyfastv[video]"') from None
    return av


def _spread(frames: Sequence[Picture], count: int | None) -> list[Picture]:
    if count is None or count >= len(frames):
        if len(frames) > MAX_FRAMES:
            raise OptionError(f"a video of {len(frames)} frames: at most {MAX_FRAMES}; choose some of them")
        return list(frames)
    return [frames[(2 * i + 1) * len(frames) // (2 * count)] for i in range(count)]


def _pictures(frames: Sequence[Picture], max_pixels: int) -> Iterator[tuple[int, NDArray[np.uint8]]]:
    """The number of frames, each time, and a frame."""
    for number, frame in enumerate(frames, 1):
        with named_by_place(number, len(frames)):
            pixels = load_image(frame, max_pixels=max_pixels)
        yield len(frames), pixels


def _decode(video: Video, max_pixels: int) -> Iterator[tuple[int, NDArray[np.uint8]]]:
    """The number of frames, each time, and a frame."""
    with _opened(video) as (name, container, stream):
        context = stream.codec_context
        _check_size(name, context.width, context.height, max_pixels)
        stream.thread_type = "AUTO"
        times = _times(video, name, container, stream)
        for frame in _at_times(container, stream, times, name):
            _check_size(name, frame.width, frame.height, max_pixels)  # it may change
            yield len(times), _to_rgb(frame)


def _check_size(name: str, width: int, height: int, max_pixels: int) -> None:
    if width * height > max_pixels:
        raise ImageError(
            f"{name}: {width} x {height} is {width * height:,} pixels a frame, the limit is {max_pixels:,}: "
            "make the video smaller, or raise max_pixels"
        )


@contextmanager
def _opened(video: Video) -> Iterator[tuple[str, Any, Any]]:
    """What it is called in messages, its container, and its stream of pictures. Raises ImageError, also for what PyAV
    raises meanwhile; OptionError."""
    av = _av()
    source: Any = video.source
    file: Any
    if isinstance(source, (bytes, bytearray, memoryview)):
        name, file = f"the video of {len(source)} bytes", io.BytesIO(source)
    else:
        name = file = _path(source)
    try:
        with av.open(file, format=_demuxer(source)) as container:
            if not container.streams.video:
                raise ImageError(f"{name}: has no moving pictures")
            stream = container.streams.video[0]
            if stream.codec_context is None:
                raise ImageError(
                    f"{name}: this PyAV has no decoder for its pictures: convert it to MP4 (H.264) first"
                )
            yield name, container, stream
    except FileNotFoundError:
        raise ImageError(f"{name}: no such file") from None
    except (ImageError, OptionError, MemoryError):
        raise
    except (OSError, ValueError, av.FFmpegError) as error:
        raise ImageError(f"{name}: cannot be read as a video: {error}") from error


def _demuxer(source: Any) -> str | None:
    """By the signature; None: FFmpeg finds one, or nothing can be read, which it says."""
    if isinstance(source, (bytes, bytearray, memoryview)):
        head = bytes(source[:HEAD])
    else:
        try:
            with open(_path(source), "rb") as file:
                head = file.read(HEAD)
        except (OSError, ValueError):
            return None
    if head.startswith(_MPEG_WITHOUT_CONTAINER):
        return "mpegvideo"
    return _DEMUXERS.get(video_format(head) or "")


def _times(video: Video, name: str, container: Any, stream: Any) -> list[float]:
    """When to take frames, in seconds from the start."""
    seconds = _duration(container, stream)
    if video.fps is None:
        count = DEFAULT_FRAMES if video.frames is None else video.frames
        return [seconds * (2 * i + 1) / (2 * count) for i in range(count)]
    count = max(1, math.ceil(seconds * video.fps - 1e-6))
    if count > MAX_FRAMES:
        raise OptionError(
            f"{name}: {seconds:.0f} seconds at fps={video.fps:g} are {count} frames, the limit is {MAX_FRAMES}: use a "
            "lower fps, or frames"
        )
    return [i / video.fps for i in range(count)]


def _duration(container: Any, stream: Any) -> float:
    if stream.duration and stream.time_base:
        return float(stream.duration * stream.time_base)
    if container.duration:
        return float(container.duration) / 1_000_000
    # not in the header: once through
    last = 0.0
    for frame in container.decode(stream):
        last = max(last, frame.time or 0.0)
    container.seek(0)
    return last


def _at_times(container: Any, stream: Any, times: Sequence[float], name: str) -> Iterator[Any]:
    """For each of the ascending times the frame that is on the screen then."""
    start = float(stream.start_time * stream.time_base) if stream.start_time else 0.0
    frames = _Ahead(container.decode(stream))
    shown = None
    for time in times:
        at = start + time
        if frames.next_time is not None and at - frames.next_time > _SEEK_SECONDS:
            container.seek(int(at / stream.time_base), stream=stream)
            frames = _Ahead(container.decode(stream))
        # half a tick: times are rounded to the stream's
        while frames.next is not None and (shown is None or frames.next_time <= at + 1e-6):
            shown = frames.take()
        if shown is None:
            raise ImageError(f"{name}: the video has no frames")
        yield shown


class _Ahead:
    """Frames, with a look at the next one."""

    def __init__(self, frames: Iterator[Any]) -> None:
        self._frames = frames
        self.next = next(frames, None)

    @property
    def next_time(self) -> float:
        return math.inf if self.next is None else float(self.next.time or 0.0)

    def take(self) -> Any:
        frame, self.next = self.next, next(self._frames, None)
        return frame


def _to_rgb(frame: Any) -> NDArray[np.uint8]:
    pixels = frame.to_ndarray(format="rgb24")
    turns = round(getattr(frame, "rotation", 0) / 90)  # counterclockwise
    return np.ascontiguousarray(np.rot90(pixels, turns) if turns % 4 else pixels)
