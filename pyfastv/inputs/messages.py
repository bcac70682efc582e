"""Chat messages in OpenAI's shape: checked, and brought into the forms that templates ask for."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, cast

from .._checks import shown, utf8
from ..errors import OptionError
from .budget import Budget, Sized
from .images import Picture, Pictures, as_list

__all__ = [
    "Message",
    "arguments_as_text",
    "assistant_message",
    "between",
    "has_text",
    "join_turns",
    "map_texts",
    "numbered_calls",
    "parse_messages",
    "system_as_user",
    "system_message",
    "text_part",
    "tools_as_text",
    "user_message",
]

Message = dict[str, Any]

_ROLES = ("system", "developer", "user", "assistant", "tool", "function")
# developer is OpenAI's newer name for system, function the older one for tool; templates know these
_KNOWN_AS = {"developer": "system", "function": "tool"}

_KINDS = ("text", "image", "image_url", "function")  # of parts and calls


def user_message(question: object, pictures: Pictures = None) -> Message:
    """A question, its pictures first."""
    if not isinstance(question, str):
        raise OptionError(f"question must be a string; got {shown(question)}")
    parts: list[Message] = [{"type": "image", "image": picture} for picture in as_list(pictures)]
    return {"role": "user", "content": [*parts, text_part(question)]}


def assistant_message(text: str) -> Message:
    """An answer."""
    return {"role": "assistant", "content": text}


def system_message(text: str) -> Message:
    """What stands before a conversation."""
    return {"role": "system", "content": text}


def text_part(text: str) -> Message:
    return {"type": "text", "text": text}


def has_text(part: Message) -> bool:
    return bool(part["type"] == "text")


# what comes from outside


def parse_messages(messages: Iterable[Mapping[str, Any]]) -> tuple[list[Message], list[Picture]]:
    """Messages whose content is a list of text and image parts, arguments of calls as objects where they are; the
    pictures apart, in order: a part has its picture's ``index``."""
    if isinstance(messages, (str, bytes, Mapping)) or not isinstance(messages, Iterable):
        raise OptionError(f"messages must be a list of messages; got {type(messages).__name__}")
    parsed: list[Message] = []
    pictures: list[Picture] = []
    called: dict[str, str] = {}  # names of functions, by the calls' ids
    for index, message in enumerate(messages):
        where = f"messages[{index}]"
        if not isinstance(message, Mapping) or message.get("role") not in _ROLES:
            raise OptionError(f"{where} must have a role, one of {', '.join(_ROLES)}; got {shown(message)}")
        role = _KNOWN_AS.get(message["role"], message["role"])
        content = message.get("content")
        if content is None and role in ("assistant", "tool"):
            content = ""
        parts = [text_part(utf8(f"{where}: the text", content))] if isinstance(content, str) else content
        if not isinstance(parts, (list, tuple)):
            raise OptionError(f"{where}: content must be a string or a list of parts; got {shown(content)}")
        read: Message = {"role": role, "content": [_parse_part(where, part, pictures) for part in parts]}
        if role == "assistant":
            read |= _parse_calls(where, index, message, called)
        elif role == "tool":
            read |= _parse_result(where, message, called)
        parsed.append(read)
    if not parsed:
        raise OptionError("messages is empty: pass at least one message of the user")
    return parsed, pictures


def _parse_part(where: str, part: object, pictures: list[Picture]) -> Message:
    kind = part.get("type") if isinstance(part, Mapping) else None
    if isinstance(part, Mapping) and kind == "text" and isinstance(part.get("text"), str):
        return text_part(utf8(f"{where}: the text", part["text"]))
    if isinstance(part, Mapping) and kind in ("image_url", "image"):
        picture = next((part[key] for key in ("image", "image_url", "url", "path") if key in part), None)
        detail = part.get("detail")
        if isinstance(picture, Mapping):
            detail = picture.get("detail", detail)
            picture = picture.get("url")
        if picture is not None:
            limited = Budget().with_detail(detail) != Budget()
            pictures.append(cast(Picture, Sized(picture, str(detail))) if limited else picture)
            return {"type": "image", "index": len(pictures) - 1}
    raise OptionError(
        f"{where}: a content part must be {{'type': 'text', 'text': ...}}, "
        f"{{'type': 'image_url', 'image_url': {{'url': ...}}}} or {{'type': 'image', 'image': ...}}; "
        f"got {shown(part)}"
    )


