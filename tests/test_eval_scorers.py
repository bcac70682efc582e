"""Scorers against values worked out by hand, and against the reference's own scorer."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pyfastv import OptionError
from pyfastv.eval import SCORERS, Question, score_answers
from pyfastv.eval.normalize import normalize

from scoring import is_right

SLICE = Path(__file__).parent / "bench_slice"


def score(scorer: str, answers: list[str], given: str, **more: object) -> float:
    question = Question("1", Path("x.png"), "?", tuple(answers), **more)  # type: ignore[arg-type]
    return score_answers(scorer, [question], [given])[0]


@pytest.mark.parametrize(
    ("answer", "normal"),
    [
        (" Two  dogs.", "2 dogs"),
        ("The answer is: a cat!", "answer is: cat"),
        ("It is 9:10.", "it is 9:10"),
        ("1,000 people", "1000 people"),
        ("0.5 m", "0.5 m"),
        ("U.S. flag", "u s flag"),
        ("dont know", "don't know"),
        ("don\N{RIGHT SINGLE QUOTATION MARK}t", "don't"),
        ("black/white", "black white"),
        ("none", "0"),
        ("", ""),
    ],
)
def test_answers_are_normalized_as_in_vqa(answer: str, normal: str) -> None:
    assert normalize(answer) == normal


def test_exact_takes_any_of_the_answers() -> None:
    assert score("exact", ["a dog", "puppy"], "The dog.") == 1
    assert score("exact", ["a dog", "puppy"], "dogs") == 0
    assert score("exact", ["a dog"], "a big dog") == 0


def test_contains_looks_for_whole_words() -> None:
    assert score("contains", ["cat"], "It is a cat, I think.") == 1
    assert score("contains", ["cat"], "A category.") == 0
    assert score("contains", ["the"], "the") == 0, "an answer of articles alone is in nothing"


@pytest.mark.parametrize(
    ("given", "right"),
    [("Yes, there is.", 1), ("No.", 0), ("There is not.", 0), ("Yes, no doubt", 1), ("Perhaps", 0)],
)
def test_yes_no_goes_by_the_first_such_word(given: str, right: int) -> None:
    assert score("yes-no", ["yes"], given) == right


@pytest.mark.parametrize(
    ("given", "value"),
    [
        ("Hello", 1.0),
        ("hallo", 0.8),  # 1 edit of 5
        ("help", 0.6),  # "hello": 2 edits of 5
        ("abc", 0.0),  # below a half
        ("", 0.0),
    ],
)
def test_anls_is_the_similarity_from_a_half_on(given: str, value: float) -> None:
    assert score("anls", ["hello"], given) == pytest.approx(value)


def test_anls_takes_the_best_answer() -> None:
    assert score("anls", ["something else", "kitten"], "sitting") == pytest.approx(1 - 3 / 7)


@pytest.mark.parametrize(
    ("agree", "value"),
    # of the 10 sets of 9 people, those that leave out one who agrees have one fewer
    [(0, 0.0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1.0), (10, 1.0)],
)
def test_vqa_accuracy_of_ten_people(agree: int, value: float) -> None:
    people = ["Two"] * agree + [f"other {n}" for n in range(10 - agree)]
    assert score("vqa", people, "2") == pytest.approx(value)


def test_grounding_measures_from_the_center_of_the_box() -> None:
    box = (0.4, 0.2, 0.6, 0.4)  # center 0.5, 0.3
    assert score("grounding", [], "At [0.55, 0.36].", box=box) == 1  # 0.078
    assert score("grounding", [], "At [0.56, 0.36].", box=box) == 0  # 0.085
    assert score("grounding", [], "[0.4, 0.2, 0.6, 0.4]", box=box) == 1
    assert score("grounding", [], "in the middle", box=box) == 0


def test_cider_of_a_caption_like_the_references_beats_others() -> None:
    """A perfect match has 10 of the library's points, 10 times what is printed as 100."""
    references = ["a red bus on a street", "two dogs play in the snow", "a man rides a horse"]
    questions = [Question(str(n), Path("x"), "?", (text,)) for n, text in enumerate(references)]
    perfect = score_answers("cider", questions, [f"{text.upper()}." for text in references])
    # of one reference, with n-grams that are all its own; "a" is in two of three, and less than the others
    assert perfect == pytest.approx([10.0] * 3)
    wrong = score_answers(
        "cider", questions, ["a man rides a horse", "a red bus", "two dogs play in the snow"]
    )
    assert max(wrong) < 1.0


def test_auto_agrees_with_the_reference_on_the_bench() -> None:
    lines = [json.loads(line) for line in (SLICE / "questions.jsonl").read_text().splitlines()]
    answers = sorted({text for line in lines for text in [line["answer"], *line["reference"].values()]})
    answers += ["At [0.11, 0.57].", "at [.3,.3]", "Yes"]
    found = set()
    for line in lines:
        box = tuple(line["box"]) if "box" in line else None
        question = Question(line["id"], Path("x"), line["question"], (line["answer"],), box=box)
        for answer in answers:
            right = is_right(line, answer)
            assert score_answers("auto", [question], [answer]) == [right], (line, answer)
            found.add((box is not None, right))
    assert len(found) == 4


def test_what_cannot_be_scored_is_told() -> None:
    with pytest.raises(OptionError, match=r"scorer must be one of auto, exact, .*; got 'bleu'"):
        score("bleu", ["a"], "a")
    with pytest.raises(OptionError, match="question 1 has no answer"):
        score("exact", [], "a")
    with pytest.raises(OptionError, match="needs the answers of at least 4 people, usually 10, and it has 1"):
        score("vqa", ["a"], "a")
    with pytest.raises(OptionError, match="needs a box"):
        score("grounding", ["a"], "a")


def test_cider_without_its_library_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "pycocoevalcap.cider.cider_scorer", None)
    with pytest.raises(OptionError, match=r"pip install 'pyfastv\[captions\]'"):
        score("cider", ["a"], "a")


def test_every_scorer_gives_the_right_answer_full_points() -> None:
    people = ("yes",) * 10
    box = (0.0, 0.0, 1.0, 1.0)
    question = Question("1", Path("x"), "?", people, box=box)
    for name in set(SCORERS) - {"cider", "grounding"}:
        assert score_answers(name, [question], ["Yes"]) == [1.0], name
