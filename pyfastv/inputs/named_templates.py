"""Chat templates by their names, for model files that have none or a wrong one; names are llama.cpp's."""

from __future__ import annotations

__all__ = ["NAMED", "VICUNA"]

# The form that LLaVA-1.5 was trained on, for GGUF files without a template (early LLaVA conversions).
VICUNA = """\
{%- for message in messages -%}
{%- if message.role == 'user' -%}{{ 'USER: ' }}{%- endif -%}
{%- if message.role == 'assistant' -%}{{ 'ASSISTANT: ' }}{%- endif -%}
{%- for part in message.content if part.type == 'image' -%}{{ '<image>\\n' }}{%- endfor -%}
{%- for part in message.content if part.type == 'text' -%}{{ part.text }}{%- endfor -%}
{%- if message.role == 'assistant' -%}{{ '</s>' }}{%- else -%}{{ ' ' }}{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ 'ASSISTANT:' }}{%- endif -%}
"""

# Parts of the user in their order, then the same for each: what stands around a message is what differs.
_PARTS = """\
{%- for part in message.content -%}
{%- if part.type == 'image' -%}{{ '<image>' }}{%- else -%}{{ part.text }}{%- endif -%}
{%- endfor -%}
"""

_CHATML = (
    "{%- for message in messages -%}{{ '<|im_start|>' + message.role + '\\n' }}"
    + _PARTS
    + "{{ '<|im_end|>\\n' }}{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\\n' }}{%- endif -%}"
)

_LLAMA3 = (
    "{{- bos_token -}}{%- for message in messages -%}"
    "{{ '<|start_header_id|>' + message.role + '<|end_header_id|>\\n\\n' }}"
    + _PARTS
    + "{{ '<|eot_id|>' }}{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{%- endif -%}"
)

_GEMMA = (
    "{{- bos_token -}}{%- for message in messages -%}"
    "{%- if message.role == 'system' -%}{{ raise_exception('there is no system role') }}{%- endif -%}"
    "{{ '<start_of_turn>' + ('model' if message.role == 'assistant' else 'user') + '\\n' }}"
    + _PARTS
    + "{{ '<end_of_turn>\\n' }}{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ '<start_of_turn>model\\n' }}{%- endif -%}"
)

NAMED = {"vicuna": VICUNA, "chatml": _CHATML, "llama3": _LLAMA3, "gemma": _GEMMA}
