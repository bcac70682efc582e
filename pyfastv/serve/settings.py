"""What the HTTP layer was told when it was started."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

__all__ = ["SamplingDefaults", "Settings", "hard_pixels"]


_UNSUSPECTED = (
    89_000_000  # above this Pillow warns of decompression bombs; an A3 page at 600 dpi has 70 million
)


def hard_pixels(max_pixels: int) -> int:
    """The largest picture that a server reads, with this limit to those that it works with."""
    return max(max_pixels, min(4 * max_pixels, _UNSUSPECTED))


@dataclass(frozen=True)
class SamplingDefaults:
    """For requests that are silent; llama-server's own (OpenAI's temperature and top_p are 1, with no top_k, min_p)."""

    temperature: float = 0.8
    top_k: int = 40
    top_p: float = 0.95
    min_p: float = 0.05


@dataclass(frozen=True)
class Settings:
    """Access, limits and defaults of a server."""

    api_key: str | None = None
    """Asked of every request but those for the page and ``/health``."""
    cors_origins: tuple[str, ...] = ()
    """Origins whose pages may read the answers; "*": all."""
    hosts: tuple[str, ...] | None = ()
    """Names in a Host header that are taken, beside loopback ones; None: any."""
    allow_remote_images: bool = False
    allow_local_files: Path | None = None
    """The folder whose pictures and videos file:// may name."""
    max_body_bytes: int = 32 * 2**20
    max_depth: int = 32
    """Nested lists and objects in a body."""
    max_images: int = 16
    """Pictures and videos in a request, those of earlier turns included."""
    max_frames: int = 64
    """Of the videos in a request, together."""
    max_pixels: int = 32_000_000
    """Of one picture or frame; four times this may be in work at a time. A larger picture is scaled down to it, up to
    :attr:`hard_pixels`."""
    max_tokens: int | None = None
    """Most tokens that a request may ask for; None: the context of a slot."""
    ping_seconds: float | None = 10.0
    """After which a comment goes into a stream that has nothing to say; None: never."""
    access_log: Callable[[str], None] | None = None
    """Takes a line for each request; None: none is written."""
    body_seconds: float = 60.0
    """In which a request's body has to arrive."""
    remote_bytes: int = 20 * 2**20
    remote_seconds: float = 15.0
    """For one picture or video from the web, redirects included."""
    remote_redirects: int = 3
    sampling: SamplingDefaults = field(default_factory=SamplingDefaults)

    @property
    def hard_pixels(self) -> int:
        """Of a picture that is read at all, however small it is made: what it weighs decoded."""
        return hard_pixels(self.max_pixels)

    @property
    def max_nodes(self) -> int:
        """Brackets, braces and commas in a body: what its parsed form can weigh, up to half a KiB for each."""
        return max(100_000, self.max_body_bytes // 128)
