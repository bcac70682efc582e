"""pyfastv tune: the search, what it measures on a model, and the command line."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pyfastv import (
    DivPrune,
    OptionError,
    Profile,
    Runner,
    Schedule,
    Turbo,
    UnsupportedModelError,
    _native,
    load_image,
)
from pyfastv.commands.main import main
from pyfastv.eval import Question
from pyfastv.eval.asking import Asking
from pyfastv.eval.tune import (
    Sample,
    Standing,
    candidates,
    compare,
    refer,
    search,
    turbo_candidates,
    why_no_turbo,
)
from pyfastv.eval.tune.measuring import Measuring
from pyfastv.models import bundled_examples, bundled_model
from pyfastv.settings.setting import Setting

import random_mmproj

EXAMPLES = bundled_examples()
CHEAP_BAD = "fastv,k=2,drop=0.98"  # FastV's rule: 12 of 576 tokens
DEAR_GOOD = "k=8,drop=0.25,score=question-max,pick=cover,weigh"


# the search, on settings whose figures are made up


class Made:
    """Settings with a cost and a mean KL; every picture is a little off it, the same for all."""

    def __init__(self, settings: Mapping[str, tuple[float, float]], spread: float = 0.1) -> None:
        self.settings, self.spread = settings, spread
        self.calls: list[tuple[int, tuple[str, ...]]] = []

    def __call__(self, picture: int, settings: Sequence[str]) -> dict[str, list[Sample]]:
        self.calls.append((picture, tuple(settings)))
        factor = 1 + self.spread * np.sin(1 + 2.4 * picture)
        return {
            setting: [Sample(kl * factor, kl / 10, cost)] * 2
            for setting in settings
            for cost, kl in [self.settings[setting]]
        }

    def seen(self, setting: str) -> int:
        return sum(setting in settings for _, settings in self.calls)


def chosen(made: Made, n_pictures: int = 32, target: float = 0.05, **options: float) -> str | None:
    best, _ = search(list(made.settings), n_pictures, made, target, **options)
    return None if best is None else best.setting


def test_the_cheapest_of_those_on_target_is_chosen() -> None:
    made = Made({"a": (0.3, 0.9), "b": (0.5, 0.04), "c": (0.6, 0.01), "d": (0.9, 0.0)})
    assert chosen(made) == "b"
    assert chosen(made, target=0.02) == "c"
    assert chosen(made, target=1.0) == "a"


def test_of_settings_with_one_cost_the_first_that_passes_is_chosen() -> None:
    assert chosen(Made({"a": (0.5, 0.2), "b": (0.502, 0.02), "c": (0.5, 0.01)})) == "b"


def test_what_passes_alone_may_not_pass_among_many() -> None:
    """The upper bounds of all settings are to hold together."""

    def bound(n_settings: int) -> float:
        settings = {f"s{n}": (0.5 + n / 100, 0.04) for n in range(n_settings)}
        best, _ = search(list(settings), 16, Made(settings, spread=0.5), 1.0)
        assert best is not None
        return best.kl_upper

    assert 0.04 < bound(1) < bound(8) < bound(32)


def test_none_on_target_is_none() -> None:
    best, standings = search(["a", "b"], 8, Made({"a": (0.9, 0.2), "b": (0.5, 0.4)}), 0.05)
    assert best is None
    assert [standing.setting for standing in standings] == ["b", "a"]


def test_what_is_hopeless_or_needless_sees_few_pictures() -> None:
    grid = {f"bad{n}": (0.2 + n / 100, 2.0) for n in range(8)}
    grid |= {f"dear{n}": (0.8 + n / 100, 0.001) for n in range(8)}
    made = Made(grid | {"good": (0.5, 0.01)})
    assert chosen(made) == "good"
    assert made.seen("good") == 32
    assert {made.seen(setting) for setting in grid} == {4}


def test_a_setting_that_went_for_its_cost_comes_back_when_the_cheaper_ones_fail() -> None:
    """Eight look good on the first pictures and are bad on the others; the ninth costs more and is good."""

    class Late(Made):
        def __call__(self, picture: int, settings: Sequence[str]) -> dict[str, list[Sample]]:
            found = super().__call__(picture, settings)
            if picture >= 4:
                found |= {s: [Sample(1.0, 0.5, self.settings[s][0])] * 2 for s in settings if s != "dear"}
            return found

    made = Late({f"trap{n}": (0.2 + n / 100, 0.045) for n in range(8)} | {"dear": (0.9, 0.01)}, spread=0.5)
    assert chosen(made) == "dear"
    assert made.seen("dear") == 32


def test_a_setting_passes_by_its_upper_bound() -> None:
    """A mean of 0.045 that varies by its half from picture to picture may as well be 0.055."""
    assert chosen(Made({"a": (0.5, 0.045), "b": (0.9, 0.0)}, spread=0.1)) == "a"
    assert chosen(Made({"a": (0.5, 0.049), "b": (0.9, 0.0)}, spread=0.5), 8) == "b"


def test_the_bound_is_above_the_mean_and_comes_down_with_pictures() -> None:
    def standing(n: int) -> Standing:
        made = Standing("a", 0, 0.95, 0.95)
        for picture in range(n):
            made.samples.append(Sample(float(picture % 4), 0.0, 1.0))
            made.pictures.append(picture)
        return made

    few, many = standing(8), standing(64)
    assert few.kl == many.kl == 1.5
    assert few.kl_lower < few.kl < many.kl_upper < few.kl_upper


def test_when_time_is_up_the_pictures_so_far_decide() -> None:
    made = Made({"a": (0.5, 0.01), "b": (0.9, 0.0)})
    best, _ = search(list(made.settings), 32, made, 0.05, seconds=0)
    assert best is not None
    assert (best.setting, best.n_pictures) == ("a", 4)


def test_too_few_pictures_or_settings_are_told() -> None:
    with pytest.raises(OptionError, match="tuning needs at least 4 pictures; got 3"):
        chosen(Made({"a": (0.5, 0.0)}), 3)
    with pytest.raises(OptionError, match="needs a setting"):
        chosen(Made({}))


# what is tried


def test_candidates_are_valid_for_the_model() -> None:
    found = candidates(str(bundled_model()))
    assert len(found) == len(set(found)) == 3 * 3 * 3 + 1
    layers = {cut.layer for setting in found for cut in Schedule.parse(setting).cuts}
    assert layers >= {2, 3, 6}
    for setting in found:
        _native.check_schedule(setting, 12)


def test_candidates_lie_where_the_model_can_be_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    facts = {"unsupported_reason": None, "n_layer": 24, "cut_layers": [6, 12, 18]}
    monkeypatch.setattr(_native, "model_info", lambda model: facts)
    assert {cut.layer for setting in candidates("m")[:-1] for cut in Schedule.parse(setting).cuts} == {6, 12}

    monkeypatch.setitem(facts, "cut_layers", [])
    assert {cut.score for setting in candidates("m") for cut in Schedule.parse(setting).cuts} == {"none"}

    monkeypatch.setitem(facts, "unsupported_reason", "it is recurrent")
    with pytest.raises(UnsupportedModelError, match="cannot be pruned: it is recurrent"):
        candidates("m")
    with pytest.raises(UnsupportedModelError, match="cannot be pruned: it is recurrent"):
        turbo_candidates("m")


def test_turbo_is_tried_alone_and_with_the_recommended_rule() -> None:
    found = [Setting.parse(setting) for setting in turbo_candidates(str(bundled_model()))]
    schedules = {setting.fastv for setting in found}
    assert {setting.turbo.share for setting in found} == {0.125, 0.25, 0.5}
    assert {schedule.spec() for schedule in schedules if schedule} < set(candidates(str(bundled_model())))
    assert {cut.score for schedule in schedules if schedule for cut in schedule.cuts} == {"question-max"}
    assert len({setting.spec() for setting in found}) == len(found) == 3 * len(schedules)
    assert None in schedules


def test_an_encoder_that_cannot_merge_says_why(plain: Runner, tmp_path: Path) -> None:
    assert why_no_turbo(plain) is None
    assert plain.turbo is None
    with Runner(*random_mmproj.write_pair(tmp_path, "MiniCPM-V"), fastv=None) as runner:
        assert "the projector resampler is none of those" in str(why_no_turbo(runner))
    with Runner(*random_mmproj.write_pair(tmp_path, "Qwen2-VL"), fastv=None) as runner:
        assert "this encoder gives every patch a token again" in str(why_no_turbo(runner))
        assert runner.turbo is None
    with Runner(bundled_model(), n_ctx=256, fastv=None) as runner:
        assert why_no_turbo(runner) == "there is no vision encoder"


# on the model


@pytest.fixture(scope="module")
def plain() -> Runner:
    with Runner(n_ctx=1024, fastv=None) as runner:
        yield runner


QUESTION = Question("1", EXAMPLES[0].picture, EXAMPLES[0].question)
SECOND = Question("2", EXAMPLES[0].picture, "What is in the picture?")


def log_softmax(logits: np.ndarray) -> np.ndarray:
    values = logits.astype(np.float64)
    return values - np.log(np.exp(values - values.max()).sum()) - values.max()


def distributions(runner: Runner, setting: str | None, tokens: Sequence[int]) -> list[np.ndarray]:
    """Log probabilities along the tokens, without what is tested here."""
    runner.set_fastv(setting)
    engine = runner._engine
    picture = load_image(QUESTION.image)
    prompt = f"USER: {engine.media_marker}\n{QUESTION.text} ASSISTANT:"
    engine.prefill(prompt, [picture], [hashlib.sha256(picture.tobytes()).hexdigest()], None, True, 32)
    found = [log_softmax(engine.logits())]
    for token in tokens:
        engine.feed(token)
        found.append(log_softmax(engine.logits()))
    runner.set_fastv(None)
    return found


def test_the_divergence_is_that_of_the_whole_vocabulary(plain: Runner) -> None:
    """Token by token along the unpruned answer, the one that ends it included; drop 0.98 changes most of them."""
    reference = refer(plain, QUESTION, QUESTION.text, None, 32)
    expected = distributions(plain, None, reference.tokens)
    assert len(reference.likeliest) == len(expected)
    assert [int(p.argmax()) for p in expected[:-1]] == list(reference.tokens)

    found = compare(plain, Setting.parse(CHEAP_BAD), reference, QUESTION, QUESTION.text, None)
    other = distributions(plain, CHEAP_BAD, reference.tokens)
    whole = [float(np.sum(np.exp(p) * (p - q))) for p, q in zip(expected, other, strict=True)]
    assert max(whole) > 1.0
    assert found.kl == pytest.approx(whole, rel=1e-2, abs=1e-4)
    assert found.changed.tolist() == [
        int(p.argmax()) != int(q.argmax()) for p, q in zip(expected, other, strict=True)
    ]


def test_the_cost_counts_rows_layer_by_layer(plain: Runner) -> None:
    reference = refer(plain, QUESTION, QUESTION.text, None, 2)
    text, remainder = divmod(reference.rows - 12 * 576, 12)
    assert remainder == 0

    def cost(setting: str) -> float:
        return compare(plain, Setting.parse(setting), reference, QUESTION, QUESTION.text, None).cost

    for setting, visual in (
        ("fastv,k=3,drop=0.75", 3 * 576 + 9 * 144),
        ("turbo:share=0.25", 12 * 432),
        ("turbo:share=0.25 + fastv,k=3,drop=0.75", 3 * 432 + 9 * 108),
        ("reduce:stride,keep=192 + fastv,k=3,drop=0.75", 3 * 192 + 9 * 48),
        ("turbo:share=0.25 + reduce:stride,keep=0.5", 12 * 216),
    ):
        assert cost(setting) == pytest.approx((visual + 12 * text) / reference.rows)


def test_an_answer_is_followed_as_far_as_asked(plain: Runner) -> None:
    reference = refer(plain, QUESTION, QUESTION.text, None, 3)
    assert (len(reference.tokens), len(reference.likeliest)) == (2, 3)


def test_nothing_dropped_is_no_divergence(plain: Runner) -> None:
    reference = refer(plain, QUESTION, QUESTION.text, None, 8)
    found = compare(plain, Setting.parse("fastv,k=6,drop=0"), reference, QUESTION, QUESTION.text, None)
    assert found.cost == 1.0
    assert found.kl.max() < 1e-3
    assert not found.changed.any()


def test_the_encoder_sees_a_picture_once_for_each_turbo(monkeypatch: pytest.MonkeyPatch) -> None:
    """In whatever order the settings are named; its cache has room for one output and a half."""
    schedules = ("fastv,k=2,drop=0.5", "fastv,k=4,drop=0.5")
    mixed = [
        setting
        for schedule in schedules
        for setting in (f"turbo:share=0.5+{schedule}", schedule, f"turbo:share=0.25 + {schedule}")
    ]
    with Runner(n_ctx=1024, fastv=None, encoder_cache_mb=2) as runner:
        encoded = []
        stream = runner.stream

        def counting(*arguments: Any, **options: Any) -> Any:
            made = stream(*arguments, **options)
            encoded.append(runner._engine.report().pictures_encoded)
            return made

        monkeypatch.setattr(runner, "stream", counting)
        found = Measuring(runner, [QUESTION, SECOND], Asking(), 2)(0, mixed)
    assert sum(encoded) == 3
    assert len(encoded) == 2 * (1 + len(mixed))
    assert set(found) == set(mixed)
    costs = [found[setting][0].cost for setting in mixed[:3]]
    assert costs[0] < costs[2] < costs[1]


# the command line


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Four pictures, one question each, no answers."""
    first = {example.picture: example for example in reversed(EXAMPLES)}.values()
    file = tmp_path / "questions.jsonl"
    lines = [{"image": str(example.picture), "question": example.question} for example in first]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return file


