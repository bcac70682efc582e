"""What other programs list of a model: its family, how large it is, how it was quantized."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from .. import _native
from .split import part_names

__all__ = ["ModelFacts", "model_facts"]

# llama.cpp's llama_ftype, general.file_type
_QUANTIZATIONS = {
    **{0: "F32", 1: "F16", 2: "Q4_0", 3: "Q4_1", 7: "Q8_0", 8: "Q5_0", 9: "Q5_1", 10: "Q2_K", 11: "Q3_K_S"},
    **{12: "Q3_K_M", 13: "Q3_K_L", 14: "Q4_K_S", 15: "Q4_K_M", 16: "Q5_K_S", 17: "Q5_K_M", 18: "Q6_K"},
    **{19: "IQ2_XXS", 20: "IQ2_XS", 21: "Q2_K_S", 22: "IQ3_XS", 23: "IQ3_XXS", 24: "IQ1_S", 25: "IQ4_NL"},
    **{26: "IQ3_S", 27: "IQ3_M", 28: "IQ2_S", 29: "IQ2_M", 30: "IQ4_XS", 31: "IQ1_M", 32: "BF16"},
    **{36: "TQ1_0", 37: "TQ2_0", 38: "MXFP4", 39: "NVFP4", 40: "Q1_0", 41: "Q2_0"},
}
_THOUSANDS = ("", "K", "M", "B", "T")


@dataclass(frozen=True)
class ModelFacts:
    """Of a model and its vision encoder, as their headers and files tell."""

    family: str
    """``general.architecture``."""
    n_params: int
    """Of the language model."""
    quantization: str
    """Such as "Q4_K_M"; "unknown": the file does not tell."""
    n_ctx_train: int
    n_embd: int
    bytes: int
    """Of all files, the vision encoder's included."""
    modified: float
    """Seconds since 1970."""
    digest: str
    """64 digits that change with the files' headers, sizes and times; not that of their bytes, which are many."""
    metadata: Mapping[str, Any]
    """Of the language model. As JSON takes them: no infinite numbers; None for long lists and texts in lists."""
    vision_metadata: Mapping[str, Any] | None

    @property
    def size_label(self) -> str:
        """Parameters, as "45M" or "7.2B"."""
        step = 0 if self.n_params < 1 else min(len(_THOUSANDS) - 1, int(math.log10(self.n_params)) // 3)
        number = self.n_params / 1000.0**step
        text = f"{number:.1f}" if number < 10 else f"{number:.0f}"
        return f"{text.removesuffix('.0')}{_THOUSANDS[step]}"


def model_facts(model: Path, mmproj: Path | None = None) -> ModelFacts:
    """No weights are read. Raises ModelError."""
    parts = [Path(part) for part in part_names(str(model))]
    headers = [_native.gguf_header(str(part)) for part in parts]
    vision = None if mmproj is None else _native.gguf_header(str(mmproj))
    metadata = _plain(headers[0]["metadata"])
    family = str(metadata.get("general.architecture") or "unknown")
    stats = [path.stat() for path in (*parts, *([] if mmproj is None else [mmproj]))]
    told = [metadata, *((stat.st_size, stat.st_mtime_ns) for stat in stats)]
    return ModelFacts(
        family=family,
        n_params=sum(prod(shape) for header in headers for shape, _, _ in header["tensors"].values()),
        quantization=_QUANTIZATIONS.get(_whole(metadata.get("general.file_type"), -1), "unknown"),
        n_ctx_train=_whole(metadata.get(f"{family}.context_length")),
        n_embd=_whole(metadata.get(f"{family}.embedding_length")),
        bytes=sum(stat.st_size for stat in stats),
        modified=max(stat.st_mtime for stat in stats),
        digest=hashlib.sha256(json.dumps(told).encode("utf-8", "replace")).hexdigest(),
        metadata=metadata,
        vision_metadata=None if vision is None else _plain(vision["metadata"]),
    )


def _whole(value: object, default: int = 0) -> int:
    return value if isinstance(value, int) else default


def _plain(metadata: Mapping[str, Any]) -> dict[str, Any]:
    def finite(value: Any) -> Any:
        if isinstance(value, list):
            return [finite(one) for one in value]
        return None if isinstance(value, float) and not math.isfinite(value) else value

    return {key: finite(value) for key, value in metadata.items()}
