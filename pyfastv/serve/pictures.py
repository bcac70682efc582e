"""The pictures and videos of a request: where they may come from, how many, and how large."""

from __future__ import annotations

import os
import stat
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from anyio import CapacityLimiter, to_thread

from ..errors import ImageError, OptionError
from ..inputs.images import Placed, picture_size
from ..inputs.uris import data_uri_bytes, is_data_uri
from ..inputs.video import Video, VideoSize, is_video, load_frames, video_size
from .chat import ChatMessage, ImagePart, ImageUrl, TextPart, VideoPart
from .errors import ApiError, as_api_error
from .fetch import fetch
from .settings import Settings

__all__ = ["PictureReader", "bare_picture", "read_local_file"]

_BARE = "data:image;base64,"
_SCHEMES = ("data", "http", "https", "file")
_AT_A_TIME = 4  # largest pictures that may be in work
_VIDEOS_AT_A_TIME = 2  # decoded: each takes several threads


def bare_picture(data: str) -> ImagePart:
    """One that is base64 alone, as llama-server and Ollama have it; URIs are those that they are elsewhere."""
    begin = data[:16].lstrip().lower()
    uri = begin.partition(":")[0] in _SCHEMES and ":" in begin
    return ImagePart(type="image_url", image_url=ImageUrl(url=data if uri else _BARE + data))


def _place(message: int, part: int) -> str:
    return f"messages.{message}.content.{part}"


