"""The page at ``/``: one file, nothing from elsewhere, and a policy that lets nothing else run."""

from __future__ import annotations

import base64
import hashlib
import re
from functools import cache
from pathlib import Path

from starlette.requests import Request
from starlette.responses import Response

__all__ = ["page"]


@cache
def _page() -> tuple[bytes, str]:
    text = Path(__file__).with_name("page.html").read_bytes()
    script, style = (_hashes(text, tag) for tag in (b"script", b"style"))
    policy = (
        f"default-src 'none'; script-src {script}; style-src {style}; img-src blob: data:; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    return text, policy


def _hashes(text: bytes, tag: bytes) -> str:
    found = re.findall(rb"<%s>(.*?)</%s>" % (tag, tag), text, re.S)
    digests = (base64.b64encode(hashlib.sha256(part).digest()).decode() for part in found)
    return " ".join(f"'sha256-{digest}'" for digest in digests)


async def page(_: Request) -> Response:
    """The page."""
    text, policy = _page()
    return Response(text, media_type="text/html; charset=utf-8", headers={"Content-Security-Policy": policy})
