"""A picture that is shown twice in a prompt is two pictures, and its slices are one: through mtmd's own helpers, as
llama-server and llama-cpp-python call them. Programs give the same picture the same id."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

import pyfastv

import random_mmproj
from c_api import Context, Model, contexts, read
from random_mmproj import FAMILIES
from vision_api import Encoder, is_picture, loaded, mtmd, saved

SPEC = "fastv,k=2,drop=0.5"
PICTURE = np.random.default_rng(7).integers(0, 256, (168, 224, 3), dtype=np.uint8)
ALMOST = PICTURE.copy()
ALMOST[0, 0, 0] ^= 1

# one chunk a picture; an overview and slices behind it; slices and an overview behind them
NAMES = ["LLaVA", "SmolVLM", "InternVL"]


@dataclass
class Case:
    model: Model
    encoder: Encoder
    grids: list[tuple[int, int]]
    files: tuple[Path, Path]

    @property
    def n(self) -> int:
        """Tokens of a picture."""
        return sum(nx * ny for nx, ny in self.grids)

    def structure(self, n_pictures: int) -> list[tuple[int, int, int]]:
        return [(picture, nx, ny) for picture in range(n_pictures) for nx, ny in self.grids]


@pytest.fixture(scope="module", params=NAMES)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Case]:
    files = random_mmproj.write_pair(tmp_path_factory.mktemp("same"), request.param)
    model = Model(files[0])
    encoder = Encoder(model, files[1])
    yield Case(model, encoder, FAMILIES[request.param].grids, files)
    encoder.close()
    model.close()


@pytest.fixture
def context(case: Case) -> Iterator[Context]:
    with contexts(case.model) as make:
        yield make(SPEC)


def show(case: Case, context: Context, text: str, pictures: Sequence[np.ndarray], ids: Sequence[str]) -> None:
    position = 0
    with case.encoder.tokenized(text, pictures, ids) as chunks:
        for chunk in chunks:
            position = case.encoder.evaluate(chunk, context, position, logits=chunk is chunks[-1])
    read(context)


def counts(case: Case, context: Context) -> list[int]:
    """Of every picture."""
    pictures = np.array(context.kept()) // case.n
    return np.bincount(pictures, minlength=2).tolist()


@pytest.mark.parametrize("ids", [["a", "a"], []], ids=["of one id", "without ids"])
def test_the_same_picture_twice_is_as_two_that_differ(case: Case, context: Context, ids: list[str]) -> None:
    show(case, context, "<><>What?", [PICTURE, PICTURE], ids)
    same = context.grids(), counts(case, context)
    context.clear()
    show(case, context, "<><>What?", [PICTURE, ALMOST], ["a", "b"])
    assert same == (context.grids(), counts(case, context))
    assert same == (case.structure(2), [case.n // 2] * 2)


def test_prompts_that_are_tokenized_one_by_one_may_show_the_same(case: Case, context: Context) -> None:
    """Nothing is read in between."""
    position = 0
    for text in ("<>Look.", "<>What?"):
        with case.encoder.tokenized(text, [PICTURE], ["a"]) as chunks:
            for chunk in chunks:
                position = case.encoder.evaluate(chunk, context, position, logits=text == "<>What?")
    read(context)
    assert (context.grids(), counts(case, context)) == (case.structure(2), [case.n // 2] * 2)


@pytest.mark.parametrize("asked", [False, True], ids=["that waits", "that was asked about"])
def test_a_prompt_may_go_on_behind_any_chunk_of_a_prefix(case: Case, context: Context, asked: bool) -> None:
    """As llama-server goes on where a prompt differs from what a slot holds."""
    with case.encoder.tokenized("<><>What?", [PICTURE, PICTURE], ["a", "a"]) as chunks:
        begins = [0]
        for chunk in chunks:
            begins.append(case.encoder.evaluate(chunk, context, begins[-1], logits=chunk is chunks[-1]))
        expected = read(context)
        assert context.grids() == case.structure(2)
        for first in range(1, len(chunks)):
            if not asked:
                context.clear()
                for begin, chunk in zip(begins, chunks[:-1], strict=False):
                    case.encoder.evaluate(chunk, context, begin)
            assert context.remove(begins[first], -1)
            for begin, chunk in list(zip(begins, chunks, strict=False))[first:]:
                case.encoder.evaluate(chunk, context, begin, logits=chunk is chunks[-1])
            assert context.grids() == case.structure(2)
            np.testing.assert_allclose(read(context), expected, atol=1e-4)


def test_copied_and_saved_chunks_know_their_picture(case: Case, context: Context) -> None:
    """llama-server decodes copies, and keeps chunks in files."""
    position = 0
    with case.encoder.tokenized("<><>What?", [PICTURE, PICTURE], ["a", "a"]) as chunks:
        for chunk in chunks:
            copy = mtmd.mtmd_input_chunk_copy(chunk)
            back = loaded(saved(chunk))
            if is_picture(chunk):
                assert mtmd.mtmd_encode_chunk(case.encoder.pointer, copy) == 0
                features = mtmd.mtmd_get_output_embd(case.encoder.pointer)
                assert case.encoder.decode_chunk(context, back, features, position) == 0
                position = case.encoder.behind
            else:
                position = case.encoder.evaluate(back, context, position, logits=chunk is chunks[-1])
            for made in (copy, back):
                mtmd.mtmd_input_chunk_free(made)
    read(context)
    assert (context.grids(), counts(case, context)) == (case.structure(2), [case.n // 2] * 2)


def test_a_chunk_that_stock_libmtmd_saved_is_a_picture(case: Case) -> None:
    """One slice is saved as stock libmtmd does; what more there is, stands behind that, with a version."""
    with case.encoder.tokenized("<>", [PICTURE]) as chunks:
        first, *others = [saved(chunk) for chunk in chunks if is_picture(chunk)]
    assert loaded(first + b"\x02\0\0\0") is None
    for other in others:
        stock, version = other[: len(first)], int.from_bytes(other[len(first) : len(first) + 4], "little")
        assert version == 1
        for data, known in ((stock, True), (other, True), (other[:-1], False), (stock + b"\xff" * 8, False)):
            chunk = loaded(data)
            assert (chunk is not None) == known
            mtmd.mtmd_input_chunk_free(chunk)


def test_the_runner_s_same_picture_twice_is_two(case: Case) -> None:
    with pyfastv.Runner(*case.files, n_ctx=512, n_threads=1, fastv=SPEC) as runner:
        engine = runner._engine
        for frames, grids in (([], [case.grids] * 2), ([0, 1], [case.grids * 2])):  # a video's frames are one
            prompt = f"{engine.media_marker}{engine.media_marker}What?"
            engine.prefill(prompt, [PICTURE] * 2, ["a"] * 2, None, True, 8, frames=frames)
            assert engine.grids() == grids
