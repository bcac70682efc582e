"""Pictures by URI: the bytes of a data: URI as browsers read it, the path of a file: URI."""

from __future__ import annotations

import base64
import binascii
import os
import re
from urllib.parse import unquote_to_bytes, urlsplit

from ..errors import ImageError

__all__ = ["data_uri_bytes", "is_data_uri", "local_path", "uri_name"]

_SPACE = "".join(map(chr, range(33)))  # what the URL standard takes away at both ends


def is_data_uri(text: str) -> bool:
    """Also with white space in front."""
    return (text.lstrip(_SPACE) if text[:1] <= " " else text)[:5].lower() == "data:"


def uri_name(uri: str) -> str:
    """For messages: never the data."""
    kind = uri.lstrip(_SPACE)[5:60].partition(",")[0].encode("ascii", "backslashreplace").decode()
    return f"data URI ({kind.strip() or 'text/plain'})"


def data_uri_bytes(uri: str) -> bytes:
    """``data:[<media type>][;base64],<data>``, by WHATWG's URL and Fetch standards. Raises ImageError."""
    header, comma, payload = uri.strip(_SPACE).partition("#")[0].partition(",")
    if not comma:
        raise ImageError(f"{uri_name(uri)}: has no data; the form is data:image/png;base64,<data>")
    in_base64 = re.search(r"; *base64[ \f]*$", re.sub(r"[\t\n\r]", "", header), re.IGNORECASE)
    try:
        data = unquote_to_bytes(payload if in_base64 else re.sub(r"[\t\n\r]", "", payload))
    except UnicodeEncodeError as error:
        raise ImageError(f"{uri_name(uri)}: {payload[error.start]!r} is not a character") from None
    if not in_base64:
        return data
    data = b"".join(data.split())
    try:
        return base64.b64decode(data + b"=" * (-len(data) % 4), validate=True)
    except binascii.Error as error:
        raise ImageError(f"{uri_name(uri)}: not valid base64: {error}") from error


def local_path(text: str) -> str:
    """The path that a ``file:`` URI names; anything else as it is. Raises ImageError: it is on another machine."""
    if text[:5].lower() != "file:":
        return text
    try:
        parts = urlsplit(text)
    except ValueError as error:
        raise ImageError(f"{text[:200]}: is not a URI: {error}") from None
    if parts.netloc.lower() not in ("", "localhost"):
        raise ImageError(f"{text[:200]}: is a file of another machine: copy it here, and pass its path")
    return os.fsdecode(unquote_to_bytes(os.fsencode(parts.path)))
