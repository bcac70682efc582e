"""Rewrites a GGUF file (language model or mmproj) with every weight as F32, its metadata kept.

The tests use it to make, from the bundled quantized pair, a model whose arithmetic ggml and PyTorch
can be compared on: F32 weights keep ggml from rounding the activations to Q8_0 or F16.

    python dequantize.py MODEL.gguf MODEL-f32.gguf
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from gguf import GGMLQuantizationType, GGUFReader, GGUFValueType, GGUFWriter
from gguf.gguf_reader import ReaderTensor
from gguf.quants import dequantize as dequantize_blocks

FILE_TYPE = "general.file_type"
FILE_TYPE_ALL_F32 = 0

# Tensors of indices, not weights: copied as they are. F64 is not narrowed either.
KEPT_TYPES = {
    GGMLQuantizationType.I8,
    GGMLQuantizationType.I16,
    GGMLQuantizationType.I32,
    GGMLQuantizationType.I64,
    GGMLQuantizationType.F64,
}

# Written by GGUFWriter itself.
WRITER_OWNED = {"GGUF.version", "GGUF.tensor_count", "GGUF.kv_count", "general.architecture"}


def dequantized_array(tensor: ReaderTensor) -> np.ndarray:
    """The tensor's values as F32 in numpy's order of dimensions (GGUF's reversed)."""
    if tensor.tensor_type in KEPT_TYPES:
        return np.ascontiguousarray(tensor.data)
    shape = tuple(reversed(tensor.shape.tolist()))
    values = dequantize_blocks(tensor.data, tensor.tensor_type)
    return np.ascontiguousarray(values, dtype=np.float32).reshape(shape)


def _copy_metadata(reader: GGUFReader, writer: GGUFWriter) -> None:
    for key, field in reader.fields.items():
        if key in WRITER_OWNED:
            continue
        value_type = field.types[0]
        if key == FILE_TYPE:
            writer.add_file_type(FILE_TYPE_ALL_F32)
        elif key == "general.alignment":
            writer.add_custom_alignment(field.contents())
        elif value_type == GGUFValueType.ARRAY:
            writer.add_key_value(key, field.contents(), value_type, sub_type=field.types[-1])
        else:
            writer.add_key_value(key, field.contents(), value_type)
    if FILE_TYPE not in reader.fields:
        writer.add_file_type(FILE_TYPE_ALL_F32)


def dequantize(src: Path, dst: Path) -> None:
    """Writes to dst what src holds, with all weights as F32 and general.file_type 0.

    Tensors are streamed one by one, so a large model needs no memory for the whole of it.
    dst may not be src (it is memory-mapped while dst is written).
    """
    src, dst = Path(src), Path(dst)
    if dst.exists() and dst.samefile(src):
        raise ValueError(f"cannot rewrite {src} in place: choose another output path")
    reader = GGUFReader(src)
    architecture = reader.fields["general.architecture"].contents()
    writer = GGUFWriter(dst, architecture, endianess=reader.endianess)
    try:
        _copy_metadata(reader, writer)
        for tensor in reader.tensors:
            if tensor.tensor_type in KEPT_TYPES:
                values = tensor.data
                writer.add_tensor_info(tensor.name, values.shape, values.dtype, values.nbytes)
            else:
                shape = list(reversed(tensor.shape.tolist()))
                nbytes = 4 * int(np.prod(shape))
                writer.add_tensor_info(tensor.name, shape, np.dtype(np.float32), nbytes)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for tensor in reader.tensors:
            writer.write_tensor_data(dequantized_array(tensor))
    finally:
        writer.close()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("src", type=Path, help="GGUF file of any quantization")
    parser.add_argument("dst", type=Path, help="GGUF file to write, all weights F32")
    args = parser.parse_args()
    dequantize(args.src, args.dst)
    print(f"{args.dst}: {args.dst.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
