"""Quantizing a vision encoder: an mmproj GGUF file in, a smaller one out."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .. import _native
from ..errors import ModelError, OptionError
from ..output import Output
from .quantize_plan import FLOATS, Plan, make_plan, matrices

__all__ = ["TYPES", "Quantized", "quantize_mmproj"]

TYPES: Mapping[str, int] = {"f16": 1, "q4_0": 2, "q4_1": 3, "q8_0": 7, "q5_0": 8, "q5_1": 9}
"""What can be written, and its number as ``general.file_type`` (llama.cpp's llama_ftype)."""

_FILE_TYPE, _QUANTIZATION_VERSION = "general.file_type", "general.quantization_version"
_GGML_QUANTIZATION_VERSION = 2  # of the blocks' layouts: GGML_QNT_VERSION


@dataclass(frozen=True)
class Quantized:
    """What :func:`quantize_mmproj` wrote. Sizes in bytes."""

    type: str
    matrices: int
    """Matrices of that type."""
    matrices_f16: int
    """Matrices that are f16 since their rows are no whole number of blocks; 0 for the type f16."""
    tensors_kept: int
    """Convolutions, embeddings, norms, biases: as they were."""
    source_bytes: int
    target_bytes: int


def quantize_mmproj(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    type: str = "q8_0",
    *,
    force: bool = False,
    progress: Callable[[float, float], object] | None = None,
) -> Quantized:
    """Write the mmproj ``source`` (f32, f16 or bf16) as ``target``, its matrices as ``type``, one of :data:`TYPES`.

    The matrices of the encoder's blocks and of the projector change their type; patch and position embeddings, norms,
    biases and the class embedding stay as they are, and so does all metadata but ``general.file_type``. Where the
    feed-forward blocks are no whole number of type blocks wide, zeros are added, which change nothing
    (:func:`pyfastv.models.quantize_plan.make_plan`). ``force``: write over an existing file. ``progress``: called with
    (bytes done, bytes) of the weights; an exception in it, or Ctrl-C, ends the writing. ``target`` is there when it is
    complete, never before; a link stays one, and a pipe or a device is written to.

    Raises ModelError (``source`` is no mmproj, damaged, or quantized already), OptionError (``type``; ``target``
    exists), DataError (it cannot be written).
    """
    if type not in TYPES:
        raise OptionError(f"type must be one of {', '.join(sorted(TYPES))}; got {type!r}")
    source, target = Path(os.fsdecode(source)), Path(os.fsdecode(target))
    if target.exists() and source.exists() and target.samefile(source):
        raise OptionError(f"{target}: is the file to read: write to another one")
    if target.is_file() and not force:
        raise OptionError(f"{target}: exists already: pass force=True (--force) to write over it")
    output = Output(target)
    header = _read(source)
    plan = _plan(header, source, type)
    with output.part() as part:
        _native.rewrite_gguf(source, part, tensors=plan.tensors, keys=plan.keys, progress=progress)
        target_bytes = part.stat().st_size
    in_type = sum(plan.tensors[name].type == type for name in plan.matrices)
    return Quantized(
        type=type,
        matrices=in_type,
        matrices_f16=len(plan.matrices) - in_type,
        tensors_kept=len(header["tensors"]) - len(plan.matrices),
        source_bytes=source.stat().st_size,
        target_bytes=target_bytes,
    )


def _read(source: Path) -> dict[str, Any]:
    """The header of an mmproj."""
    if source.is_dir():
        raise ModelError(f"{source}: cannot be read: it is a folder")
    header = _native.gguf_header(source)
    architecture = header["metadata"].get("general.architecture")
    if architecture != "clip":
        raise ModelError(
            f"{source}: is not an mmproj file: its architecture is {architecture} (general.architecture), "
            "that of a vision encoder is clip; "
            "llama.cpp's llama-quantize quantizes language models"
        )
    return header


def _plan(header: Mapping[str, Any], source: Path, type: str) -> Plan:
    found = matrices(header)
    for name, (kind, _, _) in found.items():
        if kind not in FLOATS:
            raise ModelError(
                f"{source}: is quantized already ({name} is {kind}): quantize the f16 or f32 file"
            )
    if not found:
        raise ModelError(f"{source}: has no matrices of a vision encoder that could be quantized")
    plan = make_plan(header, type)
    written = {_FILE_TYPE: TYPES[type], _QUANTIZATION_VERSION: _GGML_QUANTIZATION_VERSION}
    return Plan(plan.tensors, {**plan.keys, **written}, plan.matrices)
