"""A tokenizer that puts what a workload writes into a chat: the task as the user's turn, the cue as the answer's."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, Literal

from probe.chat import rendered, template_facts
from probe.errors import UsageError

Chat = Literal["never", "always", "auto"]

# Jinja ignores what a template does not know; one that knows it leaves the thinking out.
_OPTIONS: Final = {"add_generation_prompt": True, "enable_thinking": False}


class ChatTokenizer:
    """A fast tokenizer whose texts are put into its chat template, and whose offsets stay those of the text.

    The part of a text before `split(text)` is the user's turn, what follows (white space before it left out) begins the
    assistant's: a cue, and where it is asked for the answer. The template's own tokens have no characters and count as
    special, so that spans made with the text stay exact. Sizes of sentences are the wrapped tokenizer's.
    """

    def __init__(self, tokenizer: Any, split: Callable[[str], int]) -> None:
        """Wrap; raises `UsageError` for a tokenizer without a chat template."""
        if not getattr(tokenizer, "chat_template", None):
            name = getattr(tokenizer, "name_or_path", "") or type(tokenizer).__name__
            raise UsageError(f"chat: tokenizer {name} has no chat template")
        self._tokenizer, self._split = tokenizer, split

    def __getattr__(self, name: str) -> Any:
        return getattr(self._tokenizer, name)

    def rendered(self, text: str) -> str:
        """Return the whole prompt, as the model gets it."""
        return self._rendered(text)[0]

    def facts(self) -> dict[str, Any]:
        """Return what a sample records of the template."""
        return template_facts(self._tokenizer)

    def __call__(self, text: Any, *, add_special_tokens: bool = True, **options: Any) -> Any:
        """Tokenise; a text that gets special tokens gets the template, anything else is the wrapped tokenizer's."""
        if not add_special_tokens or not isinstance(text, str):
            return self._tokenizer(text, add_special_tokens=add_special_tokens, **options)
        whole, pieces = self._rendered(text)
        encoded = self._tokenizer(whole, add_special_tokens=False, **{**options, "return_offsets_mapping": True})
        offsets = [_placed(start, stop, pieces) for start, stop in encoded["offset_mapping"]]
        return {
            "input_ids": encoded["input_ids"],
            "offset_mapping": offsets,
            "special_tokens_mask": [int(start == stop) for start, stop in offsets],
        }

    def _rendered(self, text: str) -> tuple[str, list[tuple[int, int, int]]]:
        """Return the prompt, and its pieces of the text: where each starts and stops in the prompt, and in the text."""
        at = self._split(text)
        task, cue = text[:at].rstrip(), text[at:].lstrip()
        if not cue:
            raise UsageError("chat: a prompt needs a cue that begins the answer, and this one has none")
        turn = rendered(self._tokenizer, [{"role": "user", "content": task}], **_OPTIONS)
        head = turn.find(task)
        if head < 0 or turn.find(task, head + 1) >= 0:
            raise UsageError("chat: the chat template does not write the user's text as it is, once")
        cue_at = len(text) - len(text[at:].lstrip())
        return turn + cue, [(head, head + len(task), 0), (len(turn), len(turn) + len(cue), cue_at)]


def _placed(start: int, stop: int, pieces: list[tuple[int, int, int]]) -> tuple[int, int]:
    """Return a token's characters in the text; empty for one of the template's own."""
    for first, last, origin in pieces:
        begins, ends = max(start, first), min(stop, last)
        if begins < ends:
            return begins - first + origin, ends - first + origin
    return 0, 0


def in_chat(tokenizer: Any, chat: Chat, split: Callable[[str], int]) -> Any:
    """Return the tokenizer, in its chat template where `chat` says so: `auto` means where it has one."""
    if chat == "never" or (chat == "auto" and not getattr(tokenizer, "chat_template", None)):
        return tokenizer
    return ChatTokenizer(tokenizer, split)
