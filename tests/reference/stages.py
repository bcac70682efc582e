"""Schedules of several cuts, and conversations that recall, in PyTorch.

    schedule = parse("k=2,drop=0.5,score=last;k=6,drop=0.75,merge,recall=1", n_layer=12)
    first = ask(model, schedule, prompt.visual, EMPTY, prompt.rows)
    answered = feed(model, first, token)
    second = ask(model, schedule, prompt.visual, answered, rows_of(model, token_ids))

A cut leaves visual tokens out of its layer and all later ones; the layers between two cuts are a stage. The first
question chooses among the tokens that reached a cut. A later one chooses among them afresh, with its own rows; of
those chosen, the ones that the next stage lacks are recalled: their hidden rows at the cut run through the stage at
their own positions, before the text. Nobody computed earlier sees them.

A cut that weighs: a kept token stands for itself and for those dropped ones that it is most similar to. In the stage
behind the cut it counts as often as the tokens that it stands for, as if its row were there that many times: the log
of that size is added to its attention logits. A recalled token no longer counts in the size of another.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn
from transformers import LlavaForConditionalGeneration

from oracle import Memory, last_logits, rms_norm, rotated, run_layers
from rules import (
    Cut,
    Schedule,
    asks,
    cut_gap,
    gap,
    owner_lead,
    owners,
    pick,
    recalled,
    similarities,
    sizes_behind,
    sizes_taken_back,
    visual_scores,
)


@dataclass(frozen=True)
class Choice:
    """The last choice at a cut, and what is behind it."""

    scores: np.ndarray  # (n_visual) float32, 0 for tokens that did not reach the cut
    entered: np.ndarray  # (n_visual) bool: in the stage behind the cut, recalled ones included
    hidden: Tensor  # (n_visual, n_embd) before the cut's layer, of tokens that reached the cut; never merged
    gap: float  # the smallest relative difference of scores that the choice hung on
    merge_gap: float  # the smallest difference of cosines that a merge or an owner hung on
    owner: np.ndarray  # (n_visual) rules.owners() at the first question; without weighing all -1
    sizes: np.ndarray  # (n_visual) for how many tokens each one stands behind the cut; without weighing all 1


@dataclass(frozen=True)
class Context:
    """A conversation so far. Never changed in place."""

    memories: dict[int, Memory]
    n_past: int  # rows of the prompt and answers
    choices: tuple[Choice, ...]  # one a cut; () before the first question
    logits: Tensor  # (n_vocab) after the last row


EMPTY = Context({}, 0, (), torch.empty(0))


def patch_grid(model: LlavaForConditionalGeneration) -> tuple[int, int]:
    vision = model.config.vision_config
    side = vision.image_size // vision.patch_size
    return side, side


@torch.inference_mode()
def rows_of(model: LlavaForConditionalGeneration, tokens: list[int]) -> Tensor:
    return model.model.language_model.embed_tokens(torch.tensor(tokens))


@torch.inference_mode()
def attention_without_rope(
    model: LlavaForConditionalGeneration, il: int, x: Tensor, memory: Memory
) -> Tensor:
    """Softmax (m) of the last of the rows x, the input of layer il, over all it may see; mean over heads."""
    layer = model.model.language_model.layers[il]
    config = layer.self_attn.config
    normed = rms_norm(layer.input_layernorm, x[-1])
    query = layer.self_attn.q_proj(normed).view(-1, 1, config.head_dim)
    keys = rotated(memory.keys, -memory.positions, config.rope_parameters["rope_theta"])
    keys = keys.repeat_interleave(config.num_attention_heads // config.num_key_value_heads, dim=0)
    scores = (query @ keys.transpose(1, 2))[:, 0] * config.head_dim**-0.5 + memory.sizes.log()
    return scores.masked_fill(~memory.visible, float("-inf")).softmax(dim=-1).mean(dim=0)


def merged(rows: Tensor, kept: np.ndarray, dropped: np.ndarray) -> tuple[Tensor, float]:
    """The kept ones of the rows (n_visual, n_embd), each averaged with the dropped rows that are nearest to it.

    Also returns the smallest lead of a nearest row over the second nearest.
    """
    if len(kept) == 0 or len(dropped) == 0:
        return rows[kept], float("inf")
    unit = nn.functional.normalize(rows, dim=-1)
    cosines = unit[dropped] @ unit[kept].T
    nearest = cosines.argmax(dim=1).numpy()
    means = [
        torch.cat([rows[index : index + 1], rows[dropped[nearest == i]]]).mean(dim=0)
        for i, index in enumerate(kept.tolist())
    ]
    best = cosines.topk(min(2, len(kept)), dim=1).values
    lead = float((best[:, 0] - best[:, 1]).min()) if len(kept) > 1 else float("inf")
    return torch.stack(means), lead


@torch.inference_mode()
def scores_at(
    model: LlavaForConditionalGeneration,
    cut: Cut,
    visual: slice,
    start: int,
    before: Tensor,
    positions: np.ndarray,
    visible: np.ndarray,
    softmax: Tensor,
    memory: Memory,
) -> np.ndarray:
    """What the visual tokens receive, (n_visual), 0 for those that nobody sees.

    before, softmax, memory: the input, the attention (n_head, n, m) and the memory of the layer before the cut.
    """
    seen = memory.positions.numpy()
    columns = np.flatnonzero(memory.visible.numpy() & (seen >= visual.start) & (seen < visual.stop))
    scores = np.zeros(visual.stop - visual.start, np.float32)
    if not cut.by_attention:
        return scores
    if cut.score == "last-no-rope":
        received = attention_without_rope(model, cut.layer - 1, before, memory)[None].numpy()
    else:
        rows = asks(cut.score, positions, visual, start) & visible
        received = softmax.mean(dim=0).numpy()[rows]
    scores[seen[columns] - visual.start] = visual_scores(received[:, columns], cut.score)
    return scores


def row_sizes(positions: Tensor, visual: slice, sizes: np.ndarray) -> Tensor:
    """Of rows at these positions, (n): `sizes` (n_visual) for the picture's, 1 for text."""
    of_rows = torch.ones(len(positions))
    is_visual = (positions >= visual.start) & (positions < visual.stop)
    of_rows[is_visual] = torch.from_numpy(sizes).float()[positions[is_visual] - visual.start]
    return of_rows