def _parse_calls(where: str, index: int, message: Mapping[str, Any], called: dict[str, str]) -> Message:
    """What an answer has beside its text."""
    read: Message = {}
    thoughts = message.get("reasoning_content")
    if isinstance(thoughts, str):
        read["reasoning_content"] = utf8(f"{where}: reasoning_content", thoughts)
    calls = message.get("tool_calls")
    if calls is None and message.get("function_call") is not None:
        calls = [{"function": message["function_call"]}]
    if calls is None:
        return read
    if not isinstance(calls, (list, tuple)):
        raise OptionError(f"{where}: tool_calls must be a list; got {shown(calls)}")
    parsed = []
    for number, call in enumerate(calls):
        function = call.get("function") if isinstance(call, Mapping) else None
        if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
            raise OptionError(
                f"{where}: tool_calls[{number}] must be "
                f"{{'id': ..., 'type': 'function', 'function': {{'name': ..., 'arguments': ...}}}}; got {shown(call)}"
            )
        name = utf8(f"{where}: the name of a function", function["name"])
        arguments = _parse_arguments(f"{where}: tool_calls[{number}]", function.get("arguments"))
        call_id = utf8(f"{where}: the id of a call", str(call.get("id") or _call_id(index, number)))
        called[call_id] = name
        parsed.append(
            {
                "id": call_id,
                "type": "function",
                "function": {"name": name, "arguments": arguments},
            }
        )
    if parsed:
        read["tool_calls"] = parsed
    return read


def _parse_arguments(where: str, arguments: object) -> Any:
    """As an object, which most templates write as they want it; text that is none stays text."""
    if arguments is None or arguments == "":
        return {}
    if isinstance(arguments, Mapping):
        return dict(arguments)
    if not isinstance(arguments, str):
        raise OptionError(f"{where}: arguments must be text in JSON; got {shown(arguments)}")
    text = utf8(f"{where}: arguments", arguments)
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return text
    return found if isinstance(found, dict) else text


def _parse_result(where: str, message: Mapping[str, Any], called: Mapping[str, str]) -> Message:
    """What a tool's result has beside its text."""
    read: Message = {}
    of_call = message.get("tool_call_id")
    if of_call is not None:
        read["tool_call_id"] = utf8(f"{where}: tool_call_id", of_call)
    # OpenAI's results have no name, and some templates want one
    name = message.get("name") or called.get(read.get("tool_call_id", ""))
    if name is not None:
        read["name"] = utf8(f"{where}: name", name)
    return read


def _call_id(index: int, number: int) -> str:
    """Nine letters and digits: what Mistral's templates take for an id."""
    return f"call{index % 1000:03d}{number % 100:02d}"


# forms that templates ask for


def join_turns(messages: Sequence[Message]) -> list[Message]:
    """Neighbours of one role as one message: many templates want roles to alternate."""
    joined: list[Message] = []
    for message in messages:
        before = joined[-1] if joined else None
        if before is None or before["role"] != message["role"] or _is_of_tools(before, message):
            joined.append(message)
        else:
            joined[-1] = {**before, **message, "content": _joined(before["content"], message["content"])}
    return joined


def _is_of_tools(before: Message, message: Message) -> bool:
    return before["role"] == "tool" or "tool_calls" in before or "tool_calls" in message


def _joined(first: Sequence[Message], second: Sequence[Message]) -> list[Message]:
    """Texts that meet are one, with an empty line between them."""
    if first and second and has_text(first[-1]) and has_text(second[0]):
        meeting = "\n\n".join(text for text in (first[-1]["text"], second[0]["text"]) if text)
        return [*first[:-1], text_part(meeting), *second[1:]]
    return [*first, *second]


def system_as_user(messages: Sequence[Message], keep_first: bool = False) -> list[Message]:
    """System messages at the beginning of the text of the user that follows, else as a message of the user; with
    ``keep_first`` only those behind the first message."""
    moved: list[Message] = []
    waiting: list[Message] = []  # parts
    for index, message in enumerate(messages):
        if message["role"] == "system" and not (keep_first and index == 0):
            waiting = _joined(waiting, message["content"])
        elif waiting and message["role"] == "user":
            moved.append({**message, "content": _ahead_of(message["content"], waiting)})
            waiting = []
        else:
            moved.append(message)
    if waiting:
        moved.append({"role": "user", "content": waiting})
    return join_turns(moved)


