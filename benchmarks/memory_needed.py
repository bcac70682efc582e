"""What the models of the geometries need: weights, vision encoder and KV cache, and what fits into how much memory.

    python benchmarks/memory_needed.py
    python benchmarks/memory_needed.py --n-ctx 8192 --memory 8 16 32 64

Prints the tables of docs/memory.md as Markdown. Nothing is written or run: weights are counted tensor by tensor from the
sizes of published models (pyfastv/bench/geometry/sizes.py), the KV cache as `pyfastv plan` counts it. A model fits where
its files and the KV cache of one conversation take no more than three quarters of the memory: the rest is for buffers,
pictures, the system and other programs.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence

from gguf import GGMLQuantizationType as Type

from pyfastv import Recommended
from pyfastv.bench.geometry.sizes import GEOMETRIES, Geometry
from pyfastv.bench.geometry.tensors import language_tensors, vision_tensors
from pyfastv.theory import Decoder, kv_bytes, visual_by_layer

GIB = 1 << 30
SHARE = 0.75
WEIGHTS = ("F16", "Q8_0", "Q4_K")
KV_BYTES = {"f16": 2.0, "q8_0": 34 / 32}
"""Of a value: a block of 32 in q8_0 is 34 bytes."""
# where the first cut can be, of those that cannot have one at the default K=2 (docs/models.md)
FIRST_CUT = {"qwen3-vl-2b": 4, "gemma-3-4b": 6}


def decoder_of(geometry: Geometry) -> Decoder:
    """As far as its KV cache is concerned."""
    d = geometry.decoder
    none = (0,) * d.layers
    return Decoder(
        width=d.width,
        ffn=d.ffn,
        attention_weights=none,
        ffn_weights=none,
        pair_width=none,
        kv_width=(2 * d.kv_heads * d.head,) * d.layers,
        output_weights=0,
    )


def weight_bytes(geometry: Geometry, type_name: str) -> int:
    """Of the language model."""
    return sum(tensor.n_bytes for tensor in language_tensors(geometry.decoder, Type[type_name]))


def encoder_bytes(geometry: Geometry) -> int:
    """Of the mmproj in f16."""
    tensors = vision_tensors(geometry.encoder, geometry.decoder.width, cls=True)
    return sum(tensor.n_bytes for tensor in tensors)


def cache_bytes(geometry: Geometry, n_ctx: int, type_name: str = "f16") -> int:
    """Of the KV cache of one conversation."""
    decoder = decoder_of(geometry)
    return kv_bytes(decoder, [n_ctx] * decoder.n_layer, KV_BYTES[type_name])


def picture_bytes(name: str) -> tuple[int, int]:
    """KV cache that a square picture of 672 pixels fills, in f16: without pruning, and with half dropped."""
    geometry = GEOMETRIES[name]
    decoder, counts = decoder_of(geometry), [geometry.visual_tokens]
    pruned = visual_by_layer(Recommended(FIRST_CUT.get(name, 2), 0.5), decoder.n_layer, counts)
    return kv_bytes(decoder, counts * decoder.n_layer), kv_bytes(decoder, pruned)


def largest_that_fits(geometry: Geometry, n_ctx: int, memory: float) -> str:
    """The type of the weights with the most bits that fits; where only a smaller KV cache helps, with that."""
    for kv_type in KV_BYTES:
        for type_name in WEIGHTS:
            files = weight_bytes(geometry, type_name) + encoder_bytes(geometry)
            if files + cache_bytes(geometry, n_ctx, kv_type) <= SHARE * memory * GIB:
                return type_name if kv_type == "f16" else f"{type_name}, `-ctk {kv_type} -ctv {kv_type}`"
    return "-"


def published() -> dict[str, Geometry]:
    """Published models whose layers all have a cache of one width: of the others `pyfastv plan` counts it."""

    def is_plain(geometry: Geometry) -> bool:
        d = geometry.decoder
        return d.attention_every == 1 and not d.attention and d.gemma4 is None

    return {name: one for name, one in GEOMETRIES.items() if name != "tiny" and is_plain(one)}


def needed(n_ctx: int) -> Iterator[list[str]]:
    """Rows: what each part takes."""
    yield ["model", *(f"{name}, GB" for name in WEIGHTS), "mmproj, GB", f"KV of {n_ctx:,}, GB", "picture, MB"]
    for name, geometry in published().items():
        whole, half = picture_bytes(name)
        yield [
            name,
            *(f"{weight_bytes(geometry, type_name) / 1e9:.1f}" for type_name in WEIGHTS),
            f"{encoder_bytes(geometry) / 1e9:.1f}",
            f"{cache_bytes(geometry, n_ctx) / 1e9:.2f}",
            f"{whole / 1e6:.0f} > {half / 1e6:.0f}",
        ]


def fitting(n_ctx: int, memories: Sequence[float]) -> Iterator[list[str]]:
    """Rows: what fits where."""
    yield ["model", *(f"{memory:g} GB" for memory in memories)]
    for name, geometry in published().items():
        yield [name, *(largest_that_fits(geometry, n_ctx, memory) for memory in memories)]


def markdown(rows: Iterator[list[str]]) -> str:
    """A table."""
    head, *body = rows
    lines = [f"| {' | '.join(cells)} |" for cells in (head, *body)]
    lines.insert(1, f"|---{'|--:' * (len(head) - 1)}|")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--n-ctx", type=int, default=4096, help="tokens of a conversation")
    parser.add_argument("--memory", type=float, nargs="+", default=[8, 16, 32], metavar="GB")
    arguments = parser.parse_args()
    print(markdown(needed(arguments.n_ctx)))
    print()
    print(markdown(fitting(arguments.n_ctx, arguments.memory)))


if __name__ == "__main__":
    main()
