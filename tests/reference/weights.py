"""Loads a LLaVA-1.5 model as transformers' LlavaForConditionalGeneration in float32.

From a transformers folder, or from a pair of GGUF files of any quantization (language model and
mmproj), dequantized. GGUF names and layouts are turned back into transformers' here.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gguf import GGUFReader
from torch import nn
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

from dequantize import dequantized_array

# What load() accepts: a transformers folder, or (language model, mmproj).
Weights = Path | tuple[Path, Path]

LANGUAGE_MODEL = {
    "token_embd.weight": "model.language_model.embed_tokens.weight",
    "output_norm.weight": "model.language_model.norm.weight",
    "output.weight": "lm_head.weight",
}
LANGUAGE_LAYER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
VISION_MODEL = {
    "v.class_embd": "model.vision_tower.embeddings.class_embedding",
    "v.patch_embd.weight": "model.vision_tower.embeddings.patch_embedding.weight",
    "v.position_embd.weight": "model.vision_tower.embeddings.position_embedding.weight",
    "v.pre_ln.weight": "model.vision_tower.pre_layrnorm.weight",
    "v.pre_ln.bias": "model.vision_tower.pre_layrnorm.bias",
    "mm.0.weight": "model.multi_modal_projector.linear_1.weight",
    "mm.0.bias": "model.multi_modal_projector.linear_1.bias",
    "mm.2.weight": "model.multi_modal_projector.linear_2.weight",
    "mm.2.bias": "model.multi_modal_projector.linear_2.bias",
}
VISION_LAYER = {
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_out": "self_attn.out_proj",
    "ln1": "layer_norm1",
    "ln2": "layer_norm2",
    "ffn_up": "mlp.fc1",
    "ffn_down": "mlp.fc2",
}
# Feeds the pooled output only, which LLaVA does not use; converters leave it out.
UNUSED_IN_LLAVA = "model.vision_tower.post_layernorm."


def transformers_name(name: str) -> str:
    """The transformers name of a GGUF tensor of a llama language model or a LLaVA mmproj."""
    for table in (LANGUAGE_MODEL, VISION_MODEL):
        if name in table:
            return table[name]
    parts = name.split(".")
    if parts[0] == "blk" and parts[2] in LANGUAGE_LAYER:
        return f"model.language_model.layers.{parts[1]}.{LANGUAGE_LAYER[parts[2]]}.{parts[3]}"
    if parts[:2] == ["v", "blk"] and parts[3] in VISION_LAYER:
        return f"model.vision_tower.encoder.layers.{parts[2]}.{VISION_LAYER[parts[3]]}.{parts[4]}"
    raise ValueError(f"unknown tensor {name}: not of a LLaVA-1.5 language model or mmproj")


def unpermuted(weight: np.ndarray, n_head: int) -> np.ndarray:
    """Undoes llama.cpp's reordering of the q and k rows, (n_head * head_dim, n_embd).

    ggml rotates neighbouring rows (2i, 2i + 1) of a head, transformers rows (i, i + head_dim / 2);
    the converter therefore interleaves the two halves of every head.
    """
    rows, columns = weight.shape
    pairs = weight.reshape(n_head, rows // n_head // 2, 2, columns)
    return pairs.swapaxes(1, 2).reshape(rows, columns)


def _metadata(reader: GGUFReader, architecture: str) -> dict[str, Any]:
    found = reader.fields["general.architecture"].contents()
    if found != architecture:
        raise ValueError(f"architecture {found}, need {architecture}")
    return {key: field.contents() for key, field in reader.fields.items()}


def _config(lm: dict[str, Any], mmproj: dict[str, Any]) -> LlavaConfig:
    return LlavaConfig(
        text_config=LlamaConfig(
            vocab_size=len(lm["tokenizer.ggml.tokens"]),
            hidden_size=lm["llama.embedding_length"],
            intermediate_size=lm["llama.feed_forward_length"],
            num_hidden_layers=lm["llama.block_count"],
            num_attention_heads=lm["llama.attention.head_count"],
            num_key_value_heads=lm["llama.attention.head_count_kv"],
            max_position_embeddings=lm["llama.context_length"],
            rms_norm_eps=lm["llama.attention.layer_norm_rms_epsilon"],
            rope_parameters={"rope_type": "default", "rope_theta": lm["llama.rope.freq_base"]},
        ),
        # The file holds only the blocks up to the layer whose output is used.
        vision_config=CLIPVisionConfig(
            hidden_size=mmproj["clip.vision.embedding_length"],
            intermediate_size=mmproj["clip.vision.feed_forward_length"],
            num_hidden_layers=mmproj["clip.vision.block_count"],
            num_attention_heads=mmproj["clip.vision.attention.head_count"],
            image_size=mmproj["clip.vision.image_size"],
            patch_size=mmproj["clip.vision.patch_size"],
            layer_norm_eps=mmproj["clip.vision.attention.layer_norm_epsilon"],
            hidden_act="gelu" if mmproj["clip.use_gelu"] else "quick_gelu",
        ),
        vision_feature_layer=-1,
        vision_feature_select_strategy="default",
        projector_hidden_act="gelu",
        image_token_index=lm["tokenizer.ggml.tokens"].index("<image>"),
    )


def load_gguf(language_model: Path, mmproj: Path) -> LlavaForConditionalGeneration:
    lm_reader, mmproj_reader = GGUFReader(language_model), GGUFReader(mmproj)
    config = _config(_metadata(lm_reader, "llama"), _metadata(mmproj_reader, "clip"))
    text = config.text_config
    heads = {"q_proj": text.num_attention_heads, "k_proj": text.num_key_value_heads}

    state: dict[str, torch.Tensor] = {}
    for tensor in [*lm_reader.tensors, *mmproj_reader.tensors]:
        name, values = transformers_name(tensor.name), dequantized_array(tensor)
        projection = name.split(".")[-2]
        if "language_model" in name and projection in heads:
            values = unpermuted(values, heads[projection])
        state[name] = torch.from_numpy(values.copy())
    # A file with tied embeddings has no output matrix of its own.
    state.setdefault("lm_head.weight", state["model.language_model.embed_tokens.weight"])

    model = LlavaForConditionalGeneration(config)
    missing, unexpected = model.load_state_dict(state, strict=False)
    missing = [name for name in missing if not name.startswith(UNUSED_IN_LLAVA)]
    if missing or unexpected:
        raise ValueError(f"weights do not fit: missing {missing}, unexpected {unexpected}")
    return model


class GgmlActivation(nn.Module):
    """An activation as ggml's CPU backend computes it: looked up in a table of halves."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.value(x.half().float()).half().float()

    def value(self, x: torch.Tensor) -> torch.Tensor:
        raise NotImplementedError


