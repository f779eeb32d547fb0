"""What `head_ablation` reads from traces: the same prompts under treatment, control and no intervention."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from probe.errors import UsageError
from probe.selection import finite, intervention_text

if TYPE_CHECKING:
    from probe.outcome import Outcome
    from probe.storage.trace_store import Trace

Floats = NDArray[np.float64]

QUANTITIES = ("accuracy", "answer_loss", "text_loss")
"""What is read of every prompt; accuracy in percent, losses in nats per token."""


@dataclass(frozen=True)
class AblationReading:
    """What the model did to every prompt that all conditions share, `[prompt]`; of the control `[prompt draw]`.

    NaN where it was not measured; the control's draws may miss prompts.
    """

    prompts: tuple[str, ...]
    draws: tuple[int, ...]
    treatment: dict[str, Floats]
    control: dict[str, Floats]
    baseline: dict[str, Floats] | None
    heads: tuple[tuple[int, int], ...]
    """The heads that the treatment removes; empty where the traces do not say."""
    how: str
    """The intervention in words."""
    norm_ratio: float | None
    """Median over draws of the others' mean output norm over the found heads'; None where it was not measured."""


def values_of(outcome: Outcome) -> dict[str, float]:
    loss, text = outcome.answer_loss, outcome.text_loss
    return {
        "accuracy": 100.0 * bool(outcome.correct),
        "answer_loss": float(loss) if finite(loss) and loss is not None else np.nan,
        "text_loss": float(text) if finite(text) and text is not None else np.nan,
    }


def read(
    treated: list[tuple[Trace, Outcome]],
    controls: list[tuple[Trace, Outcome]],
    untouched: list[tuple[Trace, Outcome]],
) -> AblationReading | None:
    by_prompt = {trace.sample.name: values_of(outcome) for trace, outcome in treated}
    drawn: dict[tuple[str, int], dict[str, float]] = {}
    for trace, outcome in controls:
        drawn[trace.sample.name, int(trace.facts.get("draw") or 0)] = values_of(outcome)
    prompts = tuple(sorted(set(by_prompt) & {prompt for prompt, _ in drawn}))
    if not prompts:
        return None
    draws = tuple(sorted({draw for prompt, draw in drawn if prompt in prompts}))
    nothing = dict.fromkeys(QUANTITIES, np.nan)
    before = {trace.sample.name: values_of(outcome) for trace, outcome in untouched}
    facts = treated[0][0].facts
    return AblationReading(
        prompts=prompts,
        draws=draws,
        treatment={key: np.array([by_prompt[prompt][key] for prompt in prompts]) for key in QUANTITIES},
        control={
            key: np.array([[drawn.get((prompt, draw), nothing)[key] for draw in draws] for prompt in prompts])
            for key in QUANTITIES
        },
        baseline={key: np.array([before.get(prompt, nothing)[key] for prompt in prompts]) for key in QUANTITIES}
        if before
        else None,
        heads=_heads(facts),
        how=intervention_text(facts),
        norm_ratio=_norm_ratio(controls),
    )


def controls_of(treatment: str, controls: list[tuple[Trace, Outcome]]) -> tuple[list[tuple[Trace, Outcome]], list[str]]:
    """Return the control that belongs to a treatment, and the names of the controls that belong to others.

    Raises UsageError where there are several and they do not say which treatment they are matched to.
    """
    names = sorted({trace.condition for trace, _ in controls})
    if len(names) > 1 and not any(trace.facts.get("matched_to") for trace, _ in controls):
        raise UsageError(f"several controls, and none says which treatment it is matched to: {names}")
    own = [each for each in controls if each[0].facts.get("matched_to") in (None, treatment)]
    mine = {trace.condition for trace, _ in own}
    if len(mine) > 1:
        raise UsageError(f"the treatment {treatment!r} has several controls: {sorted(mine)}")
    return own, [name for name in names if name not in mine]


def _heads(facts: Any) -> tuple[tuple[int, int], ...]:
    intervention = facts.get("intervention")
    fields: Any = next(iter(intervention.values()), None) if isinstance(intervention, dict) else None
    heads = fields.get("heads") if isinstance(fields, dict) else None
    return tuple((int(layer), int(head)) for layer, head in heads or ())


def _norm_ratio(controls: list[tuple[Trace, Outcome]]) -> float | None:
    by_draw = {trace.facts.get("draw"): trace.facts.get("norm_ratio") for trace, _ in controls}
    ratios = [float(ratio) for ratio in by_draw.values() if isinstance(ratio, int | float) and np.isfinite(ratio)]
    return float(np.median(ratios)) if ratios else None
