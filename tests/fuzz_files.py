"""Model files with one key, tensor or byte of the container changed, and what becomes of them.

    python tests/fuzz_files.py --kind text --kind LLaVA --count 250 --seed 0
    python tests/fuzz_files.py --kind text --seed 0 --only 17          # one change, its error in full

Each file is loaded and asked about a picture, and read by what reads headers only (info, plan, quantize-mmproj). It has to
end in an error that names the key or the tensor, or in an answer made of finite logits. A file that ends the process
costs the worker, not this program.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import re
import resource
import select
import signal
import struct
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

KINDS_OF_BUNDLE = ("text", "CLIP")
QUESTION = "What is this?"
MEMORY = 8 << 30
SECONDS = 120

# GGUF's types of values, and what struct calls them
U8, I8, U16, I16, U32, I32, F32, BOOL, STRING, ARRAY, U64, I64, F64 = range(13)
FORMATS = {U8: "B", I8: "b", U16: "H", I16: "h", U32: "I", I32: "i", F32: "f", BOOL: "B", U64: "Q", I64: "q", F64: "d"}
INTEGERS, FLOATS = (U8, I8, U16, I16, U32, I32, U64, I64), (F32, F64)

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
    alignment: int = field(default=32)

    def key(self, name: str) -> Key | None:
        return next((key for key in self.keys if key.name == name.encode()), None)


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
        head.append(struct.pack(f"<{len(tensor.shape)}Q", *tensor.shape) + struct.pack("<IQ", tensor.type, place))
        data.append(tensor.data + bytes(-len(tensor.data) % file.alignment))
        offset += len(data[-1])
    start = b"".join(head)
    content = start + bytes(-len(start) % file.alignment) + b"".join(data) + file.extra
    path.write_bytes(content[: len(content) - (file.cut or 0)])


# changes


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
        key.value = rng.choice((b"", b"x", b"\xff\xfe", b"a" * 100_000, b"llama", b"clip", b"mlp", b"internvl", b"gpt2"))
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
    values = (0, 0, 1, -1, value + 1, value - 1, 2 * value, value // 2, 7, 1000, 10**6, 10**8, 2**30, 2**31 - 1, low, high)
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
        ("remove", "rename", "transpose", "dim", "dim", "dim", "flat", "type", "label", "data", "offset", "twice", "swap")
    )
    if how == "remove":
        file.tensors.remove(tensor)
    elif how == "rename":
        tensor.name = rng.choice((b"x", tensor.name + b"x", tensor.name.replace(b"0", b"99"), b"a" * 63, b"a" * 64, b""))
    elif how == "transpose":
        tensor.shape = shape[::-1]
        if len(shape) == 1:
            tensor.shape = (1, *shape)
    elif how == "dim":
        at = rng.randrange(len(shape))
        block = BLOCKS[tensor.type][0] if at == 0 else 1
        step = rng.choice((1, -1)) * block
        size = rng.choice((shape[at] + step, max(block, shape[at] + step), 2 * shape[at], block, block, 0, 2**31, 2**62))
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
        tensor.type = rng.choice((GGML_F32, GGML_F16, GGML_Q8_0, GGML_I32, 4, 5, 31, 99, 2**31 - 1, 2**32 - 1))
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
    how = rng.choice(("cut", "cut", "version", "n_keys", "n_tensors", "alignment", "magic", "extra", "string", "pad"))
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


# what becomes of a file


@dataclass(frozen=True)
class Outcome:
    what: str  # of the change
    load: str  # see judge()
    message: str
    readers: dict[str, str]
    """info, plan and quantize: "", an error's class, or how it ended."""
    megabytes: int
    """That the process had at most, above what it had before."""


def sources(kind: str, folder: Path) -> tuple[Path, Path, str]:
    """The files of a kind, model and mmproj, and which of them is changed."""
    import random_mmproj
    from pyfastv.models import bundled_mmproj, bundled_model

    if kind in KINDS_OF_BUNDLE:
        return bundled_model(), bundled_mmproj(), "model" if kind == "text" else "mmproj"
    family = kind.removeprefix("text of ")
    model, mmproj = folder / f"{family}.gguf", folder / f"mmproj-{family}.gguf"
    if not mmproj.exists():
        random_mmproj.write_pair(folder, family)
    return model, mmproj, "mmproj" if kind == family else "model"


