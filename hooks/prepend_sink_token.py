"""A token in front of everything, for attention to rest on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from probe.errors import UsageError
from probe.hooks.loading.backend import transformers_model_of
from probe.hooks.sequence.change_of_prompt import ChangeOfPrompt
from probe.hooks.sequence.inserted import Text, inserted, plain_ids
from probe.sample import Sample


@dataclass(frozen=True)
class prepend_sink_token(ChangeOfPrompt):
    """Put a token in front of the prompt, which then takes the sink's place: `with prepend_sink_token()(model):`.

    Xiao et al. (2023, arXiv 2309.17453, sec. 3) train with a token of its own at the beginning of every text, and put
    newlines in the place of a model's first tokens; a model that was not trained with one is asked here what the mere
    token does. It stands before everything, special tokens of the prompt included, and is a span called `sink_prefix`.
    """

    token: Text | None = None
    """A token id, several, or text, of which the whole is repeated; None for the beginning-of-sequence token. Xiao et
    al. try a newline."""
    num_tokens: int = 1
    """How often it is repeated; Xiao et al. find one enough where a model was trained with it, four where not."""

    def __post_init__(self) -> None:
        if self.num_tokens < 1:
            raise UsageError(f"prepend_sink_token: num_tokens is at least 1, not {self.num_tokens}")
        if self.token is not None and not isinstance(self.token, int | str):
            object.__setattr__(self, "token", tuple(map(int, self.token)))
        if self.token in ("", ()):
            raise UsageError("prepend_sink_token: token is empty")

    def rewritten(self, model: Any, sample: Sample) -> Sample:
        """See `ChangeOfPrompt.rewritten`."""
        token = self.token
        if token is None:
            token = getattr(getattr(model, "tokenizer", None), "bos_token_id", None)
        if token is None:
            token = getattr(transformers_model_of(model).config.get_text_config(), "bos_token_id", None)
        if token is None:
            raise UsageError("prepend_sink_token: the model has no beginning-of-sequence token; give a token")
        ids = plain_ids(model, token, "prepend_sink_token", "token")
        if not ids:
            raise UsageError(f"prepend_sink_token: the tokenizer makes no token of {self.token!r}, which token says")
        return inserted(sample, 0, ids * self.num_tokens, "sink_prefix")
