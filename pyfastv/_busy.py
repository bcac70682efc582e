"""Is the machine quiet enough for its times to mean something?"""

from __future__ import annotations

import os

from . import _native

__all__ = ["busy_warning"]


def busy_warning(threads: int) -> str | None:
    """ggml's threads wait for one another in spinning barriers: a core that is shared ruins wall and CPU time alike."""
    cores = _native.usable_cores()
    if not hasattr(os, "getloadavg") or (load := os.getloadavg()[0]) + threads <= cores + 0.5:
        return None
    return f"{cores} cores at a load of {load:.1f}, {threads} threads to measure with: wait until the machine is quiet"