class PictureReader:
    """Reads the pictures of all requests, and keeps what they weigh once decoded within bounds."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._free_pixels = _AT_A_TIME * settings.max_pixels
        self._decoding = CapacityLimiter(_VIDEOS_AT_A_TIME)

    @asynccontextmanager
    async def read(
        self, messages: Sequence[ChatMessage], place: Callable[[int, int], str] = _place
    ) -> AsyncIterator[list[dict[str, Any]]]:
        """The messages as :meth:`pyfastv.inputs.chat.ChatTemplate.render` takes them, pictures as bytes of their files
        with their places, videos as their frames.

        What they weigh is held until the context ends. ``place``: where in the request a message's part is, for those
        who have it elsewhere. Raises ApiError.
        """
        self._check_counts(messages)
        read: list[dict[str, Any]] = []
        # to be read into an empty part
        videos: list[tuple[list[dict[str, Any]], Video, VideoSize, str | None, str]] = []
        pixels = 0
        for number, message in enumerate(messages):
            parts: list[dict[str, Any]] = []
            for at, part in enumerate(message.content):
                if isinstance(part, TextPart):
                    parts.append({"type": "text", "text": part.text})
                    continue
                where = part.place or place(number, at)
                with _named(where):
                    if isinstance(part, ImagePart):
                        data = await self._bytes(part.image_url.url, "picture")
                        pixels += await to_thread.run_sync(_check_size, data, self._settings.hard_pixels)
                        placed = Placed(data, where)
                        parts.append({"type": "image", "image": placed, "detail": part.image_url.detail})
                    else:
                        video, size = await self._measured(part)
                        pixels += size.pixels
                        videos.append((parts, video, size, part.video_url.detail, where))
                        parts.append({})
            # templates know of system, and developer is OpenAI's newer name for it
            role = "system" if message.role == "developer" else message.role
            read.append({**message.beside_content(), "role": role, "content": parts})
        self._check_frames(sum(size.frames for _, _, size, _, _ in videos))
        self._take(pixels)
        try:
            for parts, video, size, detail, where in videos:
                with _named(where):
                    await self._read_frames(parts, video, size, detail)
            yield read
        finally:
            self._free_pixels += pixels

    def _check_counts(self, messages: Sequence[ChatMessage]) -> None:
        settings = self._settings
        parts = [part for message in messages for part in message.content]
        images = sum(not isinstance(part, TextPart) for part in parts)
        if images > settings.max_images:
            what = "pictures and videos" if any(isinstance(part, VideoPart) for part in parts) else "pictures"
            raise ApiError(
                400,
                f"{images} {what} in one request; the limit is {settings.max_images}: see --max-images",
                param="messages",
                code="too_many_images",
            )
        # before a video is looked at
        self._check_frames(sum(part.sampled["frames"] or 1 for part in parts if isinstance(part, VideoPart)))

    def _check_frames(self, frames: int) -> None:
        if frames > self._settings.max_frames:
            raise ApiError(
                400,
                f"{frames} frames of videos in one request; the limit is {self._settings.max_frames}: ask for fewer by "
                "frames or fps, or see --max-frames",
                param="messages",
                code="too_many_frames",
            )

    async def _measured(self, part: VideoPart) -> tuple[Video, VideoSize]:
        data = await self._bytes(part.video_url.url, "video")
        if not is_video(data):
            raise ImageError(
                "is not a video in a format that is read here: MP4, QuickTime, Matroska, WebM, AVI, MPEG, ..."
            )
        video = Video(data, **part.sampled)
        size = await to_thread.run_sync(video_size, video, limiter=self._decoding)
        _check_pixels(size.width, size.height, self._settings.max_pixels, "the video")
        return video, size

    async def _read_frames(
        self, parts: list[dict[str, Any]], video: Video, size: VideoSize, detail: str | None
    ) -> None:
        """Into the place of the first empty part."""

        def decode() -> list[dict[str, Any]]:
            # one whose pictures grow on the way would be heavier than what was taken for it
            frames = load_frames(video, max_pixels=size.width * size.height)
            return [{"type": "image", "image": frame, "detail": detail} for frame in frames]

        at = parts.index({})
        parts[at : at + 1] = await to_thread.run_sync(decode, limiter=self._decoding)

    async def _bytes(self, url: str, what: str) -> bytes:
        if is_data_uri(url):
            return await to_thread.run_sync(data_uri_bytes, url)
        scheme = url.partition(":")[0].lower() if ":" in url[:20] else ""
        if scheme in ("http", "https"):
            if not self._settings.allow_remote_images:
                raise ImageError(
                    f"this server does not fetch {what}s: send a data URI (or start it with --allow-remote-images)"
                )
            return await fetch(url, self._settings)
        if scheme == "file":
            if self._settings.allow_local_files is None:
                raise ImageError(
                    "this server reads no local files: send a data URI (or start it with --allow-local-files)"
                )
            return await to_thread.run_sync(read_local_file, url, self._settings)
        kind = "video/mp4" if what == "video" else "image/png"
        raise ImageError(f"a {what}'s url must be a data URI: data:{kind};base64,<data>")

    def _take(self, pixels: int) -> None:
        most = _AT_A_TIME * self._settings.max_pixels
        if pixels > most:
            raise ApiError(
                413,
                f"the pictures and frames of this request have {pixels:,} pixels; the limit is {most:,} together",
            )
        if pixels > self._free_pixels:
            raise ApiError(
                429, "too many large pictures at a time: try again later", headers={"Retry-After": "2"}
            )
        self._free_pixels -= pixels


def _check_size(data: bytes, max_pixels: int) -> int:
    """Pixels of a picture, by its header; 0 where decoding will tell what is wrong with it."""
    size = picture_size(data)
    if size is None:
        return 0
    return _check_pixels(*size, max_pixels, "the picture")


def _check_pixels(width: int, height: int, max_pixels: int, what: str) -> int:
    pixels = width * height
    if pixels > max_pixels:
        raise ImageError(
            f"{width} x {height} is {pixels:,} pixels, the limit is {max_pixels:,}: "
            f"make {what} smaller (see --max-pixels)"
        )
    return pixels


@contextmanager
def _named(where: str) -> Iterator[None]:
    """What is wrong with a picture or video says which one it is. Raises ApiError."""
    try:
        yield
    except (ImageError, OptionError) as error:
        failure = as_api_error(type(error)(f"{where}: {error}"))
        failure.param = where
        raise failure from None


def read_local_file(url: str, settings: Settings) -> bytes:
    """The bytes of a file:// URL within the folder that was allowed. Raises ImageError, the same for files outside of
    the folder and for files that are not there: a client learns nothing of what lies elsewhere."""
    assert settings.allow_local_files is not None
    nothing = ImageError(f"{url[:100]}: no such file in the folder of --allow-local-files")
    try:
        parts = urlsplit(url)
    except ValueError:
        raise nothing from None
    path = unquote(parts.path)
    if parts.netloc not in ("", "localhost") or "\0" in path or not path.startswith("/"):
        raise nothing
    folder = settings.allow_local_files
    try:
        # symbolic links are followed first: what counts is where the file lies
        real = Path(os.path.realpath(path, strict=True))
        real.relative_to(os.path.realpath(folder, strict=True))
        # of a pipe or a device there is no end
        descriptor = os.open(real, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | getattr(os, "O_CLOEXEC", 0))
        with open(descriptor, "rb") as file:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise nothing
            data = file.read(settings.remote_bytes + 1)
    except (OSError, ValueError):
        raise nothing from None
    if len(data) > settings.remote_bytes:
        raise ImageError(f"{url[:100]}: larger than {settings.remote_bytes:,} bytes")
    return data
