"""What ``pyfastv info`` tells about the build and about a model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .. import _native
from .._about import __version__
from .bundled import bundled_model
from .check import Findings
from .encoder_type import choose
from .encoder_type import describe as describe_encoder
from .hub import mmproj_beside

__all__ = ["compact", "describe", "gather"]

_NOT_MEASURED = (
    "not measured of any model with recurrent layers: k=50%,drop=0.5 is the cautious setting, "
    "and pyfastv tune finds what your files bear"
)


def gather(model: str | None, mmproj: str | None) -> dict[str, Any]:
    """``version``, ``build``, ``system_info``, ``backends``, ``kernels``, ``model``, ``vision``, ``encoder`` (the type
    that its matrices are loaded in by default); only headers are read.

    ``model``: None: the bundled one; ``mmproj``: None: the only one beside it, if there is one. Raises ModelError.
    """
    model = model or str(bundled_model())
    mmproj = mmproj or mmproj_beside(model)
    return {
        "version": __version__,
        "build": _native.build_info(),
        "system_info": _native.system_info().strip(),
        "backends": _native.backends(),
        "kernels": _native.kernels(),
        "model": _native.model_info(model),
        "vision": None if mmproj is None else _native.vision_info(mmproj),
        "encoder": None if mmproj is None else describe_encoder(*choose(Path(mmproj), "auto")),
    }


def describe(facts: dict[str, Any], findings: Findings | None = None) -> str:
    """For people. ``facts`` may be empty; ``findings``: of a check."""
    lines: list[tuple[str, str]] = []
    if facts:
        vision = {} if facts["vision"] is None else _describe_vision(facts["vision"])
        if facts["encoder"] is not None:
            vision["encoder"] = facts["encoder"]
        lines += (_describe_build(facts) | _describe_model(facts["model"]) | vision).items()
    if findings is not None:
        lines += findings.lines()
    return "\n".join(f"{name:<15} {value}" for name, value in lines)


def _describe_build(facts: dict[str, Any]) -> dict[str, str]:
    build = facts["build"]
    return {
        "pyfastv": facts["version"],
        "llama.cpp": f"{build['llama_cpp']} (from llama-cpp-python {build['llama_cpp_python']})",
        "patches": ", ".join(build["patches"]),
        "compiler": f"{build['compiler']}, {build['build_type']}",
        "features": facts["system_info"],
        "kernels": _describe_kernels(facts["kernels"]),
        "devices": "; ".join(f"{d['name']} ({d['type']}): {d['description']}" for d in facts["backends"]),
    }


def _describe_kernels(kernels: dict[str, Any]) -> str:
    chosen, others = kernels["chosen"], [name for name in kernels["known"] if name != kernels["chosen"]]
    also = f"; this CPU has {', '.join(others)}, too (PYFASTV_KERNELS)" if others else ""
    return f"{chosen or 'llama.cpp'}{also}"


def compact(layers: Sequence[int]) -> str:
    """Ascending numbers with runs of three and more as ranges: "1-11", "4, 5, 12, 18-35"."""
    runs: list[list[int]] = []
    for layer in layers:
        if runs and layer == runs[-1][-1] + 1:
            runs[-1].append(layer)
        else:
            runs.append([layer])
    texts = [
        f"{run[0]}-{run[-1]}" if len(run) > 2 else ", ".join(str(layer) for layer in run) for run in runs
    ]
    return ", ".join(texts)


def _describe_model(model: dict[str, Any]) -> dict[str, str]:
    is_pruned_hybrid = model["recurrent_layers"] and model["unsupported_reason"] is None
    accuracy = {"accuracy": _NOT_MEASURED} if is_pruned_hybrid else {}
    return {
        "model": model["description"],
        "architecture": model["architecture"],
        "layers": f"{model['n_layer']}, {model['n_embd']} wide",
        "context": _describe_context(model["n_ctx_train"]),
        "size": f"{model['size_bytes'] / 1e6:,.0f} MB, {model['n_params'] / 1e6:,.0f} M parameters",
        "pruning": _describe_pruning(model["unsupported_reason"], model["cut_layers"]),
        **accuracy,
    }


def _describe_context(n_ctx_train: int) -> str:
    more = (
        f", used up to {_native.DEFAULT_N_CTX} unless -c says more"
        if n_ctx_train > _native.DEFAULT_N_CTX
        else ""
    )
    return f"{n_ctx_train} tokens{more}"


def _describe_pruning(reason: str | None, cut_layers: Sequence[int]) -> str:
    if reason is not None:
        return f"not possible: {reason}"
    if not cut_layers:
        return "only by rules without attention (score=random or none)"
    return f"possible, k = {compact(cut_layers)}"


def _describe_vision(vision: dict[str, Any]) -> dict[str, str]:
    tokens = vision["visual_tokens"]
    size, patch = vision["image_size"], vision["patch_size"]
    pixels = f"{size} x {size} pixels" if size else "pictures of any size"
    return {
        "vision": f"{vision['n_layer']} layers, {pixels} in patches of {patch}, "
        f"projector {vision['projector']}",
        "visual tokens": "depends on the picture" if tokens is None else f"{tokens} a picture",
    }
