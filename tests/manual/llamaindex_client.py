"""LlamaIndex's OpenAILike: a picture, whole and as a stream.

python tests/manual/llamaindex_client.py
"""

from __future__ import annotations

from clients import ANSWER, CLOCK, QUESTION, Served, main, picture


def ask(served: Served) -> None:
    from llama_index.core.llms import ChatMessage, ImageBlock, TextBlock
    from llama_index.llms.openai_like import OpenAILike

    model = OpenAILike(
        api_base=f"{served.url}/v1",
        api_key="none",
        model="pyfastv",
        temperature=0,
        is_chat_model=True,
        max_retries=0,
    )
    blocks = [ImageBlock(path=picture(CLOCK)), TextBlock(text=QUESTION)]
    question = ChatMessage(role="user", blocks=blocks)
    served.check("chat", model.chat([question]).message.content, ANSWER)
    pieces = model.stream_chat([question])
    served.check("stream_chat", "".join(chunk.delta or "" for chunk in pieces), ANSWER)


if __name__ == "__main__":
    main({"ask": ask}, ["llama-index-llms-openai-like"])
