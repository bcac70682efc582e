"""Writes a GGUF language model and mmproj with the sizes of a published model and random weights, once, to a cache.

The values are drawn so that activations stay near unit size through every layer. Files are written tensor by tensor,
so that one tensor is in memory at a time, and are the same for the same arguments.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import gguf
import numpy as np
from gguf import GGMLQuantizationType as Type

from ...errors import DataError, Error, OptionError
from ...models.user_cache import user_cache
from ...output import Output
from .shapes import Decoder, Encoder, Gemma4, Value
from .sizes import GEOMETRIES
from .tensors import Tensor, language_tensors, vision_tensors
from .weights import RandomTensors

__all__ = ["TYPES", "decoder_of", "default_cache", "files_of", "make_geometry"]

TYPES = {
    "F16": gguf.LlamaFileType.MOSTLY_F16,
    "Q8_0": gguf.LlamaFileType.MOSTLY_Q8_0,
    "Q5_0": gguf.LlamaFileType.MOSTLY_Q5_0,
    "Q4_0": gguf.LlamaFileType.MOSTLY_Q4_0,
    "IQ4_NL": gguf.LlamaFileType.MOSTLY_IQ4_NL,
    "Q6_K": gguf.LlamaFileType.MOSTLY_Q6_K,
    "Q5_K": gguf.LlamaFileType.MOSTLY_Q5_K_S,
    "Q4_K": gguf.LlamaFileType.MOSTLY_Q4_K_S,
}
"""Types of the language model's matrices, as ``--type`` takes them."""

_SPARE_BYTES = 1 << 30  # of the disk, for others

