"""Haystack's OpenAIChatGenerator in a pipeline: a picture, whole and as a stream.

python tests/manual/haystack_client.py
"""

from __future__ import annotations

from typing import Any

from clients import ANSWER, CLOCK, QUESTION, Served, main, picture


def ask(served: Served) -> None:
    from haystack import Pipeline
    from haystack.components.generators.chat import OpenAIChatGenerator
    from haystack.dataclasses import ChatMessage, ImageContent
    from haystack.utils import Secret

    def generator(**options: Any) -> Any:
        return OpenAIChatGenerator(
            api_key=Secret.from_token("none"),
            model="pyfastv",
            api_base_url=f"{served.url}/v1",
            generation_kwargs={"temperature": 0},
            max_retries=0,
            **options,
        )

    image = ImageContent.from_file_path(str(picture(CLOCK)))
    messages = [ChatMessage.from_user(content_parts=[image, QUESTION])]
    pipeline = Pipeline()
    pipeline.add_component("llm", generator())
    made = pipeline.run({"llm": {"messages": messages}})
    served.check("pipeline", made["llm"]["replies"][0].text, ANSWER)
    pieces: list[str] = []
    generator(streaming_callback=lambda chunk: pieces.append(chunk.content or "")).run(messages=messages)
    served.check("stream", "".join(pieces), ANSWER)


if __name__ == "__main__":
    main({"ask": ask}, ["haystack-ai"])
