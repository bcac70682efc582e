"""The sizes of published models, from their configurations."""

from __future__ import annotations

from collections.abc import Mapping

from .recent import RECENT
from .shapes import Decoder, Encoder, Geometry, Value

__all__ = ["GEOMETRIES", "Decoder", "Encoder", "Geometry", "Value"]

_CLIP_MEAN, _CLIP_STD = [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]
_HALF = [0.5, 0.5, 0.5]
_IMAGENET_MEAN, _IMAGENET_STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]


def _clip_vit(
    layers: int, width: int, heads: int, ffn: int, more: Mapping[str, Value] | None = None
) -> Encoder:
    """CLIP's ViT with patches of 14 at 336 pixels, with quick GELU and a two-layer projector, as LLaVA has it."""
    metadata: dict[str, Value] = {
        "use_gelu": False,  # CLIP's quick GELU
        "has_llava_projector": True,
        "vision.attention.layer_norm_epsilon": 1e-5,
        "vision.feature_layer": [layers],
        "vision.image_mean": _CLIP_MEAN,
        "vision.image_std": _CLIP_STD,
    }
    return Encoder(
        "mlp",
        layers,
        width,
        heads,
        ffn,
        image=336,
        patch=14,
        patch_bias=False,
        cls=True,
        outer_norm="v.pre_ln",
        metadata=metadata | dict(more or {}),
    )


_PINPOINTS = [336, 672, 672, 336, 672, 672, 1008, 336, 336, 1008]

GEOMETRIES = {
    "llava-1.5-7b": Geometry(
        Decoder(32, 4096, 32, 32, 11008, 32000), _clip_vit(23, 1024, 16, 4096), visual_tokens=576
    ),
    "llava-1.5-13b": Geometry(
        Decoder(40, 5120, 40, 40, 13824, 32000), _clip_vit(23, 1024, 16, 4096), visual_tokens=576
    ),
    # on Mistral-7B; an overview and 2 x 2 tiles
    "llava-next-7b": Geometry(
        Decoder(32, 4096, 32, 8, 14336, 32064, rope_base=1e6, context=32768),
        _clip_vit(
            23,
            1024,
            16,
            4096,
            {"vision.mm_patch_merge_type": "spatial_unpad", "vision.image_grid_pinpoints": _PINPOINTS},
        ),
        visual_tokens=5 * 576,
    ),
    # on SmolLM2-360M, with SigLIP-B/16; enlarged to 2048 pixels, an overview and 4 x 4 tiles
    "smolvlm2-500m": Geometry(
        Decoder(32, 960, 15, 5, 2560, 49280, rope_base=1e5, context=8192),
        Encoder(
            "idefics3",
            12,
            768,
            12,
            3072,
            image=512,
            patch=16,
            merge=4,
            metadata={
                "use_gelu": True,
                "vision.attention.layer_norm_epsilon": 1e-6,
                "vision.image_mean": _HALF,
                "vision.image_std": _HALF,
                "vision.projector.scale_factor": 4,
                "vision.preproc_image_size": 2048,
            },
        ),
        visual_tokens=17 * 64,
    ),
    # windows of 112 pixels but in every eighth layer
    "qwen2.5-vl-3b": Geometry(
        Decoder(
            36,
            2048,
            16,
            2,
            11008,
            151936,
            arch="qwen2vl",
            tied=True,
            qkv_bias=True,
            rope_base=1e6,
            context=32768,
            metadata={"rope.dimension_sections": [16, 24, 24, 0]},
        ),
        Encoder(
            "qwen2.5vl_merger",
            32,
            1280,
            16,
            3420,
            image=560,
            patch=14,
            merge=2,
            frames=2,
            patch_bias=False,
            places=False,
            rms=True,
            gated=True,
            metadata={
                "use_silu": True,
                "vision.attention.layer_norm_epsilon": 1e-6,
                "vision.image_mean": _CLIP_MEAN,
                "vision.image_std": _CLIP_STD,
                "vision.n_wa_pattern": 8,
            },
        ),
        visual_tokens=576,
    ),
    # on Qwen3-1.7B; features of three encoder layers go to the language model's first three
    "qwen3-vl-2b": Geometry(
        Decoder(
            28,
            2048,
            16,
            8,
            6144,
            151936,
            arch="qwen3vl",
            head_size=128,
            tied=True,
            qk_norm=True,
            rope_base=5e6,
            context=262144,
            metadata={"rope.dimension_sections": [24, 20, 20, 0], "n_deepstack_layers": 3},
        ),
        Encoder(
            "qwen3vl_merger",
            24,
            1024,
            16,
            4096,
            image=768,
            patch=16,
            merge=2,
            frames=2,
            fused=True,
            deepstack=(5, 11, 17),
            metadata={
                "use_gelu": True,
                "vision.attention.layer_norm_epsilon": 1e-6,
                "vision.image_mean": _HALF,
                "vision.image_std": _HALF,
            },
        ),
        visual_tokens=21 * 21,
    ),
    # five of six layers see a window; with SigLIP-So400m/14, whose 64 x 64 patches are pooled to 16 x 16 tokens
    "gemma-3-4b": Geometry(
        Decoder(
            34,
            2560,
            8,
            4,
            10240,
            262208,
            arch="gemma3",
            head_size=256,
            tied=True,
            qk_norm=True,
            post_norms=True,
            rope_base=1e6,
            context=131072,
            metadata={
                "attention.sliding_window": 1024,
                "rope.freq_base_swa": 1e4,
                "rope.scaling.type": "linear",
                "rope.scaling.factor": 8.0,
            },
        ),
        Encoder(
            "gemma3",
            27,
            1152,
            16,
            4304,
            image=896,
            patch=14,
            merge=4,
            metadata={
                "use_gelu": True,
                "vision.attention.layer_norm_epsilon": 1e-6,
                "vision.image_mean": _HALF,
                "vision.image_std": _HALF,
                "vision.projector.scale_factor": 4,
            },
        ),
        visual_tokens=16 * 16,
    ),
    # on Qwen2.5-0.5B, with an output matrix of its own, and InternViT-300M; 2 x 2 tiles and an overview
    "internvl3-1b": Geometry(
        Decoder(24, 896, 14, 2, 4864, 151674, arch="qwen2", qkv_bias=True, rope_base=1e6, context=32768),
        Encoder(
            "internvl",
            24,
            1024,
            16,
            4096,
            image=448,
            patch=14,
            merge=2,
            cls=True,
            outer_norm="",
            layer_scale=True,
            metadata={
                "use_gelu": True,
                "vision.attention.layer_norm_epsilon": 1e-6,
                "vision.image_mean": _IMAGENET_MEAN,
                "vision.image_std": _IMAGENET_STD,
                "vision.projector.scale_factor": 2,
            },
        ),
        visual_tokens=5 * 256,
    ),
    **RECENT,
    # no published model: to see that all is in place
    "tiny": Geometry(Decoder(4, 256, 4, 4, 768, 512), _clip_vit(2, 128, 2, 256), visual_tokens=576),
}
"""By the names that ``pyfastv bench --geometry`` takes."""