def kinds() -> tuple[str, ...]:
    import random_mmproj

    architectures = {family.arch: name for name, family in reversed(random_mmproj.FAMILIES.items())}
    return (*KINDS_OF_BUNDLE, *random_mmproj.FAMILIES, *(f"text of {name}" for name in architectures.values()))


def ask(model: Path, mmproj: Path, **options: Any) -> tuple[str, np.ndarray]:
    """The answer to a question about a picture, and the last logits."""
    import pyfastv

    pixels = np.random.default_rng(0).integers(0, 256, (168, 224, 3), np.uint8)
    with pyfastv.Runner(model, mmproj, n_threads=1, **options) as runner:
        answer = runner.ask(pixels, QUESTION, max_tokens=3)
        return answer.text, runner._engine.logits().copy()


def judge(run: Callable[[], Any], names: Sequence[str]) -> tuple[str, str, Any]:
    """What run() came to: ``named`` (an error that says what is wrong), ``unnamed``, ``other`` (an exception that is
    none of ours), or ``answer``; the message; what it returned."""
    import pyfastv

    try:
        return "answer", "", run()
    except pyfastv.Error as error:
        message = str(error)
        return ("named" if _names(message, names) else "unnamed"), f"{type(error).__name__}: {message}", None
    except Exception as error:
        return "other", f"{type(error).__name__}: {error}", None


# one that is missing may be in no file
_TENSOR = re.compile(r"\b(?:v|mm|blk|resampler)\.\w+\.")
# how a damaged container is spoken of
_CONTAINER = ("version", "truncated", "not a GGUF file", "endian", "alignment", "number of", "bytes", "header", "length")


def _names(message: str, names: Sequence[str]) -> bool:
    reason = message.partition(".gguf: ")[2] or message
    return _TENSOR.search(reason) is not None or any(name in reason for name in (*names, *_CONTAINER))


def _spoken_names(file: File) -> list[str]:
    """Keys, with and without their architecture, and tensors."""
    keys = [key.name.decode(errors="replace") for key in file.keys]
    tails = [key.partition(".")[2] for key in keys if key.count(".") > 1]
    tails += [last for last in (key.rpartition(".")[2] for key in keys) if "_" in last]
    names = [*keys, *tails, *(tensor.name.decode(errors="replace") for tensor in file.tensors)]
    return [name for name in names if len(name) > 3]


