"""How llama-cpp-python's handler samples. Its own sampling ends the process where a grammar allows no token, or is
none: it has a token accepted, whatever it is, and calls what it did not get."""

from __future__ import annotations

import ctypes
import weakref
from typing import Any

import numpy as np

from ..errors import DecodeError, OptionError

__all__ = ["samples_safely"]

_CANDIDATE = np.dtype([("id", np.int32), ("logit", np.float32), ("p", np.float32)])  # llama_token_data


def samples_safely(llama: Any, llama_cpp: Any) -> None:
    """A Llama's answers end where its grammar allows no token, as the Runner's do; OptionError for a grammar that is
    none."""
    alive = weakref.ref(llama)
    make_sampler = type(llama)._init_sampler

    def init_sampler(**options: Any) -> Any:
        llama, grammar = alive(), options.get("grammar")
        if grammar is None:
            return make_sampler(llama, **options)
        _check_grammar(llama, grammar, llama_cpp)
        sampler = make_sampler(llama, **options)
        sampler.sample = _Sampling(sampler, llama_cpp)
        return sampler

    llama._init_sampler = init_sampler


def _check_grammar(llama: Any, grammar: Any, llama_cpp: Any) -> None:
    text, root = (part.encode("utf-8", "replace") for part in (grammar._grammar, grammar._root))
    sampler = None if b"\0" in text else llama_cpp.llama_sampler_init_grammar(llama._model.vocab, text, root)
    if not sampler:
        raise OptionError(
            f'the grammar is not valid GBNF with a rule "{grammar._root}": {grammar._grammar!r:.100}'
        )
    llama_cpp.llama_sampler_free(sampler)


class _Sampling:
    """``llama_sampler_sample``, sampler by sampler."""

    def __init__(self, sampler: Any, llama_cpp: Any) -> None:
        self._sampler, self._llama_cpp = weakref.ref(sampler), llama_cpp
        # its place: behind a logits processor and the penalties
        self._grammar = len(sampler.custom_samplers) + 1

    def __call__(self, context: Any, index: int = -1) -> int:
        sampler = self._sampler()
        assert sampler is not None  # it calls this
        lib, chain = self._llama_cpp, sampler.sampler
        vocab = lib.llama_model_get_vocab(lib.llama_get_model(context.ctx))
        n_vocab = lib.llama_vocab_n_tokens(vocab)
        logits = lib.llama_get_logits_ith(context.ctx, index)
        if not logits:
            raise DecodeError("the last token has no logits: its later layers could not be computed")
        candidates = np.zeros(n_vocab, _CANDIDATE)
        candidates["id"] = np.arange(n_vocab)
        candidates["logit"] = np.ctypeslib.as_array(logits, (n_vocab,))
        if np.isnan(candidates["logit"]).any():
            raise DecodeError(
                "the last token's logits are no numbers: its later layers could not be computed"
            )
        array = lib.llama_token_data_array(
            data=candidates.ctypes.data_as(ctypes.POINTER(lib.llama_token_data)),
            size=n_vocab,
            selected=-1,
            sorted=False,
        )
        for i in range(lib.llama_sampler_chain_n(chain)):
            lib.llama_sampler_apply(lib.llama_sampler_chain_get(chain, i), ctypes.byref(array))
            if i == self._grammar and not np.isfinite(candidates["logit"]).any():
                return self._end(vocab)
        token = int(array.data[array.selected].id)
        lib.llama_sampler_accept(chain, token)
        return token

    def _end(self, vocab: Any) -> int:
        """A token that ends the answer. The grammar, which is asked no more, does not see it."""
        lib = self._llama_cpp
        for token in (lib.llama_vocab_eos(vocab), lib.llama_vocab_eot(vocab)):
            if token >= 0 and lib.llama_vocab_is_eog(vocab, token):
                return int(token)
        raise DecodeError("the grammar allows no token, and the model has none that ends its answer")
