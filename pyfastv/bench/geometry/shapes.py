"""What a published model's sizes are: a language model and a vision encoder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

__all__ = ["Decoder", "DeltaNet", "Encoder", "Experts", "Gemma4", "Geometry", "Value"]

Value = bool | int | float | str | list[int] | list[bool] | list[float]


@dataclass(frozen=True)
class DeltaNet:
    """Gated delta nets, in place of attention."""

    key_heads: int
    value_heads: int
    size: int = 128
    """Of a head's state: size x size."""
    taps: int = 4
    """Rows that its convolution sees."""


@dataclass(frozen=True)
class Experts:
    """Beside a feed-forward block that all rows meet."""

    count: int
    used: int
    ffn: int


@dataclass(frozen=True)
class Gemma4:
    """What Gemma 4's layers have. Sizes of heads, and their number for keys, are told in Decoder for layers that see
    all."""

    every: int
    """Every so manieth layer sees all, the others a window."""
    window: int
    window_head: int
    window_kv_heads: int
    values: bool = True
    """In layers that see all, too; else their keys are their values."""
    with_cache: int | None = None
    """The first so many layers; those behind read the caches of the last of them, and are twice as wide in their
    feed-forward blocks. None: all have caches."""
    per_layer: int = 0
    """Size of a token's embedding in each layer."""
    experts: Experts | None = None


@dataclass(frozen=True)
class Decoder:
    """A language model: RMS norms, rotary positions, gated feed-forward."""

    layers: int
    width: int
    heads: int
    kv_heads: int
    ffn: int
    vocab: int
    arch: str = "llama"
    head_size: int | None = None
    """Where it is not width / heads, or the file tells it all the same."""
    tied: bool = False
    """The embeddings are the output matrix, too."""
    qkv_bias: bool = False
    qk_norm: bool = False
    """Norms of the queries' and keys' heads."""
    post_norms: bool = False
    """Norms behind attention and feed-forward, too."""
    rope_base: float = 10000.0
    rope_size: int | None = None
    """Numbers of a head that are rotated. None: all."""
    context: int = 4096
    attention_every: int = 1
    """Every so manieth layer has attention."""
    attention: tuple[int, ...] = ()
    """In place of ``attention_every``: the layers that have it."""
    gated: bool = False
    """Attention, by as many numbers as queries."""
    delta_net: DeltaNet | None = None
    """Of layers without attention."""
    convolution_taps: int = 0
    """Of layers without attention: a short convolution of so many rows."""
    gemma4: Gemma4 | None = None
    output_norm: str = "output_norm"
    ffn_norm: str = "ffn_norm"
    metadata: Mapping[str, Value] = field(default_factory=dict)
    """Further keys, without the architecture in front."""

    @property
    def head(self) -> int:
        """Size of one head."""
        return self.head_size or self.width // self.heads

    def attends(self, layer: int) -> bool:
        """Has the layer attention?"""
        return layer in self.attention if self.attention else (layer + 1) % self.attention_every == 0

    def sees_all(self, layer: int) -> bool:
        """Of Gemma 4: else it sees a window."""
        return self.gemma4 is None or (layer + 1) % self.gemma4.every == 0

    def has_cache(self, layer: int) -> bool:
        """Has the layer keys and values of its own?"""
        with_cache = None if self.gemma4 is None else self.gemma4.with_cache
        return self.attends(layer) and (with_cache is None or layer < with_cache)

    def head_in(self, layer: int) -> int:
        """Size of one head in a layer."""
        return self.head if self.gemma4 is None or self.sees_all(layer) else self.gemma4.window_head

    def kv_heads_in(self, layer: int) -> int:
        """Heads of keys in a layer; 0: it has no attention."""
        if not self.attends(layer):
            return 0
        return self.kv_heads if self.gemma4 is None or self.sees_all(layer) else self.gemma4.window_kv_heads

    def ffn_in(self, layer: int) -> int:
        """Width of a layer's feed-forward block."""
        return self.ffn if self.has_cache(layer) or not self.attends(layer) else 2 * self.ffn


@dataclass(frozen=True)
class Encoder:
    """A vision transformer and its projector, as an mmproj file has it."""

    projector: str
    """llama.cpp's name: mlp, idefics3, qwen2.5vl_merger, qwen3vl_merger, gemma3, gemma4v, lfm2 or internvl."""
    layers: int
    """In the file. LLaVA's ViT-L has one more, but the features are those of layer -2."""
    width: int
    heads: int
    ffn: int
    image: int
    """Side of what is encoded at once, in pixels; for the Qwen family, which takes any size, of the tables' picture."""
    patch: int
    merge: int = 1
    """A visual token stands for merge x merge patches."""
    frames: int = 1
    """Matrices that make a row of a patch, one for each frame of a video that is taken at once."""
    patch_bias: bool = True
    cls: bool = False
    """A class embedding beside the patches."""
    places: bool = True
    """Position embeddings, one for each patch of a picture of ``image`` pixels."""
    place_tables: int = 0
    """In their place: one of so many rows for x, and one for y."""
    outer_norm: str = "v.post_ln"
    """Around all layers: v.pre_ln, v.post_ln, or none."""
    rms: bool = False
    """RMS norms, which have no bias."""
    fused: bool = False
    """Queries, keys and values of one matrix."""
    gated: bool = False
    """The feed-forward blocks."""
    biases: bool = True
    """Of the matrices."""
    qk_norm: bool = False
    """Norms of the queries' and keys' heads."""
    post_norms: bool = False
    """Norms behind attention and feed-forward, too."""
    projector_width: int | None = None
    """Between the projector's two matrices, where it is neither the patches' nor the model's."""
    layer_scale: bool = False
    """What attention and feed-forward give is scaled, a factor for each column."""
    deepstack: tuple[int, ...] = ()
    """Layers whose features go through projectors of their own to the first layers of the language model."""
    metadata: Mapping[str, Value] = field(default_factory=dict)
    """Further keys, without "clip." in front."""


@dataclass(frozen=True)
class Geometry:
    """A vision-language model, and what becomes of a square picture of 672 pixels."""

    decoder: Decoder
    encoder: Encoder
    visual_tokens: int
