"""Every architecture of the pin in stages: random models by the fixture of llama.cpp's own tests, against stock.

For each layer at which a cut can be: with drop=0 the logits must be stock's to the bit, with drop=0.5 half of a picture
must stay. What comes of each variant is compared with architectures.json beside this file, so that a new pin tells what
it breaks. Not part of the tests: it takes minutes. It needs the pin's source distribution (pip downloads it, or --sdist)
and a compiler.

    make test-architectures
    python tests/manual/architectures.py --only qwen35 gemma3
    python tests/manual/architectures.py --update

Exits with 0 if nothing has become worse.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
sys.path.insert(0, str(ROOT / "third_party"))

import pyfastv  # noqa: E402

import fetch  # noqa: E402

EXPECTED = HERE / "architectures.json"
BUILD = ROOT / "build" / "architectures"
TREE = ROOT / "third_party" / "llama.cpp"
SECONDS = 120  # for one variant

FUNCTIONS = ["get_gguf_ctx", "moe_mandatory", "moe_implemented", "arch_supported"]

# (pattern, replacement). Two layers are too few for cuts, and recurrent layers need one with attention behind some of
# them.
CHANGES = [
    (r"uint32_t n_layer = 2;", "uint32_t n_layer = 8;"),
    (r"n_layer = 4; (// hparams.n_no_rope_layer_step)", r"n_layer = 8; \1"),
    (r"n_layer = 3;", "n_layer = 8;"),
    (r"il <= 1 \? 0 : n_ff", "il % 2 == 0 || il == 3 || il == 7 ? 0 : n_ff"),
    (r"LLM_KV_FULL_ATTENTION_INTERVAL, uint32_t\(2\)", "LLM_KV_FULL_ATTENTION_INTERVAL, uint32_t(4)"),
    (r"il == 1 \? 0 : n_head\b", "il % 4 != 3 ? 0 : n_head"),
]
# Of hybrids only the number of heads of keys may differ by layer.
HEADS_BY_LAYER = r"ms\.add_kv\(LLM_KV_ATTENTION_HEAD_COUNT,\s*n_head_per_layer\);"
# LFM2 with sliding windows is refused; released models have none.
WINDOWS = r"ms\.add_kv\(LLM_KV_ATTENTION_SLIDING_WINDOW,\s*n_ctx/8\);"


class FixtureError(Exception):
    """The fixture is not what this file knows; the message is one readable line."""


def fixture(source: str) -> str:
    """What of the pin's test is used, with more layers."""
    text = "\n".join(function(source, name) for name in FUNCTIONS)
    changes = [
        *CHANGES,
        (HEADS_BY_LAYER, "ms.add_kv(LLM_KV_ATTENTION_HEAD_COUNT, n_head);"),
        (WINDOWS, r"if (arch != LLM_ARCH_LFM2 && arch != LLM_ARCH_LFM2MOE) { \g<0> }"),
    ]
    for pattern, replacement in changes:
        text, n = re.subn(pattern, replacement, text)
        if n == 0:
            raise FixtureError(
                f"the pin's tests/test-llama-archs.cpp has no {pattern!r} any more: change CHANGES"
            )
    return text


def function(source: str, name: str) -> str:
    found = re.search(rf"^static [^\n]*\b{name}\(.*?^}}\n", source, re.M | re.S)
    if found is None:
        raise FixtureError(f"the pin's tests/test-llama-archs.cpp has no {name}() any more: change FUNCTIONS")
    return found[0]


def read_source(sdist: Path | None) -> str:
    """tests/test-llama-archs.cpp of the pinned source distribution."""
    with tempfile.TemporaryDirectory() as folder:
        if sdist is None:
            sdist = fetch.download(Path(folder))
        else:
            fetch.check_pin(sdist)
        with tarfile.open(sdist) as archive:
            for member in archive:
                if member.name.endswith("/vendor/llama.cpp/tests/test-llama-archs.cpp"):
                    file = archive.extractfile(member)
                    assert file is not None
                    return file.read().decode()
    raise FixtureError("the source distribution has no tests/test-llama-archs.cpp any more")


def build(sdist: Path | None) -> Path:
    """The program; it is made anew when the pin, the fixture's changes or the libraries' headers may have changed."""
    BUILD.mkdir(parents=True, exist_ok=True)
    source = BUILD / f"test-llama-archs-{fetch.PIN['version']}.cpp"
    if not source.exists():
        source.write_text(read_source(sdist))
    (BUILD / "fixture.inc").write_text(fixture(source.read_text()))
    folders = [BUILD, TREE / "include", TREE / "src", TREE / "ggml" / "include", ROOT / "native" / "include"]
    libraries = pyfastv.lib_path()
    program = BUILD / "architectures"
    command = [
        *(os.environ.get("CXX") or "c++", "-std=c++17", "-O1", "-Wno-unused-function"),
        *(f"-I{folder}" for folder in folders),
        *(str(HERE / "architectures.cpp"), "-o", str(program)),
        *(f"-L{libraries}", f"-Wl,-rpath,{libraries}", "-lllama", "-lggml", "-lggml-base"),
    ]
    subprocess.run(command, check=True)
    return program