def _work(kind: str, seed: int, folder: Path) -> Iterator[dict[str, Any]]:
    """For each number of a change on stdin: {"stage"} as it goes on, then {"outcome"}."""
    from pyfastv import header, info
    from pyfastv.quantize import quantize_mmproj

    model, mmproj, which = sources(kind, folder)
    original = read(model if which == "model" else mmproj)
    names = _spoken_names(original)
    # not every family can be cut behind its second layer
    options: dict[str, Any] = {} if kind in KINDS_OF_BUNDLE else {"fastv": None}
    right_text, right_logits = ask(model, mmproj, **options)
    path = folder / f"changed-{which}.gguf"
    out = folder / "quantized.gguf"
    files = (path, mmproj) if which == "model" else (model, path)
    readers: dict[str, Callable[[], Any]] = {
        "info": lambda: info.gather(str(files[0]), str(files[1])),
        "plan": lambda: header.read_model(str(files[0]), str(files[1])),
    }
    if which == "mmproj":
        readers["quantize"] = lambda: quantize_mmproj(path, out, "f16", force=True)
    yield {"ready": True}
    for line in sys.stdin:
        number = int(line)
        file = File([replace(key) for key in original.keys], [replace(tensor) for tensor in original.tensors])
        changed = change(file, random.Random(f"{kind} {seed} {number}"))
        yield {"what": changed.what}
        write(file, path)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        yield {"stage": "load"}
        verdict, message, answer = judge(lambda: ask(*files, **options), names)
        if answer is not None:
            text, logits = answer
            same = text == right_text and np.array_equal(logits, right_logits)
            verdict = "same" if same else "different"
            if not np.isfinite(logits).all():
                verdict = "nonsense"
            elif changed.harmless and not same:
                verdict, message = "wrong", f"{text!r}, not {right_text!r}"
        read_by = {}
        for name, reader in readers.items():
            yield {"stage": name}
            end, reason, _ = judge(reader, names)
            read_by[name] = "" if end == "answer" else f"{end}: {reason}"
        used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
        yield {"outcome": Outcome(changed.what, verdict, message, read_by, used // 1024).__dict__}


class _Worker:
    def __init__(self, kind: str, seed: int, folder: Path) -> None:
        arguments = ["--work", str(folder), "--kind", kind, "--seed", str(seed)]
        self._log = (folder / "stderr").open("w+b")
        self._told = b""
        self._process = subprocess.Popen(
            [sys.executable, __file__, *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._log
        )
        if self._read(600) != {"ready": True}:
            raise RuntimeError(f"{kind}: the unchanged files do not work: {self._tail()}")

    def run(self, number: int) -> Outcome:
        assert self._process.stdin is not None
        self._process.stdin.write(b"%d\n" % number)
        self._process.stdin.flush()
        what, stage, end = "", "", time.monotonic() + SECONDS
        while True:
            told = self._read(end - time.monotonic())
            if told is None:
                late = self._process.poll() is None and time.monotonic() >= end
                self.close()
                code = self._process.returncode
                how = "hang" if late else signal.Signals(-code).name if code < 0 else f"exit {code}"
                return Outcome(what, f"{how} in {stage}", self._tail(), {}, 0)
            if "outcome" in told:
                return Outcome(**told["outcome"])
            what, stage = told.get("what", what), told.get("stage", stage)

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    def close(self) -> None:
        self._process.stdin.close() if self._process.stdin else None
        try:
            self._process.wait(2)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _read(self, seconds: float) -> dict[str, Any] | None:
        assert self._process.stdout is not None
        end = time.monotonic() + seconds
        while b"\n" not in self._told:
            ready, _, _ = select.select([self._process.stdout], [], [], max(0.0, end - time.monotonic()))
            more = os.read(self._process.stdout.fileno(), 1 << 16) if ready else b""
            if not more:
                return None
            self._told += more
        line, _, self._told = self._told.partition(b"\n")
        told: dict[str, Any] = json.loads(line)
        return told

    def _tail(self) -> str:
        self._log.seek(0)
        lines = [line for line in self._log.read().decode(errors="replace").splitlines() if line.strip()]
        asserted = [line for line in lines if "GGML_ASSERT" in line or "GGML_ABORT" in line or ".cpp:" in line]
        return (asserted or lines or [""])[-1][-200:]


def outcomes(kind: str, numbers: Sequence[int], seed: int) -> Iterator[tuple[int, Outcome]]:
    """Each change's outcome. Several changes share a process until one ends it."""
    with tempfile.TemporaryDirectory() as name:
        worker: _Worker | None = None
        try:
            for number in numbers:
                worker = worker if worker is not None and worker.alive else _Worker(kind, seed, Path(name))
                yield number, worker.run(number)
        finally:
            if worker is not None:
                worker.close()


GOOD = ("named", "same", "different")


def is_good(outcome: Outcome) -> bool:
    return outcome.load in GOOD and all(
        not end or end.startswith(GOOD) or end.startswith("unnamed") for end in outcome.readers.values()
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kind", action="append", help="text, CLIP, a family, 'text of ' a family; default: all")
    parser.add_argument("--count", type=int, default=250)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", type=int, help="one change alone")
    parser.add_argument("--quiet", action="store_true", help="the table alone")
    parser.add_argument("--work", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.work is not None:
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        told = os.fdopen(os.dup(1), "w")
        os.dup2(2, 1)  # what libraries print is no news
        for news in _work(options.kind[0], options.seed, options.work):
            print(json.dumps(news), file=told, flush=True)
        return 0
    good = True
    columns = ("deaths", "hangs", "named", "unnamed", "other", "same", "different", "nonsense", "wrong", "readers", "MB")
    print(f"{'':22}" + "".join(f"{column:>10}" for column in columns), flush=True)
    for kind in options.kind or kinds():
        numbers = range(options.count) if options.only is None else [options.only]
        counts: Counter[str] = Counter()
        for number, outcome in outcomes(kind, numbers, options.seed):
            good = good and is_good(outcome)
            first = outcome.load.split()[0]
            counts["deaths" if first.startswith(("SIG", "exit")) else "hangs" if first == "hang" else first] += 1
            counts["readers"] += outcome.load in GOOD and not is_good(outcome)
            counts["MB"] = max(counts["MB"], outcome.megabytes)
            if options.only is not None or not (options.quiet or is_good(outcome)):
                print(f"{kind} {number}: {outcome}", file=sys.stderr, flush=True)
        print(f"{kind:22}" + "".join(f"{counts[column]:>10}" for column in columns), flush=True)
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
