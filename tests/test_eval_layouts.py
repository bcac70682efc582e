"""Datasets as they are downloaded, in small: what is recognized, what is read, and what is told when it is not so."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from pyfastv import DataError
from pyfastv.eval import LAYOUTS, Dataset, load_dataset
from pyfastv.models import bundled_examples

PICTURE = bundled_examples()[0].picture

Write = Callable[[str, object], Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Writes a file of the dataset: JSON, text, or (None) a picture."""

    def write(name: str, content: object) -> Path:
        file = tmp_path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        if content is None:
            shutil.copy(PICTURE, file)
        else:
            file.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
        return file

    return write


def one(dataset: Dataset) -> tuple[object, ...]:
    """id, picture's name, text, answers, family of the first question."""
    question = dataset.questions[0]
    return question.id, question.image.name, question.text, question.answers, question.family


def test_jsonl_with_and_without_what_is_optional(write: Write, tmp_path: Path) -> None:
    write("pictures/a.png", None)
    full = {
        "id": 7,
        "image": "pictures/a.png",
        "question": "Where?",
        "answer": "At [0.5, 0.5].",
        "family": "ground",
    }
    lines = [
        full | {"box": [0.4, 0.4, 0.6, 0.6]},
        {"image": "pictures/a.png", "question": "What?", "answers": ["a", "b"]},
    ]
    write("questions.jsonl", "\n".join(json.dumps(line) for line in lines) + "\n\n")
    for path in (tmp_path, tmp_path / "questions.jsonl"):
        dataset = load_dataset(path)
        assert one(dataset) == ("7", "a.png", "Where?", ("At [0.5, 0.5].",), "ground")
        assert dataset.questions[0].box == (0.4, 0.4, 0.6, 0.6)
        assert dataset.questions[1].answers == ("a", "b")
        assert dataset.questions[1].id == "1"
        assert (dataset.scorer, dataset.instruction) == ("auto", "")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 1: is not JSON"),
        ("[]", "line 1: is not a JSON object"),
        ('{"question": "a"}', "has no 'image'"),
        ('{"image": "a.png", "question": "a", "answers": "b"}', "answers must be a list of texts; got 'b'"),
        (
            '{"image": "a.png", "question": "a", "box": [0, 0, 336, 336]}',
            r"box must be .* got \[0, 0, 336, 336\]",
        ),
        ('{"image": "gone.png", "question": "a"}', "question 0: its picture .*gone.png is missing"),
        ("", "has no questions, read as jsonl"),
    ],
)
def test_a_bad_line_of_jsonl_is_told_with_its_place(write: Write, line: str, message: str) -> None:
    write("a.png", None)
    with pytest.raises(DataError, match=message):
        load_dataset(write("questions.jsonl", line))


def test_vqav2(write: Write, tmp_path: Path) -> None:
    people = [{"answer": "net", "answer_confidence": "maybe", "answer_id": n} for n in range(1, 11)]
    for split, number in (("train2014", 458752), ("val2014", 262148)):
        question = {"image_id": number, "question": f"What, {split}?", "question_id": number * 1000}
        head = {"task_type": "Open-Ended", "data_type": "mscoco", "data_subtype": split}
        annotation = {
            "question_id": number * 1000,
            "image_id": number,
            "answer_type": "other",
            "answers": people,
        }
        write(f"v2_OpenEnded_mscoco_{split}_questions.json", {**head, "questions": [question]})
        write(f"v2_mscoco_{split}_annotations.json", {**head, "annotations": [annotation]})
        write(f"{split}/COCO_{split}_{number:012}.jpg", None)
    dataset = load_dataset(tmp_path)
    assert one(dataset) == (
        "262148000",
        "COCO_val2014_000000262148.jpg",
        "What, val2014?",
        ("net",) * 10,
        "other",
    )
    assert (dataset.layout, dataset.scorer) == ("vqav2", "vqa")
    assert "single word" in dataset.instruction
    assert load_dataset(tmp_path, split="train").questions[0].id == "458752000"
    with pytest.raises(DataError, match="no file with 'test' in its name"):
        load_dataset(tmp_path, split="test")


def test_textvqa(write: Write, tmp_path: Path) -> None:
    entry = {"question": "what is the brand?", "image_id": "0054c91397f2fe05", "question_id": 0}
    write(
        "TextVQA_0.5.1_val.json", {"dataset_name": "textvqa", "data": [{**entry, "answers": ["nokia"] * 10}]}
    )
    write("TextVQA_0.5.1_test.json", {"dataset_name": "textvqa", "data": [{**entry, "image_id": "t"}]})
    write("train_images/0054c91397f2fe05.jpg", None)
    write("test_images/t.jpg", None)
    dataset = load_dataset(tmp_path)
    assert one(dataset) == ("0", "0054c91397f2fe05.jpg", "what is the brand?", ("nokia",) * 10, "")
    test = load_dataset(tmp_path, split="test").questions[0]
    assert (test.image.parent.name, test.answers) == ("test_images", ())


