#!/usr/bin/env python3
"""Drive one set of llama.cpp libraries: load a model once, then measure on request.

One process uses one folder of libraries (libllama, libmtmd, libggml*), through the low-level bindings of
llama-cpp-python of the same pin, which know nothing of pyfastv. Two such processes can take turns without
loading their models again. Requests are JSON objects, one a line, on stdin; answers likewise on stdout:

    {"do": "info"}                                   the libraries, their flags, sizes of the model
    {"do": "attach", "spec": "k=2,drop=0.5"}         stages for what follows (pyfastv's libraries only)
    {"do": "detach"}                                 and off again
    {"do": "measure", "generate": 16}                encoder, prefill and generation times
    {"do": "encode", "save": "embeddings.npy"}       the picture's embeddings: float32 (tokens, width)
    {"do": "logits", "steps": 32, "save": "logits.npy", "embeddings": "embeddings.npy", "tokens": [...]}
                                                     logits of greedy steps: float32 (steps, vocabulary);
                                                     without "embeddings" the picture is encoded; "tokens"
                                                     are followed instead of the greedy choice
    {"do": "quit"}

A failed request is answered with {"error": "..."}. An empty stdin ends the process too. benchmarks/client.py
wraps this protocol. By hand:

    echo '{"do": "measure"}' | python drive.py --libraries DIR --model M.gguf --mmproj P.gguf
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from engine import FLASH_ATTENTION, Engine

from bindings import EngineError


def serve(engine: Engine, answers: Any) -> None:
    """Answer the requests on stdin until "quit" or its end."""
    requests: dict[str, Callable[..., dict[str, Any]]] = {
        "info": engine.info,
        "attach": engine.attach,
        "detach": engine.detach,
        "measure": engine.measure,
        "encode": engine.encode,
        "logits": engine.logits,
    }
    for line in sys.stdin:
        request = json.loads(line)
        name = request.pop("do")
        if name == "quit":
            return
        try:
            if name not in requests:
                raise EngineError(f"unknown request {name!r}; known: {', '.join(requests)}")
            answer = requests[name](**request)
        except (EngineError, TypeError, ValueError, OSError) as error:
            answer = {"error": str(error)}
        print(json.dumps(answer), file=answers, flush=True)


def add_engine_options(parser: argparse.ArgumentParser) -> None:
    """Options of an engine that prefill.py and parity.py hand through."""
    parser.add_argument(
        "--threads", type=int, default=os.cpu_count() or 1, help="CPU threads (default: all cores)"
    )
    parser.add_argument("--n-ctx", type=int, default=1024, help="context length (default: %(default)s)")
    parser.add_argument("--n-batch", type=int, default=2048, help="default: %(default)s, llama.cpp's")
    parser.add_argument("--n-ubatch", type=int, default=512, help="default: %(default)s, llama.cpp's")
    parser.add_argument(
        "--n-gpu-layers", type=int, default=0, help="layers on the GPU (default: %(default)s)"
    )
    parser.add_argument("--picture", type=Path, help="a picture file, read by Pillow (default: a drawn one)")
    parser.add_argument(
        "--prompt",
        help=r"text with <image> once, \n for a new line (default: the picture, then --text-tokens words)",
    )
    parser.add_argument("--text-tokens", type=int, default=14, help="without --prompt (default: %(default)s)")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--libraries", type=Path, required=True, help="folder of libllama, libmtmd and libggml*"
    )
    parser.add_argument("--model", type=Path, required=True, help="GGUF of the language model")
    parser.add_argument("--mmproj", type=Path, required=True, help="GGUF of the vision tower and projector")
    parser.add_argument(
        "--flash-attention", choices=FLASH_ATTENTION, default="auto", help="default: %(default)s"
    )
    add_engine_options(parser)
    args = parser.parse_args()
    args.libraries = args.libraries.resolve()

    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a library prints must not get between the answers
    try:
        engine = Engine(args)
    except (EngineError, OSError, RuntimeError) as error:
        sys.exit(f"drive.py: {error}")
    serve(engine, answers)


if __name__ == "__main__":
    main()
