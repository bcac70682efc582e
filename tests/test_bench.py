"""pyfastv bench: settings, the order of rounds, and what is made of measurements."""

from __future__ import annotations

import io
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from PIL import Image
from rich.console import Console

import pyfastv
from pyfastv.bench import measure as measuring
from pyfastv.bench import runner_process
from pyfastv.bench.measure import STOCK, Plan, Results, check_comparable, order
from pyfastv.bench.plot import save_plot
from pyfastv.bench.summary import COMPARED, PARTS, Row, count, summarize
from pyfastv.bench.tables import as_markdown, cost_table, print_tables, ratio_table, tables_of
from pyfastv.errors import Error, OptionError
from pyfastv.models import bundled_examples, bundled_mmproj, bundled_model
from pyfastv.models.header import read_model
from pyfastv.settings.setting import Setting, parse_settings

MODEL, MMPROJ = str(bundled_model()), str(bundled_mmproj())
PICTURE = str(bundled_examples()[0].picture)


# settings


def test_a_setting_has_a_schedule_turbo_and_a_reducer() -> None:
    setting = Setting.parse(" turbo:share=0.5 + k=2,drop=0.75;k=6,drop=0.9+reduce:pool,window=2")
    assert (setting.turbo, setting.reduce) == (pyfastv.Turbo(0.5), pyfastv.Pool(2))
    assert setting.fastv == pyfastv.Schedule.parse("k=2,drop=0.75;k=6,drop=0.9")
    assert Setting.parse(setting.spec()) == setting
    assert Setting.parse("turbo + reduce:off + off").spec() == f"turbo:{pyfastv.Turbo(0.5).spec()}"


@pytest.mark.parametrize(
    ("text", "fastv"),
    [
        ("off", None),
        ("recommended", pyfastv.Recommended()),
        ("k=2,drop=0.5", pyfastv.Recommended()),
        ("fastv,k=2,drop=0.5", pyfastv.FastV()),
        ("turbo + off", None),
    ],
)
def test_schedules_are_those_of_everywhere(text: str, fastv: pyfastv.Schedule | None) -> None:
    assert Setting.parse(text).fastv == fastv


def test_a_preset_of_a_setting_is_of_its_class() -> None:
    """What is shown of it begins with its name."""
    assert type(Setting.parse("turbo + Recommended").fastv) is pyfastv.Recommended


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("k=2 +", '"k=2 +": there is nothing on one side of a "+"'),
        ("k=2 + recommended", '"k=2 + recommended": a schedule is given twice'),
        ("Turbo + turbo : r=3", '"Turbo + turbo : r=3": turbo is given twice'),
        ("reduce: + k=2", '"reduce: + k=2": reduce: needs the reducer\'s name behind the colon'),
        ("turbo:share=2", "turbo: share = 2 is out of range"),
        ("reduce:pole", 'reduce: "pole" is no reducer'),
        ("turbo + k=0", "k = 0 is out of range"),
        ("off + k=2", '"off + k=2": a schedule is given twice'),
    ],
)
def test_what_is_wrong_with_a_setting_is_told_with_its_part(text: str, says: str) -> None:
    with pytest.raises(OptionError) as caught:
        Setting.parse(text)
    assert str(caught.value).startswith(says)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "k=2 +",
        "k=2 + k=3",
        "turbo + turbo:share=0.5",
        "reduce",
        "reduce:",
        "k=two",
        "fastvv",
        "k=2,drop=3",
    ],
)
def test_what_is_no_setting_is_told(text: str) -> None:
    with pytest.raises(OptionError):
        Setting.parse(text)


def test_off_is_in_front_whether_given_or_not() -> None:
    assert [*parse_settings(["k=2", "recommended"])] == ["off", "k=2", "recommended"]
    assert [*parse_settings([" k=2+turbo:r=1 ", "off"])] == ["off", "k=2 + turbo:r=1"]
    with pytest.raises(OptionError, match="twice"):
        parse_settings(["k=2", "off", "k=2"])


# the order


@pytest.mark.parametrize("n", [1, 2, 3, 5])
def test_each_item_takes_each_place(n: int) -> None:
    items = list(range(n))
    places = Counter((item, place) for i in range(n) for place, item in enumerate(order(items, i)))
    assert set(places.values()) == {1}
    assert len(places) == n * n


