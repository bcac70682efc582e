"""What the measurements of a bench say: medians and spread, ratios, and the theory beside them."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from .. import theory
from ..models.header import ModelFiles
from .measure import STOCK, Plan, Results
from .ratios import Ratio, compare

__all__ = ["PARTS", "Counts", "Row", "Spread", "count", "summarize"]

PARTS = {
    "picture_ms": "picture decode",
    "encoder_ms": "encoder",
    "reduce_ms": "reducing",
    "full_ms": "all layers",
    "stage0_ms": "stage 0",
    "choose_ms": "choosing",
    "later_ms": "later layers",
    "other_ms": "rest",
}
"""The parts of the time to first token, in their order. "all layers": rows that went through every layer at once, which
are all of them without a schedule. "rest": tokenizing, resizing, the first sample."""

COMPARED = {
    "first_token": "first_token_ms",
    "first_token_cpu": "first_token_cpu_ms",
    "prefill": "prefill_ms",
    "generate": "generate_ms",
}
"""What has ratios, and the measurement it is of."""


@dataclass(frozen=True)
class Spread:
    """Of one quantity over the rounds."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        return cls(statistics.median(values), min(values), max(values))


@dataclass(frozen=True)
class Counts:
    """Multiply-adds of a prompt (:mod:`pyfastv.theory`)."""

    paper: int
    """4nd^2 + 2n^2d + 2ndm for each layer, as FastV's paper counts."""
    prefill: int
    """What is computed: all matrices of the file, causal attention, one row in the last feed-forward block."""
    encoder: int | None
    """Vision encoder and projector; None: not counted, for Turbo merges in it, or it does not see all."""


@dataclass(frozen=True)
class Row:
    """One setting."""

    name: str
    rounds: int
    times: dict[str, Spread]
    """Milliseconds: first_token_ms, prefill_ms, generate_ms, their CPU times, and :data:`PARTS`."""
    peak_bytes: int | None
    peak_is_of_setting: bool
    """False: of all settings that its process measured."""
    kv_bytes: int | None
    """KV cache that holds tokens after prefill."""
    kv_bytes_allocated: int | None
    visual_tokens: int
    in_stage: tuple[int, ...]
    """Visual tokens that each stage sees."""
    share: float
    """Visual tokens that a layer sees, mean over the layers, of all."""
    counts: Counts | None
    ratios: dict[str, dict[str, Ratio]]
    """By what it is compared with ("off", "stock") and what of it (:data:`COMPARED`)."""
    theory: dict[str, dict[str, float]]
    """As ``ratios``: "paper" and "prefill" of the language model, "first_token" with the encoder."""
    generate: int
    graphs_reused: int | None

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "setting": self.name,
            "rounds": self.rounds,
            "times": {name: vars(spread) for name, spread in self.times.items()},
            "peak_bytes": self.peak_bytes,
            "peak_is_of_setting": self.peak_is_of_setting,
            "kv_bytes": self.kv_bytes,
            "kv_bytes_allocated": self.kv_bytes_allocated,
            "visual_tokens": self.visual_tokens,
            "visual_tokens_in_stage": list(self.in_stage),
            "retained_share": self.share,
            "flops": None if self.counts is None else vars(self.counts),
            "ratios": {
                base: {name: ratio.to_dict() for name, ratio in ratios.items()}
                for base, ratios in self.ratios.items()
            },
            "theory": self.theory,
            "generate": self.generate,
            "graphs_reused": self.graphs_reused,
        }


def count(
    files: ModelFiles, first_layers: Sequence[int], in_stage: Sequence[int], prompt: Mapping[str, Any]
) -> Counts:
    """``in_stage``: visual tokens that each stage sees. ``prompt``: ``n_visual``, ``n_text`` and ``n_slices`` of the
    picture as the encoder makes them."""
    decoder = files.decoder
    ends = [*first_layers[1:], decoder.n_layer]
    rows = [
        n + prompt["n_text"]
        for first, end, n in zip(first_layers, ends, in_stage, strict=True)
        for _ in range(end - first)
    ]
    encoder = 0 if files.encoder is None else files.encoder.flops(prompt["n_visual"], prompt["n_slices"])
    return Counts(theory.paper_flops(decoder, rows), theory.flops(decoder, rows), encoder)


