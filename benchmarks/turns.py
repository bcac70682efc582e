"""What the second question about a picture costs, beside the first: prefill of the language model, on any model.

    python benchmarks/turns.py --model llava-1.5-7b-random-Q4_0.gguf --mmproj mmproj-llava-1.5-7b-random-f16.gguf

The second question recalls as many tokens as the schedule lets it; recall=0 brings nothing back. Questions are so many
letters, which are as many tokens in a model with a vocabulary of bytes, as `pyfastv bench --geometry` writes it.
"""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path

from rich.console import Console
from rich.table import Table

import pyfastv
from pyfastv import _native

PICTURE = Path(pyfastv.__file__).parent / "data" / "scene.png"


def ask_twice(runner: pyfastv.Runner, n_question: int) -> list[_native.RunReport]:
    """Reports of the two questions: the picture and one, and one more behind it."""
    engine = runner._engine
    engine.reset()
    rgb = pyfastv.load_image(PICTURE)
    prompt, reports = f"{engine.media_marker}", []
    for letter in "ab":
        prompt += letter * n_question
        engine.prefill(prompt, [rgb], ["scene"], None, True, 1)
        reports.append(engine.report())
    return reports


def prefill_ms(report: _native.RunReport) -> float:
    return report.full_ms + report.stage0_ms + report.choose_ms + report.later_ms


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, help="GGUF file (default: the bundled model)")
    parser.add_argument("--mmproj", type=Path)
    parser.add_argument("--schedule", nargs="+", default=[pyfastv.Recommended().spec()])
    parser.add_argument(
        "--question", type=int, default=14, help="letters of a question (default: %(default)s)"
    )
    parser.add_argument("--recall", type=float, nargs="+", default=[0.0, pyfastv.Schedule.recall])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int)
    args = parser.parse_args()

    table = Table(
        "schedule",
        "first ms",
        "encoder ms",
        "second ms",
        "choosing",
        "tokens",
        "recalled",
        "ratio",
        "with encoder",
    )
    with pyfastv.Runner(
        args.model, args.mmproj, n_ctx=2048, n_threads=args.threads, fastv=None, encoder_cache_mb=0
    ) as runner:
        for schedule in [f"{s},recall={share}" for s in args.schedule for share in args.recall]:
            runner.set_fastv(schedule)
            rounds = [ask_twice(runner, args.question) for _ in range(args.rounds)]
            first, second = (statistics.median(prefill_ms(pair[i]) for pair in rounds) for i in (0, 1))
            encoder = statistics.median(pair[0].encode_ms for pair in rounds)
            choosing = statistics.median(pair[1].choose_ms for pair in rounds)
            report = rounds[-1][1]
            table.add_row(
                schedule,
                f"{first:.0f}",
                f"{encoder:.0f}",
                f"{second:.0f}",
                f"{choosing:.0f}",
                str(report.prompt_tokens - report.cached_tokens),
                str(report.recalled_tokens),
                f"{first / second:.1f}",
                f"{(first + encoder) / second:.1f}",
            )
    Console(width=150).print(table)


if __name__ == "__main__":
    main()
