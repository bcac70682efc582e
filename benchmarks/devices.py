#!/usr/bin/env python3
"""Compare what two devices make of the same pictures and questions: a GPU with all layers on it, and the CPU.

    python devices.py
    python devices.py --devices cpu gpu --pair M.gguf P.gguf --settings off fastv,k=2,drop=0.5
    python devices.py --devices gpu 6 --flash-attention off --cache-type f32

A device is "cpu", "gpu", or a number of layers on the GPU (from 1 on the vision encoder is there, too). Each has a
process of its own with the same libraries. That of "cpu" sees no GPU of CUDA, HIP and Vulkan (their variables say so):
with one at hand ggml multiplies large batches there even where no layer is on it. A case that fails, or that ends the
process, is a row of the table, and the next one goes on in a new process.

Compared are the encoder's rows, then for each setting the kept sets, the scores, and the logits behind the prompt and
behind tokens that both are given; a conversation, whose second question recalls; and two requests at once, each as
alone. A setting that drops nothing is compared with "off" on the same device, too.

Devices round in different ways (the CPU quantizes activations, tensor cores take f16 or tf32), so that scores near the
border change places and logits differ in the third digit: what is told are sizes. Ends with status 1 where a case fails
on one device alone, or where logits, with the same tokens kept, differ by a relative rms above --tolerance.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import pyfastv
from pyfastv import Runner, _native, examples
from pyfastv.models import bundled_mmproj, bundled_model
from pyfastv.settings.setting import Setting

# each rule's scores, and each way to choose by them
SETTINGS = (
    "off",
    "k=2,drop=0",
    "fastv,k=2,drop=0.5",
    "fastv,k=2,drop=0.75",
    "recommended",
    "k=2,drop=0.75",
    "k=2,drop=0.5,score=question-mean,pick=window4",
    "k=2,drop=0.5,score=all,pick=top-k,merge",
    "k=2,drop=0.5,score=last-no-rope,pick=grid3",
    "k=2,drop=0.5,score=random7,pick=top-k",
    "pyramiddrop",
    "turbo:share=0.5",
    "turbo:share=0.25 + k=2,drop=0.5",
)
ENCODERS = ("off", "turbo:share=0.5")
TALK = "fastv,k=2,drop=0.75,recall=0.1"

LAYERS = {"cpu": "0", "gpu": "-1"}  # of the language model, on the GPU

# no process of the CPU may find one
HIDDEN = {
    **dict.fromkeys(("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES"), "-1"),
    "GGML_VK_VISIBLE_DEVICES": "",
}

QUESTION, SECOND = "Read the clock.", "Background color?"
GIVEN = " It is ten past nine, and the clock is round."
N_GIVEN = 8

Arrays = dict[str, NDArray[Any]]


@dataclass(frozen=True)
class Case:
    """What is computed on every device."""

    pair: int
    """Number of the model."""
    what: str
    """A key of :data:`COMPUTE`."""
    spec: str
    """Of the setting."""


def cases_of(n_pairs: int, settings: Sequence[str]) -> list[Case]:
    """In the order in which they are computed."""
    return [
        case
        for pair in range(n_pairs)
        for case in (
            *(Case(pair, "encoder", spec) for spec in ENCODERS),
            *(Case(pair, "setting", spec) for spec in settings),
            Case(pair, "conversation", TALK),
            Case(pair, "two at once", "fastv,k=2,drop=0.5"),
        )
    ]


# --- in the process of a device ---


def encode(runner: Runner) -> Arrays:
    return {"rows": np.concatenate(runner._engine.embed(pyfastv.load_image(examples.clock), "clock"))}


def prefill(runner: Runner) -> Arrays:
    engine = runner._engine
    engine.reset()
    prompt = f"USER: {engine.media_marker}\n{QUESTION} ASSISTANT:"
    engine.prefill(prompt, [pyfastv.load_image(examples.clock)], ["clock"], None, True, N_GIVEN)
    logits = [np.array(engine.logits())]
    found: Arrays = {}
    for cut in range(len(runner.fastv.cuts) if runner.fastv else 0):
        found[f"kept {cut}"], found[f"scores {cut}"] = engine.kept(cut), engine.scores(cut)
    for token in engine.tokenize(GIVEN, False, False)[:N_GIVEN]:
        engine.feed(token)
        logits.append(np.array(engine.logits()))
    return {**found, "logits": np.array(logits)}


def talk(runner: Runner) -> Arrays:
    with runner.session(max_tokens=8, temperature=0.0) as chat:
        answers = [chat.ask(examples.clock, QUESTION), chat.ask(SECOND)]
    return {
        "texts": np.array([answer.text for answer in answers]),
        "recalled": np.array(answers[1].report.recalled_tokens),
        "kept 0": runner._engine.kept(0),
    }


def ask_two(runner: Runner) -> Arrays:
    asked = ((examples.clock, QUESTION), (examples.scene, "Is there a cyan circle in the image?"))

    def ask(one: tuple[Path, str]) -> str:
        return runner.ask(*one, max_tokens=8, temperature=0.0).text

    with ThreadPoolExecutor(2) as pool:
        together = list(pool.map(ask, asked))
    return {"texts": np.array(together), "alone": np.array([ask(one) for one in asked])}


COMPUTE: dict[str, Callable[[Runner], Arrays]] = {
    "encoder": encode,
    "setting": prefill,
    "conversation": talk,
    "two at once": ask_two,
}


def compute(options: dict[str, Any]) -> None:
    """All cases from ``options["start"]`` on, each into a file of its own."""
    warnings.simplefilter("ignore")  # cuts that go to the next layer: the same on every device
    runner, loaded = None, -1
    cases = cases_of(len(options["pairs"]), options["settings"])
    for number in range(options["start"], len(cases)):
        case = cases[number]
        try:
            if runner is None or loaded != case.pair:
                if runner is not None:
                    runner.close()
                runner, loaded = Runner(*options["pairs"][case.pair], **options["runner"]), case.pair
            runner._use(Setting.parse(case.spec))
            found = COMPUTE[case.what](runner)
        except Exception as error:
            found = {"error": np.array(f"{type(error).__name__}: {error}")}
        write(options["folder"], number, found)


# --- between the processes ---


def file_of(folder: Path | str, number: int) -> Path:
    return Path(folder) / f"{number:03}.npz"


def write(folder: Path | str, number: int, found: Arrays) -> None:
    part = Path(folder) / "part.npz"
    np.savez(part, **found)  # type: ignore[arg-type]  # numpy's stub takes allow_pickle for one of them
    part.replace(file_of(folder, number))


def read(folder: Path, number: int) -> Arrays:
    path = file_of(folder, number)
    if not path.exists():
        return {"error": np.array("not computed: no time was left")}
    with np.load(path) as found:
        return {name: found[name] for name in found.files}


def run(device: str, folder: Path, args: argparse.Namespace, deadline: float) -> None:
    """A device's process, and further ones behind a case that ends it."""
    n_cases = len(cases_of(len(args.pair), args.settings))
    options = {
        "folder": str(folder),
        "pairs": args.pair,
        "settings": args.settings,
        "runner": {
            "n_slots": 2,
            "n_ctx": 2048,
            "n_threads": args.threads,
            "n_gpu_layers": int(LAYERS.get(device, device)),
            "flash_attn": args.flash_attention,
            "type_k": args.cache_type,
            "type_v": args.cache_type,
            "fastv": None,
            "encoder_type": "stock",
            "encoder_cache_mb": 0,
        },
    }
    env = os.environ | (HIDDEN if device == "cpu" else {})
    start = 0
    while start < n_cases and time.monotonic() < deadline:
        command = [sys.executable, __file__, "--compute", json.dumps(options | {"start": start})]
        with (folder / "log.txt").open("a") as log:
            process = subprocess.Popen(command, env=env, stdout=log, stderr=subprocess.STDOUT)
            try:
                status = process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
                return
        if status == 0:
            return
        start = sum(file_of(folder, number).exists() for number in range(n_cases))
        if start < n_cases:
            last = (folder / "log.txt").read_text(errors="replace").strip().splitlines()[-1:]
            write(
                folder,
                start,
                {"error": np.array(f"the process ended with status {status}: {' '.join(last)}")},
            )
            start += 1