def summarize(plan: Plan, results: Results, files: ModelFiles | None) -> list[Row]:
    """A row for each setting that was measured at least once. ``files``: None: no theory."""
    rows = []
    n_visual = results.prompt.get("n_visual", 0)
    merged = [name for name, s in plan.settings.items() if s.turbo is not None or s.skip is not None]
    off = plan.off
    counts_of: dict[str, Counts] = {}
    for name in plan.names:
        runs = results.runs(name)
        if not runs:
            continue
        last = runs[-1]
        first_layers = last.get("first_layers", [0])
        in_stage = tuple(last.get("visual_tokens_in_stage", [n_visual]))
        if files is not None:
            counts = count(files, first_layers, in_stage, results.prompt)
            counts_of[name] = replace(counts, encoder=None) if name in merged else counts
        bases = [base for base in dict.fromkeys((off, STOCK)) if base in plan.names and base != name]
        bases = [base for base in bases if results.runs(base) and name != STOCK]
        peaks = [run["peak_bytes"] for run in runs if run["peak_bytes"] is not None]
        rows.append(
            Row(
                name=name,
                rounds=len(runs),
                times=_times(runs),
                peak_bytes=max(peaks, default=None),
                peak_is_of_setting=all(run["peak_is_of_setting"] for run in runs),
                kv_bytes=_kv_bytes(results, off, name, "used"),
                kv_bytes_allocated=_kv_bytes(results, off, name, "allocated"),
                visual_tokens=n_visual,
                in_stage=in_stage,
                share=_share(first_layers, in_stage, results.prompt.get("n_layer", 1), n_visual),
                counts=counts_of.get(name),
                ratios={base: _ratios(results, base, name) for base in bases},
                theory={
                    base: _theory(counts_of[base], counts_of[name]) for base in bases if base in counts_of
                },
                generate=last["generate"],
                graphs_reused=min(run["graphs_reused"] for run in runs),
            )
        )
    return rows


def _times(runs: Sequence[dict[str, Any]]) -> dict[str, Spread]:
    for run in runs:
        # stock libraries know of no stages
        run.setdefault("full_ms", run["prefill_ms"])
        known = sum(run.get(part, 0.0) for part in PARTS if part != "other_ms")
        run["other_ms"] = max(0.0, run["first_token_ms"] - known)
    names = dict.fromkeys([*COMPARED.values(), "generate_cpu_ms", *PARTS])
    return {name: Spread.of([run.get(name, 0.0) for run in runs]) for name in names}


def _kv_bytes(results: Results, off: str, name: str, which: str) -> int | None:
    """Stock's is told by our own libraries."""
    runs = results.runs(off if name == STOCK else name)
    if not runs:
        return None
    if name == STOCK:
        return int(runs[-1][f"kv_bytes_{which}_stock"])
    return int(sum(runs[-1][f"kv_bytes_{which}"]))


def _share(first_layers: Sequence[int], in_stage: Sequence[int], n_layer: int, n_visual: int) -> float:
    ends = [*first_layers[1:], n_layer]
    seen = sum((end - first) * n for first, end, n in zip(first_layers, ends, in_stage, strict=True))
    return seen / (n_layer * n_visual) if n_visual else 1.0


def _ratios(results: Results, base: str, name: str) -> dict[str, Ratio]:
    ratios = {}
    for what, key in COMPARED.items():
        ours, theirs = results.paired(base, name, key)
        if what == "generate" and not results.runs(name)[0]["generate"]:
            continue
        if any(ours) and all(value > 0 for restart in (*ours, *theirs) for value in restart):
            ratios[what] = compare(ours, theirs, between_processes=base == STOCK)
    return ratios


def _theory(base: Counts, other: Counts) -> dict[str, float]:
    ratios = {"paper": base.paper / other.paper, "prefill": base.prefill / other.prefill}
    if base.encoder is not None and other.encoder is not None:
        ratios["first_token"] = (base.prefill + base.encoder) / (other.prefill + other.encoder)
    return ratios