def _ahead_of(parts: Sequence[Message], ahead: Sequence[Message]) -> list[Message]:
    """Behind the pictures that come first, if it is text: so they stay where templates expect them."""
    first = next((at for at, part in enumerate(parts) if has_text(part)), len(parts))
    if not all(map(has_text, ahead)):
        first = 0
    return [*parts[:first], *_joined(ahead, parts[first:])]


def arguments_as_text(messages: Sequence[Message]) -> list[Message]:
    """Arguments of calls as JSON, as OpenAI has them."""

    def change(call: Message) -> Message:
        arguments = call["function"]["arguments"]
        text = arguments if isinstance(arguments, str) else _json(arguments)
        return {**call, "function": {**call["function"], "arguments": text}}

    return [
        {**message, "tool_calls": [change(call) for call in message["tool_calls"]]}
        if "tool_calls" in message
        else message
        for message in messages
    ]


def numbered_calls(messages: Sequence[Message]) -> list[Message]:
    """Other ids of calls: Mistral's templates refuse those that are not of nine letters and digits."""
    ids: dict[str, str] = {}
    renamed = []
    for index, message in enumerate(messages):
        if "tool_calls" in message:
            calls = []
            for number, call in enumerate(message["tool_calls"]):
                ids[call["id"]] = _call_id(index, number)
                calls.append({**call, "id": ids[call["id"]]})
            message = {**message, "tool_calls": calls}
        elif "tool_call_id" in message:
            message = {**message, "tool_call_id": ids.get(message["tool_call_id"], _call_id(index, 0))}
        renamed.append(message)
    return renamed


def tools_as_text(messages: Sequence[Message]) -> list[Message]:
    """Calls and results as JSON in messages of the assistant and the user, for templates that know no tools; the form is
    llama.cpp's."""
    told: list[Message] = []
    for message in messages:
        if "tool_calls" in message:
            calls = [{**call["function"], "id": call["id"]} for call in message["tool_calls"]]
            rest = {key: value for key, value in message.items() if key != "tool_calls"}
            said = [part for part in message["content"] if not has_text(part) or part["text"].strip()]
            told.append({**rest, "content": _joined(said, [text_part(_json({"tool_calls": calls}))])})
        elif message["role"] == "tool":
            text = "\n".join(part["text"] for part in message["content"] if has_text(part))
            pictures = [part for part in message["content"] if not has_text(part)]
            names = {"tool": message.get("name"), "tool_call_id": message.get("tool_call_id")}
            known = {key: value for key, value in names.items() if value is not None}
            response = _json({"tool_response": {**known, "content": text}})
            told.append({"role": "user", "content": [text_part(response), *pictures]})
        else:
            told.append(message)
    return told


def _json(value: object) -> str:
    try:
        return json.dumps(value, ensure_ascii=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise OptionError(f"the arguments of a tool's call are no JSON: {error}") from None


# texts in them


def map_texts(message: Message, change: Callable[[str], str]) -> Message:
    """The message with every text that its writer has put in changed: content, names, arguments, ids."""
    return {key: value if key == "role" else _mapped(value, change) for key, value in message.items()}


def _mapped(value: Any, change: Callable[[str], str]) -> Any:
    if isinstance(value, str) and value not in _KINDS:
        return change(value)
    if isinstance(value, Mapping):
        return {key: _mapped(inner, change) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_mapped(inner, change) for inner in value]
    return value


def between(message: Message, begin: str, end: str, inside: bool) -> Message:
    """An answer with marks around its text, or inside the space at its ends, which some templates take away; other
    messages as they are."""
    parts = list(message["content"])
    texts = [i for i, part in enumerate(parts) if has_text(part) and part["text"].strip()]
    if message["role"] != "assistant" or not texts:
        return message
    first = parts[texts[0]]["text"]
    at = len(first) - len(first.lstrip()) if inside else 0
    parts[texts[0]] = text_part(first[:at] + begin + first[at:])
    last = parts[texts[-1]]["text"]
    at = len(last.rstrip()) if inside else len(last)
    parts[texts[-1]] = text_part(last[:at] + end + last[at:])
    return {**message, "content": parts}
