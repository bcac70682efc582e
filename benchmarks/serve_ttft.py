"""Time to first token over HTTP: the first question about a picture, and the second in the same conversation.

    python benchmarks/serve_ttft.py

Starts a server (or uses --url), streams both answers, and takes the time from sending the request to the first chunk
with text. Each round has another picture, so that neither slot nor encoder cache knows it.
"""

from __future__ import annotations

import argparse
import base64
import io
import json
import statistics
import time
import urllib.request
from contextlib import nullcontext
from typing import Any

import numpy as np
from PIL import Image
from rich.console import Console
from rich.table import Table

from pyfastv.models import bundled_examples

from server_process import start


def another(picture: Image.Image, seed: int) -> str:
    """The picture with a little noise, as a data URI: the same to look at, another one to every cache."""
    noise = np.random.default_rng(seed).integers(-3, 4, (picture.height, picture.width, 3))
    pixels = np.clip(np.asarray(picture).astype(int) + noise, 0, 255).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"


def ask(url: str, messages: list[dict[str, Any]], fastv: str | None) -> tuple[float, str, dict[str, Any]]:
    """Milliseconds to the first text, the answer, and the timings."""
    body = {"messages": messages, "temperature": 0, "max_tokens": 48, "stream": True}
    if fastv is not None:
        body["fastv"] = fastv
    request = urllib.request.Request(
        f"{url}/v1/chat/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    begin = time.perf_counter()
    first, text, timings = 0.0, "", {}
    with urllib.request.urlopen(request) as response:
        for line in response:
            if not line.startswith(b"data: {"):
                continue
            chunk = json.loads(line[6:])
            piece = chunk["choices"][0]["delta"].get("content") if chunk["choices"] else ""
            if piece and not first:
                first = (time.perf_counter() - begin) * 1000.0
            text += piece or ""
            timings = chunk.get("timings", timings)
    return first, text, timings


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--url", help="a server that runs (default: one is started)")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--fastv", help="schedule (default: the server's)")
    parser.add_argument(
        "--options", nargs="*", default=["--n-ctx", "2048"], help="of the server that is started"
    )
    args = parser.parse_args()

    example = bundled_examples()[0]
    picture = Image.open(example.picture).convert("RGB")
    firsts, seconds = [], []
    server = nullcontext(None) if args.url else start(*args.options)
    with server as started:
        url = args.url or started.url
        for seed in range(args.rounds + 1):
            messages: list[dict[str, Any]] = [
                {
                    "role": "user",
                    "content": [
                        {"type": "image_url", "image_url": {"url": another(picture, seed)}},
                        {"type": "text", "text": example.question},
                    ],
                }
            ]
            first, answer, _ = ask(url, messages, args.fastv)
            messages += [
                {"role": "assistant", "content": answer},
                {"role": "user", "content": "Is the clock digital or analog?"},
            ]
            second, _, timings = ask(url, messages, args.fastv)
            assert timings["pictures_encoded"] == 0, "the picture was encoded again"
            if seed:  # the first round warms up
                firsts.append(first)
                seconds.append(second)

    table = Table("question", "time to first token, ms: median", "min", "max")
    for name, values in {"first": firsts, "second, same picture": seconds}.items():
        table.add_row(
            name, *(f"{value:.1f}" for value in (statistics.median(values), min(values), max(values)))
        )
    console = Console(width=100)
    console.print(table)
    ratios = [first / second for first, second in zip(firsts, seconds, strict=True)]
    console.print(f"ratio: median {statistics.median(ratios):.1f}, least {min(ratios):.1f}")


if __name__ == "__main__":
    main()
