"""An agent's loop with the openai package: five tool calls, each of whose results is a picture.

    python tests/manual/agent_loop.py

The bundled model cannot decide what to call, so every turn asks for one tool by name; what is checked is that the history
of calls and pictures is taken, that the calls have their form, and that the last question is answered.
"""

from __future__ import annotations

import json
from typing import Any

from clients import Served, data_uri, main

PICTURES = ["clock.png", "chart.png", "dice.png", "scene.png", "clock.png"]
TOOL = {
    "type": "function",
    "function": {
        "name": "look",
        "description": "Gives the next picture.",
        "parameters": {
            "type": "object",
            "properties": {"number": {"type": "integer", "minimum": 1, "maximum": 5}},
            "required": ["number"],
        },
    },
}
CALL = {"type": "function", "function": {"name": "look"}}


def loop(served: Served) -> None:
    import openai

    messages: list[dict[str, Any]] = [
        {"role": "user", "content": "Look at five pictures, then read the clock."}
    ]
    with openai.OpenAI(base_url=f"{served.url}/v1", api_key="none", max_retries=0) as client:
        for turn, name in enumerate(PICTURES, 1):
            made = client.chat.completions.create(
                model="pyfastv", messages=messages, tools=[TOOL], tool_choice=CALL, max_tokens=100
            )
            message = made.choices[0].message
            [call] = message.tool_calls
            arguments = json.loads(call.function.arguments)
            served.check(f"call {turn}", call.function.name, "look")
            served.check(f"its argument {turn}", arguments["number"], lambda text: 1 <= int(text) <= 5)
            result = [{"type": "image_url", "image_url": {"url": data_uri(name)}}]
            messages += [
                message.model_dump(exclude_none=True),
                {"role": "tool", "tool_call_id": call.id, "content": result},
            ]
        made = client.chat.completions.create(
            model="pyfastv",
            messages=[*messages, {"role": "user", "content": "Read the clock."}],
            tools=[TOOL],
            tool_choice="none",
            temperature=0,
            max_tokens=50,
        )
        served.check("last answer", made.choices[0].message.content, lambda text: len(text) > 0)
        usage = made.usage.model_dump()
        served.check("visual tokens", usage["visual_tokens"], lambda tokens: int(tokens) == 5 * 576)


if __name__ == "__main__":
    main({"loop": loop}, ["openai"], options=("--n-ctx", "4096"))
