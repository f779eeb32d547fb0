"""What the conformance run found, as JSON: `models.json` beside this file, which ships with the toolkit."""

from __future__ import annotations

from pathlib import Path
from typing import Final, Literal

from pydantic import BaseModel, ConfigDict, Field

FORMAT: Final = 1
"""Version of the JSON form; raised when a reader of the old form would misread the new one."""
MODELS_JSON: Final = Path(__file__).with_name("models.json")
"""Where the result lies that ships with the toolkit."""

Verdict = Literal["exact", "refused", "wrong", "failed", "unchecked"]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Way(_Frozen):
    """One way of taking in tokens."""

    verdict: Verdict = Field(
        description="exact; refused by the toolkit; wrong by more than is allowed; failed, with an error that is no "
        "refusal; unchecked, where nothing independent was there to compare with."
    )
    reason: str = Field(default="", description="Why, where it is not exact.")
    deviation: float | None = Field(
        default=None, description="Largest deviation from float64, over max(1, |x|); null where it has no bound."
    )
    compared: int = Field(default=0, description="Arrays that were compared.")


class Architecture(_Frozen):
    """One architecture, as one backend had it."""

    name: str = Field(description="Its model type in transformers, or a variant of one.")
    names: str = Field(description="The models that people know it by.")
    family: str = Field(description="decoder, recurrent, hybrid, encoder, encoder-decoder.")
    model_class: str = Field(description="The class of the model; empty where it could not be made.")
    backend: str
    has: tuple[str, ...] = Field(description="What its attention has, as its calls, modules and positions showed it.")
    verdict: Verdict = Field(description="Of all ways together: the worst but refusals, where any way is exact.")
    reason: str = Field(default="", description="The first reason of the ways that are not exact.")
    deviation: float | None = Field(default=None, description="Largest deviation of all ways that were compared.")
    ways: dict[str, Way] = Field(description="By prefill, chunks, decode, padded.")
    how: str = Field(default="", description="What it was compared with.")
    unchecked: tuple[str, ...] = Field(default=(), description="Arrays that nothing was there to compare with.")


class RandomConfiguration(_Frozen):
    """One configuration that was drawn."""

    architecture: str
    fields: dict[str, str] = Field(description="What was drawn.")
    verdict: Verdict
    reason: str = ""
    deviation: float | None = None


class Conformance(_Frozen):
    """One conformance run."""

    format: Literal[1] = FORMAT
    versions: dict[str, str]
    tolerance: float = Field(description="Deviation from float64, over max(1, |x|), that counts as exact.")
    architectures: tuple[Architecture, ...]
    seed: int | None = Field(default=None, description="Seed of the random configurations.")
    random: tuple[RandomConfiguration, ...] = ()

    def share(self, verdict: Verdict) -> float:
        """Return the share of random configurations with a verdict; 0 where none was tried."""
        return sum(each.verdict == verdict for each in self.random) / max(1, len(self.random))
