"""Frigate's providers for llama.cpp and Ollama, their request code as it is in its public sources: a description in a
strict JSON schema, and how many tokens a picture is, which Frigate measures with a grey JPEG and one token of answer.

    python tests/manual/frigate_client.py SOURCE_DIR [llamacpp] [ollama]

SOURCE_DIR: a checkout of github.com/blakeblackshear/frigate. Nothing of it is copied here.
"""

from __future__ import annotations

import importlib
import importlib.util
import io
import json
import urllib.request
from types import SimpleNamespace
from typing import Any

from clients import CLOCK, QUESTION, Served, main, picture, source_folder
from stubs import package_of

TYPES = "frigate.data_processing.post.types"
TIMEOUT = 120


def _provider(served: Served, name: str, module: str) -> Any:
    folder = source_folder() / "frigate"
    stubbed = ["playhouse", "peewee", "ruamel", "pytz"]
    package_of(folder, "frigate", executed=["frigate.genai", TYPES], stubbed=stubbed)
    genai = importlib.import_module("frigate.genai")
    for place in ("frigate.genai.plugins", "frigate.genai"):
        if importlib.util.find_spec(f"{place}.{module}") is not None:
            importlib.import_module(f"{place}.{module}")
            break
    with urllib.request.urlopen(f"{served.url}/v1/models", timeout=30) as answer:
        model = json.load(answer)["data"][0]["id"]
    config = SimpleNamespace(
        provider=name, base_url=served.url, api_key=None, model=model, provider_options={}, runtime_options={}
    )
    client = genai.PROVIDERS[name](config, timeout=TIMEOUT)
    served.check(f"{name}: the model is found", client.provider is not None, "True")
    return client


def _form() -> dict[str, Any]:
    """What Frigate asks for about a review item, as it makes it."""
    prompts = importlib.import_module("frigate.genai.prompts")
    return dict(prompts.build_review_description_response_format([]))


def _jpeg() -> bytes:
    from PIL import Image

    made = io.BytesIO()
    Image.open(picture(CLOCK)).convert("RGB").save(made, "JPEG", quality=85)
    return made.getvalue()


def _describe(served: Served, name: str, client: Any) -> None:
    served.check(f"{name}: a description", client._send(QUESTION, [_jpeg()]), lambda text: "9:10" in text)
    made = client._send("Describe the image.", [_jpeg()], response_format=_form())
    served.check(f"{name}: by a strict schema", made, lambda text: "scene" in json.loads(text))


def llamacpp(served: Served) -> None:
    client = _provider(served, "llamacpp", "llama_cpp")
    served.check("llamacpp: sees", client.supports_vision, "True")
    served.check("llamacpp: context", client.get_context_size(), lambda text: int(text) == 4096)
    # LLaVA's squares: as many tokens at any size
    for size in ((640, 480), (1280, 720)):
        tokens = client.estimate_image_tokens(*size)
        served.check(f"llamacpp: tokens of {size}", tokens, lambda text: 576 <= float(text) <= 580)
    _describe(served, "llamacpp", client)


def ollama(served: Served) -> None:
    client = _provider(served, "ollama", "ollama")
    served.check("ollama: models", client.list_models(), lambda text: "tiny-llava" in text)
    _describe(served, "ollama", client)


PACKAGES = ["httpx", "numpy", "ollama", "pillow", "pydantic", "requests"]

if __name__ == "__main__":
    main(
        {"llamacpp": llamacpp, "ollama": ollama},
        PACKAGES,
        options=("--n-ctx", "4096", "--temp", "0"),
        source="a checkout of Frigate's sources",
    )
