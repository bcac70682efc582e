"""What a vision encoder makes of a picture, through llama-cpp-python's low-level bindings on our libraries.

python features.py MODEL MMPROJ PICTURE OUT.npy
"""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
from pathlib import Path

import numpy as np

import pyfastv


def features(model: Path, mmproj: Path, picture: Path, out: Path) -> np.ndarray:
    """float32 [n, n_embd], in a process of its own: the libraries are loaded once in a process."""
    root = str(Path(pyfastv.__file__).parents[1])
    env = os.environ | {"PYTHONPATH": root}
    env |= dict.fromkeys(("LLAMA_CPP_LIB_PATH", "MTMD_CPP_LIB"), str(pyfastv.lib_path()))
    command = [sys.executable, __file__, *map(str, (model, mmproj, picture, out))]
    subprocess.run(command, check=True, env=env, capture_output=True)
    rows: np.ndarray = np.load(out)
    return rows


def _main(model: str, mmproj: str, picture: str, out: str) -> None:
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


if __name__ == "__main__":
    _main(*sys.argv[1:])