def plan(*settings: str, **options: Any) -> Plan:
    return Plan(MODEL, MMPROJ, parse_settings(settings), PICTURE, **options)


class FakeWorker:
    """Answers at once; writes down who was asked for what."""

    def __init__(self, name: str, log: list[tuple[str, str]], stop_at: int | None = None) -> None:
        self.name, self.log, self.stop_at = name, log, stop_at
        self.setting = name

    def request(self, do: str, **values: Any) -> dict[str, Any]:
        if do == "prepare":
            return PROMPT
        if do == "info":
            return PROMPT | {"has_fastv": False, "libraries": "here"}
        if do == "set":
            self.setting = values["setting"]
            return {}
        self.log.append((self.name, self.setting))
        if self.stop_at is not None and len(self.log) > self.stop_at:
            raise KeyboardInterrupt
        return run(self.setting) if self.name == "pyfastv" else stock_run()

    def close(self) -> None:
        pass

    def __enter__(self) -> FakeWorker:
        return self

    def __exit__(self, *error: object) -> None:
        pass


PROMPT = {
    "text": " a" * 14,
    "n_visual": 576,
    "n_text": 14,
    "n_slices": 1,
    "n_layer": 12,
    "bindings_version": "0",
    "llama_version": "1",
    "ggml_version": "1",
    "system_info": "SIMD",
}


def stock_run(factor: float = 1.0) -> dict[str, Any]:
    """As the process of the stock libraries answers."""
    return {
        "first_token_ms": 150.0 * factor,
        "first_token_cpu_ms": 290.0 * factor,
        "picture_ms": 5.0,
        "encoder_ms": 40.0,
        "prefill_ms": 100.0 * factor,
        "generate": 4,
        "generate_ms": 10.0,
        "generate_cpu_ms": 20.0,
        "graphs_reused": 3,
        "peak_bytes": 2**30,
        "peak_is_of_setting": True,
    }


def run(setting: str, factor: float = 1.0) -> dict[str, Any]:
    """As the process of pyfastv answers."""
    common = {
        "prompt_tokens": 590,
        "visual_tokens": 576,
        "archive_bytes": 0,
        "kv_bytes_used_stock": 590 * 12 * 2048,
        "kv_bytes_allocated_stock": 1024 * 12 * 2048,
    }
    if setting == "off":
        parts = {"full_ms": 100.0 * factor, "stage0_ms": 0.0, "choose_ms": 0.0, "later_ms": 0.0}
        stages = {
            "first_layers": [0],
            "visual_tokens_in_stage": [576],
            "kv_bytes_used": [590 * 12 * 2048],
            "kv_bytes_allocated": [1024 * 12 * 2048],
        }
        return stock_run(factor) | parts | stages | common
    parts = {"full_ms": 0.0, "stage0_ms": 17.0 * factor, "choose_ms": 1.0, "later_ms": 42.0 * factor}
    stages = {
        "first_layers": [0, 2],
        "visual_tokens_in_stage": [576, 288],
        "kv_bytes_used": [590 * 2 * 2048, 302 * 10 * 2048],
        "kv_bytes_allocated": [1024 * 2 * 2048, 1024 * 10 * 2048],
    }
    prefill = sum(parts.values())
    times = {
        "first_token_ms": 50.0 + prefill,
        "first_token_cpu_ms": 100.0 + 2 * prefill,
        "prefill_ms": prefill,
    }
    return stock_run() | parts | stages | common | times


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """Who was asked to measure what, in order."""
    made: list[tuple[str, str]] = []
    monkeypatch.setattr(measuring, "start_runner_worker", lambda options: FakeWorker("pyfastv", made))
    monkeypatch.setattr(measuring, "start_library_worker", lambda name, options: FakeWorker("stock", made))
    return made


def test_settings_are_measured_in_turn_with_stock(log: list[tuple[str, str]]) -> None:
    results = Results()
    told: list[tuple[int, int]] = []
    measuring.measure(
        plan("k=2", rounds=3, restarts=2, stock="here"),
        results,
        lambda what, done, n_all: told.append((done, n_all)),
    )
    per_restart = [
        *("stock", "off", "k=2"),
        *("off", "k=2", "stock"),
        *("k=2", "stock", "off"),
    ]
    assert [setting for _, setting in log] == per_restart * 2
    assert [[len(restart) for restart in results.rounds[name]] for name in (STOCK, "off", "k=2")] == [
        [3, 3]
    ] * 3
    assert told[-1] == (17, 18)


