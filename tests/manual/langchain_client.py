"""LangChain's ChatOpenAI: a picture, a stream, structured output, and tools.

python tests/manual/langchain_client.py [ask] [form] [tools]
"""

from __future__ import annotations

from typing import Any

from clients import ANSWER, CLOCK, QUESTION, Served, data_uri, main


def _model(served: Served, **options: Any) -> Any:
    from langchain_openai import ChatOpenAI

    return ChatOpenAI(
        base_url=f"{served.url}/v1",
        api_key="none",
        model="pyfastv",
        temperature=0,
        max_retries=0,
        **options,
    )


def _question(text: str = QUESTION) -> Any:
    from langchain_core.messages import HumanMessage

    return HumanMessage(
        [{"type": "image_url", "image_url": {"url": data_uri(CLOCK)}}, {"type": "text", "text": text}]
    )


def ask(served: Served) -> None:
    model = _model(served, extra_body={"fastv": "k=2,drop=0.75"})
    served.check("invoke", model.invoke([_question()]).content, ANSWER)
    served.check("stream", "".join(chunk.content for chunk in model.stream([_question()])), ANSWER)


def form(served: Served) -> None:
    from pydantic import BaseModel

    class Clock(BaseModel):
        hour: int
        minute: int

    model = _model(served, max_tokens=100).with_structured_output(Clock, method="json_schema")
    served.check("with_structured_output", model.invoke([_question()]), lambda text: "hour=" in text)


def tools(served: Served) -> None:
    from langchain_core.messages import ToolMessage
    from langchain_core.tools import tool

    @tool
    def set_clock(hour: int, minute: int) -> str:
        """Sets a clock."""
        return f"set to {hour}:{minute:02}"

    model = _model(served, max_tokens=100)
    asked = [_question("Set it to the time of the picture.")]
    called = model.bind_tools([set_clock], tool_choice="set_clock").invoke(asked)
    served.check("tool_calls", [call["name"] for call in called.tool_calls], "['set_clock']")
    [call] = called.tool_calls
    result = ToolMessage(set_clock.invoke(call["args"]), tool_call_id=call["id"])
    last = model.bind_tools([set_clock], tool_choice="none").invoke([*asked, called, result])
    served.check(
        "behind the tool's result", last.response_metadata["finish_reason"], lambda why: why != "error"
    )


if __name__ == "__main__":
    main({"ask": ask, "form": form, "tools": tools}, ["langchain-openai"])
