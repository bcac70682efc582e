#!/usr/bin/env python3
"""Write a GGUF language model and mmproj with the geometry of LLaVA-1.5 and random weights.

Speed depends on shapes and types, not on values, so a random model times like the published one and needs no
download. The weights are drawn so that activations stay near unit size through every layer.

Language model: arch llama, no grouped-query attention. Every matrix has the type --type, except the output
matrix, which is Q6_K for the 4-bit types, as llama-quantize does. Norms are f32 ones. Vision: CLIP ViT-L/14
at 336 pixels, features of layer -2 (so the last layer is left out of the file), with the CLS embedding, as
the published LLaVA-1.5 mmproj files have it; matrices f16, the rest f32.

Files are written tensor by tensor and are the same for the same arguments.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import gguf
import numpy as np
from gguf import GGMLQuantizationType as Type

CHAT_TEMPLATE = (
    "{% for message in messages %}{% if message['role'] == 'user' %}USER: {% else %}ASSISTANT: {% endif %}"
    "{{ message['content'] }}{% if message['role'] == 'user' %} {% else %}</s>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)

FILE_TYPES = {
    "F16": gguf.LlamaFileType.MOSTLY_F16,
    "Q8_0": gguf.LlamaFileType.MOSTLY_Q8_0,
    "Q4_0": gguf.LlamaFileType.MOSTLY_Q4_0,
    "Q4_K": gguf.LlamaFileType.MOSTLY_Q4_K_S,
}

POOL_ELEMENTS = (
    16 << 20
)  # random values drawn for each (type, scale); tensors are cyclic slices of such a pool


@dataclass(frozen=True)
class Geometry:
    """Sizes of a LLaVA-1.5 model. The picture is always 336 pixels in patches of 14: 576 visual tokens."""

    layers: int
    width: int
    heads: int
    ffn: int
    vocab: int
    vision_layers: int  # in the file: one less than the ViT has, for the features are those of layer -2
    vision_width: int
    vision_heads: int
    vision_ffn: int


GEOMETRIES = {
    "llava-1.5-7b": Geometry(32, 4096, 32, 11008, 32000, 23, 1024, 16, 4096),
    "llava-1.5-13b": Geometry(40, 5120, 40, 13824, 32000, 23, 1024, 16, 4096),
    "tiny": Geometry(4, 256, 4, 768, 512, 2, 128, 2, 256),
}


class RandomTensors:
    """Random tensors of a type and a standard deviation, cut from pools that are drawn once."""

    def __init__(self, seed: int) -> None:
        self._random = np.random.default_rng(seed)
        self._pools: dict[tuple[Type, float], np.ndarray] = {}

    def draw(self, shape: tuple[int, ...], type_: Type, std: float) -> np.ndarray:
        """One tensor of `shape` (numpy order, rows last); quantised ones as bytes (..., bytes of a row)."""
        if type_ in (Type.F32, Type.F16):
            dtype = np.dtype(np.float32 if type_ == Type.F32 else np.float16)
            return self._cut(type_, std, int(np.prod(shape))).view(dtype).reshape(shape)
        block_elements, block_bytes = gguf.GGML_QUANT_SIZES[type_]
        if shape[-1] % block_elements:
            raise ValueError(
                f"rows of {shape[-1]} do not divide into {type_.name} blocks of {block_elements}"
            )
        row_bytes = shape[-1] // block_elements * block_bytes
        return self._cut(type_, std, int(np.prod(shape)) // block_elements).reshape(*shape[:-1], row_bytes)

    def _cut(self, type_: Type, std: float, blocks: int) -> np.ndarray:
        """`blocks` consecutive blocks, as flat bytes, from a random place of the pool and around its end."""
        if (type_, std) not in self._pools:
            self._pools[type_, std] = self._draw_pool(type_, std)
        pool = self._pools[type_, std]
        start = int(self._random.integers(len(pool)))
        rounds = (start + blocks) // len(pool)
        pieces = [pool[start : start + blocks], *[pool] * rounds]
        return np.concatenate(pieces)[:blocks].reshape(-1)

    def _draw_pool(self, type_: Type, std: float) -> np.ndarray:
        """A pool as bytes (blocks, bytes of a block). Their odd number keeps repetitions off the rows."""
        block_elements, block_bytes = gguf.GGML_QUANT_SIZES[type_]
        blocks = POOL_ELEMENTS // block_elements - 1
        if type_ == Type.Q4_K:
            return self._draw_q4_k(blocks, std)
        if type_ == Type.Q6_K:
            return self._draw_q6_k(blocks, std)
        values = self._random.standard_normal((blocks, block_elements), dtype=np.float32) * np.float32(std)
        if type_ in (Type.F32, Type.F16):
            dtype = np.float32 if type_ == Type.F32 else np.float16
            return np.asarray(values.astype(dtype).view(np.uint8))
        return np.asarray(gguf.quants.quantize(values, type_), np.uint8).reshape(blocks, block_bytes)

    def _draw_q4_k(self, blocks: int, std: float) -> np.ndarray:
        """Q4_K, uniform: d and dmin f16, 12 bytes of 6-bit scales and minima (all 32), 128 of nibbles."""
        step = std / np.sqrt((16**2 - 1) / 12)
        pool = np.empty((blocks, 144), np.uint8)
        pool[:, 0:4] = np.array([step / 32, 7.5 * step / 32], np.float16).view(np.uint8)
        pool[:, 4:12] = 0xA0  # 32 in the low six bits, its high bits again in the upper two, for entries 4..7
        pool[:, 12:16] = 0
        pool[:, 16:] = self._random.integers(0, 256, (blocks, 128), np.uint8)
        return pool

    def _draw_q6_k(self, blocks: int, std: float) -> np.ndarray:
        """Q6_K, uniform: 128 + 64 bytes of 6-bit values minus 32, 16 int8 scales of random sign, d f16."""
        step = std / np.sqrt((64**2 - 1) / 12)
        pool = np.empty((blocks, 210), np.uint8)
        pool[:, :192] = self._random.integers(0, 256, (blocks, 192), np.uint8)
        signs = (
            self._random.integers(0, 2, (blocks, 16), np.int8) * 2 - 1
        )  # a value's mean is -0.5: balance it
        pool[:, 192:208] = (signs * 64).astype(np.int8).view(np.uint8)
        pool[:, 208:] = np.array([step / 64], np.float16).view(np.uint8)
        return pool


@dataclass(frozen=True)
class Tensor:
    """A tensor to write. `std` None: constant `value`."""

    name: str
    shape: tuple[int, ...]  # numpy order
    type: Type = Type.F32
    std: float | None = None
    value: float = 0.0


def language_tensors(geometry: Geometry, type_: Type) -> Iterator[Tensor]:
    """The tensors of the llama model.

    Matrices keep unit inputs at unit size; what is added to the residual is smaller by sqrt(2 layers).
    """
    g = geometry
    std_in = g.width**-0.5
    std_residual = (2 * g.layers) ** -0.5
    output_type = Type.Q6_K if type_ in (Type.Q4_0, Type.Q4_K) else type_
    yield Tensor("token_embd.weight", (g.vocab, g.width), type_, std_in)
    yield Tensor("output_norm.weight", (g.width,), value=1.0)
    yield Tensor("output.weight", (g.vocab, g.width), output_type, std_in)
    for i in range(g.layers):
        yield Tensor(f"blk.{i}.attn_norm.weight", (g.width,), value=1.0)
        for name in ("attn_q", "attn_k", "attn_v"):
            yield Tensor(f"blk.{i}.{name}.weight", (g.width, g.width), type_, std_in)
        yield Tensor(f"blk.{i}.attn_output.weight", (g.width, g.width), type_, std_in * std_residual)
        yield Tensor(f"blk.{i}.ffn_norm.weight", (g.width,), value=1.0)
        for name in ("ffn_gate", "ffn_up"):
            yield Tensor(f"blk.{i}.{name}.weight", (g.ffn, g.width), type_, std_in)
        yield Tensor(f"blk.{i}.ffn_down.weight", (g.width, g.ffn), type_, g.ffn**-0.5 * std_residual)


def vision_tensors(geometry: Geometry, cls: bool) -> Iterator[Tensor]:
    """The tensors of the vision tower and the projector, in the classic layout."""
    g = geometry
    width = g.vision_width
    std_residual = (2 * g.vision_layers) ** -0.5

    def linear(name: str, n_out: int, n_in: int, scale: float = 1.0) -> Iterator[Tensor]:
        yield Tensor(f"{name}.weight", (n_out, n_in), Type.F16, n_in**-0.5 * scale)
        yield Tensor(f"{name}.bias", (n_out,))

    def norm(name: str) -> Iterator[Tensor]:
        yield Tensor(f"{name}.weight", (width,), value=1.0)
        yield Tensor(f"{name}.bias", (width,))

    yield from linear("mm.0", g.width, width)
    yield from linear("mm.2", g.width, g.width)
    if cls:
        yield Tensor("v.class_embd", (width,), std=1.0)
    yield Tensor("v.patch_embd.weight", (width, 3, 14, 14), Type.F16, (3 * 14 * 14) ** -0.5)
    yield Tensor("v.position_embd.weight", (576 + cls, width), std=1.0)
    yield from norm("v.pre_ln")
    for i in range(g.vision_layers):
        yield from norm(f"v.blk.{i}.ln1")
        for name in ("attn_q", "attn_k", "attn_v"):
            yield from linear(f"v.blk.{i}.{name}", width, width)
        yield from linear(f"v.blk.{i}.attn_out", width, width, std_residual)
        yield from norm(f"v.blk.{i}.ln2")
        yield from linear(f"v.blk.{i}.ffn_up", g.vision_ffn, width)
        yield from linear(f"v.blk.{i}.ffn_down", width, g.vision_ffn, std_residual)


def add_vocabulary(writer: gguf.GGUFWriter, size: int) -> None:
    """A SentencePiece vocabulary: specials, bytes, printable ASCII, then words that stand for nothing."""
    kinds = gguf.TokenType
    tokens = [("<unk>", kinds.UNKNOWN), ("<s>", kinds.CONTROL), ("</s>", kinds.CONTROL)]
    tokens += [(f"<0x{byte:02X}>", kinds.BYTE) for byte in range(256)]
    tokens += [("\u2581", kinds.NORMAL)] + [(chr(c), kinds.NORMAL) for c in range(0x21, 0x7F)]
    tokens += [(f"\u2581w{i}", kinds.NORMAL) for i in range(len(tokens), size)]
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    writer.add_token_list([text for text, _ in tokens])
    writer.add_token_scores(
        [-float(i) if kind == kinds.NORMAL else 0.0 for i, (_, kind) in enumerate(tokens)]
    )
    writer.add_token_types([int(kind) for _, kind in tokens])
    writer.add_unk_token_id(0)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_add_bos_token(True)
    writer.add_add_eos_token(False)
    writer.add_chat_template(CHAT_TEMPLATE)


def language_writer(path: Path, geometry: Geometry, name: str, type_: Type) -> gguf.GGUFWriter:
    """A writer that holds the metadata of the language model."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_type(gguf.GGUFType.MODEL)
    writer.add_name(f"{name}, random weights")
    writer.add_block_count(geometry.layers)
    writer.add_context_length(4096)
    writer.add_embedding_length(geometry.width)
    writer.add_feed_forward_length(geometry.ffn)
    writer.add_head_count(geometry.heads)
    writer.add_head_count_kv(geometry.heads)
    writer.add_rope_freq_base(10000.0)
    writer.add_rope_dimension_count(geometry.width // geometry.heads)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(geometry.vocab)
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    writer.add_file_type(FILE_TYPES[type_.name])
    add_vocabulary(writer, geometry.vocab)
    return writer


def vision_writer(path: Path, geometry: Geometry, name: str) -> gguf.GGUFWriter:
    """A writer that holds the metadata of the mmproj."""
    writer = gguf.GGUFWriter(path, "clip")
    writer.add_bool("clip.has_text_encoder", False)
    writer.add_bool("clip.has_vision_encoder", True)
    writer.add_bool("clip.has_llava_projector", True)
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_F16)
    writer.add_name(f"{name} mmproj, random weights")
    writer.add_description("image encoder for LLaVA")
    writer.add_string("clip.projector_type", "mlp")
    writer.add_uint32("clip.vision.image_size", 336)
    writer.add_uint32("clip.vision.patch_size", 14)
    writer.add_uint32("clip.vision.embedding_length", geometry.vision_width)
    writer.add_uint32("clip.vision.feed_forward_length", geometry.vision_ffn)
    writer.add_uint32("clip.vision.projection_dim", geometry.width)
    writer.add_uint32("clip.vision.attention.head_count", geometry.vision_heads)
    writer.add_uint32("clip.vision.block_count", geometry.vision_layers)
    writer.add_float32("clip.vision.attention.layer_norm_epsilon", 1e-5)
    writer.add_array("clip.vision.feature_layer", [geometry.vision_layers])
    writer.add_array("clip.vision.image_mean", [0.48145466, 0.4578275, 0.40821073])
    writer.add_array("clip.vision.image_std", [0.26862954, 0.26130258, 0.27577711])
    writer.add_bool("clip.use_gelu", False)  # CLIP's quick GELU
    return writer


