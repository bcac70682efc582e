"""What a vision encoder makes of a picture, through llama-cpp-python's low-level bindings on our libraries.

python features.py: reads MODEL, MMPROJ, PICTURE and OUT.npy from its standard input, a line each, and answers with a line.
"""

from __future__ import annotations

import atexit
import ctypes
import os
import subprocess
import sys
from pathlib import Path

import numpy as np

import pyfastv


_encoder: subprocess.Popen[str] | None = None


def features(model: Path, mmproj: Path, picture: Path, out: Path) -> np.ndarray:
    """float32 [n, n_embd], in a process of its own, since the libraries are loaded once in one; it waits for the next."""
    global _encoder
    if _encoder is None or _encoder.poll() is not None:
        env = os.environ | {"PYTHONPATH": str(Path(pyfastv.__file__).parents[1])}
        env |= dict.fromkeys(("LLAMA_CPP_LIB_PATH", "MTMD_CPP_LIB"), str(pyfastv.lib_path()))
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
        _encoder = subprocess.Popen([sys.executable, __file__], env=env, text=True, **pipes)
        atexit.register(_encoder.communicate)
    assert _encoder.stdin is not None and _encoder.stdout is not None
    _encoder.stdin.write("".join(f"{path}\n" for path in (model, mmproj, picture, out)))
    _encoder.stdin.flush()
    assert _encoder.stdout.readline() == "done\n", f"the encoder of {mmproj} ended the process"
    rows: np.ndarray = np.load(out)
    return rows


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
    lines = (line.rstrip("\n") for line in sys.stdin)
    for paths in zip(lines, lines, lines, lines, strict=False):
        _encode(*paths)
        print("done", flush=True)
