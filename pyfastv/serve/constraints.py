"""What an answer has to look like, by the names that servers have for it; and fields that ask for something else that
this server has not."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal

from pydantic import Field

from ..constraints.grammar import Grammar, choice_grammar, of_schema, pattern_grammar
from ..errors import OptionError
from .errors import ApiError, invalid
from .model import Model

__all__ = ["Constrained", "StructuredOutputs", "check_unknown"]

# fields of llama-server, vLLM and others that change an answer, with the values that do not
_NOT_SUPPORTED: dict[str, tuple[Any, ...]] = {
    # llama-server
    "adaptive_target": (-1,),
    "dry_multiplier": (),
    "dynatemp_range": (),
    "grammar_lazy": (),
    "grammar_triggers": (),
    "lora": (),
    "min_keep": (),
    "mirostat": (),
    "n_probs": (),
    "post_sampling_probs": (),
    "response_fields": (),
    "return_tokens": (),
    "samplers": (),
    "t_max_predict_ms": (-1,),
    "top_n_sigma": (-1,),
    "xtc_probability": (),
    # vLLM
    "allowed_token_ids": (),
    "bad_words": (),
    "chat_template": (),
    "documents": (),
    "include_stop_str_in_output": (),
    "length_penalty": (1,),
    "logits_processors": (),
    "lora_request": (),
    "min_tokens": (),
    "mm_processor_kwargs": (),
    "prompt_logprobs": (),
    "stop_token_ids": (),
    "truncate_prompt_tokens": (-1,),
    "use_beam_search": (),
    # Transformers, TGI and text-generation-webui
    "max_new_tokens": (),
    "min_new_tokens": (),
    "mirostat_mode": (),
    "no_repeat_ngram_size": (),
    "num_beams": (1,),
    "smoothing_factor": (),
    "tfs_z": (1,),
    "top_a": (),
}
# of these false asks for something
_TRUE_BY_DEFAULT = ("do_sample", "spaces_between_special_tokens")


def check_unknown(fields: Mapping[str, Any]) -> None:
    """Raises ApiError for a field that would change the answer if it was not ignored."""
    for name, neutral in _NOT_SUPPORTED.items():
        value = fields.get(name)
        if value and value not in neutral:
            raise _not_supported(name)
    for name in _TRUE_BY_DEFAULT:
        if fields.get(name) is False:
            raise _not_supported(name)


def _not_supported(name: str) -> ApiError:
    return invalid(f"{name} is not supported by this server: leave it out", name, "unsupported")


class JsonSchema(Model):
    """A schema that the answer follows."""

    name: str | None = None
    schema_: dict[str, Any] = Field(alias="schema")


class TextFormat(Model):
    """Any text."""

    type: Literal["text"]


class JsonObjectFormat(Model):
    """Any JSON object; with ``schema``, as llama-server takes it, one that follows it."""

    type: Literal["json_object"]
    schema_: dict[str, Any] | None = Field(default=None, alias="schema")


class JsonSchemaFormat(Model):
    """A JSON value that follows a schema."""

    type: Literal["json_schema"]
    json_schema: JsonSchema


ResponseFormat = Annotated[TextFormat | JsonObjectFormat | JsonSchemaFormat, Field(discriminator="type")]


class StructuredOutputs(Model):
    """vLLM's ``structured_outputs``."""

    json_: dict[str, Any] | str | None = Field(default=None, alias="json")
    choice: list[str] | None = None
    regex: str | None = None
    grammar: str | None = None
    json_object: bool | None = None
    structural_tag: Any = Field(default=None, description="Not supported.")


class Constrained(Model):
    """Fields that constrain an answer."""

    response_format: ResponseFormat | None = None
    grammar: str | None = Field(default=None, description="GBNF, as llama-server takes it.")
    json_schema: dict[str, Any] | None = Field(default=None, description="As llama-server takes it.")
    structured_outputs: StructuredOutputs | None = Field(default=None, description="As vLLM takes it.")
    guided_json: dict[str, Any] | str | None = None
    guided_choice: list[str] | None = None
    guided_regex: str | None = None
    guided_grammar: str | None = None

    @property
    def is_constrained(self) -> bool:
        """Does the answer have to follow anything?"""
        asked = (self.grammar, self.json_schema, self.structured_outputs)
        guided = (self.guided_json, self.guided_choice, self.guided_regex, self.guided_grammar)
        form = None if isinstance(self.response_format, TextFormat) else self.response_format
        return any(one is not None and one != "" for one in (form, *asked, *guided))

    def constraint(self) -> Grammar | None:
        """That the answer follows. Raises ApiError, OptionError."""
        found = dict(self._constraints())
        if len(found) > 1:
            names = " and ".join(found)
            raise invalid(f"{names}: an answer can follow one of them", next(iter(found)), "invalid_value")
        return next(iter(found.values()), None)

    def _constraints(self) -> Iterator[tuple[str, Grammar]]:
        """The field, and its grammar."""
        form = self.response_format
        if isinstance(form, JsonSchemaFormat):
            yield "response_format", of_schema(form.json_schema.schema_)
        elif isinstance(form, JsonObjectFormat):
            yield "response_format", of_schema({"type": "object"} if form.schema_ is None else form.schema_)
        if self.grammar:
            yield "grammar", Grammar(self.grammar)
        if self.json_schema is not None:
            yield "json_schema", of_schema(self.json_schema)
        yield from _of(
            "guided_", self.guided_json, self.guided_choice, self.guided_regex, self.guided_grammar
        )
        if (asked := self.structured_outputs) is not None:
            name = "structured_outputs."
            if asked.structural_tag is not None:
                raise _not_supported(f"{name}structural_tag")
            yield from _of(name, asked.json_, asked.choice, asked.regex, asked.grammar)
            if asked.json_object:
                yield f"{name}json_object", of_schema({"type": "object"})


def _of(
    prefix: str,
    schema: dict[str, Any] | str | None,
    choice: list[str] | None,
    regex: str | None,
    grammar: str | None,
) -> Iterator[tuple[str, Grammar]]:
    if schema is not None:
        yield f"{prefix}json", of_schema(_parsed(f"{prefix}json", schema))
    if choice is not None:
        yield f"{prefix}choice", Grammar(choice_grammar(choice))
    if regex is not None:
        yield f"{prefix}regex", Grammar(pattern_grammar(regex))
    if grammar is not None:
        yield f"{prefix}grammar", Grammar(grammar)


def _parsed(name: str, schema: dict[str, Any] | str) -> Any:
    if not isinstance(schema, str):
        return schema
    try:
        return json.loads(schema)
    except (ValueError, RecursionError) as error:
        raise OptionError(f"{name} is text that is not JSON: {error}") from None
