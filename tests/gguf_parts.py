"""GGUF files taken apart and put together, also in ways that are not allowed: for tests of damaged files."""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

# GGUF's types of values, and what struct calls them
U8, I8, U16, I16, U32, I32, F32, BOOL, STRING, ARRAY, U64, I64, F64 = range(13)
FORMATS = {
    U8: "B",
    I8: "b",
    U16: "H",
    I16: "h",
    U32: "I",
    I32: "i",
    F32: "f",
    BOOL: "B",
    U64: "Q",
    I64: "q",
    F64: "d",
}
FLOATS = (F32, F64)

# ggml's types of tensors: elements and bytes of a block
GGML_F32, GGML_F16, GGML_Q4_0, GGML_Q8_0, GGML_I32 = 0, 1, 2, 8, 26
BLOCKS = {
    **{GGML_F32: (1, 4), GGML_F16: (1, 2), GGML_Q4_0: (32, 18), 3: (32, 20), 6: (32, 22), 7: (32, 24)},
    **{GGML_Q8_0: (32, 34), 10: (256, 84), 11: (256, 110), 12: (256, 144), 13: (256, 176), 14: (256, 210)},
    **{GGML_I32: (1, 4), 30: (1, 2)},
}


@dataclass
class Key:
    name: bytes
    type: int
    value: Any
    of: int = U32  # type of an array's elements
    count: int | None = None  # what the file says; None: the truth


@dataclass
class Tensor:
    name: bytes
    shape: tuple[int, ...]  # as in the file: rows first
    type: int
    data: bytes
    offset: int | None = None  # None: where it is


@dataclass
class File:
    """A GGUF file in parts, and what the file says of their numbers (None: the truth)."""

    keys: list[Key]
    tensors: list[Tensor]
    magic: bytes = b"GGUF"
    version: int = 3
    n_keys: int | None = None
    n_tensors: int | None = None
    cut: int | None = None  # bytes from the end that are not written
    extra: bytes = b""
    alignment: int = 32

    def key(self, name: str) -> Key:
        return next(key for key in self.keys if key.name == name.encode())

    def tensor(self, name: str) -> Tensor:
        return next(tensor for tensor in self.tensors if tensor.name == name.encode())

    def copy(self) -> File:
        """One whose keys and tensors can be changed."""
        keys, tensors = [replace(key) for key in self.keys], [replace(tensor) for tensor in self.tensors]
        return replace(self, keys=keys, tensors=tensors)


# reading and writing


def read(path: Path) -> File:
    data = path.read_bytes()
    at = 24
    _, n_tensors, n_keys = struct.unpack_from("<IQQ", data, 4)

    def take(format: str) -> Any:
        nonlocal at
        (value,) = struct.unpack_from("<" + format, data, at)
        at += struct.calcsize("<" + format)
        return value

    def text() -> bytes:
        nonlocal at
        size = take("Q")
        at += size
        return data[at - size : at]

    def value_of(type: int) -> Any:
        return text() if type == STRING else take(FORMATS[type])

    keys = []
    for _ in range(n_keys):
        name, type = text(), take("I")
        if type == ARRAY:
            of, count = take("I"), take("Q")
            keys.append(Key(name, type, [value_of(of) for _ in range(count)], of))
        else:
            keys.append(Key(name, type, value_of(type)))
    infos = []
    for _ in range(n_tensors):
        name = text()
        shape = tuple(take("Q") for _ in range(take("I")))
        infos.append((name, shape, take("I"), take("Q")))
    start = -(-at // 32) * 32
    tensors = []
    for name, shape, type, offset in infos:
        begin = start + offset
        tensors.append(Tensor(name, shape, type, data[begin : begin + n_bytes(shape, type)]))
    return File(keys, tensors)


def n_bytes(shape: Sequence[int], type: int) -> int:
    elements, size = BLOCKS[type]
    return math.prod(shape) // elements * size


def write(file: File, path: Path) -> None:
    def text(value: bytes) -> bytes:
        return struct.pack("<Q", len(value)) + value

    def value_of(type: int, value: Any) -> bytes:
        return text(value) if type == STRING else struct.pack("<" + FORMATS[type], value)

    n_tensors = len(file.tensors) if file.n_tensors is None else file.n_tensors
    n_keys = len(file.keys) if file.n_keys is None else file.n_keys
    head = [file.magic, struct.pack("<IQQ", file.version, n_tensors, n_keys)]
    for key in file.keys:
        head.append(text(key.name) + struct.pack("<I", key.type))
        if key.type == ARRAY:
            count = len(key.value) if key.count is None else key.count
            head.append(struct.pack("<IQ", key.of, count))
            head += [value_of(key.of, value) for value in key.value]
        else:
            head.append(value_of(key.type, key.value))
    offset, data = 0, []
    for tensor in file.tensors:
        place = offset if tensor.offset is None else tensor.offset
        head.append(text(tensor.name) + struct.pack("<I", len(tensor.shape)))
        head.append(
            struct.pack(f"<{len(tensor.shape)}Q", *tensor.shape) + struct.pack("<IQ", tensor.type, place)
        )
        data.append(tensor.data + bytes(-len(tensor.data) % file.alignment))
        offset += len(data[-1])
    start = b"".join(head)
    content = start + bytes(-len(start) % file.alignment) + b"".join(data) + file.extra
    path.write_bytes(content[: len(content) - (file.cut or 0)])