_CHAT_TEMPLATE = (
    "{% for message in messages %}{% if message['role'] == 'user' %}USER: {% else %}ASSISTANT: {% endif %}"
    "{{ message['content'] }}{% if message['role'] == 'user' %} {% else %}</s>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)

# What mtmd puts around pictures and their tiles, each one token as in the published vocabularies.
_AROUND_PICTURES = (
    *("<|vision_start|>", "<|vision_end|>", "\n\n", "<fake_token_around_image>", "<global-img>"),
    *(f"<row_{y}_col_{x}>" for y in range(1, 5) for x in range(1, 5)),
    *("<start_of_image>", "<end_of_image>", "<img>", "</img>"),
    *("<|image>", "<image|>", "<|image_start|>", "<|image_end|>", "<|img_thumbnail|>"),
    *(f"<|img_row_{y}_col_{x}|>" for y in range(1, 5) for x in range(1, 5)),
)


def default_cache() -> Path:
    """Where geometry files are kept unless a folder is named: the platform's cache folder of the user."""
    return user_cache() / "geometry"


def decoder_of(name: str, layers: int | None = None) -> Decoder:
    """The language model of a geometry, or its first ``layers`` with all that is in front of and behind them. Raises
    OptionError."""
    if name not in GEOMETRIES:
        raise OptionError(f"{name!r} is no geometry: there are {', '.join(GEOMETRIES)}")
    whole = GEOMETRIES[name].decoder
    if layers is None:
        return whole
    if not 2 <= layers <= whole.layers:
        raise OptionError(f"layers = {layers}: of {name} there can be 2 to {whole.layers}")
    return replace(whole, layers=layers)


def files_of(
    name: str, folder: Path, type_name: str = "Q4_0", cls: bool = True, layers: int | None = None
) -> tuple[Path, Path]:
    """Paths of the model and the mmproj, whether they exist or not. Raises OptionError."""
    decoder = decoder_of(name, layers)
    if type_name not in TYPES:
        raise OptionError(f"{type_name!r} is no type for a geometry: there are {', '.join(TYPES)}")
    first = "" if decoder.layers == GEOMETRIES[name].decoder.layers else f"-{decoder.layers}layers"
    model = folder / f"{name}{first}-random-{type_name}.gguf"
    return model, folder / f"mmproj-{name}-random-f16{'' if cls else '-nocls'}.gguf"


def make_geometry(
    name: str,
    folder: Path,
    type_name: str = "Q4_0",
    *,
    cls: bool = True,
    layers: int | None = None,
    progress: Callable[[float, float], object] | None = None,
) -> tuple[Path, Path]:
    """Write the pair into ``folder`` unless it is there; gives the paths of the model and the mmproj.

    ``cls``: with the CLS embedding of LLaVA's encoder, which can do without it.
    ``layers``: the language model's first ones alone; None: all.
    ``progress``: called with (bytes written, bytes in all).
    Raises OptionError (no such geometry, type or number of layers), Error (no room on the disk, or the folder cannot be
    written).
    """
    model, mmproj = files_of(name, folder, type_name, cls, layers)
    decoder, encoder, type_ = decoder_of(name, layers), GEOMETRIES[name].encoder, Type[type_name]
    missing: list[tuple[Path, list[Tensor]]] = []
    if not model.exists():
        missing.append((model, list(language_tensors(decoder, type_))))
    if not mmproj.exists():
        missing.append((mmproj, list(vision_tensors(encoder, decoder.width, cls))))
    total = sum(tensor.n_bytes for _, tensors in missing for tensor in tensors)
    done = 0

    def advance(n_bytes: int) -> None:
        nonlocal done
        done += n_bytes
        if progress is not None:
            progress(done, total)

    try:
        folder.mkdir(parents=True, exist_ok=True)
        _check_room(folder, total)
        for path, tensors in missing:
            with Output(path).part() as part:
                if path is model:
                    writer = _language_writer(part, decoder, name, type_)
                else:
                    writer = _vision_writer(part, encoder, name, decoder.width)
                _write_tensors(writer, tensors, int(path is mmproj), advance)
    except (OSError, DataError) as error:
        reason = getattr(error, "strerror", None) or error
        raise Error(
            f"the geometry {name} cannot be written to {folder}: {reason}; name another folder"
        ) from error
    return model, mmproj


def _check_room(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if needed and needed + _SPARE_BYTES > free:
        raise Error(
            f"the geometry needs {needed / 1e9:.1f} GB in {folder} and 1 GB shall stay free there, "
            f"but {free / 1e9:.1f} GB are free: make room, or name another folder"
        )


def _write_tensors(
    writer: gguf.GGUFWriter, tensors: list[Tensor], seed: int, advance: Callable[[int], None]
) -> None:
    """The header, then one tensor after the other."""
    random = RandomTensors(seed, max(math.prod(tensor.shape) for tensor in tensors))
    for tensor in tensors:
        writer.add_tensor_info(
            tensor.name, tensor.shape, np.dtype(np.float32), tensor.n_bytes, raw_dtype=tensor.type
        )
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    try:
        for tensor in tensors:
            if tensor.std is None:
                writer.write_tensor_data(np.full(tensor.shape, tensor.value, np.float32))
            else:
                writer.write_tensor_data(random.draw(tensor.shape, tensor.type, tensor.std))
            advance(tensor.n_bytes)
    finally:
        writer.close()


def _language_writer(path: Path, d: Decoder, name: str, type_: Type) -> gguf.GGUFWriter:
    writer = gguf.GGUFWriter(path, d.arch)
    writer.add_type(gguf.GGUFType.MODEL)
    writer.add_name(f"{name}, random weights")
    writer.add_block_count(d.layers)
    writer.add_context_length(d.context)
    writer.add_embedding_length(d.width)
    writer.add_feed_forward_length(_one_or_all([d.ffn_in(il) for il in range(d.layers)]))
    writer.add_head_count(d.heads)
    writer.add_head_count_kv(_kv_heads(d))
    writer.add_rope_freq_base(d.rope_base)
    writer.add_rope_dimension_count(d.rope_size or d.head)
    if d.head_size is not None:
        writer.add_key_length(d.head_size)
        writer.add_value_length(d.head_size)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(d.vocab)
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    writer.add_file_type(TYPES[type_.name])
    for key, value in (dict(d.metadata) | _recurrent_metadata(d)).items():
        _add(writer, f"{d.arch}.{key}", value)
    if d.gemma4 is not None:
        for key, value in _gemma4_metadata(d, d.gemma4).items():
            _add(writer, f"{d.arch}.{key}", value)
    _add_vocabulary(writer, d.vocab)
    return writer


def _one_or_all(by_layer: list[int]) -> int | list[int]:
    return by_layer[0] if len(set(by_layer)) == 1 else by_layer


def _kv_heads(d: Decoder) -> int | list[int]:
    """llama.cpp tells layers of LFM2 that have no attention by their heads of keys, and those of Qwen3.5 by their
    number."""
    return (
        d.kv_heads if d.delta_net is not None else _one_or_all([d.kv_heads_in(il) for il in range(d.layers)])
    )


def _recurrent_metadata(d: Decoder) -> dict[str, Value]:
    if d.delta_net is None:
        return {"shortconv.l_cache": d.convolution_taps} if d.convolution_taps else {}
    net = d.delta_net
    return {
        "ssm.conv_kernel": net.taps,
        "ssm.state_size": net.size,
        "ssm.group_count": net.key_heads,
        "ssm.time_step_rank": net.value_heads,
        "ssm.inner_size": net.value_heads * net.size,
    }


def _gemma4_metadata(d: Decoder, g: Gemma4) -> dict[str, Value]:
    metadata: dict[str, Value] = {
        "attention.sliding_window": g.window,
        "attention.sliding_window_pattern": [not d.sees_all(il) for il in range(d.layers)],
        "attention.key_length_swa": g.window_head,
        "attention.value_length_swa": g.window_head,
        "attention.shared_kv_layers": sum(not d.has_cache(il) for il in range(d.layers)),
        "embedding_length_per_layer_input": g.per_layer,
        "rope.dimension_count_swa": g.window_head,
    }
    if g.experts is not None:
        metadata |= {
            "expert_count": g.experts.count,
            "expert_used_count": g.experts.used,
            "expert_feed_forward_length": g.experts.ffn,
        }
    return metadata


def _vision_writer(path: Path, e: Encoder, name: str, width: int) -> gguf.GGUFWriter:
    writer = gguf.GGUFWriter(path, "clip")
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_F16)
    writer.add_name(f"{name} mmproj, random weights")
    metadata: dict[str, Value] = {
        "has_text_encoder": False,
        "has_vision_encoder": True,
        "projector_type": e.projector,
        "vision.image_size": e.image,
        "vision.patch_size": e.patch,
        "vision.embedding_length": e.width,
        "vision.feed_forward_length": e.ffn,
        "vision.projection_dim": width,
        "vision.attention.head_count": e.heads,
        "vision.block_count": e.layers,
    }
    if e.deepstack:
        metadata["vision.is_deepstack_layers"] = [i in e.deepstack for i in range(e.layers)]
    for key, value in (metadata | dict(e.metadata)).items():
        _add(writer, f"clip.{key}", value)
    return writer


def _add(writer: gguf.GGUFWriter, key: str, value: Value) -> None:
    if isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    elif isinstance(value, str):
        writer.add_string(key, value)
    else:
        writer.add_array(key, value)


def _add_vocabulary(writer: gguf.GGUFWriter, size: int) -> None:
    """SentencePiece's: specials, bytes, printable ASCII, what mtmd writes, then words that stand for nothing."""
    kinds = gguf.TokenType
    tokens = [("<unk>", kinds.UNKNOWN), ("<s>", kinds.CONTROL), ("</s>", kinds.CONTROL)]
    tokens += [(f"<0x{byte:02X}>", kinds.BYTE) for byte in range(256)]
    tokens += [("\u2581", kinds.NORMAL)] + [(chr(c), kinds.NORMAL) for c in range(0x21, 0x7F)]
    tokens += [(text, kinds.CONTROL) for text in _AROUND_PICTURES]
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
    writer.add_chat_template(_CHAT_TEMPLATE)
