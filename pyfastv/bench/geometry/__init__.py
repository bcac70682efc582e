"""Models with the sizes of published ones and random weights: speed depends on shapes and types, not on values.

Needs the ``bench`` extra (gguf)."""
