"""FastV in PyTorch, written for plainness: what pyfastv's C++ is compared with.

    model = load(Path("tiny-llava/hf"))
    tokens = encode_prompt(tokenizer, "What color is the square?")
    result = run(model, tokens, read_image(Path("0001.png")), k=2, drop=0.5, n_steps=32)

The rule. Layers [0, k) see every token. The visual tokens are ranked by the attention they receive
at layer k - 1 from the last prompt token (after the softmax, mean over heads), and the best
round-half-even(n * (1 - drop)), at least one, are kept; of equal scores the lower index wins. In
layers [k, N) nobody sees the others. The choice is made once, at prefill, and every token keeps its
original position.

The decoder is a loop of its own over the weights of transformers' modules; the vision tower and the
projector are transformers' own.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from transformers import LlavaForConditionalGeneration, PreTrainedTokenizerBase

from weights import load

__all__ = ["Result", "choose", "encode_prompt", "load", "prompt_text", "read_image", "run"]

# CLIP's, as every LLaVA-1.5 has it.
IMAGE_MEAN = (0.48145466, 0.4578275, 0.40821073)
IMAGE_STD = (0.26862954, 0.26130258, 0.27577711)


def prompt_text(question: str) -> str:
    """What the model's chat template makes of one picture and one question."""
    return f"USER: <image>\n{question} ASSISTANT:"


def encode_prompt(tokenizer: PreTrainedTokenizerBase, question: str) -> list[int]:
    """Token ids of the prompt, <s> first, with a single <image> token for the picture."""
    return tokenizer(prompt_text(question)).input_ids


def read_image(path: Path) -> np.ndarray:
    """RGB bytes, (height, width, 3)."""
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


def pixel_values(model: LlavaForConditionalGeneration, image: np.ndarray) -> Tensor:
    """CLIP's rescaling and normalisation, (1, 3, size, size); the picture must have that size.

    No resampling: llama.cpp and transformers differ there, and nothing here is about that.
    """
    size = model.config.vision_config.image_size
    if image.shape != (size, size, 3):
        raise ValueError(f"picture of shape {image.shape}, need ({size}, {size}, 3)")
    rescaled = image.astype(np.float32) / np.float32(255)
    mean, std = np.array(IMAGE_MEAN, np.float32), np.array(IMAGE_STD, np.float32)
    return torch.from_numpy((rescaled - mean) / std).permute(2, 0, 1)[None]


@torch.inference_mode()
def visual_rows(model: LlavaForConditionalGeneration, image: np.ndarray) -> Tensor:
    """The picture as rows of the language model's input, (n_visual, n_embd), in raster order."""
    config = model.config
    outputs = model.model.get_image_features(
        pixel_values=pixel_values(model, image),
        vision_feature_layer=config.vision_feature_layer,
        vision_feature_select_strategy=config.vision_feature_select_strategy,
    )
    return outputs.pooler_output[0]


@dataclass(frozen=True)
class Prompt:
    """The prompt as the decoder takes it: the <image> token replaced by the picture's rows."""

    rows: Tensor  # (n_prompt, n_embd)
    visual: slice  # where the picture's rows are


@torch.inference_mode()
def embed_prompt(model: LlavaForConditionalGeneration, tokens: list[int], visual: Tensor) -> Prompt:
    image_token = model.config.image_token_index
    if tokens.count(image_token) != 1:
        raise ValueError(f"{tokens.count(image_token)} <image> tokens in the prompt, need 1")
    start = tokens.index(image_token)
    embed = model.model.language_model.embed_tokens
    before, after = tokens[:start], tokens[start + 1 :]
    rows = torch.cat([embed(torch.tensor(before)), visual, embed(torch.tensor(after))])
    return Prompt(rows, slice(start, start + len(visual)))


@dataclass(frozen=True)
class Memory:
    """What one layer remembers. Never changed in place, so a prefix can be shared by many runs."""

    keys: Tensor  # (n_head_kv, n, head_dim), rotated
    values: Tensor  # (n_head_kv, n, head_dim)
    positions: Tensor  # (n)
    visible: Tensor  # (n) bool: False is a dropped token, -inf in the attention mask
    sizes: Tensor  # (n) float: as how many equal tokens each one counts in attention; 1 without weighing

    def extended(
        self, keys: Tensor, values: Tensor, positions: Tensor, visible: Tensor, sizes: Tensor
    ) -> Memory:
        return Memory(
            torch.cat([self.keys, keys], dim=1),
            torch.cat([self.values, values], dim=1),
            torch.cat([self.positions, positions]),
            torch.cat([self.visible, visible]),
            torch.cat([self.sizes, sizes]),
        )


