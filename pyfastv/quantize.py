"""Quantizing a vision encoder: an mmproj GGUF file in, a smaller one out."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from . import _native
from .errors import Error, ModelError, OptionError
from .output import Output

if TYPE_CHECKING:
    from gguf import GGMLQuantizationType, GGUFReader, GGUFWriter
    from gguf.gguf_reader import ReaderTensor
    from numpy.typing import NDArray

__all__ = ["TYPES", "Quantized", "quantize_mmproj"]

TYPES: Mapping[str, int] = {"f16": 1, "q4_0": 2, "q4_1": 3, "q8_0": 7, "q5_0": 8, "q5_1": 9}
"""What can be written, and its number as ``general.file_type`` (llama.cpp's llama_ftype)."""

# The matrices that llama.cpp's encoders and projectors only ever multiply with (clip_graph::build_mm). Others are
# convolutions, tables whose rows are read, or, as Gemma's mm.input_projection, transposed first: ggml cannot do that
# with quantized ones.
_MATRICES = re.compile(
    r"(?:v\.blk\.\d+\.(?:attn_(?:q|k|v|qkv|out)|ffn_(?:up|gate|down))"
    r"|v\.deepstack\.\d+\.fc[12]"
    r"|mm\.(?:\d+|up|gate|down|patch_merger|model\.fc|model\.mlp\.\d+)"
    r"|resampler\.(?:kv|proj|attn\.(?:q|k|v|out)))\.weight"
)
_FLOATS = ("F32", "F16", "BF16")
_WRITTEN_ANYWAY = ("GGUF.version", "GGUF.tensor_count", "GGUF.kv_count", "general.architecture")
_FILE_TYPE, _QUANTIZATION_VERSION = "general.file_type", "general.quantization_version"


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
    biases and the class embedding stay as they are, and so does all metadata but ``general.file_type``. ``force``:
    write over an existing file. ``progress``: called with (bytes done, bytes) of the weights. ``target`` is there when it
    is complete, never before; a link stays one, and a pipe or a device is written to. Needs the extra ``quantize``.

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
    gguf = _import_gguf()
    reader = _read(gguf, source)
    types = _plan(gguf, reader, source, type)
    try:
        with output.part() as part:
            _write(gguf, reader, part, types, TYPES[type], progress)
            target_bytes = part.stat().st_size
    except ModelError as error:
        raise ModelError(f"{source}: {error}") from error
    wanted = gguf.GGMLQuantizationType[type.upper()]
    return Quantized(
        type=type,
        matrices=sum(kind is wanted for kind in types.values()),
        matrices_f16=sum(kind is not wanted for kind in types.values()),
        tensors_kept=len(reader.tensors) - len(types),
        source_bytes=source.stat().st_size,
        target_bytes=target_bytes,
    )


def _import_gguf() -> Any:
    try:
        import gguf.quants
    except ImportError as error:
        raise Error("quantizing needs the package gguf: pip install 'pyfastv[quantize]'") from error
    return gguf


def _read(gguf: Any, source: Path) -> GGUFReader:
    if source.is_file():
        _native.gguf_header(os.fspath(source))  # the reader believes whatever number a file claims
    try:
        reader: GGUFReader = gguf.GGUFReader(source)
    except FileNotFoundError:
        raise ModelError(f"{source}: no such file") from None
    except OSError as error:
        raise ModelError(f"{source}: cannot be read: {error.strerror or error}") from error
    except Exception as error:  # numpy and the reader raise anything on damaged files
        raise ModelError(f"{source}: not a GGUF file, or a damaged one: {error}") from error
    field = reader.fields.get("general.architecture")
    # whatever is there: text of any bytes, or no text
    architecture = None if field is None else bytes(field.parts[-1]).decode(errors="replace")
    if architecture != "clip":
        raise ModelError(
            f"{source}: is not an mmproj file: its architecture is {architecture} (general.architecture), "
            "that of a vision encoder is clip; "
            "llama.cpp's llama-quantize quantizes language models"
        )
    return reader


def _plan(gguf: Any, reader: GGUFReader, source: Path, type: str) -> dict[str, GGMLQuantizationType]:
    """The matrices by name, with the type that each will have."""
    for tensor in reader.tensors:
        kind = tensor.tensor_type.name
        if _MATRICES.fullmatch(tensor.name) and kind not in _FLOATS:
            raise ModelError(
                f"{source}: is quantized already ({tensor.name} is {kind.lower()}): quantize the f16 or f32 file"
            )
    wanted = gguf.GGMLQuantizationType[type.upper()]
    block, _ = gguf.GGML_QUANT_SIZES[wanted]
    types = {
        tensor.name: wanted if tensor.shape[0] % block == 0 else gguf.GGMLQuantizationType.F16
        for tensor in reader.tensors
        if _MATRICES.fullmatch(tensor.name) and len(tensor.shape) == 2
    }
    if not types:
        raise ModelError(f"{source}: has no matrices of a vision encoder that could be quantized")
    return types


def _write(
    gguf: Any,
    reader: GGUFReader,
    path: Path,
    types: Mapping[str, GGMLQuantizationType],
    file_type: int,
    progress: Callable[[float, float], object] | None,
) -> None:
    writer = gguf.GGUFWriter(path, "clip", endianess=reader.endianess)
    try:
        _copy_metadata(gguf, reader, writer, file_type)
        for tensor in reader.tensors:
            shape, item, size, kind = _layout(gguf, tensor, types.get(tensor.name))
            writer.add_tensor_info(tensor.name, shape, item, size, raw_dtype=kind)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        total = sum(int(tensor.n_bytes) for tensor in reader.tensors)
        done = 0
        for tensor in reader.tensors:
            writer.write_tensor_data(_values(gguf, tensor, types.get(tensor.name)))
            done += int(tensor.n_bytes)
            if progress is not None:
                progress(done, total)
    finally:
        writer.close()


def _copy_metadata(gguf: Any, reader: GGUFReader, writer: GGUFWriter, file_type: int) -> None:
    for key, field in reader.fields.items():
        if key in (*_WRITTEN_ANYWAY, _FILE_TYPE, _QUANTIZATION_VERSION):
            continue
        try:
            value = field.contents()
        except UnicodeDecodeError as error:
            raise ModelError(f"key {key} is not UTF-8: the file is damaged") from error
        if key == "general.alignment":  # the writer has to know it as well
            writer.add_custom_alignment(value)
        elif field.types[0] == gguf.GGUFValueType.ARRAY:
            if not value:
                raise ModelError(f"key {key} is an empty array, which cannot be written")
            writer.add_key_value(key, value, field.types[0], sub_type=field.types[-1])
        else:
            writer.add_key_value(key, value, field.types[0])
    writer.add_file_type(file_type)
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)


def _layout(
    gguf: Any, tensor: ReaderTensor, kind: GGMLQuantizationType | None
) -> tuple[tuple[int, ...], np.dtype[Any], int, GGMLQuantizationType]:
    """What add_tensor_info() wants; ``kind`` None: as it is."""
    if kind is None:
        return tensor.data.shape, tensor.data.dtype, int(tensor.n_bytes), tensor.tensor_type
    shape = tuple(int(size) for size in reversed(tensor.shape))
    block, size = gguf.GGML_QUANT_SIZES[kind]
    n_bytes = int(tensor.n_elements) // block * size
    return shape, np.dtype(np.float32), n_bytes, kind  # shape in elements, whatever the type


def _values(gguf: Any, tensor: ReaderTensor, kind: GGMLQuantizationType | None) -> NDArray[Any]:
    if kind is None:
        return np.asarray(tensor.data)
    values = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
    if not np.isfinite(values).all():
        raise ModelError(f"{tensor.name} has values that are not finite: the file is damaged")
    quantized: NDArray[Any] = gguf.quants.quantize(np.asarray(values, np.float32), kind)
    return quantized
