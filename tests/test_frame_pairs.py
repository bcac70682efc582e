"""Frames of a video go two by two through encoders that were trained so (Qwen's), and pictures never do. What libmtmd's
own functions make of frames that may be merged is the reference."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import pyfastv
from pyfastv import EVS, Frame, PLLaVA, Recommended, Runner
from pyfastv.engine.job_pool import JobPool
from pyfastv.engine.loaded import content_id
from pyfastv.engine.sampling import Sampling
from pyfastv.inputs.chat import user_message
from pyfastv.show import trace

import random_mmproj
from c_api import Model, contexts, read
from random_mmproj import FAMILIES
from vision_api import Encoder, counts_of, is_picture

# The first layer where a cut can be.
QWEN = {"Qwen2-VL": 2, "Qwen2.5-VL": 2, "Qwen3-VL": 3}

RNG = np.random.default_rng(11)
FRAMES = [RNG.integers(0, 256, (168, 224, 3), dtype=np.uint8) for _ in range(8)]
N = 8 * 6  # tokens of a frame, or of two
QUESTION = "What is it?"
# of a random model every byte may come
WORD: dict[str, Any] = {"grammar": "root ::= [a-z ] root", "max_tokens": 5}


class Case:
    def __init__(self, folder: Path, name: str) -> None:
        assert FAMILIES[name].grids == [(8, 6)]
        self.files = random_mmproj.write_pair(folder, name)
        self.layer = QWEN[name]
        # equal computations have equal bits
        self.runner = Runner(*self.files, n_ctx=1024, n_threads=1, fastv=None, flash_attn=False)
        self.model = Model(self.files[0])
        self.encoder = Encoder(self.model, self.files[1])

    def close(self) -> None:
        self.encoder.close()
        self.model.close()
        self.runner.close()

    def prefill(
        self,
        pictures: Sequence[np.ndarray],
        frames: Sequence[int],
        *,
        between: str = "",
        ids: Sequence[str] | None = None,
        fresh: bool = True,
    ) -> np.ndarray:
        """The logits behind a question; ``frames``: numbers in the video "film"."""
        engine = self.runner._engine
        if fresh:
            engine.reset()
        prompt = between.join([engine.media_marker] * len(pictures)) + QUESTION
        engine.prefill(
            prompt,
            list(pictures),
            list(ids or ["film"] * len(pictures)),
            None,
            False,
            8,
            list(frames),
            contents=[content_id(picture) for picture in pictures],
        )
        return engine.logits()

    def encodings(self) -> list[int]:
        """Of the last prompt: how many grids of visual tokens each of its pictures has."""
        assert all(grid == (8, 6) for picture in self.runner._engine.grids() for grid in picture)
        return [len(picture) for picture in self.runner._engine.grids()]

    def stock(
        self, pictures: Sequence[np.ndarray], *, mergeable: bool, text: str | None = None
    ) -> tuple[list[int], np.ndarray]:
        """By libmtmd's own functions: tokens of each chunk of frames, and the logits behind the question."""
        text = "<>" * len(pictures) + QUESTION if text is None else text
        with (
            contexts(self.model) as make,
            self.encoder.tokenized(text, pictures, mergeable=mergeable) as chunks,
        ):
            context, position = make(), 0
            for chunk in chunks:
                position = self.encoder.evaluate(chunk, context, position, logits=chunk is chunks[-1])
            return [counts_of(chunk)[0] for chunk in chunks if is_picture(chunk)], read(context)


@pytest.fixture(scope="module", params=QWEN)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Case]:
    case = Case(tmp_path_factory.mktemp("pairs"), request.param)
    yield case
    case.close()


