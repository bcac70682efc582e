"""Fetch the pinned llama.cpp, check it, and apply our patches.

llama.cpp's source comes from the source distribution of llama-cpp-python, which carries it in vendor/llama.cpp. The
pin is llama_cpp.json. The result is a folder that is never committed; running the script again does nothing unless the
pin or a patch has changed.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
PIN = json.loads((HERE / "llama_cpp.json").read_text())
PATCHES = sorted((HERE / "patches").glob("*.patch"))
STAMP = ".pyfastv-stamp"

# what the libraries are built from; the rest of the repository (web UI, models, documents) is six times as large
KEEP = [
    "CMakeLists.txt",
    "LICENSE",
    "cmake",
    "common",
    "ggml",
    "include",
    "licenses",
    "src",
    "tools/mtmd",
    "vendor",
]
# what llama-mtmd-cli and llama-server are built from
KEEP_PROGRAMS = [*(name for name in KEEP if name != "tools/mtmd"), "scripts", "tools"]


class FetchError(Exception):
    """The tree cannot be made; the message is one readable line."""


def digest(path: Path) -> str:
    """sha256 of a file, in hex."""
    with path.open("rb") as file:
        sha = hashlib.sha256()
        while block := file.read(1 << 20):
            sha.update(block)
        return sha.hexdigest()


def stamp(patches: list[Path], keep: list[str] = KEEP) -> str:
    """What a finished tree was made from: the pin, the content of every patch, and parts that not every tree has."""
    lines = [PIN["sha256"], *(f"{patch.name} {digest(patch)}" for patch in patches)]
    return "\n".join([*lines, *sorted(set(keep) - set(KEEP))]) + "\n"


def download(folder: Path) -> Path:
    """The pinned sdist, checked. pip does the download: it knows the user's index, proxy and cache."""
    requirement = f"{PIN['package']}=={PIN['version']}"
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", PIN["package"]]
    result = subprocess.run([*command, "--dest", str(folder), requirement], capture_output=True, text=True)
    files = list(folder.glob("*.tar.gz"))
    if result.returncode != 0 or len(files) != 1:
        reason = (result.stderr.strip().splitlines() or ["pip gave no reason"])[-1]
        raise FetchError(
            f"cannot download {requirement}: {reason} "
            "(without a network, point the CMake option PYFASTV_LLAMA_DIR at a llama.cpp tree of this pin)"
        )
    check_pin(files[0])
    return files[0]


def check_pin(sdist: Path) -> None:
    """Raise FetchError unless the file is the pinned sdist."""
    found = digest(sdist)
    if found != PIN["sha256"]:
        raise FetchError(
            f"{sdist.name} is not the pinned {PIN['package']} {PIN['version']}: "
            f"its sha256 is {found}, third_party/llama_cpp.json says {PIN['sha256']}"
        )


def unpack(sdist: Path, tree: Path, keep: list[str]) -> None:
    """Write these parts of the sdist's vendor/llama.cpp to `tree`."""
    with tempfile.TemporaryDirectory(dir=tree.parent) as scratch:
        with tarfile.open(sdist) as archive:
            if hasattr(tarfile, "data_filter"):
                archive.extractall(scratch, filter="data")
            else:
                archive.extractall(scratch)
        vendored = list(Path(scratch).glob("*/vendor/llama.cpp"))
        if len(vendored) != 1:
            raise FetchError(f"{sdist.name} carries no vendor/llama.cpp")
        for name in keep:
            target = tree / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.move(vendored[0] / name, target)


def apply(patch: Path, tree: Path) -> None:
    """Apply one patch, and make sure that it did something.

    `git apply` inside another work tree succeeds and changes nothing unless GIT_CEILING_DIRECTORIES stops its search
    for a repository; so the reverse patch has to apply afterwards.
    """
    git = shutil.which("git")
    if git is None:
        raise FetchError("git is needed to apply the patches to llama.cpp, and is not on PATH")
    env = {**os.environ, "GIT_CEILING_DIRECTORIES": str(tree.resolve().parent)}
    result = subprocess.run([git, "apply", str(patch)], cwd=tree, env=env, capture_output=True, text=True)
    reverse = subprocess.run(
        [git, "apply", "--reverse", "--check", str(patch)], cwd=tree, env=env, capture_output=True
    )
    if result.returncode != 0 or reverse.returncode != 0:
        reason = (result.stderr.strip().splitlines() or ["it changed nothing"])[0]
        raise FetchError(f"third_party/patches/{patch.name} does not apply to {tree}: {reason}")


def make_tree(tree: Path, patches: list[Path], sdist: Path | None = None, keep: list[str] = KEEP) -> None:
    """Make `tree` the pinned llama.cpp with these patches; does nothing if it is that already."""
    if (tree / STAMP).is_file() and (tree / STAMP).read_text() == stamp(patches, keep):
        return
    tree.parent.mkdir(parents=True, exist_ok=True)
    if tree.exists():
        shutil.rmtree(tree)
    with tempfile.TemporaryDirectory() as folder:
        if sdist is None:
            sdist = download(Path(folder))
        else:
            check_pin(sdist)
        unpack(sdist, tree, keep)
    for patch in patches:
        apply(patch, tree)
    (tree / STAMP).write_text(stamp(patches, keep))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--output", type=Path, default=HERE / "llama.cpp", help="the tree to make (default: %(default)s)"
    )
    some = parser.add_mutually_exclusive_group()
    some.add_argument("--no-patches", action="store_true", help="stock llama.cpp, for comparisons")
    some.add_argument("--only", choices=[patch.name for patch in PATCHES], help="with this patch alone")
    parser.add_argument("--programs", action="store_true", help="with the sources of llama.cpp's programs")
    parser.add_argument("--sdist", type=Path, help="use this copy of the sdist instead of downloading it")
    args = parser.parse_args()
    try:
        keep = KEEP_PROGRAMS if args.programs else KEEP
        patches = [patch for patch in PATCHES if not args.no_patches and args.only in (None, patch.name)]
        make_tree(args.output, patches, args.sdist, keep)
    except (FetchError, OSError) as error:
        print(f"pyfastv: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