def empty_memory(model: LlavaForConditionalGeneration) -> Memory:
    config = model.config.text_config
    nothing = torch.empty(config.num_key_value_heads, 0, config.head_dim)
    return Memory(
        nothing, nothing, torch.empty(0, dtype=torch.long), torch.empty(0, dtype=bool), torch.empty(0)
    )


def rotated(x: Tensor, positions: Tensor, theta: float) -> Tensor:
    """Rotary embedding of (n_head, n, head_dim): pairs (i, i + head_dim / 2)."""
    half = x.shape[-1] // 2
    frequency = theta ** (-torch.arange(half, dtype=torch.float32) / half)
    angle = positions[:, None].float() * frequency  # (n, half)
    cos, sin = angle.cos(), angle.sin()
    low, high = x[..., :half], x[..., half:]
    return torch.cat([low * cos - high * sin, high * cos + low * sin], dim=-1)


def attention(
    module: nn.Module, x: Tensor, positions: Tensor, visible: Tensor, sizes: Tensor, memory: Memory
) -> tuple[Tensor, Memory, Tensor]:
    """Returns the output (n, n_embd), the memory with x's rows, and the softmax (n_head, n, m)."""
    config = module.config
    theta = config.rope_parameters["rope_theta"]

    def heads(projection: nn.Linear) -> Tensor:  # (n_head or n_head_kv, n, head_dim)
        return projection(x).view(len(x), -1, config.head_dim).transpose(0, 1)

    queries = rotated(heads(module.q_proj), positions, theta)
    keys = rotated(heads(module.k_proj), positions, theta)
    memory = memory.extended(keys, heads(module.v_proj), positions, visible, sizes)

    group = config.num_attention_heads // config.num_key_value_heads
    keys = memory.keys.repeat_interleave(group, dim=0)
    values = memory.values.repeat_interleave(group, dim=0)
    allowed = (memory.positions <= positions[:, None]) & memory.visible  # (n, m)
    scores = queries @ keys.transpose(1, 2) * config.head_dim**-0.5 + memory.sizes.log()
    softmax = scores.masked_fill(~allowed, float("-inf")).softmax(dim=-1)
    output = (softmax @ values).transpose(0, 1).reshape(len(x), -1)
    return module.o_proj(output), memory, softmax


def rms_norm(module: nn.Module, x: Tensor) -> Tensor:
    return x * (x.square().mean(-1, keepdim=True) + module.variance_epsilon).rsqrt() * module.weight


@torch.inference_mode()
def run_layers(
    model: LlavaForConditionalGeneration,
    layers: range,
    x: Tensor,
    positions: Tensor,
    memories: dict[int, Memory],
    visible: Tensor | None = None,
    sizes: Tensor | None = None,
) -> tuple[Tensor, dict[int, Memory], Tensor]:
    """Runs rows x (n, n_embd) through the layers, after what the memories hold.

    visible: which of these rows others may look at in these layers, (n) bool; None is all.
    sizes: as how many equal rows each of them counts there, (n) float; None is 1.
    Returns the rows at the end, the new memories, and the softmax of the last of the layers.
    """
    if visible is None:
        visible = torch.ones(len(x), dtype=bool)
    if sizes is None:
        sizes = torch.ones(len(x))
    memories = dict(memories)
    softmax = torch.empty(0)
    for il in layers:
        layer = model.model.language_model.layers[il]
        memory = memories.get(il, empty_memory(model))
        attended, memories[il], softmax = attention(
            layer.self_attn, rms_norm(layer.input_layernorm, x), positions, visible, sizes, memory
        )
        x = x + attended
        normed = rms_norm(layer.post_attention_layernorm, x)
        mlp = layer.mlp
        x = x + mlp.down_proj(nn.functional.silu(mlp.gate_proj(normed)) * mlp.up_proj(normed))
    return x, memories, softmax


@torch.inference_mode()
def last_logits(model: LlavaForConditionalGeneration, x: Tensor) -> Tensor:
    """Logits (n_vocab) after the last of the rows x."""
    return model.lm_head(rms_norm(model.model.language_model.norm, x[-1]))


def choose(scores: np.ndarray, drop: float) -> np.ndarray:
    """Indices of the tokens to keep, ascending: the highest scores, of equal ones the first."""
    if not 0 <= drop < 1:
        raise ValueError(f"drop = {drop}, need 0 <= drop < 1")
    n_keep = max(1, round(len(scores) * (1 - drop)))
    return np.sort(np.argsort(-scores, kind="stable")[:n_keep])


@dataclass(frozen=True)
class Prefill:
    """A prompt that went through the decoder, ready to generate from."""

    kept: np.ndarray  # (n_keep) indices of visual tokens, ascending
    scores: np.ndarray | None  # (n_visual) attention received; None when nothing was pruned
    logits: Tensor  # (n_vocab) of the last prompt token
    memories: dict[int, Memory]
    n_prompt: int


