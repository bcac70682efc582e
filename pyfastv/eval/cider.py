"""CIDEr-D of captions, computed by pycocoevalcap, with a tokenizer that needs no Java."""

from __future__ import annotations

import re
from collections.abc import Sequence

from ..errors import OptionError

__all__ = ["cider_scores"]

_WORD = re.compile(r"[\w']+")


def cider_scores(references: Sequence[Sequence[str]], captions: Sequence[str]) -> list[float]:
    """CIDEr-D of each caption against its references; 1 is what is usually printed as 100, 10 a perfect match.

    Vedantam et al., "CIDEr: Consensus-based Image Description Evaluation", CVPR 2015. n-grams are weighted by all
    references that are given: values of different sets of pictures do not compare, and of one picture are 0. Words are
    letters, digits and apostrophes, in lower case; the published numbers use the Penn Treebank tokenizer, a Java program,
    which splits words such as "man's" and so differs a little. Raises OptionError where pycocoevalcap is missing.
    """
    try:
        from pycocoevalcap.cider.cider_scorer import CiderScorer
    except ImportError:
        raise OptionError("scorer cider needs pycocoevalcap: pip install 'pyfastv[captions]'") from None
    scorer = CiderScorer()
    for expected, caption in zip(references, captions, strict=True):
        scorer += (_tokens(caption), [_tokens(reference) for reference in expected])
    _, scores = scorer.compute_score()
    return [float(score) for score in scores]


def _tokens(text: str) -> str:
    return " ".join(_WORD.findall(text.casefold()))