@pytest.mark.parametrize("n", [1, 2, 3, 4, 8])
def test_a_clip_is_what_libmtmd_makes_of_mergeable_frames(case: Case, n: int) -> None:
    tokens, expected = case.stock(FRAMES[:n], mergeable=True)
    assert tokens == [N] * -(-n // 2)
    logits = case.prefill(FRAMES[:n], range(n))
    assert case.runner._engine.report().visual_tokens == sum(tokens)
    np.testing.assert_allclose(logits, expected, atol=1e-4)
    if n > 1:
        assert np.abs(logits - case.stock(FRAMES[:n], mergeable=False)[1]).max() > 1e-2


def test_a_frame_twice_is_a_still_picture(case: Case) -> None:
    """The encoder's rows for a pair are sums of what each frame gives: of the same frame, those of a picture."""
    still = case.prefill(FRAMES[:1], [0], ids=["picture"])
    np.testing.assert_allclose(case.prefill([FRAMES[0]] * 2, [0, 1]), still, atol=1e-5)
    assert np.abs(case.prefill(FRAMES[:2], [0, 1]) - still).max() > 1e-2


def test_the_order_of_frames_matters(case: Case) -> None:
    one, other = (
        case.prefill(pair, [0, 1], ids=[name] * 2) for pair, name in ((FRAMES[:2], "a"), (FRAMES[1::-1], "b"))
    )
    assert np.abs(one - other).max() > 1e-2


@pytest.mark.parametrize("pictures", [FRAMES[:2], [FRAMES[0]] * 2], ids=["of one size", "the same"])
@pytest.mark.parametrize("between", ["", "\n"])
def test_pictures_stay_two(case: Case, pictures: list[np.ndarray], between: str) -> None:
    ids = [str(hash(picture.tobytes())) for picture in pictures]
    logits = case.prefill(pictures, [0, 0], ids=ids, between=between)
    text = between.join(["<>"] * 2) + QUESTION
    np.testing.assert_allclose(logits, case.stock(pictures, mergeable=False, text=text)[1], atol=1e-4)
    case.runner.set_fastv(f"k={case.layer},drop=0")
    case.prefill(pictures, [0, 0], ids=ids, between=between)
    assert case.encodings() == [1, 1]
    case.runner.set_fastv(None)


@pytest.mark.parametrize(
    ("numbers", "ids", "expected"),
    [
        ([0, 1, 2, 0, 1, 2], ["a"] * 3 + ["b"] * 3, [2, 2]),  # the last of one video, the first of the next
        ([0, 1, 2, 0, 1, 2], ["a"] * 6, [2, 2]),  # a video twice
        ([0, 2, 3], ["a"] * 3, [2]),  # one is missing
        ([2, 3, 4, 5], ["a"] * 4, None),  # a video from its middle
    ],
)
def test_only_what_follows_in_one_video_goes_together(
    case: Case, numbers: list[int], ids: list[str], expected: list[int] | None
) -> None:
    case.runner.set_fastv(f"k={case.layer},drop=0")
    case.prefill(FRAMES[: len(numbers)], numbers, ids=ids)
    assert case.encodings() == ([2] if expected is None else expected)
    case.runner.set_fastv(None)


def test_frames_of_two_sizes_stay_apart(case: Case) -> None:
    frames = [FRAMES[0], FRAMES[1][:140], FRAMES[2][:140]]
    case.prefill(frames, range(3))
    # as libmtmd does it: the second and the third
    assert case.runner._engine.report().visual_tokens == sum(case.stock(frames, mergeable=True)[0])


def test_a_line_between_frames_is_left_out_and_text_keeps_them_apart(case: Case) -> None:
    together = case.prefill(FRAMES[:2], [0, 1])
    np.testing.assert_array_equal(case.prefill(FRAMES[:2], [0, 1], between="\n"), together)
    case.prefill(FRAMES[:2], [0, 1], between="then")
    assert case.runner._engine.report().visual_tokens == 2 * N


def test_a_frame_alone_is_not_taken_for_a_pair(case: Case) -> None:
    """Neither in a slot nor in the encoder's cache: the prompts begin alike."""
    apart = case.prefill(FRAMES[:2], [0, 1], between="then")
    pair = case.prefill(FRAMES[:2], [0, 1], fresh=False)
    assert case.runner._engine.report().cached_tokens < N  # what stands in front of a picture
    np.testing.assert_allclose(pair, case.prefill(FRAMES[:2], [0, 1]), atol=1e-4)
    again = case.prefill(FRAMES[:2], [0, 1], between="then", fresh=False)
    np.testing.assert_allclose(again, apart, atol=1e-4)
    assert np.abs(pair - apart).max() > 1e-2


def test_a_pair_is_encoded_once(case: Case) -> None:
    def counts(frames: list[np.ndarray]) -> tuple[int, int]:
        report = case.runner.ask(
            video=frames, question=QUESTION, fastv=f"k={case.layer},drop=0.5", **WORD
        ).report
        return report.pictures_encoded, report.pictures_from_cache

    fresh = [RNG.integers(0, 256, (168, 224, 3), dtype=np.uint8) for _ in range(2)]
    assert counts(fresh) == (1, 0)
    case.runner.set_fastv(None)  # nothing is held
    assert counts(fresh) == (0, 1)
    assert counts(fresh[::-1]) == (1, 0)
    assert counts([*fresh, FRAMES[0]]) == (0, 1)  # what of another video is the same


@pytest.mark.parametrize("n", [2, 3, 8])
def test_every_door_counts_pairs(case: Case, n: int) -> None:
    frames = FRAMES[:n]
    expected = N * -(-n // 2)
    report = case.runner.ask(video=frames, question=QUESTION, **WORD).report
    assert (report.encoded_tokens, report.visual_tokens) == (expected, expected)
    stream = case.runner.stream(video=frames, question=QUESTION, **WORD)
    assert stream.read().report.visual_tokens == expected
    with case.runner.session() as chat:
        first = chat.ask(QUESTION, video=frames, **WORD).report
        second = chat.ask("And now?", **WORD).report
    assert first.visual_tokens == second.visual_tokens == expected
    assert second.cached_tokens >= expected
    assert second.pictures_encoded == 0


def test_a_pool_and_a_picture_beside_a_video(case: Case) -> None:
    frames = [Frame(each, "film", number) for number, each in enumerate(FRAMES[:3])]
    with JobPool(*case.files, slots=1, n_ctx=1024, n_threads=1, fastv=None) as pool:
        job = pool.submit(
            [user_message(QUESTION, [FRAMES[0], *frames])], Sampling(max_tokens=1), details=True
        )
        job.read()
    assert job.report is not None
    assert job.details is not None
    assert job.report.visual_tokens == N + 2 * N
    assert [len(slices) for slices in job.details["pictures"]] == [1, 2]


def test_a_cut_that_drops_nothing_changes_nothing(case: Case) -> None:
    off = case.prefill(FRAMES[:5], range(5))
    case.runner.set_fastv(f"k={case.layer},drop=0")
    np.testing.assert_array_equal(case.prefill(FRAMES[:5], range(5)), off)
    case.runner.set_fastv(f"k={case.layer},drop=0.5")
    case.prefill(FRAMES[:5], range(5))
    report = case.runner._engine.report()
    assert report.visual_tokens_in_stage == [3 * N, 3 * N // 2]  # over the whole video
    case.runner.set_fastv(None)


def test_reducers_take_a_pair_for_a_frame(case: Case) -> None:
    def left(reduce: Any) -> int:
        return case.runner.ask(video=FRAMES, question=QUESTION, reduce=reduce, **WORD).report.visual_tokens

    assert left(EVS(0.5)) == 2 * N
    assert left(PLLaVA(2, 2)) == 2 * 4 * 3
    report = case.runner.ask(video=FRAMES[:3], question=QUESTION, reduce=EVS(0.25), **WORD).report
    assert (report.encoded_tokens, report.visual_tokens) == (2 * N, round(0.75 * 2 * N))


def test_a_history_with_a_video_is_cut_at_its_turns(case: Case) -> None:
    rules = f"k={case.layer},drop=0.5,score=question-max,recall=0.1"
    with (
        Runner(*case.files, fastv=rules, n_ctx=1024, n_threads=1, flash_attn=False) as runner,
        runner.session() as chat,
    ):
        chat.ask(QUESTION, video=FRAMES[:3], **WORD)
        chat.ask("And which of them is left of the other one?", **WORD)
        warm = runner._engine.kept(0).tolist(), runner._engine.report().archive_bytes
        runner.set_fastv(runner.fastv)  # nothing is held
        completion = runner.create_chat_completion(chat.messages[:-1], **WORD)
        assert completion["pyfastv"]["cached_tokens"] == 0
        assert (runner._engine.kept(0).tolist(), runner._engine.report().archive_bytes) == warm


def test_a_saved_session_goes_on_behind_its_pairs(case: Case, tmp_path: Path) -> None:
    with case.runner.session(fastv=Recommended(case.layer, 0.5)) as chat:
        chat.ask(QUESTION, video=FRAMES[:3], **WORD)
        chat.save(tmp_path / "talk")
        expected = chat.ask("And now?", **WORD)
    with (
        Runner(*case.files, n_ctx=1024, n_threads=1, fastv=None, flash_attn=False) as runner,
        runner.session(restore=tmp_path / "talk") as chat,
    ):
        answer = chat.ask("And now?", **WORD)
    assert (answer.text, answer.report.cached_tokens) == (expected.text, expected.report.cached_tokens)
    assert answer.report.pictures_encoded == 0


def test_the_first_of_each_pair_is_drawn(case: Case) -> None:
    frames = [Frame(each, "film", number) for number, each in enumerate(FRAMES[:3])]
    made = trace(case.runner, [FRAMES[3], *frames], [QUESTION], {"half": f"k={case.layer},drop=0.5"}, WORD)
    assert made.n_visual == N + 2 * N
    for shown in (FRAMES[3], FRAMES[0], FRAMES[2]):
        assert _is_in(shown, made.canvas.pixels)
    assert not _is_in(FRAMES[1], made.canvas.pixels)


def _is_in(picture: np.ndarray, canvas: np.ndarray) -> bool:
    height, width, _ = picture.shape
    places = np.argwhere((canvas == picture[0, 0]).all(axis=2)).tolist()
    return any(np.array_equal(canvas[y : y + height, x : x + width], picture) for y, x in places)


def test_encoders_that_take_one_frame_get_one(tmp_path: Path) -> None:
    files = random_mmproj.write_pair(tmp_path, "Gemma 3")
    with pyfastv.Runner(*files, n_ctx=1024, n_threads=1, fastv=None) as runner:
        report = runner.ask(video=FRAMES[:4], question=QUESTION, **WORD).report
    assert report.visual_tokens == 4 * 64