# --- what is told ---


@dataclass
class Row:
    """Of the table."""

    model: str
    case: str
    kept: str = ""
    scores: str = ""
    first: str = ""
    later: str = ""
    choices: str = ""
    note: str = ""
    failed: bool = False

    def line(self) -> str:
        cells = (self.model, self.case, self.kept, self.scores, self.first, self.later, self.choices)
        return "| " + " | ".join((*cells, ("FAILED " if self.failed else "") + self.note)) + " |"


HEADER = """\
| model | compared | kept, differing | scores | rms | rms, given tokens | same choice | |
|---|---|---|--:|--:|--:|--:|---|"""


def relative_rms(a: NDArray[Any], b: NDArray[Any]) -> float:
    """Of b - a, over that of a; inf: other shapes, or a number that is none."""
    if a.shape != b.shape or not (np.isfinite(a).all() and np.isfinite(b).all()):
        return float("inf")
    x, y = a.astype(np.float64), b.astype(np.float64)
    return float(np.sqrt(((y - x) ** 2).mean() / max((x**2).mean(), 1e-300)))


def compare(row: Row, a: Arrays, b: Arrays, tolerance: float) -> Row:
    """Fills the row."""
    errors = [str(found["error"])[:200] if "error" in found else "" for found in (a, b)]
    if any(errors):
        row.failed = not all(errors)
        row.note = "; ".join(f"{name}: {error}" for name, error in zip("ab", errors, strict=True) if error)
        return row
    same_kept = True
    for name in sorted(name for name in a if name.startswith("kept")):
        differing = len(np.setdiff1d(a[name], b[name])) + len(np.setdiff1d(b[name], a[name]))
        same_kept &= differing == 0
        row.kept += f"{', ' if row.kept else ''}{len(a[name])}, {differing}"
    for name in sorted(name for name in a if name.startswith("scores")):
        largest = float(np.abs(a[name]).max())
        difference = (
            float(np.abs(b[name] - a[name]).max()) if a[name].shape == b[name].shape else float("inf")
        )
        row.scores += f"{', ' if row.scores else ''}{difference / largest if largest else difference:.1g}"
    if "rows" in a:
        rms = relative_rms(a["rows"], b["rows"])
        row.first, row.failed = f"{rms:.1e}", rms > tolerance
    if "logits" in a:
        rms, later = relative_rms(a["logits"][0], b["logits"][0]), relative_rms(a["logits"], b["logits"])
        row.first, row.later = f"{rms:.1e}", f"{later:.1e}"
        if row.first == row.later == "0.0e+00":
            row.note = "identical"
        same = int((a["logits"].argmax(-1) == b["logits"].argmax(-1)).sum())
        row.choices = f"{same} of {len(a['logits'])}"
        row.failed = same_kept and max(rms, later) > tolerance
    if "texts" in a:
        row.choices = "yes" if a["texts"].tolist() == b["texts"].tolist() else "no"
        row.note = " / ".join(dict.fromkeys(str(found["texts"].tolist())[:90] for found in (a, b)))
    if "recalled" in a:
        row.note += f", recalled {a['recalled']} and {b['recalled']}"
    return row


