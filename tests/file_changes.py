"""Random changes of a GGUF file, one at a time: a key, a tensor, or the container."""

from __future__ import annotations

import math
import random
import struct
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from gguf_parts import (
    ARRAY,
    BLOCKS,
    BOOL,
    FLOATS,
    FORMATS,
    GGML_F16,
    GGML_F32,
    GGML_I32,
    GGML_Q4_0,
    GGML_Q8_0,
    I8,
    I16,
    I32,
    I64,
    STRING,
    U32,
    File,
    Key,
    Tensor,
    n_bytes,
)


@dataclass(frozen=True)
class Change:
    what: str
    harmless: bool = False
    """Nothing that an answer depends on."""


def change(file: File, rng: random.Random) -> Change:
    """Change one thing in place."""
    pick = rng.random()
    if pick < 0.45:
        return _change_key(file, rng)
    if pick < 0.88:
        return _change_tensor(file, rng)
    return _change_container(file, rng)


def _change_key(file: File, rng: random.Random) -> Change:
    # what many files have in common is asked as often as what is particular
    key = rng.choice(file.keys)
    name = key.name.decode()
    unused = name.startswith("general.") and name not in ("general.architecture", "general.alignment")
    how = rng.choice(("remove", "type", "value", "value", "value", "value", "twice", "rename"))
    if how == "remove":
        file.keys.remove(key)
        return Change(f"{name} removed", unused)
    if how == "twice":
        file.keys.insert(rng.randrange(len(file.keys)), replace(key))
        return Change(f"{name} twice")
    if how == "rename":
        key.name = rng.choice((b"x", key.name + b"x", key.name[:-1], b"general.x", key.name.upper()))
        return Change(f"{name} renamed {key.name.decode()}", unused)
    if how == "type":
        return Change(f"{name} {_retype(key, rng)}")
    if key.type == ARRAY:
        return Change(f"{name} {_change_array(key, rng)}")
    if key.type == STRING:
        key.value = rng.choice(
            (b"", b"x", b"\xff\xfe", b"a" * 100_000, b"llama", b"clip", b"mlp", b"internvl", b"gpt2")
        )
        return Change(f"{name} = {key.value[:20]!r}", unused)
    key.value = _another(key.type, key.value, rng)
    return Change(f"{name} = {key.value}", unused)


def _another(type: int, value: Any, rng: random.Random) -> Any:
    if type == BOOL:
        return 1 - value
    if type in FLOATS:
        return rng.choice((0.0, -1.0, math.nan, math.inf, -math.inf, 1e30, 1e-30, -value, value * 2))
    bits = 8 * struct.calcsize(FORMATS[type])
    signed = type in (I8, I16, I32, I64)
    low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)
    values = (
        0,
        0,
        1,
        -1,
        value + 1,
        value - 1,
        2 * value,
        value // 2,
        7,
        1000,
        10**6,
        10**8,
        2**30,
        2**31 - 1,
        low,
        high,
    )
    return min(max(rng.choice(values), low), high)


def _retype(key: Key, rng: random.Random) -> str:
    type = rng.choice([type for type in range(13) if type != key.type])
    value = key.value
    if type == ARRAY:
        key.of, key.value = (key.type, [value]) if key.type != ARRAY else (U32, [0])
    elif type == STRING:
        key.value = str(value)[:100].encode()
    else:
        number = value if isinstance(value, (int, float)) and math.isfinite(value) else 1
        bits = 8 * struct.calcsize(FORMATS[type])
        key.value = float(number) if type in FLOATS else int(abs(number)) % 2 ** (bits - 1)
    key.type = type
    return f"of type {type}"