def test_an_interrupt_leaves_what_was_measured(
    log: list[tuple[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        measuring, "start_runner_worker", lambda options: FakeWorker("pyfastv", log, stop_at=2 * 2 + 1)
    )
    results = Results()
    with pytest.raises(KeyboardInterrupt):
        measuring.measure(plan("k=2", rounds=6), results, lambda *_: None)
    assert [len(results.runs(name)) for name in ("off", "k=2")] == [3, 2]
    rows = summarize(plan("k=2"), results, None)
    assert [row.rounds for row in rows] == [3, 2]
    assert rows[1].ratios["off"]["prefill"].rounds == 2  # those that both have


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"has_fastv": True}, "not stock ones"),
        ({"system_info": "none"}, "system_info of the stock libraries is none, of ours SIMD"),
        ({"llama_version": "2"}, "llama_version"),
        ({"n_visual": 577}, "577"),
    ],
)
def test_libraries_that_differ_are_not_compared(change: dict[str, Any], told: str) -> None:
    stock = PROMPT | {"has_fastv": False, "libraries": "here"} | change
    with pytest.raises(Error, match=told):
        check_comparable(stock, PROMPT)
    check_comparable(PROMPT | {"has_fastv": False, "llama_version": "1-dev"}, PROMPT)


# what is made of it


def results_of(n: int = 6) -> Results:
    """Rounds that were each disturbed in another way."""
    factors = [1 + 0.1 * i for i in range(n)]
    return Results(
        prompt=dict(PROMPT),
        rounds={
            STOCK: [[stock_run(f) for f in factors]],
            "off": [[run("off", f) for f in factors]],
            "k=2": [[run("k=2", f) for f in factors]],
        },
    )


@pytest.fixture(scope="module")
def rows() -> list[Row]:
    return summarize(plan("k=2", stock="here"), results_of(), read_model(MODEL, MMPROJ))


def test_rows_have_medians_ratios_and_theory(rows: list[Row]) -> None:
    stock, off, pruned = rows
    assert [row.name for row in rows] == [STOCK, "off", "k=2"]
    assert stock.ratios == {}
    assert set(off.ratios) == {STOCK}
    assert set(pruned.ratios) == {"off", STOCK}
    assert set(pruned.ratios["off"]) == set(COMPARED)
    assert off.times["prefill_ms"].median == pytest.approx(125)
    assert (off.times["prefill_ms"].low, off.times["prefill_ms"].high) == pytest.approx((100, 150))
    assert off.ratios[STOCK]["prefill"].verdict == "no difference measured"
    assert pruned.ratios["off"]["prefill"].verdict == "faster"
    assert pruned.ratios["off"]["generate"].verdict == "no difference measured"
    assert pruned.share == pytest.approx((2 * 576 + 10 * 288) / (12 * 576))
    assert stock.kv_bytes == off.kv_bytes == 590 * 12 * 2048
    assert pruned.kv_bytes == (590 * 2 + 302 * 10) * 2048


def test_the_parts_sum_to_the_time_to_first_token() -> None:
    for row in summarize(plan("k=2", stock="here"), results_of(1), None):
        assert sum(row.times[part].median for part in PARTS) == pytest.approx(
            row.times["first_token_ms"].median
        )