class GgmlQuickGelu(GgmlActivation):
    def value(self, x: torch.Tensor) -> torch.Tensor:
        return x * torch.sigmoid(1.702 * x)


class GgmlGelu(GgmlActivation):
    """Of the projector: the tanh form, where LLaVA-1.5 has the exact one."""

    def value(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.gelu(x, approximate="tanh")


def use_ggml_activations(model: LlavaForConditionalGeneration) -> None:
    """Gives the vision tower and the projector the activations that llama.cpp has on a CPU.

    The language model needs none: ggml computes SiLU in float32.
    """
    for layer in model.model.vision_tower.encoder.layers:
        layer.mlp.activation_fn = GgmlQuickGelu()
    model.model.multi_modal_projector.act = GgmlGelu()


def load(weights: Weights, *, ggml_activations: bool = False) -> LlavaForConditionalGeneration:
    """The model in float32, ready to run.

    weights: a transformers folder, or the pair (language model GGUF, mmproj GGUF).
    ggml_activations: see use_ggml_activations(); for comparisons with llama.cpp finer than 1e-3.
    """
    if isinstance(weights, tuple):
        model = load_gguf(*weights)
    else:
        model = LlavaForConditionalGeneration.from_pretrained(weights, dtype=torch.float32)
    if ggml_activations:
        use_ggml_activations(model)
    return model.eval()


def weights_sha256(weights: Weights) -> dict[str, str]:
    """File name to sha256, for every file that holds weights."""
    files = weights if isinstance(weights, tuple) else sorted(weights.glob("*.safetensors"))
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