def _change_array(key: Key, rng: random.Random) -> str:
    how = rng.choice(("empty", "shorter", "half", "longer", "element", "all", "of", "count"))
    if how == "empty":
        key.value = []
    elif how == "shorter":
        key.value = key.value[:-1]
    elif how == "half":
        key.value = key.value[: len(key.value) // 2]
    elif how == "longer":
        key.value = key.value + key.value[-1:] * rng.choice((1, 2, 1000))
    elif how == "of":
        key.of = rng.choice([type for type in FORMATS if type != key.of])
        values = [value if isinstance(value, (int, float)) else 1 for value in key.value]
        key.value = [float(value) if key.of in FLOATS else int(abs(value)) % 100 for value in values]
    elif how == "count":
        key.count = rng.choice((0, 1, len(key.value) + 1, 10**6, 2**31, 2**62, 2**64 - 1))
        how = f"count = {key.count}"
    elif key.value:
        places = range(len(key.value)) if how == "all" else [rng.randrange(len(key.value))]
        wrong: Any = rng.choice((b"", b"\xff", b"a" * 1000)) if key.of == STRING else None
        wrong = _another(key.of, key.value[places[0]], rng) if wrong is None else wrong
        key.value = list(key.value)
        for place in places:
            key.value[place] = wrong
        how += f" = {wrong!r:.20}"
    return how


def _resize(tensor: Tensor, shape: tuple[int, ...], type: int | None = None) -> None:
    """The shape, and as many bytes as it needs."""
    type = tensor.type if type is None else type
    size = n_bytes(shape, type) if type in BLOCKS else len(tensor.data)
    size = min(size, 64 << 20)
    tensor.shape, tensor.type = shape, type
    tensor.data = (tensor.data * (size // max(1, len(tensor.data)) + 1))[:size]


def _change_tensor(file: File, rng: random.Random) -> Change:
    tensor = rng.choice(file.tensors)
    name, shape = tensor.name.decode(), tensor.shape
    how = rng.choice(
        (
            "remove",
            "rename",
            "transpose",
            "dim",
            "dim",
            "dim",
            "flat",
            "type",
            "label",
            "data",
            "offset",
            "twice",
            "swap",
        )
    )
    if how == "remove":
        file.tensors.remove(tensor)
    elif how == "rename":
        tensor.name = rng.choice(
            (b"x", tensor.name + b"x", tensor.name.replace(b"0", b"99"), b"a" * 63, b"a" * 64, b"")
        )
    elif how == "transpose":
        tensor.shape = shape[::-1]
        if len(shape) == 1:
            tensor.shape = (1, *shape)
    elif how == "dim":
        at = rng.randrange(len(shape))
        block = BLOCKS[tensor.type][0] if at == 0 else 1
        step = rng.choice((1, -1)) * block
        size = rng.choice(
            (shape[at] + step, max(block, shape[at] + step), 2 * shape[at], block, block, 0, 2**31, 2**62)
        )
        size = max(0, size)
        _resize(tensor, (*shape[:at], size, *shape[at + 1 :]))
        how = f"dim {at}: {shape[at]} -> {size}"
    elif how == "flat":
        tensor.shape = rng.choice(((math.prod(shape),), (*shape, 1), (1, *shape), (*shape, 1, 1, 1, 1)))
    elif how == "type":
        type = rng.choice((GGML_F32, GGML_F16, GGML_Q4_0, GGML_Q8_0, GGML_I32, 12, 14, 30))
        _resize(tensor, shape, type)
        how = f"type {type}"
    elif how == "label":
        tensor.type = rng.choice(
            (GGML_F32, GGML_F16, GGML_Q8_0, GGML_I32, 4, 5, 31, 99, 2**31 - 1, 2**32 - 1)
        )
        how = f"label {tensor.type}"
    elif how == "data":
        return Change(f"{name} {_change_data(tensor, rng)}")
    elif how == "offset":
        tensor.offset = rng.choice((0, 1, 32, 2**31, 2**62, 2**64 - 32))
        how = f"offset {tensor.offset}"
    elif how == "twice":
        file.tensors.append(replace(tensor))
    else:
        other = rng.choice(file.tensors)
        tensor.name, other.name = other.name, tensor.name
        how = f"swapped with {tensor.name.decode()}"
    return Change(f"{name} {how}")


def _change_data(tensor: Tensor, rng: random.Random) -> str:
    """Values that are no weights: one or all."""
    value = rng.choice((math.nan, math.inf, 1e38))
    if tensor.type != GGML_F32:
        tensor.data = b"\xff" * len(tensor.data)
        return "data = all bits"
    values = np.frombuffer(tensor.data, np.float32).copy()
    values[:: rng.choice((1, len(values)))] = value
    tensor.data = values.tobytes()
    return f"data = {value}"


def _change_container(file: File, rng: random.Random) -> Change:
    how = rng.choice(
        ("cut", "cut", "version", "n_keys", "n_tensors", "alignment", "magic", "extra", "string", "pad")
    )
    if how == "cut":
        total = sum(len(tensor.data) for tensor in file.tensors)
        file.cut = rng.choice((1, 31, 32, 33, rng.randrange(1, total), rng.randrange(total, total + 1000)))
        return Change(f"cut by {file.cut}", harmless=file.cut < 32)
    if how == "version":
        file.version = rng.choice((0, 1, 2, 4, 99, 3 << 24, 2**32 - 1))
        return Change(f"version {file.version}", harmless=file.version == 2)
    if how in ("n_keys", "n_tensors"):
        true = len(file.keys if how == "n_keys" else file.tensors)
        count = rng.choice((0, true - 1, true + 1, 10**6, 10**9, 2**40, 2**63, 2**64 - 1))
        setattr(file, how, count)
        return Change(f"{how} {count}")
    if how == "alignment":
        value = rng.choice((0, 1, 3, 8, 64, 4096, 2**31, 2**32 - 1))
        file.keys.append(Key(b"general.alignment", U32, value))
        return Change(f"general.alignment = {value}")
    if how == "pad":
        file.alignment = rng.choice((1, 8, 64))
        return Change(f"padded to {file.alignment}")
    if how == "magic":
        file.magic = rng.choice((b"GGUE", b"gguf", b"\0\0\0\0", b"FUGG", b"ggml"))
        return Change(f"magic {file.magic!r}")
    if how == "string":
        key = Key(b"x" * rng.choice((0, 70_000, 2_000_000)), STRING, b"")
        file.keys.insert(rng.randrange(len(file.keys)), key)
        return Change(f"a key of {len(key.name)} bytes", harmless=len(key.name) == 70_000)
    file.extra = bytes(rng.choice((1, 32, 100_000)))
    return Change(f"{len(file.extra)} bytes more", harmless=True)
