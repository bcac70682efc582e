"""Answers made comparable, as the literature on visual question answering does it."""

from __future__ import annotations

import re

__all__ = ["normalize"]

# what VQA's evaluation takes for punctuation: not the point, which numbers need, nor the colon of a time
_PUNCTUATION = re.compile(r"[;/\[\]\"{}()=+\\_\-><@`,?!]")
_BETWEEN_DIGITS = re.compile(r"(?<=\d),(?=\d)")
_POINT = re.compile(r"(?<!\d)\.|\.(?!\d)")
_ARTICLES = {"a", "an", "the"}
_NUMBERS = {
    word: str(number)
    for number, word in enumerate(
        ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
    )
} | {"none": "0"}


def _contractions() -> dict[str, str]:
    """ "dont" to "don't": the forms without an apostrophe that are no words of their own."""
    negated = (
        *("ai", "are", "ca", "could", "did", "does", "do", "had", "has", "have", "is"),
        *("might", "must", "should", "was", "were", "would", "wo"),
    )
    words = [f"{verb}n't" for verb in negated]
    words += [f"{who}'ve" for who in ("could", "i", "might", "should", "they", "we", "would", "you")]
    words += [f"{who}'re" for who in ("they", "you")]
    words += [f"{who}'s" for who in ("that", "there", "what", "where", "who", "how", "here")]
    words += ["you'll", "they'll", "i'm", "let's"]
    return {word.replace("'", ""): word for word in words}


_WITH_APOSTROPHE = _contractions()


def normalize(answer: str) -> str:
    """Lower case; no punctuation, articles; number words up to ten as digits; apostrophes where they belong.

    After Antol et al., "VQA: Visual Question Answering", ICCV 2015, section 3 (answers are made lowercase, numbers
    become digits, punctuation and articles go), which the evaluation of VQAv2, TextVQA and GQA follows. Two deviations
    from the published evaluation: answers on which everybody agrees are normalized, too, and punctuation inside a word
    always becomes a space, but in numbers (1,000).

    >>> normalize(" There are TWO dogs, and a cat. ")
    'there are 2 dogs and cat'
    """
    text = _BETWEEN_DIGITS.sub("", answer.casefold().replace("\N{RIGHT SINGLE QUOTATION MARK}", "'"))
    text = _POINT.sub(" ", _PUNCTUATION.sub(" ", text))
    words = (_NUMBERS.get(word, word) for word in text.split())
    return " ".join(_WITH_APOSTROPHE.get(word, word) for word in words if word not in _ARTICLES)
