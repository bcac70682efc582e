"""Model files with one key, one tensor or the container changed, and what becomes of them.

    python tests/fuzz_files.py --kind text --kind LLaVA --count 250 --seed 0
    python tests/fuzz_files.py --kind text --seed 0 --only 17          # one change, its outcome in full

Each file is loaded and asked about a picture, and read by what reads headers only (info, plan,
quantize-mmproj). It has to end in an error that names the key or the tensor, or in an answer made of finite
logits. A file that ends the process costs a worker, not this program. Kinds: text and CLIP (the bundled pair),
the families of random_mmproj, whose mmproj is changed, and "text of" a family.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import resource
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from file_changes import Change, change
from gguf_parts import File, read, write

KINDS_OF_BUNDLE = ("text", "CLIP")
QUESTION = "What is this?"
MEMORY = 8 << 30
SECONDS = 120


@dataclass(frozen=True)
class Outcome:
    load: str
    """``named`` (an error that says what is wrong), ``unnamed``, ``other`` (an exception that is none of ours), ``same``
    or ``different`` (an answer), ``nonsense`` (from logits that are not finite), or how the process ended."""
    message: str
    readers: dict[str, str] = field(default_factory=dict)
    """info, plan and quantize: "", or the error, likewise."""
    megabytes: int = 0
    """That the process had at most, above what it had before."""

    @property
    def good(self) -> bool:
        ends = [self.load, *(end.partition(":")[0] for end in self.readers.values() if end)]
        return all(end in ("named", "same", "different") for end in ends)


def kinds() -> tuple[str, ...]:
    import random_mmproj

    architectures = {family.arch: name for name, family in reversed(random_mmproj.FAMILIES.items())}
    return (
        *KINDS_OF_BUNDLE,
        *random_mmproj.FAMILIES,
        *(f"text of {name}" for name in architectures.values()),
    )


def sources(kind: str, folder: Path) -> tuple[Path, Path, bool]:
    """The files of a kind, model and mmproj, and whether it is the model that is changed."""
    from pyfastv.models import bundled_mmproj, bundled_model

    import random_mmproj

    if kind in KINDS_OF_BUNDLE:
        return bundled_model(), bundled_mmproj(), kind == "text"
    family = kind.removeprefix("text of ")
    model, mmproj = folder / f"{family}.gguf", folder / f"mmproj-{family}.gguf"
    if not mmproj.exists():
        random_mmproj.write_pair(folder, family)
    return model, mmproj, kind != family


# in a worker


class Kind:
    """A kind's files, and what is right of them."""

    def __init__(self, name: str, folder: Path) -> None:
        self._model, self._mmproj, self._of_model = sources(name, folder)
        self._out = folder / "quantized.gguf"
        # not every family can be cut behind its second layer
        self._options: dict[str, Any] = {} if name in KINDS_OF_BUNDLE else {"fastv": None}
        self._names = _spoken_names(read(self._model if self._of_model else self._mmproj))
        self._text, self._logits = self._ask(self._model, self._mmproj)

    def try_file(self, path: Path, tell: Callable[[str], None]) -> Outcome:
        from pyfastv.models import header, info
        from pyfastv.models.quantize import quantize_mmproj

        model, mmproj = (path, self._mmproj) if self._of_model else (self._model, path)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        tell("load")
        verdict, message, answer = self._judge(lambda: self._ask(model, mmproj))
        if answer is not None:
            text, logits = answer
            same = text == self._text and np.array_equal(logits, self._logits)
            verdict = "same" if same else "different" if np.isfinite(logits).all() else "nonsense"
        readers: dict[str, Callable[[], Any]] = {
            "info": lambda: info.gather(str(model), str(mmproj)),
            "plan": lambda: header.read_model(str(model), str(mmproj)),
        }
        if not self._of_model:
            readers["quantize"] = lambda: quantize_mmproj(mmproj, self._out, "f16", force=True)
        ends = {}
        for name, reader in readers.items():
            tell(name)
            end, reason, _ = self._judge(reader)
            ends[name] = "" if end == "answer" else f"{end}: {reason}"
        used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
        return Outcome(verdict, message, ends, used // 1024)

    def _ask(self, model: Path, mmproj: Path) -> tuple[str, np.ndarray]:
        """The answer to a question about a picture, and the last logits."""
        import pyfastv

        pixels = np.random.default_rng(0).integers(0, 256, (168, 224, 3), np.uint8)
        with pyfastv.Runner(model, mmproj, n_threads=1, **self._options) as runner:
            answer = runner.ask(pixels, QUESTION, max_tokens=3)
            return answer.text, runner._engine.logits().copy()

    def _judge(self, run: Callable[[], Any]) -> tuple[str, str, Any]:
        import pyfastv

        try:
            return "answer", "", run()
        except pyfastv.Error as error:
            message = str(error)
            return (
                ("named" if _names(message, self._names) else "unnamed"),
                f"{type(error).__name__}: {message}",
                None,
            )
        except Exception as error:
            return "other", f"{type(error).__name__}: {error}", None


# one that is missing or too many is not in the original
_NAME = re.compile(r"\b(?:v|mm|blk|resampler)\.\w+|\bkey '?\w+\.\w+")
# how a damaged container is spoken of
_CONTAINER = (
    "version",
    "truncated",
    "not a GGUF file",
    "endian",
    "the number of",
    "the length of",
    "has a name of",
    "has no matrices",
    "chat template",
)


def _names(message: str, names: Sequence[str]) -> bool:
    reason = message.partition(".gguf: ")[2] or message
    return _NAME.search(reason) is not None or any(name in reason for name in (*names, *_CONTAINER))


def _spoken_names(file: File) -> list[str]:
    """Keys, with and without what they begin with, and tensors."""
    keys = [key.name.decode() for key in file.keys]
    tails = [key.partition(".")[2] for key in keys if key.count(".") > 1]
    tails += [last for last in (key.rpartition(".")[2] for key in keys) if "_" in last]
    return [*keys, *tails, "general.alignment", *(tensor.name.decode() for tensor in file.tensors)]


def _work(folder: Path, told: Any) -> None:
    """Jobs come as lines of JSON, the kind and the path; news go as lines of JSON."""

    def tell(**news: Any) -> None:
        print(json.dumps(news), file=told, flush=True)

    known: dict[str, Kind] = {}
    for line in sys.stdin:
        name, path = json.loads(line)
        if name not in known:
            tell(stage="unchanged")
            known[name] = Kind(name, folder)
        outcome = known[name].try_file(Path(path), lambda stage: tell(stage=stage))
        tell(outcome=outcome.__dict__)


# beside it


class Fuzzer:
    """Tries files in a process of their own, which many share until one ends it. A context manager."""

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory()
        self._process: subprocess.Popen[bytes] | None = None
        self._told = b""
        self._originals: dict[str, File] = {}

    def __enter__(self) -> Fuzzer:
        return self

    def __exit__(self, *_: object) -> None:
        self._end()
        self._folder.cleanup()

    def original(self, kind: str) -> File:
        """The file of a kind that is changed; to be copied first."""
        if kind not in self._originals:
            model, mmproj, of_model = sources(kind, Path(self._folder.name))
            self._originals[kind] = read(model if of_model else mmproj)
        return self._originals[kind]

    def try_random(self, kind: str, seed: int, number: int) -> tuple[Change, Outcome]:
        """Change number `number` of a kind."""
        file = self.original(kind).copy()
        changed = change(file, random.Random(f"{kind} {seed} {number}"))
        outcome = self.try_file(kind, file)
        if changed.harmless and outcome.load == "different":
            outcome = Outcome("wrong", "another answer", outcome.readers)
        return changed, outcome

    def try_file(self, kind: str, file: File) -> Outcome:
        """A changed file in place of a kind's."""
        path = Path(self._folder.name) / "changed.gguf"
        write(file, path)
        process = self._worker()
        assert process.stdin is not None
        process.stdin.write(json.dumps([kind, str(path)]).encode() + b"\n")
        process.stdin.flush()
        stage, end = "", time.monotonic() + SECONDS
        while True:
            news = self._read(end)
            if news is None:
                late = time.monotonic() >= end
                code = self._end()
                how = "hang" if late else signal.Signals(-code).name if code < 0 else f"exit {code}"
                return Outcome(f"{how} in {stage}", self._last_words())
            if "outcome" in news:
                return Outcome(**news["outcome"])
            stage = news["stage"]

    def _worker(self) -> subprocess.Popen[bytes]:
        if self._process is None:
            folder = self._folder.name
            with Path(folder, "stderr").open("wb") as log:
                self._process = subprocess.Popen(
                    [sys.executable, __file__, "--work", folder],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=log,
                )
        return self._process

    def _end(self) -> int:
        process, self._process, self._told = self._process, None, b""
        if process is None:
            return 0
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdout.close()
        process.stdin.close()
        try:
            return process.wait(2)
        except subprocess.TimeoutExpired:
            process.kill()
            return process.wait()

    def _read(self, end: float) -> dict[str, Any] | None:
        assert self._process is not None
        stdout = self._process.stdout
        assert stdout is not None
        while b"\n" not in self._told:
            ready, _, _ = select.select([stdout], [], [], max(0.0, end - time.monotonic()))
            more = os.read(stdout.fileno(), 1 << 16) if ready else b""
            if not more:
                return None
            self._told += more
        line, _, self._told = self._told.partition(b"\n")
        news: dict[str, Any] = json.loads(line)
        return news

    def _last_words(self) -> str:
        text = Path(self._folder.name, "stderr").read_text(errors="replace")
        lines = [line for line in text.splitlines() if line.strip()]
        asserted = [line for line in lines if "GGML_" in line or ".cpp:" in line]
        return (asserted or lines or [""])[-1][-200:]


def _column(load: str) -> str:
    return "deaths" if load.startswith(("SIG", "exit")) else "hangs" if load.startswith("hang") else load


def _table(options: argparse.Namespace) -> Iterator[Outcome]:
    columns = (
        "deaths",
        "hangs",
        "named",
        "unnamed",
        "other",
        "same",
        "different",
        "nonsense",
        "wrong",
        "readers",
        "MB",
    )
    print(f"{'':22}" + "".join(f"{column:>10}" for column in columns), flush=True)
    with Fuzzer() as fuzzer:
        for kind in options.kind or kinds():
            counts: Counter[str] = Counter()
            for number in range(options.count) if options.only is None else [options.only]:
                changed, outcome = fuzzer.try_random(kind, options.seed, number)
                counts[_column(outcome.load)] += 1
                counts["readers"] += outcome.load in ("named", "same", "different") and not outcome.good
                counts["MB"] = max(counts["MB"], outcome.megabytes)
                if options.only is not None or not (options.quiet or outcome.good):
                    print(f"{kind} {number}: {changed.what}: {outcome}", file=sys.stderr, flush=True)
                yield outcome
            print(f"{kind:22}" + "".join(f"{counts[column]:>10}" for column in columns), flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kind", action="append", help="one or several; default: all")
    parser.add_argument("--count", type=int, default=250, help="changes of each kind")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", type=int, help="one change alone")
    parser.add_argument("--quiet", action="store_true", help="the table alone")
    parser.add_argument("--work", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.work is not None:
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        told = os.fdopen(os.dup(1), "w")
        os.dup2(2, 1)  # what libraries print is no news
        _work(options.work, told)
        return 0
    return 0 if all([outcome.good for outcome in _table(options)]) else 1


if __name__ == "__main__":
    sys.exit(main())