def tune(data: Path, *arguments: str) -> int:
    few = ("--positions", "6")
    return main(
        [
            "tune",
            str(data),
            "-c",
            "1024",
            "-t",
            "1",
            *few,
            "--output",
            str(data.parent / "p.json"),
            *arguments,
        ]
    )


def test_the_dear_one_is_chosen_where_the_cheap_one_is_bad(
    data: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert tune(data, "--settings", CHEAP_BAD, "--settings", DEAR_GOOD, "--time", "0") == 0
    assert f"{DEAR_GOOD}\n  1.09 times fewer token rows" in capfd.readouterr().out
    assert Profile.load(data.parent / "p.json").schedule == Schedule.parse(DEAR_GOOD)


def test_the_cheap_one_is_chosen_where_both_are_good(data: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """As cheap as said."""
    good = "k=2,drop=0.5,score=question-max,pick=cover,weigh"
    settings = ("--settings", DEAR_GOOD, "--settings", good)
    assert tune(data, *settings, "--kl", "0.5", "--time", "0", "--json") == 0
    profile = json.loads(capfd.readouterr().out)
    assert profile["schedule"] == good
    measured = profile["measured"]
    assert measured["times_fewer_token_rows"] == pytest.approx(1.64, abs=0.05)
    assert 0 <= measured["chosen"]["kl"] <= measured["chosen"]["kl_upper"] <= 0.5
    assert json.loads((data.parent / "p.json").read_text()) == profile


def test_turbo_is_chosen_and_its_profile_puts_it_in_force(
    data: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """The cheap one is bad, and the other merges in the encoder, too. Timed, and the profile used by ask."""
    good = "turbo:share=0.125+k=8,drop=0.25,score=question-max,pick=cover,weigh"
    settings = ("--settings", "turbo:share=0.98", "--settings", good)
    assert tune(data, *settings, "--kl", "0.5", "--time", "1", "--rounds", "1") == 0
    printed = capfd.readouterr().out
    assert f"{good}\n" in printed
    assert "measured: encoder " in printed
    profile = Profile.load(data.parent / "p.json")
    assert (profile.schedule, profile.turbo) == (Schedule.parse(DEAR_GOOD), Turbo(share=0.125))
    times = profile.measured["times"]["chosen"]
    assert min(times["encode_ms"], times["prefill_ms"]) > 0

    arguments = [str(EXAMPLES[0].picture), EXAMPLES[0].question, "--profile", str(data.parent / "p.json")]
    assert main(["ask", *arguments, "--json"]) == 0
    answer = json.loads(capfd.readouterr().out)
    assert answer["report"]["encoded_tokens"] == 504
    assert answer["report"]["fastv"] == DEAR_GOOD
    assert answer["answer"] == EXAMPLES[0].answer


def test_reducers_are_tried_where_they_are_named(data: Path, tmp_path: Path) -> None:
    model, mmproj = map(str, random_mmproj.write_pair(tmp_path, "LLaVA"))
    settings = ("--settings", "reduce:divprune,keep=60", "--kl", "1000", "--time", "0")
    assert tune(data, "-m", model, "--mmproj", mmproj, *settings) == 0
    assert Profile.load(data.parent / "p.json").reduce == DivPrune(60)


def test_turbo_is_left_out_where_it_leaves_as_many_rows(
    data: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Told in one line, and kept in the profile."""
    model, mmproj = map(str, random_mmproj.write_pair(tmp_path, "Gemma 3"))
    assert tune(data, "-m", model, "--mmproj", mmproj, "--time", "0", "--positions", "2", "--kl", "1000") == 0
    told = "Turbo was not tried: this encoder gives every patch a token again"
    assert [line[: len(told)] for line in capfd.readouterr().out.splitlines()].count(told) == 1
    measured = Profile.load(data.parent / "p.json").measured
    assert "number of the language model's rows" in measured["turbo_not_tried"]
    assert not [tried["setting"] for tried in measured["tried"] if "turbo" in tried["setting"]]


def test_nothing_good_enough_is_off(data: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    model, mmproj = map(str, random_mmproj.write_pair(tmp_path, "LLaVA"))
    assert tune(data, "-m", model, "--mmproj", mmproj, "--settings", CHEAP_BAD, "--kl", "1e-6") == 0
    assert "No setting that was tried stays within 1e-06 nats" in capfd.readouterr().out
    profile = Profile.load(data.parent / "p.json")
    assert profile.schedule is None
    assert [tried["setting"] for tried in profile.measured["tried"]] == [CHEAP_BAD]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--kl", "0"], "kl must be a number of nats above 0"),
        (["--confidence", "95"], "confidence must be a probability from 0.5 to 0.999; got 95.0"),
        (["--positions", "0"], "positions must be an integer, at least 1; got 0"),
        (["--budget", "-1"], "budget must be 0 or more minutes; got -1.0"),
        (["--settings", "fast"], '"fast" is no schedule'),
        (["--limit", "2"], "tuning needs at least 4 pictures; got 2"),
    ],
)
def test_wrong_options_are_one_line_and_status_1(
    data: Path, capfd: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert tune(data, *arguments) == 1
    printed = capfd.readouterr()
    assert message in printed.err
    assert printed.err.count("\n") == 1
    assert not (data.parent / "p.json").exists()


def test_a_model_comes_before_the_data_once(data: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["tune", "a.gguf", str(data), "-m", "b.gguf", "--mmproj", "c"]) == 2
    assert "MODEL excludes --model" in capfd.readouterr().err
    assert main(["tune", "a.gguf", "b", "c"]) == 2
    assert "got 3 paths" in capfd.readouterr().err
    assert main(["tune", "none.gguf", str(data), "--mmproj", "none"]) == 1
    assert "none.gguf" in capfd.readouterr().err
