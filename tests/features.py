"""What a vision encoder makes of a picture, through llama-cpp-python's low-level bindings on our libraries.

python features.py, and for every picture a line with the JSON of [model, mmproj, picture, out.npy]
"""

from __future__ import annotations

import ctypes
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

import pyfastv


class Encoding:
    """A process that encodes pictures: the libraries are loaded once in a process."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def features(self, model: Path, mmproj: Path, picture: Path, out: Path) -> np.ndarray:
        """float32 [n, n_embd]"""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps([str(path) for path in (model, mmproj, picture, out)]) + "\n")
        self._process.stdin.flush()
        assert self._process.stdout.readline() == "done\n"
        rows: np.ndarray = np.load(out)
        return rows


@contextmanager
def encoding() -> Iterator[Encoding]:
    root = str(Path(pyfastv.__file__).parents[1])
    env = os.environ | {"PYTHONPATH": root}
    env |= dict.fromkeys(("LLAMA_CPP_LIB_PATH", "MTMD_CPP_LIB"), str(pyfastv.lib_path()))
    with subprocess.Popen(
        [sys.executable, __file__],
        env=env,
        text=True,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    ) as process:
        yield Encoding(process)
    assert process.returncode == 0


def _encode(model: str, mmproj: str, picture: str, out: str) -> None:
    from llama_cpp import llama_cpp as llama
    from llama_cpp import mtmd_cpp as mtmd

    pointer = llama.llama_model_load_from_file(model.encode(), llama.llama_model_default_params())
    params = mtmd.mtmd_context_params_default()
    params.flash_attn_type, params.n_threads = 0, 1
    vision = mtmd.mtmd_init_from_file(mmproj.encode(), pointer, params)
    rgb = pyfastv.load_image(picture)
    height, width, _ = rgb.shape
    bitmap = mtmd.mtmd_bitmap_init(width, height, rgb.ctypes.data_as(ctypes.POINTER(ctypes.c_uint8)))
    chunks = mtmd.mtmd_input_chunks_init()
    marker = mtmd.mtmd_default_marker()
    text = mtmd.mtmd_input_text(marker, len(marker), False, True)
    bitmaps = (mtmd.mtmd_bitmap_p_ctypes * 1)(bitmap)
    assert mtmd.mtmd_tokenize(vision, chunks, ctypes.byref(text), bitmaps, 1) == 0
    rows = []
    for i in range(mtmd.mtmd_input_chunks_size(chunks)):
        chunk = mtmd.mtmd_input_chunks_get(chunks, i)
        if mtmd.mtmd_input_chunk_get_type(chunk) != mtmd.MTMD_INPUT_CHUNK_TYPE_TEXT:
            assert mtmd.mtmd_encode_chunk(vision, chunk) == 0
            shape = (mtmd.mtmd_input_chunk_get_n_tokens(chunk), llama.llama_model_n_embd_inp(pointer))
            rows.append(np.ctypeslib.as_array(mtmd.mtmd_get_output_embd(vision), shape).copy())
    np.save(out, np.concatenate(rows))
    mtmd.mtmd_input_chunks_free(chunks)
    mtmd.mtmd_bitmap_free(bitmap)
    mtmd.mtmd_free(vision)
    llama.llama_model_free(pointer)


if __name__ == "__main__":
    for line in sys.stdin:
        _encode(*json.loads(line))
        print("done", flush=True)