@dataclass(frozen=True)
class Boundary:
    """The state of a prompt before layer k: shared by all runs with at least k full layers."""

    k: int
    x: Tensor  # (n_prompt, n_embd)
    memories: dict[int, Memory]
    scores: np.ndarray | None  # (n_visual) attention received at layer k - 1


def boundary(
    model: LlavaForConditionalGeneration, prompt: Prompt, k: int, earlier: Boundary | None = None
) -> Boundary:
    """Runs layers [0, k), every token visible; from an earlier boundary on where there is one."""
    n_layer = model.config.text_config.num_hidden_layers
    if not 1 <= k <= n_layer:
        raise ValueError(f"k = {k}, need 1 <= k <= {n_layer}")
    start = earlier or Boundary(0, prompt.rows, {}, None)
    if start.k >= k:
        raise ValueError(f"boundary {k} cannot start from boundary {start.k}")
    positions = torch.arange(len(prompt.rows))
    x, memories, softmax = run_layers(model, range(start.k, k), start.x, positions, start.memories)
    scores = softmax[:, -1, prompt.visual].mean(dim=0)
    return Boundary(k, x, memories, scores.numpy())


def prefill(
    model: LlavaForConditionalGeneration,
    prompt: Prompt,
    at: Boundary,
    drop: float,
    *,
    compact: bool = False,
) -> Prefill:
    """Chooses at the boundary and runs the remaining layers.

    compact: leave the dropped rows out instead of masking them. Nobody sees them, so the result is
    the same up to the order of summation, and cheaper.
    """
    assert at.scores is not None
    kept = choose(at.scores, drop)
    n_prompt = len(prompt.rows)
    visible = torch.ones(n_prompt, dtype=bool)
    visible[prompt.visual] = False
    visible[prompt.visual.start + torch.from_numpy(kept)] = True
    x, positions = at.x, torch.arange(n_prompt)
    if compact:
        x, positions, visible = x[visible], positions[visible], visible[visible]
    rest = range(at.k, model.config.text_config.num_hidden_layers)
    x, memories, _ = run_layers(model, rest, x, positions, at.memories, visible)
    return Prefill(kept, at.scores, last_logits(model, x), memories, n_prompt)


def prefill_unpruned(
    model: LlavaForConditionalGeneration, prompt: Prompt, earlier: Boundary | None = None
) -> Prefill:
    end = boundary(model, prompt, model.config.text_config.num_hidden_layers, earlier)
    n_visual = prompt.visual.stop - prompt.visual.start
    logits = last_logits(model, end.x)
    return Prefill(np.arange(n_visual), None, logits, end.memories, len(prompt.rows))


def generate(
    model: LlavaForConditionalGeneration, start: Prefill, n_steps: int, stop: int | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Greedy steps: tokens (n), and logits (n, n_vocab) that each was chosen from.

    stop: ends the generation after this token; None runs all n_steps whatever comes.
    """
    layers = range(model.config.text_config.num_hidden_layers)
    embed = model.model.language_model.embed_tokens
    memories, logits = start.memories, start.logits
    tokens, all_logits = [int(logits.argmax())], [logits]
    while len(tokens) < n_steps and tokens[-1] != stop:
        with torch.inference_mode():
            x = embed(torch.tensor(tokens[-1:]))
        position = torch.tensor([start.n_prompt + len(tokens) - 1])
        x, memories, _ = run_layers(model, layers, x, position, memories)
        logits = last_logits(model, x)
        tokens.append(int(logits.argmax()))
        all_logits.append(logits)
    return np.array(tokens), torch.stack(all_logits).numpy()


@dataclass(frozen=True)
class Result:
    kept: np.ndarray  # (n_keep) indices of visual tokens, ascending
    scores: np.ndarray | None  # (n_visual); None when nothing was pruned
    logits: np.ndarray  # (n_steps, n_vocab): row 0 is of the last prompt token
    tokens: np.ndarray  # (n_steps): tokens[i] is the argmax of logits[i]


def run(
    model: LlavaForConditionalGeneration,
    tokens: list[int],
    image: np.ndarray,
    k: int | None,
    drop: float,
    n_steps: int,
    *,
    compact: bool = False,
) -> Result:
    """One picture and one prompt, from beginning to end. k=None prunes nothing.

    Always n_steps steps: </s> does not end it.
    """
    prompt = embed_prompt(model, tokens, visual_rows(model, image))
    if k is None:
        start = prefill_unpruned(model, prompt)
    else:
        start = prefill(model, prompt, boundary(model, prompt, k), drop, compact=compact)
    out_tokens, logits = generate(model, start, n_steps)
    return Result(start.kept, start.scores, logits, out_tokens)
