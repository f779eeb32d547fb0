"""Drop, at every step, the key that the last query attends to least (TOVA)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from probe.hooks.attention.eviction_by_step import EvictionByStep


@dataclass(frozen=True)
class tova(EvictionByStep):
    """Keep what the last query attends to: `with tova(256)(model):`.

    At every step a layer drops the token that its heads, on average, attend to least, the same token for all of them;
    what earlier queries made of it does not count. Oren et al. (2024, arXiv 2401.06104, TOVA; the authors' code). The
    authors put a prompt through at once and then cut it down by its last query alone: that is `prompt="whole"`.
    """

    protect_last: bool = False
    """Whether the newest token always stays, as kvpress has it; in the authors' code it may go as any other."""

    shared: ClassVar[bool] = True

    def num_protected(self, budget: int) -> int:
        """See `EvictionByStep.num_protected`."""
        return int(self.protect_last)