@torch.inference_mode()
def ask(
    model: LlavaForConditionalGeneration,
    schedule: Schedule,
    visual: slice,
    context: Context,
    rows: Tensor,
    *,
    compact: bool = False,
) -> Context:
    """Runs the rows of a question; the first has the picture, at the positions `visual`.

    compact: leave the dropped rows of the first question out instead of masking them; see oracle.prefill().
    """
    first, start = not context.choices, context.n_past
    n_visual, grid = visual.stop - visual.start, patch_grid(model)
    memories, choices = context.memories, []
    x, positions = rows, torch.arange(start, start + len(rows))
    visible, weights = torch.ones(len(rows), dtype=bool), torch.ones(len(rows))
    reached, sizes = np.ones(n_visual, bool), np.ones(n_visual, int)
    n_layer = model.config.text_config.num_hidden_layers
    ends = [*(cut.layer for cut in schedule.cuts[1:]), n_layer]
    done = 0
    for i, (cut, end) in enumerate(zip(schedule.cuts, ends, strict=True)):
        before, memories, _ = run_layers(
            model, range(done, cut.layer - 1), x, positions, memories, visible, weights
        )
        done = cut.layer
        x, memories, softmax = run_layers(
            model, range(done - 1, done), before, positions, memories, visible, weights
        )
        memory = memories[done - 1]
        scores = scores_at(
            model, cut, visual, start, before, positions.numpy(), visible.numpy(), softmax, memory
        )

        is_visual = (positions >= visual.start) & (positions < visual.stop)
        here = is_visual & visible
        hidden = torch.zeros(n_visual, rows.shape[1]) if first else context.choices[i].hidden.clone()
        hidden[positions[here] - visual.start] = x[here]

        compared = cut.pick == "cover" or (cut.weigh and first)
        similarity = similarities(hidden[reached].numpy()) if compared else None
        chosen = pick(scores, cut, grid=grid, present=reached, similarity=similarity)
        distance = gap(scores, cut, grid=grid, present=reached, similarity=similarity)
        lead = float("inf")
        entered = np.zeros(n_visual, bool) if first else context.choices[i].entered.copy()
        owner, sizes_before, sizes = np.full(n_visual, -1), sizes, np.ones(n_visual, int)
        if first:
            entered[chosen] = True
            if cut.weigh:
                owner, lead = owners(similarity, reached, chosen), owner_lead(similarity, reached, chosen)
                sizes = sizes_behind(owner, sizes_before)
            if cut.merge:
                x = x.clone()
                dropped = np.flatnonzero(reached & ~entered)
                is_kept = is_visual.clone()
                is_kept[is_visual] = torch.from_numpy(entered)[positions[is_visual] - visual.start]
                x[is_kept], merge_lead = merged(hidden, chosen, dropped)
                lead = min(lead, merge_lead)
            visible = ~is_visual
            visible[is_visual] = torch.from_numpy(entered)[positions[is_visual] - visual.start]
            if compact:
                x, positions, visible = x[visible], positions[visible], visible[visible]
        else:
            lacking = chosen[~entered[chosen]]
            back = recalled(chosen, entered, scores, schedule.recall)
            distance = min(distance, cut_gap(scores, back, np.setdiff1d(lacking, back)))
            entered[back] = True
            if cut.weigh:
                owner = context.choices[i].owner
                sizes = sizes_taken_back(context.choices[i].sizes, owner, sizes_before, back)
                for il in range(cut.layer, end):
                    resized = row_sizes(memories[il].positions, visual, sizes)
                    memories[il] = replace(memories[il], sizes=resized)
            text = positions >= start
            x = torch.cat([hidden[back], x[text]])
            positions = torch.cat([visual.start + torch.from_numpy(back), positions[text]])
            visible = torch.ones(len(x), dtype=bool)
        weights = row_sizes(positions, visual, sizes)
        choices.append(Choice(scores, entered, hidden, distance, lead, owner, sizes))
        reached = entered
    x, memories, _ = run_layers(model, range(done, n_layer), x, positions, memories, visible, weights)
    return Context(memories, start + len(rows), tuple(choices), last_logits(model, x))


def feed(model: LlavaForConditionalGeneration, context: Context, token: int) -> Context:
    """One token of an answer, through all layers. Makes no choice."""
    layers = range(model.config.text_config.num_hidden_layers)
    position = torch.tensor([context.n_past])
    x, memories, _ = run_layers(model, layers, rows_of(model, [token]), position, context.memories)
    return replace(context, memories=memories, n_past=context.n_past + 1, logits=last_logits(model, x))
