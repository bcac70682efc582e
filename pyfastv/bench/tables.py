"""The tables of a bench, on a terminal and in markdown."""

from __future__ import annotations

from collections.abc import Sequence

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from .measure import STOCK
from .ratios import RULE, Ratio
from .summary import PARTS, Row, Spread

__all__ = ["as_markdown", "cost_table", "print_tables", "ratio_table", "tables_of"]

Cells = list[list[str]]

_MIB = 1024 * 1024
_WIDE = Console(width=10_000)


def cost_table(rows: Sequence[Row]) -> Cells:
    """What each setting takes; the first list is the head. A part that no setting has is left out."""
    parts = [name for name in PARTS if any(row.times[name].high >= 0.05 for row in rows)]
    generated = any(row.generate for row in rows)
    head = ["setting", "visual tokens", "first token, ms", *(PARTS[name] for name in parts)]
    head += ["CPU, ms", *(["tokens/s"] if generated else []), "peak MiB", "KV MiB"]
    cells = [head]
    for row in rows:
        line = [row.name, _stages(row), _spread(row.times["first_token_ms"])]
        line += [_ms(row.times[name].median) for name in parts]
        line.append(_ms(row.times["first_token_cpu_ms"].median))
        if generated:
            line.append(f"{1000 / row.times['generate_ms'].median:.1f}" if row.generate else "-")
        line += [_mib(row.peak_bytes), _mib(row.kv_bytes, 1)]
        cells.append(line)
    return cells


def ratio_table(rows: Sequence[Row], base: str) -> Cells:
    """How many times as fast as ``base``, beside theory; the first list is the head."""
    head = [
        "setting",
        "first token",
        "by CPU",
        "theory",
        "LM prefill",
        "theory",
        "reached",
        "paper",
        "generation",
    ]
    cells = [head]
    for row in rows:
        if base not in row.ratios:
            continue
        ratios, theory = row.ratios[base], row.theory.get(base)
        prefill = ratios.get("prefill")

        def count(name: str, theory: dict[str, float] | None = theory) -> str:
            return "-" if theory is None or name not in theory else f"{theory[name]:.2f}"

        reached = "-" if theory is None or prefill is None else f"{prefill.median / theory['prefill']:.1%}"
        cells.append(
            [
                row.name,
                _ratio(ratios.get("first_token")),
                _ratio(ratios.get("first_token_cpu")),
                count("first_token"),
                _ratio(prefill),
                count("prefill"),
                reached,
                count("paper"),
                _ratio(ratios.get("generate")),
            ]
        )
    return cells


def tables_of(rows: Sequence[Row], off: str) -> list[tuple[str, Cells]]:
    """Titles and cells of every table that there is something for."""
    tables = [("what it takes: medians over the rounds (range)", cost_table(rows))]
    tables += [(f"times as fast as {base}", ratio_table(rows, base)) for base in (off, STOCK)]
    return [(title, cells) for title, cells in tables if len(cells) > 1]


def print_tables(title: str, tables: Sequence[tuple[str, Cells]], console: Console) -> None:
    """On a console. A table that is wider than it stands on its side: a line for each column."""
    console.print(title, highlight=False)
    for name, cells in tables:
        table = _table(name, cells)
        if _WIDE.measure(table).maximum > console.width:
            table = _table(name, [list(line) for line in zip(*cells, strict=True)])
        console.print(table)
    console.print(Text(RULE, style="dim"))


def as_markdown(title: str, cells: Cells) -> str:
    """A table for a page, below its title."""
    head, *lines = cells
    rule = ["---", *["--:"] * (len(head) - 1)]
    return f"{title}:\n\n" + "\n".join(f"| {' | '.join(line)} |" for line in (head, rule, *lines))


def _table(title: str, cells: Cells) -> Table:
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD)
    head, *lines = cells
    for i, name in enumerate(head):
        table.add_column(name, justify="right" if i else "left", overflow="fold")
    for line in lines:
        table.add_row(*line)
    return table


def _stages(row: Row) -> str:
    counts = [row.visual_tokens, *row.in_stage[1:]] if row.in_stage[0] == row.visual_tokens else row.in_stage
    return " > ".join(str(n) for n in counts)


def _ratio(ratio: Ratio | None) -> str:
    if ratio is None:
        return "-"
    if ratio.low is None or ratio.high is None:
        return f"{ratio.median:.3f} ({ratio.verdict})"
    where = f"[{ratio.low:.3f}, {ratio.high:.3f}]"
    return f"{ratio.median:.3f} {where}" if ratio.is_difference else f"{ratio.verdict} {where}"


def _spread(spread: Spread) -> str:
    return f"{_ms(spread.median)} ({_ms(spread.low)}-{_ms(spread.high)})"


def _ms(value: float) -> str:
    return f"{value:.1f}" if value < 100 else f"{value:.0f}"


def _mib(value: int | None, digits: int = 0) -> str:
    return "-" if value is None else f"{value / _MIB:.{digits}f}"