def test_pope_has_the_same_ids_in_several_files(write: Write, tmp_path: Path) -> None:
    line = {
        "question_id": 1,
        "image": "COCO_val2014_000000310196.jpg",
        "text": "Is there a snowboard?",
        "label": "yes",
    }
    for kind in ("random", "popular", "adversarial"):
        write(f"coco/coco_pope_{kind}.json", json.dumps(line) + "\n")
    write("val2014/COCO_val2014_000000310196.jpg", None)
    dataset = load_dataset(tmp_path)
    assert one(dataset)[0] == "coco_pope_adversarial-1"
    assert [question.family for question in dataset.questions] == ["adversarial", "popular", "random"]
    assert dataset.scorer == "yes-no"
    assert len(load_dataset(tmp_path, split="popular").questions) == 1


def test_gqa(write: Write, tmp_path: Path) -> None:
    entry = {
        "imageId": "2405722",
        "question": "What color?",
        "answer": "red",
        "types": {"structural": "query"},
    }
    write("questions1.2/val_balanced_questions.json", {"1": entry | {"imageId": "1"}})
    write("questions1.2/testdev_balanced_questions.json", {"05451384": entry})
    write("images/2405722.jpg", None)
    write("images/1.jpg", None)
    assert one(load_dataset(tmp_path)) == ("05451384", "2405722.jpg", "What color?", ("red",), "query")
    assert load_dataset(tmp_path, split="val").questions[0].id == "1"


def test_mme_has_pictures_beside_the_questions_or_in_a_folder(write: Write, tmp_path: Path) -> None:
    lines = "Is there a cat? Please answer yes or no.\tYes\nIs there a dog? Please answer yes or no.\tNo\n"
    write("MME_Benchmark_release_version/existence/000000006040.txt", lines)
    write("MME_Benchmark_release_version/existence/000000006040.jpg", None)
    write("MME_Benchmark_release_version/celebrity/questions_answers_YN/tt01.txt", lines)
    write("MME_Benchmark_release_version/celebrity/images/tt01.png", None)
    dataset = load_dataset(tmp_path)
    assert sorted(question.id for question in dataset.questions) == [
        "celebrity/tt01/1",
        "celebrity/tt01/2",
        "existence/000000006040/1",
        "existence/000000006040/2",
    ]
    assert {
        question.family: question.answers for question in dataset.questions if question.id.endswith("1")
    } == {
        "celebrity": ("Yes",),
        "existence": ("Yes",),
    }
    assert (
        load_dataset(tmp_path / "MME_Benchmark_release_version", split="celebrity", limit=1).layout == "mme"
    )


def test_coco_captions_have_one_question_a_picture(write: Write, tmp_path: Path) -> None:
    captions = [{"image_id": 139, "id": n, "caption": f"caption {n}"} for n in range(5)]
    images = [{"id": 139, "file_name": "000000000139.jpg", "height": 426, "width": 640}]
    write("annotations/captions_val2017.json", {"images": images, "annotations": captions})
    write("annotations/captions_train2017.json", {"images": [], "annotations": []})
    write("val2017/000000000139.jpg", None)
    dataset = load_dataset(tmp_path)
    number, name, _, answers, _ = one(dataset)
    assert (number, name, answers) == ("139", "000000000139.jpg", tuple(f"caption {n}" for n in range(5)))
    assert dataset.scorer == "cider"


@pytest.mark.parametrize("kind", ["token", "csv", "karpathy"])
def test_flickr30k_in_its_three_forms(write: Write, tmp_path: Path, kind: str) -> None:
    if kind == "token":
        write("results_20130124.token", "1.jpg#0\tA dog runs .\n1.jpg#1\tA brown dog .\n")
        write("flickr30k-images/1.jpg", None)
    elif kind == "csv":
        text = "image_name| comment_number| comment\n1.jpg| 0| A dog runs .\n1.jpg| 1   A brown dog .\n"
        write("flickr30k_images/results.csv", text)
        write("flickr30k_images/flickr30k_images/1.jpg", None)
    else:
        sentences = [{"raw": "A dog runs ."}, {"raw": "A brown dog ."}]
        image = {"filename": "1.jpg", "split": "test", "sentences": sentences}
        write("dataset_flickr30k.json", {"images": [image | {"filename": "2.jpg", "split": "train"}, image]})
        write("flickr30k-images/1.jpg", None)
    dataset = load_dataset(tmp_path)
    assert (dataset.layout, len(dataset.questions)) == ("flickr30k", 1)
    assert one(dataset)[:2] == ("1.jpg", "1.jpg")
    assert dataset.questions[0].answers == ("A dog runs .", "A brown dog .")


