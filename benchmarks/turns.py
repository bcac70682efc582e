"""What the second question about a picture costs, beside the first: prefill of the language model, on any model.

    python benchmarks/turns.py --model llava-1.5-7b-random-Q4_0.gguf --mmproj mmproj-llava-1.5-7b-random-f16.gguf

The second question recalls as many tokens as the schedule lets it. With --no-recall nothing comes back.
"""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path

from rich.console import Console
from rich.table import Table

import pyfastv

FIRST, SECOND = "Describe the image.", "What is written on it?"
PICTURE = Path(pyfastv.__file__).parent / "data" / "scene.png"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, help="GGUF file (default: the bundled model)")
    parser.add_argument("--mmproj", type=Path)
    parser.add_argument("--schedule", nargs="+", default=["k=2,drop=0.5,score=question-max,pick=cover"])
    parser.add_argument("--recall", type=float, nargs="+", default=[0.0, pyfastv.Schedule.recall])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int)
    args = parser.parse_args()

    table = Table(
        "schedule", "first ms", "encoder ms", "second ms", "tokens", "recalled", "ratio", "with encoder"
    )
    with pyfastv.Runner(args.model, args.mmproj, n_ctx=2048, n_threads=args.threads, fastv=None) as runner:
        for schedule in [f"{s},recall={share}" for s in args.schedule for share in args.recall]:
            runner.set_fastv(schedule)
            pairs = []
            for _ in range(args.rounds):
                with runner.session() as chat:
                    first = chat.ask(FIRST, PICTURE, max_tokens=1).report
                    second = chat.ask(SECOND, max_tokens=1).report
                pairs.append((first, second))
                runner.set_fastv(schedule)  # forgets the context
            first_ms = statistics.median(first.prefill_ms for first, _ in pairs)
            encode_ms = pairs[0][0].encode_ms  # later ones come from the encoder's cache
            second_ms = statistics.median(second.prefill_ms for _, second in pairs)
            report = pairs[-1][1]
            table.add_row(
                schedule,
                f"{first_ms:.0f}",
                f"{encode_ms:.0f}" if encode_ms else "",
                f"{second_ms:.0f}",
                str(report.prompt_tokens - report.cached_tokens),
                str(report.recalled_tokens),
                f"{first_ms / second_ms:.1f}",
                f"{(first_ms + encode_ms) / second_ms:.1f}" if encode_ms else "",
            )
    Console(width=140).print(table)


if __name__ == "__main__":
    main()
