"""Thoughts that a prompt opens."""

from __future__ import annotations

__all__ = ["THOUGHT_TAGS", "open_thought"]

THOUGHT_TAGS = {"<think>": "</think>", "<thinking>": "</thinking>", "[THINK]": "[/THINK]"}
"""What models write around a thought."""


def open_thought(prompt: str) -> str:
    """The tag that ends the thought in which the answer to a prompt begins; empty: in none."""
    end = prompt.rstrip()
    return next((closing for opening, closing in THOUGHT_TAGS.items() if end.endswith(opening)), "")
