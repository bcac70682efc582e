"""pyfastv eval: resuming, confidence intervals, tables, the plot, and the command line."""

from __future__ import annotations

import errno
import json
import os
import re
import shlex
import subprocess
import sys
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import psutil
import pytest
from PIL import Image

import pyfastv
from pyfastv import DataError, OptionError
from pyfastv.commands.eval import pick_pictures
from pyfastv.commands.main import cli, main
from pyfastv.eval import (
    LAYOUTS,
    SCORERS,
    AnswerFile,
    Asking,
    Given,
    Question,
    Timing,
    ask_all,
    evaluate,
    plot,
)
from pyfastv.eval import asking as asking_module
from pyfastv.eval.plot import Point, pareto, series_of, spread_out
from pyfastv.eval.settings import check_settings, same_as
from pyfastv.eval.table import tables
from pyfastv.eval.timing import ratio
from pyfastv.models import bundled_examples

EXAMPLES = bundled_examples()
QUESTIONS = [
    Question(str(number), example.picture, example.question, (example.answer,), example.picture.stem)
    for number, example in enumerate(EXAMPLES)
]


# settings


def test_settings_are_the_same_however_they_are_written() -> None:
    assert same_as("fastv") == same_as("k=2, drop=0.5,score=last,pick=top-k") == "fastv,k=2,drop=0.5"
    assert same_as("k=2,drop=0.5") == same_as("recommended")
    assert same_as("OFF") == "off"


def test_off_is_always_there_and_first() -> None:
    assert check_settings(["fastv", "fastv,k=2,drop=0.5", "zipvl"]) == ["off", "fastv", "zipvl"]
    with pytest.raises(OptionError, match='"fast" is no schedule'):
        check_settings(["fast"])


# the file of answers


def line(setting: str, number: str, answer: str = "A", **more: object) -> str:
    return json.dumps({"setting": setting, "id": number, "answer": answer, "share": 1.0, **more}) + "\n"


def test_a_line_that_was_cut_off_is_removed_and_asked_again(tmp_path: Path) -> None:
    file = tmp_path / "answers.jsonl"
    file.write_text(line("off", "1") + line("fastv", "1")[:20])
    answers = AnswerFile(file)
    assert answers.find("off", "1") == Given("off", "1", "A", 1.0)
    assert answers.find("fastv", "1") is None
    answers.add([Given("fastv", "1", "B", 0.5)])
    assert file.read_text() == line("off", "1") + line("fastv", "1", "B").replace("1.0", "0.5")
    assert AnswerFile(file).find("fastv,k=2,drop=0.5", "1") == Given("fastv", "1", "B", 0.5)


def test_a_file_cut_off_in_its_first_line_starts_anew(tmp_path: Path) -> None:
    file = tmp_path / "answers.jsonl"
    file.write_text('{"setting": "off", "id"')
    AnswerFile(file).add([Given("off", "1", "A", None, "12")])
    assert json.loads(file.read_text())["asked"] == "12"


def test_a_bad_line_before_the_last_is_told(tmp_path: Path) -> None:
    file = tmp_path / "answers.jsonl"
    file.write_text(line("off", "1") + '{"setting": "off"}\n' + line("off", "2"))
    with pytest.raises(DataError, match=r"line 2: is not \{"):
        AnswerFile(file)


def test_settings_of_a_later_version_are_left_alone(tmp_path: Path) -> None:
    file = tmp_path / "answers.jsonl"
    file.write_text(line("k=2,magic", "1") + line("off", "1"))
    assert AnswerFile(file).find("off", "1") is not None
    assert "magic" in file.read_text()


def test_answers_that_were_asked_otherwise_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "answers.jsonl"
    asked = Asking().fingerprint(QUESTIONS[0])
    AnswerFile(file).add([Given("off", "0", "A", 1.0, asked)])
    assert AnswerFile(file).find("off", "0", asked) is not None
    for options in (
        {"instruction": "Be short."},
        {"max_tokens": 5},
        {"system": "You are a cat."},
        {"runner": {"chat_template": "chatml"}},
    ):
        with pytest.raises(DataError, match="question 0 was asked otherwise there"):
            AnswerFile(file).find("off", "0", Asking(**options).fingerprint(QUESTIONS[0]))
    # a file that does not say how it was asked is taken at its word
    file.write_text(line("off", "0"))
    assert AnswerFile(file).find("off", "0", asked) is not None


# asking


