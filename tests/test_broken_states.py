"""A saved state is data from outside: whatever is in it, it is refused or read, and the context works on."""

from __future__ import annotations

import ctypes
import os
import resource
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import random_gguf
from c_api import Context, Model, contexts, llama
from masked_reference import relative_rms

SPEC = "k=1,drop=0.5,weigh;k=3,drop=0.75,weigh,recall=0.25"
WINDOWS = "k=6,drop=0.5,weigh,recall=0.25"  # for gemma3
PER_LAYER = "k=2,drop=0.5,weigh,recall=0.25"  # for gemma4 e
TEXT, SECOND = [1, 30], [50, 51]
N = 4  # visual tokens; few, so that every bit can be tried
CACHE = {"type_k": llama.GGML_TYPE_F32, "type_v": llama.GGML_TYPE_F32}
WIDTH = random_gguf.WIDTH
ARCHITECTURES = ("llama", "gemma3", "gemma4 e")

Make = Callable[..., Context]


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("model")
    for arch in ARCHITECTURES:
        random_gguf.write(folder / f"{arch}.gguf", arch)
    return {arch: folder / f"{arch}.gguf" for arch in ARCHITECTURES}


@pytest.fixture(scope="module")
def model(paths: dict[str, Path]) -> Iterator[Model]:
    model = Model(paths["llama"])
    yield model
    model.close()


@pytest.fixture
def make(model: Model) -> Iterator[Make]:
    with contexts(model, n_ctx=256, n_seq_max=4, **CACHE) as make:
        yield make


def see(context: Context, seq: int = 0, seed: int = 0) -> None:
    at = context.last_position(seq=seq) + 1
    context.begin_picture("a", 2, 2)
    rows = np.random.default_rng(seed).normal(size=(N, WIDTH)).astype(np.float32)
    assert context.picture(rows, at, seq=seq) == 0


def say(context: Context, words: list[int], seq: int = 0) -> np.ndarray:
    assert context.tokens(words, context.last_position(seq=seq) + 1, seq=seq) == 0
    logits = context.logits()
    assert logits is not None
    return logits


def talk(context: Context, seq: int = 0) -> None:
    """A picture that was chosen from, and recalled, and one that waits with a part of its question."""
    say(context, TEXT, seq)
    see(context, seq)
    say(context, [40, 41], seq)
    say(context, [42, 43], seq)
    see(context, seq, seed=1)
    assert context.tokens([44], context.last_position(seq=seq) + 1, logits=False, seq=seq) == 0


def works(context: Context) -> np.ndarray:
    """The logits of a talk in a context that must be empty."""
    assert [context.last_position(seq=seq) for seq in range(4)] == [-1] * 4
    report = context.report()
    assert (report.n_pending, report.archive_bytes, sum(report.kv_bytes_used)) == (0, 0, 0)
    talk(context)
    logits = say(context, SECOND)
    context.remove(-1, -1)
    return logits


def assert_works(context: Context, fresh: Context) -> None:
    assert relative_rms(works(context), works(fresh)) < 1e-5  # maybe in other cells of the cache


