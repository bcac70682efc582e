"""The ollama package: what there is, chat and generate with pictures, whole and streamed, and a JSON schema.

python tests/manual/ollama_client.py [listed] [chat] [generate] [schema]
"""

from __future__ import annotations

import json
from typing import Any

from clients import ANSWER, CLOCK, QUESTION, Served, main, picture

GREEDY = {"temperature": 0}


def _client(served: Served) -> Any:
    import ollama

    return ollama.Client(host=served.url)


def _model(client: Any) -> str:
    return str(client.list().models[0].model)


def listed(served: Served) -> None:
    client = _client(served)
    served.check("tags", _model(client), lambda name: "tiny-llava" in name)
    shown = client.show(_model(client))
    served.check("show", shown.capabilities, lambda what: "vision" in what)


def chat(served: Served) -> None:
    client = _client(served)
    message = {"role": "user", "content": QUESTION, "images": [str(picture(CLOCK))]}
    answer = client.chat(model=_model(client), messages=[message], options=GREEDY)
    served.check("chat", answer.message.content, ANSWER)
    served.check("done_reason", answer.done_reason, "stop")
    pieces = client.chat(model=_model(client), messages=[message], options=GREEDY, stream=True)
    served.check("chat, streamed", "".join(piece.message.content or "" for piece in pieces), ANSWER)


def generate(served: Served) -> None:
    client = _client(served)
    answer = client.generate(
        model=_model(client), prompt=QUESTION, images=[str(picture(CLOCK))], options=GREEDY, keep_alive="5m"
    )
    served.check("generate", answer.response, ANSWER)


def schema(served: Served) -> None:
    client = _client(served)
    form = {"type": "object", "properties": {"hour": {"type": "integer"}}, "required": ["hour"]}
    message = {"role": "user", "content": QUESTION, "images": [str(picture(CLOCK))]}
    answer = client.chat(
        model=_model(client), messages=[message], format=form, options=GREEDY | {"num_predict": 50}
    )
    served.check("format", list(json.loads(answer.message.content or "")), "['hour']")


if __name__ == "__main__":
    main({"listed": listed, "chat": chat, "generate": generate, "schema": schema}, ["ollama"])
