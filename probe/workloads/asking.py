"""The right answer as the tokens that follow a prompt, or the reason why there are none."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from probe.errors import UsageError
from probe.sample import Sample
from probe.success import SuccessRule, normalised
from probe.workloads.chat_text import ChatTokenizer
from probe.workloads.marked_text import MarkedText, encode

SPARE_TOKENS: Final = 16
"""How many tokens more than the answer has are decoded where it is looked for in the response."""


def asked(
    name: str,
    text: MarkedText,
    tokenizer: Any,
    *,
    answer: str,
    accepted: tuple[str, ...],
    success_rule: SuccessRule,
    max_new_tokens: int | None,
    facts: Mapping[str, Any],
) -> Sample:
    """Return the sample of a text and its answer, tokenised; `facts` are put before what the tokens decide.

    `answer` follows the text as it is; `accepted` are what `substring` and `all` look for, none meaning the answer.
    Without `max_new_tokens` as many are decoded as the answer has, and 16 more where it is looked for. Raises
    UsageError where the answer does not survive tokenisation.
    """
    check_accepted(success_rule, accepted or ((answer,) if answer else ()))
    made = text.tokenised(tokenizer)
    tokens = answer_tokens(tokenizer, text.text, made.tokens, answer) if answer else ()
    unknown = getattr(tokenizer, "unk_token_id", None)
    looked_for = success_rule in ("substring", "all")
    if max_new_tokens is None and tokens and looked_for:
        max_new_tokens = len(tokens) + SPARE_TOKENS
    return Sample(
        name=name,
        tokens=made.tokens,
        spans=made.spans,
        answer_tokens=tokens,
        answer=answer,
        text=tokenizer.rendered(text.text) if isinstance(tokenizer, ChatTokenizer) else text.text,
        success_rule=success_rule,
        answers=accepted if looked_for else (),
        max_new_tokens=max_new_tokens,
        facts={
            **facts,
            "num_tokens": len(made.tokens),
            "unknown_tokens": 0.0 if unknown is None else made.tokens.count(unknown) / len(made.tokens),
            "stripped_special_tokens": made.num_stripped,
            **(tokenizer.facts() if isinstance(tokenizer, ChatTokenizer) else {}),
        },
    )


def answer_tokens(tokenizer: Any, prompt: str, prompt_tokens: tuple[int, ...], answer: str) -> tuple[int, ...]:
    """Return the tokens that `answer` adds to `prompt`; raises UsageError where it does not survive tokenisation.

    That is: where the answer changes the prompt's own tokens, where it becomes an unknown token, and where its tokens
    do not read as the answer again (white space aside), so that no model could ever produce it.
    """
    tokens = encode(tokenizer, prompt + answer).tokens
    if tokens[: len(prompt_tokens)] != prompt_tokens:
        raise UsageError(
            f"tokenizer {_name(tokenizer)} merges the end of the prompt with the beginning of the answer, so the "
            f"answer has no tokens of its own{'; end the prompt without white space' if prompt[-1:].isspace() else ''}"
        )
    added = tokens[len(prompt_tokens) :]
    read = str(tokenizer.decode(added, clean_up_tokenization_spaces=False))
    unknown = getattr(tokenizer, "unk_token_id", None)
    if not added or (unknown is not None and unknown in added) or _packed(read) != _packed(answer):
        raise UsageError(
            f"tokenizer {_name(tokenizer)} does not keep the answer {answer.strip()!r}: its tokens read "
            f"{read.strip()!r}"
        )
    return added


def check_accepted(rule: SuccessRule, accepted: tuple[str, ...]) -> None:
    """Raise UsageError for an answer that every response would hold, since nothing of it is left to look for."""
    for each in accepted:
        if (rule == "substring" and not normalised(each)) or (rule == "all" and not each.strip()):
            raise UsageError(
                f"the answer {each!r} cannot be looked for: nothing of it is left without punctuation and articles"
            )


def _packed(text: str) -> str:
    return "".join(text.split())


def _name(tokenizer: Any) -> str:
    return getattr(tokenizer, "name_or_path", "") or type(tokenizer).__name__