def rows_of(folders: dict[str, Path], args: argparse.Namespace) -> Iterator[Row]:
    """Across the devices, then of each by itself."""
    cases = cases_of(len(args.pair), args.settings)
    found = {device: [read(folder, i) for i in range(len(cases))] for device, folder in folders.items()}
    names = [Path(model).stem for model, _ in args.pair]
    first, *others = folders
    for device in others:
        for case, a, b in zip(cases, found[first], found[device], strict=True):
            what = case.spec if case.what == "setting" else f"{case.what}, {case.spec}"
            yield compare(Row(names[case.pair], f"{first} and {device}: {what}"), a, b, args.tolerance)
    for device in folders:
        by_case = dict(zip(cases, found[device], strict=True))
        for case in cases:
            if case.what == "setting" and case.spec != "off" and keeps_all(case.spec):
                off = by_case.get(Case(case.pair, "setting", "off"))
                if off is not None:
                    row = Row(names[case.pair], f"{device}: off and {case.spec}")
                    mine = {
                        name: value for name, value in by_case[case].items() if name in ("logits", "error")
                    }
                    yield compare(row, off, mine, args.tolerance)
            elif case.what == "two at once" and "alone" in by_case[case]:
                both, alone = (by_case[case][name] for name in ("texts", "alone"))
                row = Row(names[case.pair], f"{device}: two at once and alone")
                yield compare(row, {"texts": both}, {"texts": alone}, args.tolerance)


