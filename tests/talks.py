"""Conversations about pictures with models whose references are given the rows that are there: those with recurrent
layers beside attention, and those whose later layers read more of a row than the stream."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from gemma_e import GemmaE

import random_gguf
from c_api import Context, Model, read
from decoding import M_ROPE, NX, PICTURE, decode_part
from hybrid import Cut, Hybrid, Rows
from masked_reference import Part, picture, picture_2d, text

QUESTION, SECOND, OTHER = [5, 6, 7, 8, 9], [50, 51, 52, 53], [60, 61, 62]
# layers that rules which read attention can be at
TWO_CUTS = {"qwen35": (4, 8), "lfm2": (3, 9)}  # of those with recurrent layers
OTHER_CUTS = {"gemma4 e": (2, 4)}


class Talker:
    """A random model, and what its conversations come to in NumPy."""

    def __init__(self, path: Path, arch: str) -> None:
        random_gguf.write(path, arch)
        self.arch, self.cuts = arch, (TWO_CUTS | OTHER_CUTS)[arch]
        self.model = Model(path)
        self.reference = Hybrid(path) if arch in TWO_CUTS else GemmaE(path)

    def spec(self, n_cuts: int = 1, rule: str = "score=last", shared: str = "") -> str:
        """Half of a picture stays behind the first cut, a quarter behind the second."""
        cuts = zip(self.cuts[:n_cuts], (0.5, 0.75), strict=False)
        return ";".join(f"k={layer},drop={drop},{rule}" for layer, drop in cuts) + shared


@contextmanager
def talker_of(folder: Path, arch: str) -> Iterator[Talker]:
    talker = Talker(folder / f"{arch}.gguf", arch)
    try:
        yield talker
    finally:
        talker.model.close()


class Chat:
    """A conversation in a sequence of a context."""

    def __init__(self, talker: Talker, context: Context, seq: int = 0) -> None:
        self.talker, self.context, self.seq = talker, context, seq
        self.parts: list[Part] = []
        self.at = 0  # the next position

    def goes_on(self, context: Context, seq: int | None = None) -> Chat:
        """The same elsewhere, where it has come as far."""
        other = Chat(self.talker, context, self.seq if seq is None else seq)
        other.parts, other.at = [*self.parts], self.at
        return other

    def show(self, seed: int = 1) -> None:
        assert decode_part(self.context, self.next_picture(seed), seq=self.seq) == 0

    def tell(self, tokens: Sequence[int]) -> None:
        """Nobody reads logits."""
        part = self.next_text(tokens)
        assert self.context.tokens(tokens, int(part.positions[0, 0]), logits=False, seq=self.seq) == 0

    def say(self, tokens: Sequence[int]) -> np.ndarray:
        """The logits behind it."""
        part = self.next_text(tokens)
        assert self.context.tokens(tokens, int(part.positions[0, 0]), seq=self.seq) == 0
        return read(self.context)

    def next_text(self, tokens: Sequence[int]) -> Part:
        self.parts.append(text(tokens, self.at))
        self.at += len(tokens)
        return self.parts[-1]

    def next_picture(self, seed: int = 1) -> Part:
        rows = np.random.default_rng(seed).normal(size=(PICTURE, random_gguf.WIDTH)).astype(np.float32)
        is_flat = self.talker.arch in M_ROPE
        self.parts.append(picture_2d(rows, self.at, NX) if is_flat else picture(rows, self.at))
        self.at += NX if is_flat else PICTURE
        return self.parts[-1]

    def expected(self, kept: Sequence[Sequence[int]], back: Sequence[int] = ()) -> np.ndarray:
        """Of the last row, where cut i leaves kept[i] of the visual tokens; `back` come in front of the last part."""
        visual = np.concatenate([np.full(len(part.rows), part.is_picture) for part in self.parts])
        index = np.cumsum(visual) - 1
        last = len(visual) - len(self.parts[-1].rows)
        cuts = []
        for layer, indices in zip(self.talker.cuts, kept, strict=False):
            rows = np.flatnonzero(~visual | np.isin(index, indices))
            is_back = visual[rows] & np.isin(index[rows], back)
            order = [rows[(rows < last) & ~is_back], rows[is_back], rows[rows >= last]]
            cuts.append(Cut(layer, np.concatenate(order).tolist()))
        return self.talker.reference.run([Rows(p.rows, p.positions) for p in self.parts], cuts).logits
