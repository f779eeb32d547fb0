"""One sample of a workload, as its text with its spans and its answer."""

from __future__ import annotations

import functools
from typing import Any

from probe.specimens import folders
from probe.visible import visible

from .wording import code, table

_MOST = 900
"""Characters of a prompt that are shown; its middle is left out beyond."""

OWN = {"own_prompts", "own_documents"}
"""Workloads of texts that are the reader's."""


@functools.cache
def _tokenizer() -> Any:
    from transformers import PreTrainedTokenizerFast

    # Its tokens are bytes, so that it knows any text.
    return PreTrainedTokenizerFast.from_pretrained(folders()["prose"])


def sample_shown(name: str, workload: Any) -> str:
    """Return the first sample of 512 or 1,024 tokens of the specimen `prose`, or why none is shown."""
    if name in OWN:
        return "Its texts are yours: [a line of its file](../../workloads.md#texts-of-your-own)."
    from probe.errors import UsageError

    for length in (512, 1024, 2048):
        try:
            made = next(iter(workload(lengths=(length,), samples=1).build(_tokenizer())))
        except UsageError as error:
            why = str(error)
            continue
        spans = table(
            ("span", "tokens", "text"),
            [(code(s.name), f"{s.start}–{s.stop}", _code(_decoded(made, s))) for s in made.spans[:12]],
        )
        more = f"\n\n{len(made.spans) - 12} more spans are left out." if len(made.spans) > 12 else ""
        answer = f"The right answer: {_code(made.answer)}, by the rule `{made.success_rule}`."
        said = f"`probe.{name}(lengths=({length},))`, the first sample for the tokenizer of the specimen `prose`:"
        return "\n\n".join([said, f"~~~text\n{_cut(made.text)}\n~~~", answer if made.answer else "", spans + more])
    return f"It makes none for the tokenizer of the specimen `prose`: {visible(why)}"


def _cut(text: str) -> str:
    # Long lines would need a scroll bar each.
    import textwrap

    if len(text) > _MOST:
        text = f"{text[: _MOST // 2]} […] {text[-_MOST // 2 :]}"
    lines = [wrapped for line in text.split("\n") for wrapped in (textwrap.wrap(line, 96) or [""])]
    return "\n".join(lines)


def _decoded(sample: Any, span: Any) -> str:
    text: str = _tokenizer().decode(list(sample.tokens[span.start : span.stop]))
    return text if len(text) <= 80 else f"{text[:50]} […] {text[-25:]}"


def _code(text: str) -> str:
    flat = " ".join(text.split())
    return f"`` {flat} ``" if "`" in flat else f"`{flat}`"