class FakeRunner:
    """Answers with the setting and the question; fails at ``broken``."""

    broken: str | None = None
    asked: list[tuple[Any, str]] = []  # noqa: RUF012 - shared on purpose

    def __init__(self, **options: Any) -> None:
        self.fastv: Any = options.get("fastv")

    def __enter__(self) -> FakeRunner:
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def _use(self, setting: Any) -> None:
        self.fastv = "off" if setting.is_off else type(setting.fastv).__name__.lower()

    def ask(self, image: Any, text: str, **options: Any) -> Any:
        if text == self.broken:
            raise pyfastv.ImageError("cannot be read")
        self.asked.append((self.fastv, text))

        return SimpleNamespace(
            text=f"{self.fastv}: {text}",
            report=SimpleNamespace(retained_share=0.5, visual_tokens=8, patches=8),
        )


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> type[FakeRunner]:
    class Fresh(FakeRunner):
        asked = []  # noqa: RUF012

    monkeypatch.setattr(asking_module, "Runner", Fresh)
    return Fresh


def test_only_what_is_missing_is_asked(tmp_path: Path, fake: type[FakeRunner]) -> None:
    file = tmp_path / "answers.jsonl"
    questions = QUESTIONS[:3]
    fake.broken = questions[2].text
    settings = ["off", "fastv"]
    with pytest.raises(pyfastv.ImageError, match="question 2, setting off: cannot be read"):
        ask_all([replace(q, image=Path(q.id)) for q in questions], settings, AnswerFile(file), Asking())
    assert len(fake.asked) == 4, "two pictures with two settings were done"

    fake.asked.clear()
    fake.broken = None
    seen: list[tuple[int, int]] = []
    answers = ask_all(
        questions, settings, AnswerFile(file), Asking(), lambda done, total: seen.append((done, total))
    )
    assert fake.asked == [("off", questions[2].text), ("fastv", questions[2].text)]
    assert seen == [(6, 6)]
    assert [given.id for given in answers["fastv"]] == ["0", "1", "2"]
    assert answers["fastv"][1].answer == f"fastv: {questions[1].text}"


def test_one_process_and_two_answer_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    """The real model. The two halves of the questions go to different processes, also where the system has no semaphores:
    containers without a /dev/shm."""

    class Refused:
        SEM_VALUE_MAX = 1

        def __init__(self, *_: object) -> None:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr("_multiprocessing.SemLock", Refused)
    questions = [QUESTIONS[0], QUESTIONS[5]]
    options = {"n_ctx": 1024, "n_threads": 1}
    one, two = (
        ask_all(questions, ["off", "recommended"], AnswerFile(), Asking(options, processes=n)) for n in (1, 2)
    )
    assert one == two
    assert [given.answer for given in one["off"]] == [question.answers[0] for question in questions]
    assert [given.share for given in one["recommended"]] == [pytest.approx(7 / 12)] * 2


def test_a_model_that_cannot_be_loaded_ends_all_processes(tmp_path: Path) -> None:
    (tmp_path / "model.gguf").write_bytes(b"no")
    asking = Asking({"model_path": tmp_path / "model.gguf"}, processes=2)
    with pytest.raises(pyfastv.ModelError):
        ask_all(QUESTIONS[:5], ["off"], AnswerFile(), asking)


def test_a_process_that_is_ended_ends_the_run() -> None:
    """As the system does when memory runs out."""
    pictures = {question.image: question for question in QUESTIONS}.values()

    def end_them(done: int, total: int) -> None:
        for process in psutil.Process().children():
            with suppress(psutil.Error):  # it has ended already
                if any("spawn_main" in argument for argument in process.cmdline()):
                    process.kill()

    asking = Asking({"n_ctx": 1024, "n_threads": 1}, processes=2)
    with pytest.raises(pyfastv.Error, match="one of 2 processes was ended"):
        ask_all(list(pictures), ["off", "fastv", "vtw"], AnswerFile(), asking, end_them)


