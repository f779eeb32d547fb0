"""Several interventions as one, entered in a stated order."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from itertools import combinations
from typing import Any

from probe.errors import UsageError
from probe.hooks.intervention import Intervention
from probe.hooks.sequence.change_of_prompt import ChangeOfPrompt
from probe.sample import Sample


@dataclass(frozen=True)
class together(Intervention):
    """Several interventions as one, entered in their order: `together([temperature(0.5), limit_distance(256)])(model)`.

    In a casebook a condition's `intervention` is a list of them. It is what nested `with` blocks are. Raises
    `UsageError` naming both where two contradict each other.
    """

    interventions: Sequence[Any]
    """Two interventions or more, or `{name: fields}` of each; each acts on what those before it have left."""

    def __post_init__(self) -> None:
        if isinstance(self.interventions, str | Mapping) or len(self.interventions) < 2:
            raise UsageError(f"together: interventions are a list of two or more, not {self.interventions!r}")
        made = [Intervention.from_json(each) if isinstance(each, Mapping) else each for each in self.interventions]
        for each in made:
            if not isinstance(each, Intervention):
                raise UsageError(f"together: interventions: {each!r} is none")
        flat = [part for each in made for part in (each.interventions if isinstance(each, together) else [each])]
        for one, other in combinations(flat, 2):
            one.check_beside(other)
        object.__setattr__(self, "interventions", tuple(flat))

    def __call__(self, model: Any) -> AbstractContextManager[None]:
        """Return the block within which all of them are on."""
        return self._applied(model)

    @contextmanager
    def _applied(self, model: Any) -> Iterator[None]:
        with ExitStack() as entered:
            for each in self.interventions:
                entered.enter_context(each(model))
            yield

    def check(self, model: Any, sample: Sample) -> None:
        """See `Intervention.check`."""
        changes = [each for each in self.interventions if isinstance(each, ChangeOfPrompt)]
        for each in changes:
            each.check(model, sample)
            sample = each.foreseen(model, sample)
        # What a model computes is changed of what is read then, whichever was entered first.
        for each in self.interventions:
            if not isinstance(each, ChangeOfPrompt):
                each.check(model, sample)

    def to_json(self) -> dict[str, Any]:
        """See `Intervention.to_json`."""
        return {"together": {"interventions": [each.to_json() for each in self.interventions]}}
