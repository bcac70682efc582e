"""The pictures and videos that the command line names: files, URIs, and standard input."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Sequence
from typing import Any

from ..errors import ImageError
from ..inputs.images import load_image, named_by_place
from ..inputs.uris import is_data_uri, local_path, uri_name
from ..inputs.video import Video, is_still, is_video, load_frames
from .bars import bar
from .options import shows_progress

__all__ = ["STDIN", "dropped_paths", "is_local_file", "read_media", "source_name"]

STDIN = "-"


def read_media(sources: Sequence[str], options: dict[str, Any]) -> list[Any]:
    """What they are, one behind the other: pictures as RGB arrays, videos as their frames. Raises ImageError."""
    media: list[Any] = []
    for number, source in enumerate(sources, 1):
        with named_by_place(number, len(sources)):
            media += _read_source(source, options)
    return media


def _read_source(source: str, options: dict[str, Any]) -> list[Any]:
    """A picture, or the frames of a video, from a path, a URI, or standard input ("-"). Raises ImageError."""
    if source == STDIN:
        try:
            return _read(_standard_input(), options)
        except ImageError as error:
            raise ImageError(f"standard input: {error}") from error
    return _read(source, options)


def source_name(source: str) -> str:
    """For messages and results: a path as it is, a data URI without its data."""
    return uri_name(source) if is_data_uri(source) else source


def _read(source: str | bytes, options: dict[str, Any]) -> list[Any]:
    try:
        return [load_image(source, max_pixels=options["max_pixels"])]
    except ImageError:
        # what cannot be read as a picture is a video only if it looks like one: FFmpeg opens nearly everything
        is_file = isinstance(source, bytes) or is_local_file(source)
        if not is_file or not is_video(source):
            raise
    frames, fps = options["frames"], options["fps"]
    if frames is None and fps is None and is_still(source):
        frames = 1
    video = Video(source, frames, fps)
    with bar("Reading the video", shows_progress(options)) as reading:
        return list(load_frames(video, max_pixels=options["max_pixels"], progress=reading))


def _standard_input() -> str | bytes:
    data = sys.stdin.buffer.read()
    return data.decode("ascii", "replace") if data[:5].lower() == b"data:" else data


def dropped_paths(text: str) -> list[str]:
    """The files that a line names: a path as people type it, or what a terminal writes where files are dropped on it:
    paths in quotes or with escapes, or file: URIs, one or several."""
    as_typed = os.path.expanduser(text)
    if is_data_uri(text) or os.path.exists(as_typed):
        return [text if is_data_uri(text) else as_typed]
    try:
        words = [os.path.expanduser(word) for word in shlex.split(text)]
    except ValueError:  # a quote that is part of a name
        words = []
    # a name with spaces and without quotes is one name
    if len(words) == 1 or (words and all(map(is_local_file, words))):
        return words
    return [as_typed]


def is_local_file(source: str) -> bool:
    """Of a path or a URI."""
    try:
        return os.path.isfile(local_path(source))
    except ImageError:  # of another machine
        return False
