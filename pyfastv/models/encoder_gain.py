"""Are this machine's products with 8-bit weights faster than those with f16 ones?"""

from __future__ import annotations

import hashlib
import json
import math
import os
from contextlib import suppress
from functools import lru_cache
from pathlib import Path

from .. import _native
from ..errors import Error
from ..output import Output
from .user_cache import user_cache

__all__ = ["gain_of_q8_0"]

# a product of a vision encoder: so many patches, and a matrix of a block
_ROWS, _WIDTH = 256, 1024


def gain_of_q8_0() -> float:
    """How many times as fast as with f16 a product with q8_0 weights is on this CPU.

    Measured in a few dozen milliseconds by one thread, which other work disturbs least, and kept in the user's cache for
    this CPU, this version and these kernels.
    """
    return _gain(os.environ.get("PYFASTV_KERNELS", ""))


@lru_cache(maxsize=1)
def _gain(kernels: str) -> float:
    known = {"cpu": _cpu(), "pyfastv": _native.build_info()["pyfastv"], "kernels": kernels}
    name = hashlib.blake2b(json.dumps(known).encode(), digest_size=6).hexdigest()
    path = user_cache() / f"q8_0-gain-{name}.json"
    found = _read(path)
    if found is None:
        seconds = {"f16": math.inf, "q8_0": math.inf}
        for _ in range(3):  # in turn: a slow moment of the machine is none of one type
            for kind, least in seconds.items():
                seconds[kind] = min(least, _native.product_seconds(kind, _WIDTH, _WIDTH, _ROWS, 1))
        found = round(seconds["f16"] / seconds["q8_0"], 3)
        with suppress(OSError, Error):  # it is measured again next time
            path.parent.mkdir(parents=True, exist_ok=True)
            Output(path).write(json.dumps(known | {"q8_0_over_f16": found}) + "\n")
    return found


def _read(path: Path) -> float | None:
    with suppress(OSError, ValueError, KeyError, TypeError):
        return float(json.loads(path.read_text("utf-8"))["q8_0_over_f16"])
    return None


def _cpu() -> str:
    return "; ".join(device["description"] for device in _native.backends() if device["type"] == "cpu")
