"""Fewer visual tokens before the language model: what each way to have fewer does to answers, and what it costs.

    python benchmarks/reducers.py BENCH --answers reducers.jsonl
    python benchmarks/reducers.py BENCH --answers reducers.jsonl --limit 90 --time 3
    python benchmarks/reducers.py BENCH --answers reducers.jsonl --settings off "mine: turbo:r=8 + reduce:pool,keep=100"

Prints Markdown. BENCH and the file of answers as in accuracy.py; a setting as `pyfastv bench` takes it, with a
name and a colon before it.
--time: so many pictures are timed, every setting on each in turn, with nothing in a cache; medians. The machine must be
otherwise idle for that. The bundled model is small: beside its prefill choosing costs more than beside a large one's
(choosing.py has that).
"""

from __future__ import annotations

import argparse
import statistics
from dataclasses import dataclass

import pyfastv
from pyfastv.settings.setting import Setting

from accuracy import Question, arguments, ask, mean_share, percent, read_questions

SCHEDULE, DEEPER, LATER, LATER_DEEPER = (
    pyfastv.Recommended(*cut).spec() for cut in ((2, 0.5), (2, 0.75), (4, 0.75), (4, 0.875))
)
COUNTS = (288, 144)
REDUCERS = {
    "pooling": "pool,keep={}",
    "stride": "stride,keep={}",
    "merge": "merge,keep={}",
    "merge with scale": "merge,keep={},scale",
    "DivPrune": "divprune,keep={}",
    "CDPruner": "cdpruner,keep={}",
}
SETTINGS = [
    "off: off",
    *(f"{name}, {n}: reduce:{spec.format(n)}" for n in COUNTS for name, spec in REDUCERS.items()),
    "pooling, 144, renumbered: reduce:pool,keep=144,renumber",
    *(f"pooling, {n}: reduce:pool,keep={n}" for n in (432, 196)),  # Turbo's counts
    *(f"Turbo, share {share}: turbo:share={share}" for share in (0.25, 0.5, 0.66)),
    *(f"Turbo once, share {share}: turbo:share={share},once" for share in (0.5, 0.66)),
    f"Recommended(2, 0.5): {SCHEDULE}",
    f"Recommended(2, 0.75): {DEEPER}",
    f"Recommended(4, 0.875): {LATER_DEEPER}",
    f"Turbo, share 0.25, Recommended(4, 0.75): turbo:share=0.25 + {LATER}",
    f"Turbo, share 0.25, Recommended(2, 0.75): turbo:share=0.25 + {DEEPER}",
    f"pooling, 432, Recommended(2, 0.75): reduce:pool,keep=432 + {DEEPER}",
    *(
        f"{name}, 288, Recommended(2, 0.5): reduce:{REDUCERS[name].format(288)} + {SCHEDULE}"
        for name in ("pooling", "merge", "DivPrune", "CDPruner")
    ),
    *(
        f"Turbo, share {share}, Recommended(2, 0.5): turbo:share={share} + {SCHEDULE}"
        for share in (0.25, 0.5)
    ),
]


@dataclass(frozen=True)
class Times:
    """Milliseconds, medians."""

    encode: float
    reduce: float
    prefill: float


def measure(questions: list[Question], settings: list[str], args: argparse.Namespace) -> dict[str, Times]:
    """In turn, so that whatever else the machine does falls on all alike."""
    taken: dict[str, list[tuple[float, float, float]]] = {setting: [] for setting in settings}
    first_of = {question["image"]: question for question in reversed(questions)}
    asked = list(first_of.values())[::-1][: args.time]
    with pyfastv.Runner(args.model, args.mmproj, n_ctx=1024, fastv=None, encoder_cache_mb=0) as runner:
        for question in asked:
            for setting in settings:
                runner._use(Setting.parse(setting))
                for _ in range(2):  # the first one warms up
                    runner._engine.reset()
                    report = runner.ask(
                        args.bench / question["image"], question["question"], max_tokens=1
                    ).report
                taken[setting].append((report.encode_ms, report.reduce_ms, report.prefill_ms))
    return {
        setting: Times(*(statistics.median(column) for column in zip(*rows, strict=True)))
        for setting, rows in taken.items()
    }


def main() -> None:
    parser = arguments(__doc__.splitlines()[0])
    parser.add_argument("--settings", nargs="+", default=SETTINGS, help="see above")
    parser.add_argument("--time", type=int, default=0, help="pictures to time (default: none)")
    args = parser.parse_args()

    names = {}
    for text in args.settings:
        name, colon, setting = text.partition(": ")
        names[name] = setting if colon else name
    settings = list(dict.fromkeys(names.values()))
    questions = read_questions(args)
    answers = ask(questions, settings, args)
    times = measure(questions, settings, args) if args.time else {}

    print(f"{len(questions)} questions.\n")
    print(
        "| setting | right, % | visual tokens | retained share |"
        + " encoder, ms | reducer, ms | prefill, ms |" * bool(times)
    )
    print("|---|--:|--:|--:|" + "--:|--:|--:|" * bool(times))
    for name, setting in names.items():
        given = answers[setting]
        visual = statistics.mean(one.visual for one in given.values())
        right = percent(questions, given)["percent"]
        row = f"| {name} | {right:.1f} | {visual:.0f} | {mean_share(given):.3f} |"
        if times:
            at = times[setting]
            row += f" {at.encode:.0f} | {at.reduce:.1f} | {at.prefill:.0f} |"
        print(row)


if __name__ == "__main__":
    main()