def write_tensors(writer: gguf.GGUFWriter, tensors: list[Tensor], seed: int) -> None:
    """Write the header, then one tensor after the other, so that only one is in memory."""
    random = RandomTensors(seed)
    for tensor in tensors:
        block_elements, block_bytes = gguf.GGML_QUANT_SIZES[tensor.type]
        n_bytes = int(np.prod(tensor.shape)) // block_elements * block_bytes
        writer.add_tensor_info(
            tensor.name, tensor.shape, np.dtype(np.float32), n_bytes, raw_dtype=tensor.type
        )
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for tensor in tensors:
        if tensor.std is None:
            data = np.full(tensor.shape, tensor.value, np.float32)
        else:
            data = random.draw(tensor.shape, tensor.type, tensor.std)
        writer.write_tensor_data(data)
    writer.close()


def make_geometry(
    name: str, folder: Path, type_name: str = "Q4_0", seed: int = 0, cls: bool = True
) -> tuple[Path, Path]:
    """Write the pair into `folder` unless it is there. Returns the paths of the model and the mmproj."""
    geometry, type_ = GEOMETRIES[name], Type[type_name]
    suffix = "" if seed == 0 else f"-seed{seed}"
    model = folder / f"{name}-random-{type_name}{suffix}.gguf"
    mmproj = folder / f"mmproj-{name}-random-f16{'' if cls else '-nocls'}{suffix}.gguf"
    folder.mkdir(parents=True, exist_ok=True)
    for path in (model, mmproj):
        if path.exists():
            continue
        print(f"writing {path}", file=sys.stderr, flush=True)
        part = path.with_suffix(
            ".part"
        )  # renamed when whole, so that an interrupted run leaves no broken model
        if path is model:
            write_tensors(
                language_writer(part, geometry, name, type_), [*language_tensors(geometry, type_)], seed
            )
        else:
            write_tensors(vision_writer(part, geometry, name), [*vision_tensors(geometry, cls)], seed + 1)
        os.replace(part, path)
    return model, mmproj


def default_cache() -> Path:
    """Where geometry files are kept unless a folder is named."""
    return Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "pyfastv" / "geometry"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "folder", nargs="?", type=Path, default=default_cache(), help="where to write (%(default)s)"
    )
    parser.add_argument("--geometry", choices=GEOMETRIES, default="llava-1.5-7b", help="default: %(default)s")
    parser.add_argument(
        "--type", choices=FILE_TYPES, default="Q4_0", help="of the matrices (default: %(default)s)"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the weights (default: %(default)s)")
    parser.add_argument(
        "--no-cls", action="store_true", help="leave the CLS embedding out of the vision tower"
    )
    args = parser.parse_args()
    for path in make_geometry(args.geometry, args.folder, args.type, args.seed, not args.no_cls):
        print(path)


if __name__ == "__main__":
    main()
