#!/usr/bin/env python3
"""Build the unpatched llama.cpp of pyfastv's pin: the other side of the benchmarks, and programs for a test.

libllama, libmtmd and ggml are built, with pyfastv's flags, into OUTPUT/lib; with --programs also llama-mtmd-cli
and llama-server, into OUTPUT/bin, with the libraries beside them as in llama.cpp's releases. The llama.cpp tree is
fetched by third_party/fetch.py without the patches, unless --source names one; on a CPU with AMX it has the one
without which it dies there. cmake and ninja are taken from PATH or from the PyPI packages of these names, whose
programs lie beside this Python.

    python build_stock.py OUTPUT
    python build_stock.py OUTPUT --programs
    python build_stock.py OUTPUT --source LLAMA_CPP_TREE --define GGML_METAL=ON

A build of pyfastv with other options (BLAS, CUDA, ...) needs the same ones here, with --define.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

# As in the CMakeLists.txt at the top. GGML_NATIVE is explicit: its default is OFF (no SIMD at all) where
# SOURCE_DATE_EPOCH is set.
DEFINES = {
    "CMAKE_BUILD_TYPE": "Release",
    "BUILD_SHARED_LIBS": "ON",
    "GGML_NATIVE": "ON",
    "LLAMA_BUILD_MTMD": "ON",
    "LLAMA_BUILD_COMMON": "OFF",
    "LLAMA_BUILD_TOOLS": "OFF",
    "LLAMA_BUILD_EXAMPLES": "OFF",
    "LLAMA_BUILD_TESTS": "OFF",
    "LLAMA_BUILD_SERVER": "OFF",
    "LLAMA_BUILD_APP": "OFF",
    "MTMD_VIDEO": "OFF",
    # the libraries find one another in their own folder, wherever it is copied to
    "CMAKE_BUILD_WITH_INSTALL_RPATH": "ON",
    "CMAKE_INSTALL_RPATH": "@loader_path" if sys.platform == "darwin" else "$ORIGIN",
}
LIBRARIES = ["*.so*", "*.dylib", "**/*.dll"]
PROGRAMS = ["llama-mtmd-cli", "llama-server"]
# Nothing is downloaded, neither by the build (the web UI) nor by the programs (models, over HTTPS).
PROGRAM_DEFINES = {
    "LLAMA_BUILD_COMMON": "ON",
    "LLAMA_BUILD_TOOLS": "ON",
    "LLAMA_BUILD_SERVER": "ON",
    "LLAMA_BUILD_UI": "OFF",
    "LLAMA_USE_PREBUILT_UI": "OFF",
    "LLAMA_OPENSSL": "OFF",
}

# GCC leaves seven eighths of the tiles' configuration out, and the first product is an illegal instruction
AMX_PATCH = "0004-amx-tiles.patch"
CPUINFO = Path("/proc/cpuinfo")


def has_amx() -> bool:
    """Whether llama.cpp compiled for this machine multiplies with AMX."""
    try:
        return "amx_int8" in CPUINFO.read_text()
    except OSError:
        return False


def program(name: str) -> str | None:
    """Path of a build tool: beside this Python first, where PyPI's packages put it."""
    return shutil.which(name, path=str(Path(sys.executable).parent)) or shutil.which(name)


def run(command: list[str]) -> None:
    """Run a step; its failure ends the program. SOURCE_DATE_EPOCH is kept out."""
    environment = {key: value for key, value in os.environ.items() if key != "SOURCE_DATE_EPOCH"}
    try:
        subprocess.run(command, check=True, env=environment, stdout=sys.stderr)
    except (OSError, subprocess.CalledProcessError) as error:
        sys.exit(f"build_stock.py: {' '.join(command[:3])} ... failed: {error}")


def fetch(folder: Path, programs: bool) -> Path:
    """The pinned llama.cpp, unpatched but for AMX, unpacked into `folder`. One that has more than that will do."""
    if not programs and (folder / "tools" / "server").exists():
        programs = True
    options = ["--no-patches"]
    if has_amx():
        print(f"build_stock.py: stock llama.cpp dies on a CPU with AMX; it gets {AMX_PATCH}", file=sys.stderr)
        options = ["--only", AMX_PATCH]
    options += ["--programs"] if programs else []
    run([sys.executable, str(ROOT / "third_party" / "fetch.py"), "--output", str(folder), *options])
    return folder


def build(source: Path, work: Path, defines: dict[str, str], targets: list[str], jobs: int) -> None:
    """Configure and build in `work`."""
    cmake = program("cmake")
    if not cmake:
        sys.exit("build_stock.py: no cmake; pip install cmake ninja")
    if not (source / "CMakeLists.txt").exists() or not (source / "include" / "llama.h").exists():
        sys.exit(f"build_stock.py: {source} is not a llama.cpp tree")
    ninja = program("ninja")
    generator = ["-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={ninja}"] if ninja else []
    settings = [f"-D{key}={value}" for key, value in defines.items()]
    run([cmake, "-S", str(source), "-B", str(work), *generator, *settings])
    options = ["--config", "Release", "--parallel", str(jobs)]
    run([cmake, "--build", str(work), *options, "--target", *targets])


def copy(work: Path, folder: Path, patterns: list[str]) -> Path:
    """What was built, with its links, into an empty `folder`."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for pattern in patterns:
        for file in sorted((work / "bin").glob(pattern)):
            shutil.copy2(file, folder / file.name, follow_symlinks=False)
    return folder


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("output", type=Path, help="folder for the build and, in OUTPUT/lib, the libraries")
    parser.add_argument("--source", type=Path, help="an unpatched llama.cpp tree (default: fetch the pin)")
    parser.add_argument("--programs", action="store_true", help=f"also build {' and '.join(PROGRAMS)}")
    parser.add_argument(
        "--define", action="append", default=[], metavar="KEY=VALUE", help="a further cmake definition"
    )
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="default: %(default)s")
    args = parser.parse_args()
    output = args.output.resolve()
    source = args.source.resolve() if args.source else fetch(output / "llama.cpp", args.programs)
    defines = DEFINES | (PROGRAM_DEFINES if args.programs else {})
    defines |= dict(item.split("=", 1) for item in args.define)
    work = output / "build"
    build(source, work, defines, ["llama", "mtmd", *(PROGRAMS if args.programs else [])], args.jobs)
    libraries = copy(work, output / "lib", LIBRARIES)
    print(copy(work, output / "bin", [*LIBRARIES, *PROGRAMS]) if args.programs else libraries)


if __name__ == "__main__":
    main()
