"""What a draft model saves where pictures are pruned: llama-server of the pin with our libraries, with and without one.

    make programs
    python benchmarks/draft.py --server build/stock/bin/llama-server --libraries fastv-lib

fastv-lib: the folder that docs/programs.md makes. The target is the bundled model with --layers more layers that add
nothing, so that the bundled model, as the draft, is nearly always right: the most that a draft can save. Each bundled
picture is described, to the end. Prints Markdown; ends with an error if an answer differs.
"""

from __future__ import annotations

import argparse
import base64
import json
import statistics
import tempfile
import urllib.request
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import gguf
import numpy as np

from pyfastv.models import bundled_examples, bundled_mmproj, bundled_model

from server_process import SECONDS, start_llama_server

SETTING = "k=2,drop=0.75"


def lengthen(path: Path, n_more: int) -> None:
    """Write the bundled model with more layers, whose two last matrices are zeros."""
    reader = gguf.GGUFReader(bundled_model())
    n_layers = int(reader.fields["llama.block_count"].parts[-1][0])
    writer = gguf.GGUFWriter(path, "llama")
    for name, field in reader.fields.items():
        if name.startswith("GGUF.") or name == "general.architecture":
            continue
        value = n_layers + n_more if name == "llama.block_count" else field.contents()
        writer.add_key_value(name, value, field.types[0], field.types[1] if len(field.types) > 1 else None)
    last = f"blk.{n_layers - 1}."
    for tensor in reader.tensors:
        writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
        for layer in range(n_layers, n_layers + n_more) if tensor.name.startswith(last) else ():
            part = tensor.name.removeprefix(last)
            adds = part in ("attn_output.weight", "ffn_down.weight")
            data = np.zeros_like(tensor.data) if adds else tensor.data
            writer.add_tensor(f"blk.{layer}.{part}", data, raw_dtype=tensor.tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def serving(arguments: argparse.Namespace, model: Path, *options: str) -> AbstractContextManager[str]:
    """The address of a llama-server, ended afterwards."""
    files = ("--model", model, "--mmproj", bundled_mmproj(), "--threads", arguments.threads, "--parallel", 1)
    return start_llama_server(
        arguments.server, *files, *options, libraries=arguments.libraries, setting=SETTING
    )


def describe(url: str, picture: Path) -> dict[str, Any]:
    """The completion."""
    shown = f"data:image/png;base64,{base64.b64encode(picture.read_bytes()).decode()}"
    content = [
        {"type": "image_url", "image_url": {"url": shown}},
        {"type": "text", "text": "Describe the image."},
    ]
    body = {
        "messages": [{"role": "user", "content": content}],
        "temperature": 0,
        "max_tokens": 64,
        "cache_prompt": False,
    }
    headers = {"Content-Type": "application/json"}
    request = urllib.request.Request(f"{url}/v1/chat/completions", json.dumps(body).encode(), headers)
    with urllib.request.urlopen(request, timeout=SECONDS) as response:
        answer: dict[str, Any] = json.load(response)
    return answer


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--server", type=Path, required=True, help="llama-server of the pin")
    parser.add_argument("--libraries", type=Path, required=True, help="the folder of our libraries")
    parser.add_argument("--layers", type=int, default=84, help="how many more the target has (84)")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()

    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "target.gguf"
        lengthen(target, arguments.layers)
        drafting = ("--model-draft", str(bundled_model()), "--spec-type", "draft-simple")
        rates: dict[str, list[float]] = {"without": [], "with": []}
        texts: dict[str, list[str]] = {"without": [], "with": []}
        drafted = accepted = 0
        with serving(arguments, target) as plain, serving(arguments, target, *drafting) as helped:
            for _ in range(arguments.rounds):
                for name, url in (("without", plain), ("with", helped)):
                    for picture, *_ in bundled_examples():
                        answer = describe(url, picture)
                        timings = answer["timings"]
                        rates[name].append(timings["predicted_per_second"])
                        texts[name].append(answer["choices"][0]["message"]["content"])
                        drafted += timings.get("draft_n", 0)
                        accepted += timings.get("draft_n_accepted", 0)
    print(
        f"LLAMA_FASTV={SETTING}, {arguments.threads} threads, {arguments.layers} layers more, tokens a second:\n"
    )
    print("| | median | lowest | highest |\n|---|--:|--:|--:|")
    for name, values in rates.items():
        print(f"| {name} a draft | {statistics.median(values):.1f} | {min(values):.1f} | {max(values):.1f} |")
    same = texts["without"] == texts["with"]
    print(f"\n{accepted} of {drafted} drafted tokens accepted; answers {'equal' if same else 'NOT EQUAL'}")
    raise SystemExit(not same)


if __name__ == "__main__":
    main()