def test_processes_end_with_the_one_that_started_them(tmp_path: Path) -> None:
    """Which could tell them nothing: it was killed."""
    lines = [{"image": str(example.picture), "question": "?", "answer": "x"} for example in EXAMPLES]
    (tmp_path / "q.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    options = ["--settings", "recommended", "-c", "1024", "-t", "1", "--processes", "2", "--no-progress"]
    command = [sys.executable, "-m", "pyfastv", "eval", "q.jsonl", *options]
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(command, cwd=tmp_path, stdout=log, stderr=log)
    workers: list[psutil.Process] = []
    while len(workers) < 2:
        assert process.poll() is None, (tmp_path / "log").read_text()
        workers = [
            one for one in psutil.Process(process.pid).children() if "spawn_main" in str(one.cmdline())
        ]
    process.kill()
    process.wait()
    assert psutil.wait_procs(workers, timeout=60)[1] == []


# the result


def made(setting: str, right: set[int], share: float | None = 0.5) -> list[Given]:
    return [
        Given(setting, question.id, question.answers[0] if number in right else "wrong", share)
        for number, question in enumerate(QUESTIONS)
    ]


ANSWERS = {
    "off": made("off", set(range(9)), 1.0),
    "recommended": made("recommended", set(range(8))),
    "k=4,drop=0.75,score=question-max,pick=cover,weigh": made("x", set(range(7)), 0.4),
    "fastv,k=4,drop=0.5": made("x", set(range(5)), 0.7),
    "fastv": made("fastv", {0, 1, 2}),
    "pyramiddrop": made("pyramiddrop", set()),
}


def timing(first: float) -> Timing:
    times = np.full((3, 4), first)
    return Timing(times / 4, times / 2, times, times / 8)


def test_scores_differences_and_families() -> None:
    result = evaluate(QUESTIONS, ANSWERS, "exact")
    off, recommended, *_, fastv, _ = result.results
    assert (off.score.value, off.difference) == (1.0, None)
    assert recommended.difference is not None
    assert recommended.difference.value == pytest.approx(-1 / 9)
    assert not recommended.differs, "one of four pictures is no evidence"
    assert fastv.differs
    assert dict(result.family_sizes) == {"chart": 2, "clock": 3, "dice": 2, "scene": 2}
    assert dict(fastv.families) == {"chart": 0.0, "clock": 1.0, "dice": 0.0, "scene": 0.0}
    assert fastv.share == 0.5


def test_the_result_as_json_has_times_where_they_were_measured() -> None:
    times = {setting: timing(100.0 / (number + 1)) for number, setting in enumerate(ANSWERS)}
    values = evaluate(QUESTIONS, ANSWERS, "exact", times).to_dict()
    assert json.loads(json.dumps(values)) == values
    second = values["settings"][1]
    assert second["times_faster"]["value"] == pytest.approx(2.0)
    assert second["milliseconds"] == {
        "encode_ms": 12.5,
        "prefill_ms": 25.0,
        "first_token_ms": 50.0,
        "generate_ms": 6.25,
    }
    assert "times_faster" not in evaluate(QUESTIONS, ANSWERS, "exact").to_dict()["settings"][0]


def test_the_ratio_of_times_is_a_median_of_medians() -> None:
    """One slow round and one slow question change nothing."""
    off, setting = np.full((3, 5), 10.0), np.full((3, 5), 5.0)
    setting[0] = 500.0
    off[:, 0] = 1000.0
    assert ratio(off, setting).value == 2.0


def test_tables_have_a_row_for_every_setting_and_family() -> None:
    shown = list(tables(evaluate(QUESTIONS, ANSWERS, "exact", {s: timing(9.0) for s in ANSWERS})))
    assert [table.row_count for table in shown] == [len(ANSWERS), 4]
    assert len(shown[0].columns) == 11
    alone = [replace(question, family="") for question in QUESTIONS]
    assert len(list(tables(evaluate(alone, ANSWERS, "exact")))) == 1


# the plot


@pytest.mark.parametrize(
    ("setting", "series", "label"),
    [
        ("off", "off", ""),
        ("recommended", "recommended (question-max, cover, weigh)", "K=2 drop 0.5"),
        ("k=4,drop=0.75", "recommended (question-max, cover, weigh)", "K=4 drop 0.75"),
        ("fastv,k=4,drop=0.75", "fastv (last, top-k)", "K=4 drop 0.75"),
        ("pyramiddrop", "pyramiddrop", ""),
        ("turbo:share=0.25", "Turbo", "share 0.25"),
        ("turbo:r=8,once,alpha=0.1", "Turbo, once", "r 8"),
        ("reduce:merge,keep=144,scale", "merge, scale", "keep 144"),
        ("reduce:pool,window=2 + fastv,k=2", "pool + fastv (last, top-k)", "window 2, K=2 drop 0.5"),
    ],
)
def test_settings_of_one_method_are_one_series(setting: str, series: str, label: str) -> None:
    assert series_of(setting) == (series, label)


def test_the_front_is_what_nothing_beats_at_both() -> None:
    def point(x: float, y: float) -> Point:
        return Point(x, y, y, y, "", "")

    points = [point(1, 90), point(0.5, 80), point(0.4, 85), point(0.4, 70), point(0.2, 50), point(0.9, 90)]
    assert [(p.x, p.y) for p in pareto(points)] == [(0.2, 50), (0.4, 85), (0.9, 90)]


def test_labels_keep_their_distance() -> None:
    assert spread_out([0.1, 0.5], 0.05) == [0.1, 0.5]
    assert spread_out([0.5, 0.5, 0.51], 0.1) == pytest.approx([0.40333, 0.50333, 0.60333], abs=1e-4)
    places = sorted(np.random.default_rng(3).uniform(size=12))
    spread = np.array(spread_out(places, 0.06))
    assert (np.diff(spread) > 0.06 - 1e-9).all()
    assert abs(spread.mean() - np.mean(places)) < 0.1


@pytest.mark.parametrize("times", [None, {setting: timing(9.0) for setting in ANSWERS}])
def test_the_plot_has_a_panel_for_each_cost(tmp_path: Path, times: dict[str, Timing] | None) -> None:
    file = tmp_path / "plot.png"
    plot(evaluate(QUESTIONS, ANSWERS, "exact", times), file)
    with Image.open(file) as picture:
        assert (picture.width > 1.5 * picture.height) == (times is not None)
        colors = picture.convert("RGB").getcolors(2**24)
    assert colors is not None
    assert len(colors) > 50, "something was drawn"


def test_a_plot_that_cannot_be_made_is_told_before_anything_is_asked(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main(["eval", "nowhere", "--plot", "plot.doc"]) == 1
    assert "a plot's name ends in" in capfd.readouterr().err
    monkeypatch.setitem(__import__("sys").modules, "matplotlib.figure", None)
    assert main(["eval", "nowhere", "--plot", "plot.png"]) == 1
    assert "pip install 'pyfastv[plot]'" in capfd.readouterr().err


# the command line


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Three questions about two bundled pictures."""
    file = tmp_path / "questions.jsonl"
    lines = [
        {
            "image": str(question.image),
            "question": question.text,
            "answer": question.answers[0],
            "family": question.family,
        }
        for question in (QUESTIONS[0], QUESTIONS[1], QUESTIONS[5])
    ]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return file


def test_eval_asks_scores_times_and_plots(
    data: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """The real model, twice: the second time nothing is asked."""
    answers, picture = tmp_path / "answers.jsonl", tmp_path / "plot.png"
    command = [
        "eval",
        str(data),
        "-c",
        "1024",
        "-t",
        "1",
        "--answers",
        str(answers),
        "--settings",
        "recommended",
    ]
    assert main([*command, "--json", "--plot", str(picture), "--time", "1", "--rounds", "1"]) == 0
    result = json.loads(capfd.readouterr().out)
    assert [setting["setting"] for setting in result["settings"]] == ["off", "recommended"]
    assert [setting["score"]["value"] for setting in result["settings"]] == [1.0, 1.0]
    assert result["settings"][1]["milliseconds"]["prefill_ms"] > 0
    assert picture.stat().st_size > 0
    written = answers.read_text()
    assert len(written.splitlines()) == 6

    assert main(command) == 0
    out = capfd.readouterr().out
    assert answers.read_text() == written
    assert "recommended" in out
    assert "0.583" in out
    assert "clock" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--settings", "quick"], '"quick" is no schedule'),
        (["--limit", "0"], "limit must be an integer, at least 1; got 0"),
        (["--max-tokens", "0"], "max_tokens must be an integer, at least 1; got 0"),
        (["--processes", "0"], "processes must be an integer, from 1 to 256; got 0"),
        (["--rounds", "0"], "rounds must be an integer, at least 1; got 0"),
        (["--scorer", "vqa"], "scorer vqa needs the answers of at least 4 people"),
        (["--layout", "gqa"], "has no file of this layout"),
    ],
)
def test_wrong_options_are_one_line_and_status_1(
    data: Path, capfd: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert main(["eval", str(data), *arguments]) == 1
    printed = capfd.readouterr()
    assert message in printed.err
    assert printed.err.count("\n") == 1
    assert printed.out == ""


def test_pictures_to_time_are_spread_over_the_dataset() -> None:
    assert [question.id for question in pick_pictures(tuple(QUESTIONS), 2)] == ["0", "5"]
    assert len(pick_pictures(tuple(QUESTIONS), 9)) == 4


def test_the_commands_in_the_documentation_are_valid() -> None:
    docs = Path(__file__).resolve().parents[1] / "docs"
    text = (docs / "eval.md").read_text("utf-8") + (docs / "tune.md").read_text("utf-8")
    lines = [shlex.split(found) for found in re.findall(r"^ {4}pyfastv (.*)$", text, re.M)]
    assert {line[0] for line in lines} == {"eval", "tune", "ask"}
    for name, *arguments in lines:
        cli.commands[name].make_context(name, arguments)


def test_the_documentation_names_every_layout_and_scorer() -> None:
    text = (Path(__file__).resolve().parents[1] / "docs" / "eval.md").read_text("utf-8")
    assert all(f"| `{name}` |" in text for name in {*SCORERS, *LAYOUTS} - {"jsonl"})
