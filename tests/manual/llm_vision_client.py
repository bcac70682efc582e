"""LLM Vision for Home Assistant, its providers as they are in their public sources: three JPEGs 1280 wide, in messages
of their own, the prompt last, 60 seconds; by Ollama's API and by OpenAI's.

    python tests/manual/llm_vision_client.py SOURCE_DIR [openai] [ollama]

SOURCE_DIR: a checkout of github.com/valentinfrlch/ha-llmvision. Nothing of it is copied here, and Home Assistant is not
needed: what the providers import of it stands in as empty names.
"""

from __future__ import annotations

import asyncio
import base64
import importlib
import io
import json
import sys
from types import SimpleNamespace
from typing import Any

from clients import QUESTION, Served, main, picture, source_folder
from stubs import package_of

PICTURES = ("dice.png", "chart.png", "clock.png")


def _providers() -> Any:
    folder = source_folder() / "custom_components" / "llmvision"
    stubbed = ["homeassistant", "boto3", "voluptuous"]
    package_of(folder, "llmvision", executed=["llmvision"], stubbed=stubbed)
    return importlib.import_module("llmvision.providers")


def _jpeg(name: str) -> str:
    from PIL import Image

    made = io.BytesIO()
    with Image.open(picture(name)) as image:
        image.convert("RGB").resize((1280, 1280)).save(made, "JPEG")
    return base64.b64encode(made.getvalue()).decode()


def _call(**more: Any) -> Any:
    images = [_jpeg(name) for name in PICTURES]
    named = {"base64_images": images, "filenames": ["", "", ""], "message": QUESTION, "max_tokens": 100}
    return SimpleNamespace(
        **named,
        provider="entry",
        model="pyfastv",
        use_memory=False,
        memory=None,
        response_format="text",
        structure=None,
        model_is_glimpse=lambda: False,
        **more,
    )


async def _ask(providers: Any, make: Any, structure: dict[str, Any] | None = None) -> str:
    import aiohttp

    domain = sys.modules["llmvision.const"].DOMAIN
    async with aiohttp.ClientSession() as session:
        providers.async_get_clientsession = lambda hass: session
        hass = SimpleNamespace(data={domain: {"entry": {"temperature": 0.1}}})
        call = _call()
        if structure is not None:
            call.response_format, call.structure = "json", json.dumps(structure)
        return str(await make(hass).vision_request(call))


def _check(served: Served, name: str, providers: Any, make: Any) -> None:
    answer = asyncio.run(_ask(providers, make))
    served.check(f"{name}: three pictures", answer, lambda text: len(text) > 0)
    form = {"type": "object", "properties": {"title": {"type": "string"}}, "required": ["title"]}
    answer = asyncio.run(_ask(providers, make, form))
    served.check(f"{name}: by a schema", answer, lambda text: list(json.loads(text)) == ["title"])


def openai(served: Served) -> None:
    providers = _providers()
    endpoint = {"base_url": f"{served.url}/v1/chat/completions"}
    _check(
        served, "openai", providers, lambda hass: providers.OpenAI(hass, "none", "pyfastv", endpoint=endpoint)
    )


def ollama(served: Served) -> None:
    providers = _providers()
    endpoint = {"ip_address": "127.0.0.1", "port": str(served.port), "https": False}
    _check(served, "ollama", providers, lambda hass: providers.Ollama(hass, "", "pyfastv", endpoint=endpoint))


if __name__ == "__main__":
    main(
        {"openai": openai, "ollama": ollama},
        ["aiohttp", "pillow"],
        options=("--n-ctx", "4096"),
        source="a checkout of LLM Vision's sources",
    )
