"""The sizes of the models of 2026: recurrent layers beside attention, Gemma 4.

Of the language models the metadata of published GGUF files, and of what made those: Qwen3.5 and 3.6 as in
github.com/THUDM/slime, scripts/models/qwen3.5-0.8B.sh and qwen3.5-27B.sh, github.com/ggml-org/llama.cpp/pull/22673 (27B's
header) and github.com/huggingface/candle/pull/3821 (4B's tensors); Gemma 4 as in ollama.com/library/gemma4, blobs
6aade8551d1a (E2B) and 7121486771cb (26B-A4B); LFM2-1.2B as in its card. Of the encoders huggingface.co/rnagabh/
gemma4-vision-encoder (26B's), ollama.com/MobiusDevelopment/gemma-4-E2B-it-qat-q4_0-gguf (E2B's), Qwen3-VL's and SigLIP2's
configurations. Sums of parameters agree with what is published (tests/test_bench_geometry.py)."""

from __future__ import annotations

from .shapes import Decoder, DeltaNet, Encoder, Experts, Gemma4, Geometry, Value

__all__ = ["RECENT"]

_HALF = [0.5, 0.5, 0.5]


def _qwen35(
    layers: int, width: int, heads: int, kv_heads: int, ffn: int, delta_net: DeltaNet, *, tied: bool
) -> Decoder:
    """Attention in every fourth layer."""
    return Decoder(
        layers,
        width,
        heads,
        kv_heads,
        ffn,
        vocab=248320,
        arch="qwen35",
        head_size=256,
        tied=tied,
        qk_norm=True,
        rope_base=1e7,
        rope_size=64,
        context=262144,
        attention_every=4,
        gated=True,
        delta_net=delta_net,
        ffn_norm="post_attention_norm",
        metadata={"rope.dimension_sections": [11, 11, 10, 0], "full_attention_interval": 4},
    )


def _qwen_encoder(layers: int, width: int, heads: int, ffn: int) -> Encoder:
    """Qwen3-VL's without deepstack."""
    return Encoder(
        "qwen3vl_merger",
        layers,
        width,
        heads,
        ffn,
        image=768,
        patch=16,
        merge=2,
        frames=2,
        fused=True,
        metadata={
            "use_gelu": True,
            "vision.attention.layer_norm_epsilon": 1e-6,
            "vision.image_mean": _HALF,
            "vision.image_std": _HALF,
        },
    )


def _gemma4_encoder(layers: int, width: int, heads: int, ffn: int) -> Encoder:
    """Pictures of their own shape, of patches pooled 3 x 3."""
    metadata: dict[str, Value] = {
        "vision.attention.layer_norm_epsilon": 1e-6,
        "vision.image_mean": [0.0, 0.0, 0.0],
        "vision.image_std": [1.0, 1.0, 1.0],
        "vision.projector.scale_factor": 3,
    }
    return Encoder(
        "gemma4v",
        layers,
        width,
        heads,
        ffn,
        image=224,
        patch=16,
        merge=3,
        patch_bias=False,
        places=False,
        place_tables=10240,
        outer_norm="",
        rms=True,
        gated=True,
        biases=False,
        qk_norm=True,
        post_norms=True,
        metadata=metadata,
    )


def _gemma4(layers: int, width: int, heads: int, kv_heads: int, ffn: int, gemma4: Gemma4) -> Decoder:
    return Decoder(
        layers,
        width,
        heads,
        kv_heads,
        ffn,
        vocab=262144,
        arch="gemma4",
        head_size=512,
        tied=True,
        qk_norm=True,
        post_norms=True,
        rope_base=1e6,
        context=131072,
        gemma4=gemma4,
        metadata={"rope.freq_base_swa": 1e4, "final_logit_softcapping": 30.0},
    )


RECENT = {
    "qwen3.5-0.8b": Geometry(
        _qwen35(24, 1024, 8, 2, 3584, DeltaNet(16, 16), tied=True),
        _qwen_encoder(12, 768, 12, 3072),
        visual_tokens=21 * 21,
    ),
    "qwen3.5-4b": Geometry(
        _qwen35(32, 2560, 16, 4, 9216, DeltaNet(16, 32), tied=True),
        _qwen_encoder(24, 1024, 16, 4096),
        visual_tokens=21 * 21,
    ),
    "qwen3.6-27b": Geometry(
        _qwen35(64, 5120, 24, 4, 17408, DeltaNet(16, 48), tied=False),
        _qwen_encoder(27, 1152, 16, 4304),
        visual_tokens=21 * 21,
    ),
    # every fifth layer sees all; the last 20 have no caches of their own
    "gemma-4-e2b": Geometry(
        _gemma4(35, 1536, 8, 1, 6144, Gemma4(5, 512, 256, 1, with_cache=15, per_layer=256)),
        _gemma4_encoder(16, 768, 12, 3072),
        visual_tokens=14 * 14,
    ),
    # every sixth layer sees all, by keys alone; 8 of 128 experts
    "gemma-4-26b-a4b": Geometry(
        _gemma4(30, 2816, 16, 2, 2112, Gemma4(6, 1024, 256, 8, values=False, experts=Experts(128, 8, 704))),
        _gemma4_encoder(27, 1152, 16, 4304),
        visual_tokens=14 * 14,
    ),
    # on LFM2-1.2B, six of whose layers have attention, with SigLIP2-So400m/16 but for its last layer
    "lfm2-vl-1.6b": Geometry(
        Decoder(
            16,
            2048,
            32,
            8,
            8192,
            vocab=65536,
            arch="lfm2",
            head_size=64,
            tied=True,
            qk_norm=True,
            rope_base=1e6,
            context=128000,
            attention=(2, 5, 8, 10, 12, 14),
            convolution_taps=3,
            output_norm="token_embd_norm",
        ),
        Encoder(
            "lfm2",
            26,
            1152,
            16,
            4304,
            image=256,
            patch=16,
            merge=2,
            projector_width=2560,
            metadata={
                "use_gelu": True,
                "vision.attention.layer_norm_epsilon": 1e-6,
                "vision.image_mean": _HALF,
                "vision.image_std": _HALF,
                "vision.projector.scale_factor": 2,
            },
        ),
        visual_tokens=16 * 16,
    ),
}
"""Entries of :data:`.sizes.GEOMETRIES`."""