def keeps_all(spec: str) -> bool:
    setting = Setting.parse(spec)
    cuts = setting.fastv.cuts if setting.fastv is not None else ()
    return setting.turbo is None and setting.reduce is None and all(cut.drop == 0 for cut in cuts)


def device(text: str) -> str:
    if text not in LAYERS and not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is no device: cpu, gpu or a number of layers")
    return text


def main() -> None:
    if sys.argv[1:2] == ["--compute"]:
        return compute(json.loads(sys.argv[2]))
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--devices", nargs="+", type=device, default=["cpu", "gpu"], help="default: cpu gpu")
    parser.add_argument(
        "--pair",
        nargs=2,
        action="append",
        metavar=("MODEL", "MMPROJ"),
        help="GGUF files, again for each (default: the bundled ones)",
    )
    parser.add_argument(
        "--settings",
        nargs="+",
        default=list(SETTINGS),
        help="as pyfastv bench takes them (default: one of each rule)",
    )
    parser.add_argument("--flash-attention", choices=("auto", "on", "off"), default="auto")
    parser.add_argument("--cache-type", default="f16", help="of keys and values (%(default)s)")
    parser.add_argument("--threads", type=int, default=_native.usable_cores(), help="default: all cores")
    parser.add_argument("--tolerance", type=float, default=0.05, help="relative rms (%(default)s)")
    parser.add_argument("--limit", type=float, default=3600, help="seconds for all (%(default)s)")
    args = parser.parse_args()
    args.pair = args.pair or [[str(bundled_model()), str(bundled_mmproj())]]
    args.devices = list(dict.fromkeys(args.devices))
    for spec in args.settings:
        Setting.parse(spec)

    print(", ".join(f"{found['name']} ({found['description']})" for found in _native.backends()))
    has_gpu = any(found["type"] in ("gpu", "igpu") for found in _native.backends())
    if not has_gpu and any(name not in ("cpu", "0") for name in args.devices):
        sys.exit(
            "devices.py: this build finds no GPU: CMAKE_ARGS=-DGGML_CUDA=ON pip install . (or GGML_VULKAN, ...)"
        )
    deadline = time.monotonic() + args.limit
    with tempfile.TemporaryDirectory(prefix="pyfastv-devices-") as place:
        folders = {name: Path(place) / name for name in args.devices}
        for folder in folders.values():
            folder.mkdir()
        with ThreadPoolExecutor(len(folders)) as pool:  # no times are told, so side by side
            list(pool.map(lambda item: run(*item, args, deadline), folders.items()))
        print(HEADER)
        failed = 0
        for row in rows_of(folders, args):
            print(row.line(), flush=True)
            failed += row.failed
    print(f"\n{failed} failed")
    sys.exit(int(failed > 0))


if __name__ == "__main__":
    main()
