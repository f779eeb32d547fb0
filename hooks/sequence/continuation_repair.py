"""What has to be done around a model's forward so that it goes on from what it keeps."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any, ClassVar

from transformers import PreTrainedModel


class continuation_repair:
    """One thing that transformers leaves out when a model goes on with several tokens, and how it is made good.

    Derive from it in a file of the subclass's own name. Nothing of the model is copied or changed: what is needed is
    handed over for the length of a forward.
    """

    words: ClassVar[str]
    """What is done, for messages and for the trace."""
    always: ClassVar[bool]
    """Whether it is right wherever it applies; else it is tried where a model does not go on by itself."""

    def applies(self, model: PreTrainedModel) -> bool:
        """Whether the model is one that it concerns."""
        raise NotImplementedError

    def around(self, model: PreTrainedModel, num_past: int, num_tokens: int) -> AbstractContextManager[dict[str, Any]]:
        """Return the block that a forward of `num_tokens` tokens after `num_past` others runs in, and its options."""
        raise NotImplementedError