@dataclass(frozen=True)
class Outcome:
    """What came of a variant."""

    exact: tuple[int, ...] = ()
    """Cuts that change nothing by a bit, and drop."""
    refused: str = ""
    """All of it, or its first cut that is not exact."""
    wrong: tuple[str, ...] = ()
    """What must not be."""

    def __str__(self) -> str:
        parts = [f"exact at {', '.join(map(str, self.exact))}"] if self.exact else []
        parts += [f"refused: {self.refused}"] if self.refused and not self.exact else []
        return "; ".join([*parts, *self.wrong]) or "nothing"


def outcome(lines: Iterable[str], status: int) -> Outcome:
    """Of the program's lines."""
    exact, refused, wrong = [], "", []
    for line in lines:
        if found := re.match(r"cut (\d+): exact", line):
            exact.append(int(found[1]))
        elif found := re.match(r"(?:cut \d+: )?refused: (.*)", line):
            refused = refused or found[1]
        elif re.match(r"cut \d+: (differs|fails)", line):
            wrong.append(line)
        elif line.startswith("no model: "):
            refused = line
    if status != 0:
        wrong.append(f"ends with {status}")
    return Outcome(tuple(exact), refused, tuple(wrong))


def run(program: Path, name: str, kind: str) -> Outcome:
    environment = {key: value for key, value in os.environ.items() if key != "LLAMA_FASTV"}
    try:
        done = subprocess.run(
            [program, name, kind], capture_output=True, text=True, timeout=SECONDS, env=environment
        )
    except subprocess.TimeoutExpired:
        return Outcome(wrong=(f"takes more than {SECONDS} s",))
    return outcome(done.stdout.splitlines(), done.returncode)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sdist", type=Path, help="use this copy of the sdist instead of downloading it")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="these architectures alone")
    parser.add_argument(
        "--update", action="store_true", help="what comes out is what is expected from now on"
    )
    parser.add_argument("-j", "--jobs", type=int, default=os.cpu_count() or 1, help="processes at once")
    args = parser.parse_args()
    try:
        program = build(args.sdist)
    except (FixtureError, fetch.FetchError, OSError, subprocess.CalledProcessError) as error:
        print(f"architectures.py: {error}", file=sys.stderr)
        return 1
    listed = subprocess.run([program, "list"], capture_output=True, text=True, check=True).stdout
    variants = [line.split() for line in listed.splitlines()]
    variants = [(name, kind) for name, kind in variants if args.only is None or name in args.only]
    with ThreadPoolExecutor(args.jobs) as pool:
        outcomes = list(pool.map(lambda variant: run(program, *variant), variants))
    found = {f"{name} {kind}": result for (name, kind), result in zip(variants, outcomes, strict=True)}
    width = max(map(len, found), default=0)
    for name, result in found.items():
        print(f"{name:<{width}}  {result}")
    n_exact = sum(bool(result.exact) and not result.wrong for result in outcomes)
    print(
        f"\n{n_exact} of {len(found)} variants are stock to the bit at every cut that they can have, and drop"
    )
    return compare(found, update=args.update, whole=args.only is None)


def compare(found: dict[str, Outcome], *, update: bool, whole: bool) -> int:
    """1 if something is wrong, or worse than expected."""
    expected: dict[str, str] = json.loads(EXPECTED.read_text()) if EXPECTED.exists() else {}
    told = {name: str(result) for name, result in found.items()}
    missing = [name for name in expected if name not in told] if whole else []
    for name, was in expected.items():
        if name in told and told[name] != was:
            print(f"{name}: was {was!r}, is {told[name]!r}")
    for name in missing:
        print(f"{name}: was {expected[name]!r}, has no fixture any more")
    new = [name for name in told if name not in expected]
    if expected and new:
        print("new: " + ", ".join(new))
    if update:
        EXPECTED.write_text(
            json.dumps((expected if not whole else {}) | told, indent=1, sort_keys=True) + "\n"
        )
        return 0
    worse = [name for name, was in expected.items() if name in told and told[name] != was]
    return int(bool(worse or missing or any(result.wrong for result in found.values())))


if __name__ == "__main__":
    if shutil.which(os.environ.get("CXX") or "c++") is None:
        sys.exit("architectures.py: a C++ compiler is needed: set CXX")
    raise SystemExit(main())