def test_a_folder_of_pictures_asks_for_descriptions(write: Write, tmp_path: Path) -> None:
    for name in ("b.png", "a.PNG"):
        write(name, None)
    dataset = load_dataset(tmp_path)
    assert [question.id for question in dataset.questions] == ["a.PNG", "b.png"]
    assert dataset.questions[0].answers == ()


def test_the_pictures_may_be_elsewhere(write: Write, tmp_path: Path) -> None:
    write("data/questions.jsonl", '{"image": "a.png", "question": "?"}\n')
    write("else/a.png", None)
    with pytest.raises(DataError, match="is missing"):
        load_dataset(tmp_path / "data")
    assert load_dataset(tmp_path / "data", images=tmp_path / "else").questions[0].image.is_file()


def test_two_layouts_in_one_folder_are_told_apart_by_name(write: Write, tmp_path: Path) -> None:
    write("captions_val2017.json", {"images": [{"id": 1, "file_name": "1.jpg"}], "annotations": []})
    write("val2017/1.jpg", None)
    write("questions.jsonl", '{"image": "val2017/1.jpg", "question": "?"}\n')
    with pytest.raises(DataError, match="may be jsonl or coco-captions: say which with layout"):
        load_dataset(tmp_path)
    assert load_dataset(tmp_path, layout="jsonl").layout == "jsonl"


def test_limit_needs_the_first_pictures_alone(write: Write, tmp_path: Path) -> None:
    write("a.png", None)
    write("questions.jsonl", '{"image": "a.png", "question": "?"}\n{"image": "b.png", "question": "?"}\n')
    assert len(load_dataset(tmp_path, limit=1).questions) == 1


def test_what_is_no_dataset_is_told_with_what_was_looked_for(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file or folder"):
        load_dataset(tmp_path / "none")
    with pytest.raises(DataError, match="not recognized as a dataset") as error:
        load_dataset(tmp_path)
    assert all(name in str(error.value) for name in LAYOUTS)
    with pytest.raises(DataError, match="layout must be one of"):
        load_dataset(tmp_path, layout="imagenet")


def test_ids_have_to_differ(write: Write, tmp_path: Path) -> None:
    write("a.png", None)
    write("questions.jsonl", '{"id": 1, "image": "a.png", "question": "?"}\n' * 2)
    with pytest.raises(DataError, match="several questions have the same id"):
        load_dataset(tmp_path)


def test_a_data_uri_is_a_picture(write: Write, tmp_path: Path) -> None:
    uri = "data:image/png;base64,AAAA"
    write("questions.jsonl", json.dumps({"image": uri, "question": "?"}) + "\n")
    assert load_dataset(tmp_path).questions[0].image == uri


@pytest.mark.parametrize(
    ("image", "message"),
    [
        ("x" * 300 + ".png", "its picture .* is missing"),
        ("iVBORw0KGgo" * 1000, "base64 has to be a data URI"),
        ("https://example.org/a.png", "download the picture"),
        ("a\0b.png", "is missing"),
    ],
)
def test_a_name_that_is_no_file_is_told_in_a_short_line(write: Write, image: str, message: str) -> None:
    path = write("questions.jsonl", json.dumps({"image": image, "question": "?"}) + "\n")
    with pytest.raises(DataError, match=message) as caught:
        load_dataset(path)
    assert len(str(caught.value)) < 1000


def test_messages_do_not_say_the_contrary(write: Write) -> None:
    write("a.png", None)
    line = {"image": "a.png", "question": "?"}
    with pytest.raises(DataError, match=r"'id' must be text or a whole number; got 1\.5"):
        load_dataset(write("questions.jsonl", json.dumps({**line, "id": 1.5})))
    with pytest.raises(DataError, match="has no 'question'"):
        load_dataset(write("questions.jsonl", json.dumps({"image": "a.png"})))


def test_only_ends_of_lines_end_a_line_of_jsonl(write: Write) -> None:
    write("a.png", None)
    line = json.dumps({"image": "a.png", "question": "one\u2028two\x85"}, ensure_ascii=False)
    assert load_dataset(write("questions.jsonl", line)).questions[0].text == "one\u2028two\x85"