def test_theory_is_the_count_of_what_is_multiplied() -> None:
    """Written out again for the bundled model: 12 layers, 512 wide, no grouped queries; 8 layers of encoder are run."""
    files = read_model(MODEL, MMPROJ)
    d, m, vocab, n, kept = 512, files.decoder.ffn, 2048, 590, 302
    full = count(files, [0], [576], PROMPT)
    pruned = count(files, [0, 2], [576, 288], PROMPT)
    layer = {rows: rows * (4 * d * d + 3 * d * m) + rows * (rows + 1) // 2 * 2 * d for rows in (n, kept)}
    assert full.prefill == 12 * layer[n] - (n - 1) * 3 * d * m + d * vocab
    assert pruned.prefill == 2 * layer[n] + 10 * layer[kept] - (kept - 1) * 3 * d * m + d * vocab
    paper = {rows: 4 * rows * d * d + 2 * rows * rows * d + 2 * rows * d * m for rows in (n, kept)}
    assert (full.paper, pruned.paper) == (12 * paper[n], 2 * paper[n] + 10 * paper[kept])
    assert full.encoder == pruned.encoder
    assert (full.encoder or 0) > 0


def test_of_turbo_s_encoder_no_theory_is_told() -> None:
    results = results_of()
    results.rounds["turbo + k=2"] = results.rounds.pop("k=2")
    *_, row = summarize(plan("turbo + k=2"), results, read_model(MODEL, MMPROJ))
    assert set(row.theory["off"]) == {"paper", "prefill"}
    *_, line = ratio_table([row], "off")
    assert line[3] == "-"


def test_a_setting_is_put_in_force_and_taken_back() -> None:
    called: list[Any] = []
    process = object.__new__(runner_process._Measuring)
    process._runner = cast(pyfastv.Runner, SimpleNamespace(_use=called.append))
    process.set("turbo + fastv,k=2")
    process.set("off")
    assert called == [Setting(pyfastv.FastV(), pyfastv.Turbo(0.5)), Setting()]


def test_tables_say_where_there_is_no_difference(rows: list[Row]) -> None:
    against_stock = ratio_table(rows, STOCK)
    assert [line[0] for line in against_stock[1:]] == ["off", "k=2"]
    assert against_stock[1][4].startswith("no difference measured [")
    assert against_stock[2][4].startswith("2.") is (rows[2].ratios[STOCK]["prefill"].median >= 2)
    (against_off,) = ratio_table(rows, "off")[1:]
    assert against_off[0] == "k=2"
    assert against_off[8].startswith("no difference measured")
    head, *lines = cost_table(rows)
    assert "stage 0" in head
    assert all(len(line) == len(head) for line in lines)
    assert lines[2][1] == "576 > 288"
    assert as_markdown("c", [["a", "b"], ["1", "2"]]) == "c:\n\n| a | b |\n| --- | --: |\n| 1 | 2 |"


@pytest.mark.parametrize("width", [80, 240])
def test_tables_fit_the_console(rows: list[Row], width: int) -> None:
    file = io.StringIO()
    print_tables("a title", tables_of(rows, "off"), Console(file=file, width=width))
    printed = file.getvalue()
    assert max(len(line.rstrip()) for line in printed.splitlines()) <= width
    assert "\u2026" not in printed  # nothing is cut off
    for word in ("picture decode", "later layers", "k=2", "times as fast as stock", "96.6%"):
        assert word in printed


def test_nothing_generated_has_no_speed() -> None:
    results = results_of()
    for restarts in results.rounds.values():
        for measured in restarts[0]:
            measured |= {"generate": 0, "generate_ms": 1e-4}
    *_, row = summarize(plan("k=2"), results, None)
    assert "generate" not in row.ratios["off"]
    assert ratio_table([row], "off")[1][-1] == "-"


def test_one_round_is_told_as_such() -> None:
    (off, pruned) = summarize(plan("k=2"), results_of(1), None)
    assert off.ratios == {}
    (line,) = ratio_table([off, pruned], "off")[1:]
    assert "one round" in line[4]
    assert line[3] == line[5] == line[6] == "-"  # no theory without sizes


def test_the_plot_is_written_and_has_every_bar(rows: list[Row], tmp_path: Path) -> None:
    path = tmp_path / "plot.png"
    save_plot(path, rows, "a title", "off")
    with Image.open(path) as picture:
        colors = {color for _, color in picture.convert("RGB").getcolors(2**24) or []}
    assert {(0x00, 0x72, 0xB2), (0x56, 0xB4, 0xE9), (0x00, 0x9E, 0x73), (0xE6, 0x9F, 0x00)} <= colors
    with pytest.raises(Error, match="cannot be written"):
        save_plot(tmp_path / "plot.nosuchformat", rows, "a title", "off")


def test_the_page_explains_every_part_and_every_column(rows: list[Row]) -> None:
    page = (Path(__file__).parents[1] / "docs" / "performance.md").read_text("utf-8")
    for part in PARTS.values():
        assert f"| {part} |" in page
    for word in (*cost_table(rows)[0][1:], *ratio_table(rows, "off")[0][1:]):
        assert word.split(",")[0] in page