def use(context: Context) -> None:
    """Everything that walks over what was read."""
    for seq in range(4):
        end = context.last_position(seq=seq) + 1
        if end <= 0:
            continue
        context.copy(seq, 3, 1, end - 1)
        for begin in (end - 3, end // 2):
            context.tokens(SECOND, context.last_position(seq=seq) + 1, seq=seq)
            context.logits()
            for cut in range(2):
                context.kept(cut, seq=seq)
                context.scores(cut, seq=seq)
            context.grids(seq=seq)
            context.remove(begin, -1, seq=seq)
        context.shift(end // 4, end // 2, 1, seq=seq)
        context.remove(1, 3, seq=seq)
        context.tokens(SECOND, context.last_position(seq=seq) + 1, seq=seq)
    context.flush()
    context.report()
    context.save()


class Layout:
    """Where things are in what is pyfastv's of a sequence's state, which is its end: native/stages/sequence_state.cpp."""

    def __init__(self, state: bytes, per_layer: int = 0) -> None:
        """per_layer: numbers that layers add of a row."""
        self.state = state
        self.fields: dict[str, list[int]] = {}  # offsets by name
        self.ends: dict[str, list[range]] = {}  # bytes of the first and of the last by name
        self.payload: set[int] = set()  # numbers of hidden rows and scores
        n_known = {WIDTH: 0, per_layer: 0}

        def field(name: str, form: str) -> Any:
            self.fields.setdefault(name, []).append(self.at)
            (value, *_) = struct.unpack_from(form, state, self.at)
            end = self.at + struct.calcsize(form)
            self.ends[name] = [*self.ends.get(name, [])[:1], range(self.at, end)]
            self.at = end
            return value

        def score(name: str) -> None:
            self.payload.update(range(self.at, self.at + 4))
            field(name, "<f")

        def many(name: str, read: Callable[[], object]) -> None:
            for _ in range(field(f"{name} count", "<I")):
                read()

        def hidden(name: str, n: int = WIDTH) -> None:
            if field(name, "<i") == n_known[n]:
                n_known[n] += 1
                self.payload.update(range(self.at, self.at + 4 * n))
                self.at += 4 * n

        def of_layers(name: str) -> None:
            if per_layer:
                hidden(f"{name} per layer", per_layer)

        def token(name: str) -> None:
            field(f"{name} position", "<4i")
            field(f"{name} entered", "<i")
            field(f"{name} gone", "<B")
            many(f"{name} hidden", lambda: hidden(f"{name} hidden"))
            many(f"{name} size", lambda: field(f"{name} size", "<f"))
            field(f"{name} owner", "<i")
            of_layers(name)

        def row(name: str) -> None:
            field(f"{name} position", "<4i")
            field(f"{name} ubatch", "<i")
            field(f"{name} token", "<i")
            field(f"{name} flags", "<3B")
            hidden(f"{name} hidden")
            of_layers(name)
            many(f"{name} scores", lambda: score(f"{name} score"))

        def picture() -> None:
            many("id", lambda: field("id", "<B"))
            field("first", "<i")
            many("slice", lambda: field("slice", "<3i"))

        def recall() -> None:
            field("recalled", "<i")
            token("before")

        def turn() -> None:
            many("turn row", lambda: row("turn row"))
            many("recall", recall)

        def schedule(n_cuts: int) -> None:
            field("recall share", "<f")
            field("cuts", "<i")
            for _ in range(n_cuts):
                for name, form in {
                    "layer": "i",
                    "drop": "f",
                    "rules": "2i",
                    "numbers": "2d",
                    "flags": "2B",
                }.items():
                    field(f"cut {name}", f"<{form}")

        n_cuts = struct.unpack_from("<I", state, state.index(b"pyfastv6") + 8)[0] - 1  # of stages
        tokens = state.index(struct.pack("<I4i", 2 * N, len(TEXT), 0, 0, 0))
        self.begin = self.at = tokens - 8 - 34 * n_cuts
        schedule(n_cuts)
        assert self.at == tokens
        many("token", lambda: token("token"))
        many("picture", picture)
        many("pending row", lambda: row("pending row"))
        many("turn", turn)
        many("scores", lambda: many("of cut", lambda: score("score")))
        assert self.at == len(state)

    def changed(self, name: str, form: str, *values: float, index: int = -1) -> bytes:
        """With other values in the last field of this name."""
        broken = bytearray(self.state)
        struct.pack_into(form, broken, self.fields[name][index], *values)
        return bytes(broken)

    @property
    def structure(self) -> list[int]:
        """Every byte that is neither a number of a hidden row nor a score."""
        return [i for i in range(self.begin, len(self.state)) if i not in self.payload]


@pytest.fixture
def layout(make: Make) -> Layout:
    context = make(SPEC)
    talk(context)
    return Layout(context.save_sequence(0))


def test_the_state_that_is_broken_below_has_everything(layout: Layout) -> None:
    for name in ("token size", "turn row hidden", "pending row hidden", "before hidden", "pending row score"):
        assert name in layout.fields
    assert any(struct.unpack_from("<i", layout.state, i)[0] >= 0 for i in layout.fields["token owner"])


OUTSIDE = {
    "no cut": ("cuts", "<i", 0),
    "more cuts than there can be": ("cuts", "<i", 9),
    "a cut at another layer": ("cut layer", "<i", 2),
    "a share that is none": ("cut drop", "<f", float("nan")),
    "a score that there is not": ("cut rules", "<2i", 99, 0),
    "more recalled than there is": ("recall share", "<f", 2.0),
    "an owner that is no token": ("token owner", "<i", 2 * N),
    "an owner in no later stage": ("token owner", "<i", 2 * N - 1),
    "a row of no token": ("pending row token", "<i", 2 * N),
    "a row at a place that has no cell": ("pending row position", "<i", 200),
    "a row before the beginning": ("pending row position", "<i", -5),
    "a row beyond all contexts": ("pending row position", "<i", 2**31 - 1),
    "a token that is not where its row is": ("token position", "<i", len(TEXT)),
    "a token in no stage": ("token entered", "<i", 0),
    "a token in more stages than there are": ("token entered", "<i", 4),
    "a token that stands for endlessly many": ("token size", "<f", float("inf")),
    "a token that stands for no number": ("token size", "<f", float("nan")),
    "a hidden row that is not there": ("turn row hidden", "<i", 1000),
    "a recalled token that is none": ("recalled", "<i", 2 * N),
    "a picture that begins elsewhere": ("first", "<i", 1),
    "a slice without tokens": ("slice", "<3i", 0, 2, 2),
    "a slice of negative width": ("slice", "<3i", N, -2, 2),
}


@pytest.mark.parametrize("what", OUTSIDE)
def test_what_leads_outside_is_refused(make: Make, layout: Layout, what: str) -> None:
    other = make(SPEC)
    assert other.load_sequence(layout.changed(*OUTSIDE[what]), 0) == 0
    assert_works(other, make(SPEC))


def test_more_scores_than_tokens_are_refused(make: Make, layout: Layout) -> None:
    other = make(SPEC)
    at = layout.fields["pending row scores count"][-1]
    (n,) = struct.unpack_from("<I", layout.state, at)
    behind = at + 4 + 4 * n
    more = layout.state[:at] + struct.pack("<I", n + 2 * N) + layout.state[at + 4 : behind]
    assert other.load_sequence(more + bytes(8 * N) + layout.state[behind:], 0) == 0
    assert_works(other, make(SPEC))


@pytest.mark.parametrize("place", [-1, -7, 2**30, 2**31 - 1])
def test_a_cell_where_none_can_be_is_refused(make: Make, layout: Layout, place: int) -> None:
    """llama.cpp could not remove one before the beginning any more."""
    other = make(SPEC)
    at = layout.state.index(
        struct.pack("<4i", 0, 1, 0, 1)
    )  # position, number of sequences, sequence; position
    broken = bytearray(layout.state)
    struct.pack_into("<i", broken, at, place)
    assert other.load_sequence(bytes(broken), 0) == 0
    assert_works(other, make(SPEC))


def test_a_refused_file_leaves_no_numbers_behind(make: Make, tmp_path: Path) -> None:
    """Attention reads free cells, too: what is no number there spoils every logit."""
    context, other = make(SPEC), make(SPEC)
    path = tmp_path / "state"
    say(context, TEXT)
    assert context.picture(np.full((2 * N, WIDTH), np.nan, np.float32), len(TEXT)) == 0
    assert llama.llama_state_seq_save_file(context.pointer, str(path).encode(), 0, None, 0) > 0
    path.write_bytes(Layout(path.read_bytes()).changed("token entered", "<i", 0))
    n = ctypes.c_size_t()
    buffer = (ctypes.c_int32 * 1)()
    assert (
        llama.llama_state_seq_load_file(other.pointer, str(path).encode(), 0, buffer, 1, ctypes.byref(n)) == 0
    )
    assert_works(other, make(SPEC))


def test_a_state_of_what_lost_the_owner_of_a_token_is_read(make: Make) -> None:
    """Tokens that are gone keep their positions when what is behind them moves up, and so may be cut off later: nobody
    may point to them then."""
    context, fresh = make("k=1,drop=0.5,weigh,recall=0.25"), make("k=1,drop=0.5,weigh,recall=0.25")
    say(context, TEXT)
    begin = len(TEXT)
    context.begin_picture("a", 8, 5)
    rows = np.random.default_rng(0).normal(size=(40, WIDTH)).astype(np.float32)
    assert context.picture(rows, begin) == 0
    say(context, [40, 41, 42, 43])
    assert context.remove(begin + 20, begin + 40)
    context.shift(begin + 40, -1, -20)
    for word in range(60, 75):
        say(context, [word])
    assert context.remove(begin + 28, -1)
    state = context.save()
    assert fresh.load(state) == len(state)
    assert say(fresh, [50, 51, 52, 53]).shape == say(context, [50, 51, 52, 53]).shape
    assert fresh.kept() == context.kept()


# every bit, in a process of its own


def run(what: str, paths: dict[str, Path], timeout: float = 300) -> subprocess.CompletedProcess[str]:
    code = f"import test_broken_states as t; t.{what}({[str(paths[arch]) for arch in ARCHITECTURES]})"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    return subprocess.run(
        [sys.executable, "-X", "faulthandler", "-c", code],
        env=environment,
        cwd=Path(__file__).parent,  # not the checkout, whose pyfastv is not the installed one
        capture_output=True,
        text=True,
        timeout=timeout,
    )


@pytest.mark.parametrize("what", ["break_a_sequence", "break_a_context", "break_windows", "break_per_layer"])
def test_no_broken_state_ends_the_process(paths: dict[str, Path], what: str) -> None:
    result = run(what, paths)
    assert result.returncode == 0, result.stdout[-2000:] + result.stderr[-4000:]
    n_tried, n_refused, megabytes = map(int, result.stdout.split())
    assert n_tried > 500
    assert n_refused > 100
    assert megabytes < 300


def memory_mb() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // (1024 if sys.platform == "linux" else 2**20)


def try_all(
    broken: Iterator[bytes],
    load: Callable[[bytes], int],
    context: Context,
    work: Callable[[Context], object],
    noise: float = 1e-5,
) -> None:
    """``noise``: of logits, where the cells are others."""
    before = memory_mb()
    expected = works(context)
    n_tried = n_refused = 0
    for state in broken:
        n_tried += 1
        if load(state) > 0:
            work(context)
            context.clear()
        else:
            n_refused += 1
            assert context.report().archive_bytes == 0
            assert context.last_position() == -1
        if n_tried % 200 == 0:
            assert relative_rms(works(context), expected) < noise
    assert relative_rms(works(context), expected) < noise
    print(n_tried, n_refused, memory_mb() - before)


def flipped(state: bytes, bits: list[tuple[int, int]]) -> Iterator[bytes]:
    for byte, bit in bits:
        broken = bytearray(state)
        broken[byte] ^= 1 << bit
        yield bytes(broken)


def every_bit(places: list[int]) -> list[tuple[int, int]]:
    return [(place, bit) for place in places for bit in range(8)]


def some_bits(rng: np.random.Generator, begin: int, end: int, n: int) -> list[tuple[int, int]]:
    return [(int(place), int(rng.integers(8))) for place in rng.integers(begin, end, n)]


def truncated(state: bytes, n: int) -> Iterator[bytes]:
    for size in np.linspace(0, len(state) - 1, n).astype(int):
        yield state[:size]


def break_a_sequence(paths: list[str]) -> None:
    rng = np.random.default_rng(0)
    model = Model(Path(paths[0]))
    with contexts(model, n_ctx=256, n_seq_max=4, **CACHE) as make:
        context, other = make(SPEC), make(SPEC)
        talk(context)
        layout = Layout(context.save_sequence(0))

        def broken() -> Iterator[bytes]:
            yield from truncated(layout.state, 50)
            # what is before the numbers of the cells: the header, and what the cells are
            yield from flipped(layout.state, every_bit(list(range(120))))
            # each field where it stands first and last; where it stands between, a bit of each byte
            ends = sorted({byte for spans in layout.ends.values() for span in spans for byte in span})
            yield from flipped(layout.state, every_bit(ends))
            between = sorted(set(layout.structure) - set(ends))
            yield from flipped(layout.state, [(i, int(rng.integers(8))) for i in between])
            yield from flipped(layout.state, some_bits(rng, 0, len(layout.state), 200))

        try_all(broken(), lambda state: other.load_sequence(state, 2), other, use)


def break_a_context(paths: list[str]) -> None:
    rng = np.random.default_rng(0)
    model = Model(Path(paths[0]))
    with contexts(model, n_ctx=256, n_seq_max=4, **CACHE) as make:
        context, other = make(SPEC), make(SPEC)
        talk(context, 0)
        talk(context, 3)
        context.copy(0, 1)
        state = context.save()

        def broken() -> Iterator[bytes]:
            yield from truncated(state, 20)
            yield from flipped(state, every_bit(list(range(120))))
            yield from flipped(state, some_bits(rng, 0, len(state), 200))

        try_all(broken(), other.load, other, use)


def break_windows(paths: list[str]) -> None:
    rng = np.random.default_rng(0)
    model = Model(Path(paths[1]))
    with contexts(model, n_ctx=512, n_ubatch=64, n_seq_max=4, swa_full=False, **CACHE) as make:
        context, other = make(WINDOWS), make(WINDOWS)
        talk(context)
        whole, partial = context.save_sequence(0), context.save_sequence(0, partial=True)
        layout = Layout(partial)

        def load(state: bytes) -> int:
            assert other.load_sequence(whole, 0) == len(whole)
            n_read = other.load_sequence(state, 0, partial=True)
            if n_read == 0:  # nothing has changed if it was refused by its header
                assert other.last_position() in (-1, context.last_position())
                other.clear()
            return n_read

        def broken() -> Iterator[bytes]:
            yield from truncated(partial, 20)
            yield from flipped(partial, every_bit(list(range(60))))
            yield from flipped(partial, some_bits(rng, 0, layout.begin, 100))
            yield from flipped(partial, [(i, int(rng.integers(8))) for i in layout.structure[::4]])

        try_all(broken(), load, other, use)


def break_per_layer(paths: list[str]) -> None:
    """What layers add of a row is in its state, too."""
    rng = np.random.default_rng(0)
    model = Model(Path(paths[2]))
    n = random_gguf.PER_LAYER * model.n_layer
    with contexts(model, n_ctx=256, n_seq_max=4, **CACHE) as make:
        context, other = make(PER_LAYER), make(PER_LAYER)
        talk(context)
        layout = Layout(context.save_sequence(0), n)
        rows = layout.fields["token per layer"] + layout.fields["pending row per layer"]

        def broken() -> Iterator[bytes]:
            yield from truncated(layout.state, 20)
            yield from flipped(layout.state, every_bit(list(range(60))))  # and how wide rows are
            yield from flipped(layout.state, every_bit([byte for at in rows for byte in range(at, at + 4)]))
            yield from flipped(layout.state, [(i, int(rng.integers(8))) for i in layout.structure[::4]])

        # GELU is rounded to float16, twice a layer
        try_all(broken(), lambda state: other.load_sequence(state, 2), other, use, noise=1e-3)
