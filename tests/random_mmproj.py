"""Small vision encoders of several families, with random F32 weights, as mmproj GGUF files; and what they make of a
picture. Their output is as wide as random_gguf's models."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import gguf
import numpy as np

import random_gguf
from random_gguf import WIDTH, Weights

ENCODER, FFN, LAYERS, HEADS, PATCH = 64, 128, 3, 2, 14
QWEN = ("qwen2vl_merger", "qwen2.5vl_merger", "qwen3vl_merger")

# What mtmd puts around pictures and their slices.
SPECIAL_TOKENS = (
    *("<image>", "</image>", "<slice>", "</slice>", "\n", "\n\n"),
    *("<|vision_start|>", "<|vision_end|>", "<start_of_image>", "<end_of_image>"),
    *("<img>", "</img>", "[IMG_END]"),
    *("<fake_token_around_image>", "<global-img>"),
    *(f"<row_{y}_col_{x}>" for y in (1, 2) for x in (1, 2)),
    *("<|image>", "<image|>", "<|image_start|>", "<|image_end|>", "<|img_thumbnail|>"),
)


@dataclass(frozen=True)
class Family:
    """A projector, a language model that it goes with, and what becomes of a picture of 224 x 168 pixels."""

    arch: str
    projector: str
    image_size: int
    grids: list[tuple[int, int]]  # (nx, ny) of every slice
    extra: random_gguf.Extra = field(default_factory=dict)  # metadata, keys without "clip."
    patch: int = 0  # size of one; 0: PATCH


FAMILIES = {
    "LLaVA": Family("llama", "mlp", 112, [(8, 8)]),
    "Qwen2-VL": Family("qwen2vl", "qwen2vl_merger", 560, [(8, 6)]),
    "Qwen2.5-VL": Family("qwen2vl", "qwen2.5vl_merger", 560, [(8, 6)], {"vision.n_wa_pattern": 2}),
    "Qwen3-VL": Family(
        "qwen3vl", "qwen3vl_merger", 224, [(8, 6)], {"vision.is_deepstack_layers": [True, True, False]}
    ),
    "Qwen3.5": Family(
        "qwen35", "qwen3vl_merger", 224, [(8, 6)], {"vision.is_deepstack_layers": [False, False, False]}
    ),
    "Gemma 3": Family("gemma3", "gemma3", 224, [(8, 8)], {"vision.projector.scale_factor": 2}),
    # at least 70 tokens
    "Gemma 4": Family("gemma4 dense", "gemma4v", 224, [(10, 8)], {"vision.projector.scale_factor": 2}),
    # tokens at the ends of rows: no grid
    "Pixtral": Family("mistral3", "pixtral", 224, [(8 * 6 + 5, 1)], {"vision.spatial_merge_size": 2}),
    "Janus-Pro": Family("llama", "janus_pro", 112, [(8, 8)]),
    "Phi-4": Family(
        "phi3",
        "phi4",
        224,
        [(16, 12)],
        {"vision.image_min_pixels": 112**2, "vision.image_max_pixels": 224**2},
    ),
    # an overview and 2 x 2 slices
    "SmolVLM": Family(
        "llama",
        "idefics3",
        112,
        [(4, 4)] * 5,
        {"vision.projector.scale_factor": 2, "vision.preproc_image_size": 224},
    ),
    "InternVL": Family(
        "qwen2",
        "internvl",
        112,
        [(4, 4)] * 5,
        {"vision.projector.scale_factor": 2, "vision.preproc_max_tiles": 4},
    ),
    # resampled: no grid
    "MiniCPM-V": Family(
        "qwen2", "resampler", 112, [(16, 1)] * 5, {"minicpmv_version": np.int32(3), "minicpmv_query_num": 16}
    ),
    # at least 64 tokens
    "LFM2-VL": Family("lfm2", "lfm2", 224, [(10, 7)], {"vision.projector.scale_factor": 2}, patch=16),
}
PLACES = 66  # of a side, of encoders that look columns and rows up: the 33 tokens of a square picture's side


def write_pair(folder: Path, name: str, arch: str | None = None) -> tuple[Path, Path]:
    """The paths of a language model and of its mmproj. `arch`: of another language model."""
    family = FAMILIES[name]
    model, mmproj = folder / f"{arch or name}.gguf", folder / f"mmproj-{name}.gguf"
    random_gguf.write(model, arch or family.arch, vocab=SPECIAL_TOKENS)
    _write_mmproj(mmproj, family)
    return model, mmproj


def _write_mmproj(path: Path, family: Family) -> None:
    writer = gguf.GGUFWriter(path, "clip")
    patch = family.patch or PATCH
    metadata: random_gguf.Extra = {
        "has_vision_encoder": True,
        "projector_type": family.projector,
        "use_gelu": True,
        "vision.image_size": family.image_size,
        "vision.patch_size": patch,
        "vision.embedding_length": ENCODER,
        "vision.feed_forward_length": FFN,
        "vision.projection_dim": WIDTH,
        "vision.block_count": LAYERS,
        "vision.attention.head_count": HEADS,
        "vision.attention.layer_norm_epsilon": 1e-6,
        "vision.image_mean": [0.5, 0.5, 0.5],
        "vision.image_std": [0.5, 0.5, 0.5],
    }
    for key, value in (metadata | family.extra).items():
        random_gguf.add_value(writer, f"clip.{key}", value)

    weights = Weights(writer)
    projector = family.projector
    weights.matrix("v.patch_embd", ENCODER, 3, patch, patch)
    if projector in QWEN:
        weights.matrix(
            "v.patch_embd.weight.1", ENCODER, 3, patch, patch, suffix=""
        )  # the second of two frames
    if projector == "qwen3vl_merger":
        weights.bias("v.patch_embd", ENCODER)
    n_places = (family.image_size // patch) ** 2
    if projector in ("mlp", "internvl"):
        weights.matrix("v.class_embd", ENCODER, suffix="")
        n_places += 1
    if projector == "resampler":
        n_places = 70 * 70  # of a picture of any size
    if projector == "gemma4v":
        weights.matrix("v.position_embd", 2, PLACES, ENCODER)
    elif projector not in ("qwen2vl_merger", "qwen2.5vl_merger", "pixtral"):  # those turn queries and keys
        weights.matrix("v.position_embd", n_places, ENCODER)
    for il in range(LAYERS):
        _add_layer(weights, f"v.blk.{il}", projector)
    _add_norm(weights, "v.post_ln", ENCODER)
    _add_projector(weights, family)
    random_gguf.write_file(writer)


def _add_layer(weights: Weights, block: str, projector: str) -> None:
    _add_norm(weights, f"{block}.ln1", ENCODER)
    _add_norm(weights, f"{block}.ln2", ENCODER)
    if projector == "qwen3vl_merger":
        _add_linear(weights, f"{block}.attn_qkv", 3 * ENCODER, ENCODER)
    else:
        for name in ("attn_q", "attn_k", "attn_v"):
            _add_linear(weights, f"{block}.{name}", ENCODER, ENCODER)
    _add_linear(weights, f"{block}.attn_out", ENCODER, ENCODER)
    if projector == "gemma4v":
        weights.norm(f"{block}.attn_q_norm", ENCODER // HEADS)
        weights.norm(f"{block}.attn_k_norm", ENCODER // HEADS)
        weights.norm(f"{block}.attn_post_norm", ENCODER)
        weights.norm(f"{block}.ffn_post_norm", ENCODER)
        for end, limit in (("min", -2.0), ("max", 2.0)):  # of what enters a matrix
            weights.add(f"{block}.ffn_down.input_{end}", np.array([limit]))
    if projector in ("qwen2.5vl_merger", "pixtral", "gemma4v"):
        _add_linear(weights, f"{block}.ffn_gate", FFN, ENCODER)
    _add_linear(weights, f"{block}.ffn_up", FFN, ENCODER)
    _add_linear(weights, f"{block}.ffn_down", ENCODER, FFN)


def _add_projector(weights: Weights, family: Family) -> None:
    projector = family.projector
    merged = 4 * ENCODER  # of 2 x 2 patches
    if projector in ("mlp", "phi4"):
        _add_linear(weights, "mm.0", WIDTH, ENCODER)
        _add_linear(weights, "mm.2", WIDTH, WIDTH)
    elif projector == "janus_pro":
        _add_linear(weights, "mm.0", WIDTH, ENCODER)
        _add_linear(weights, "mm.1", WIDTH, WIDTH)
    elif projector in QWEN:
        _add_linear(weights, "mm.0", merged, merged)
        _add_linear(weights, "mm.2", WIDTH, merged)
        if family.arch == "qwen3vl":
            for il in (0, 1):
                _add_norm(weights, f"v.deepstack.{il}.norm", merged)
                _add_linear(weights, f"v.deepstack.{il}.fc1", merged, merged)
                _add_linear(weights, f"v.deepstack.{il}.fc2", WIDTH, merged)
    elif projector == "pixtral":
        weights.norm("mm.input_norm", ENCODER)
        weights.matrix("mm.patch_merger", ENCODER, merged)
        _add_linear(weights, "mm.1", WIDTH, ENCODER)
        _add_linear(weights, "mm.2", WIDTH, WIDTH)
        weights.matrix("v.token_embd.img_break", WIDTH, suffix="")
    elif projector == "internvl":
        _add_norm(weights, "mm.model.mlp.0", merged)
        _add_linear(weights, "mm.model.mlp.1", WIDTH, merged)
        _add_linear(weights, "mm.model.mlp.3", WIDTH, WIDTH)
    elif projector == "gemma3":
        weights.matrix("mm.input_projection", ENCODER, WIDTH)
        weights.norm("mm.soft_emb_norm", ENCODER)
    elif projector == "gemma4v":
        weights.matrix("mm.input_projection", WIDTH, ENCODER)
        weights.add("v.std_bias", weights.normal(ENCODER))
        weights.add("v.std_scale", 1 + 0.1 * weights.normal(ENCODER))
    elif projector == "idefics3":
        weights.matrix("mm.model.fc", WIDTH, merged)
    elif projector == "lfm2":
        _add_norm(weights, "mm.input_norm", merged)
        _add_linear(weights, "mm.1", FFN, merged)
        _add_linear(weights, "mm.2", WIDTH, FFN)
    elif projector == "resampler":
        queries = family.extra["minicpmv_query_num"]
        assert isinstance(queries, int)
        weights.matrix("resampler.pos_embed_k", queries, WIDTH, suffix="")
        weights.matrix("resampler.query", queries, WIDTH, suffix="")
        weights.matrix("resampler.kv", WIDTH, ENCODER)
        weights.matrix("resampler.proj", WIDTH, WIDTH)
        for name in ("q", "k", "v", "out"):
            _add_linear(weights, f"resampler.attn.{name}", WIDTH, WIDTH)
        for name in ("q", "kv", "post"):
            _add_norm(weights, f"resampler.ln_{name}", WIDTH)


def _add_linear(weights: Weights, name: str, n_out: int, n_in: int) -> None:
    weights.matrix(name, n_out, n_in)
    weights.bias(name, n_out)


def _add_norm(weights: Weights, name: str, size: int) -> None:
    weights.norm(name, size)
    weights.bias(name, size)
