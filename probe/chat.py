"""A conversation as a sample: the tokenizer's own chat template, and a span for every message."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any, Final, TypeGuard

import numpy as np

from probe.errors import UsageError
from probe.sample import Sample, Span

# Private-use characters, which no template looks at; they stand around what a message says while its place is found.
_OPENS, _CLOSES = 0xF0000, 0xF8000
_ROLES: Final = ("system", "developer", "user", "assistant", "tool")


def is_chat(x: object) -> TypeGuard[Sequence[Mapping[str, Any]]]:
    """Return whether `x` is a list of messages: mappings with a role and a content."""
    return (
        isinstance(x, Sequence) and not isinstance(x, str) and bool(x) and all(isinstance(each, Mapping) for each in x)
    )


def chat_sample(tokenizer: Any, messages: Sequence[Mapping[str, Any]], **options: Any) -> Sample:
    """Return the conversation as the tokenizer's chat template writes it, ready for the assistant's next turn.

    `options` go to the template (`enable_thinking=False`, `tools=…`). Where the last message is the assistant's, no new
    turn is begun. The template writes the beginning-of-sequence token if it wants one; none is added. Every message's
    content is a span (`user_1`: the second message, the user's); where the template changes a content (drops the
    thinking of earlier turns, say), it has no span and is named in the fact `messages_without_span`. Raises
    `UsageError` for a tokenizer without a template, for messages without role and text, and with the template's own
    words where it refuses them.
    """
    if tokenizer is None or not getattr(tokenizer, "chat_template", None):
        raise UsageError("messages need a tokenizer with a chat template, and this model has none: give text instead")
    contents = [_content(message, index) for index, message in enumerate(messages)]
    begins_turn = messages[-1].get("role") != "assistant"
    settings = {"add_generation_prompt": begins_turn, **options}
    text = rendered(tokenizer, messages, **settings)
    ranges = _ranges(tokenizer, messages, contents, text, settings)
    is_fast = bool(getattr(tokenizer, "is_fast", False))
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=is_fast, verbose=False)
    spans: list[Span] = []
    if is_fast:
        edges = np.asarray(encoded["offset_mapping"], dtype=np.int64).reshape(-1, 2)
        for name, (start, stop) in ranges.items():
            overlaps = np.flatnonzero((edges[:, 0] < stop) & (edges[:, 1] > start) & (edges[:, 1] > edges[:, 0]))
            if len(overlaps):
                spans.append(Span(name, int(overlaps[0]), int(overlaps[-1]) + 1))
    known = {span.name for span in spans}
    names = [_name(message, index) for index, message in enumerate(messages)]
    return Sample(
        "chat",
        tuple(encoded["input_ids"]),
        tuple(spans),
        text=text,
        facts={
            **template_facts(tokenizer),
            "template_options": {key: value for key, value in settings.items() if _is_plain(value)},
            "messages_without_span": [name for name in names if name not in known],
        },
    )


def template_facts(tokenizer: Any) -> dict[str, Any]:
    """Return what is recorded of a chat template that was used."""
    template = tokenizer.chat_template
    said = template if isinstance(template, str) else repr(sorted(template.items()))
    return {"chat_template_sha256": hashlib.sha256(said.encode()).hexdigest()}


def rendered(tokenizer: Any, messages: Sequence[Mapping[str, Any]], **options: Any) -> str:
    """Return the text that the chat template makes; raises `UsageError` with the template's words where it refuses."""
    try:
        return str(tokenizer.apply_chat_template([dict(each) for each in messages], tokenize=False, **options))
    # A template is a program of the checkpoint's: it may raise anything.
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UsageError(f"the chat template refuses these messages: {reason:.300}") from error


def _content(message: Mapping[str, Any], index: int) -> str:
    role, content = message.get("role"), message.get("content")
    if not isinstance(role, str) or not isinstance(content, str):
        raise UsageError(f"message {index} needs a role and a content that are text, not {dict(message)!r:.100}")
    return content


def _name(message: Mapping[str, Any], index: int) -> str:
    role = message["role"]
    return f"{role if role in _ROLES else 'message'}_{index}"


def _ranges(
    tokenizer: Any, messages: Sequence[Mapping[str, Any]], contents: list[str], text: str, settings: dict[str, Any]
) -> dict[str, tuple[int, int]]:
    """Return where each message's content stands in the text: proved, or left out.

    The template writes the conversation once more with a mark before and behind each content; where the text without
    the marks is the text, the marks say where the contents are.
    """
    marks = {chr(first + i) for i in range(len(messages)) for first in (_OPENS, _CLOSES)}
    if marks & set(text):
        return {}
    for said in (contents, [content.strip() for content in contents]):
        marked = rendered(
            tokenizer,
            [
                {**message, "content": f"{chr(_OPENS + i)}{content}{chr(_CLOSES + i)}"}
                for i, (message, content) in enumerate(zip(messages, said, strict=True))
            ],
            **settings,
        )
        if "".join(each for each in marked if each not in marks) != text:
            continue
        plain, places = 0, dict[str, int]()
        for each in marked:
            if each in marks:
                places[each] = plain
            else:
                plain += 1
        pairs = {_name(m, i): (chr(_OPENS + i), chr(_CLOSES + i)) for i, m in enumerate(messages)}
        return {
            name: (places[opens], places[closes])
            for name, (opens, closes) in pairs.items()
            if opens in places and closes in places and places[opens] < places[closes]
        }
    return {}


def _is_plain(value: Any) -> bool:
    return isinstance(value, bool | int | float | str | None)
