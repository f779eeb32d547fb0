"""What a run did to each head, and what that did to the answers: paired by prompt with the model as it is."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from probe.finding import Interval
from probe.intervals import FEWEST_PROMPTS, mean_ends
from probe.storage.unit_answer import UnitAnswer

Floats = NDArray[np.float64]
Head = tuple[int, int]

_ABLATION: Final = "ablate_heads"
_MOST_CONDITIONS: Final = 10_000


@dataclass(frozen=True)
class Played:
    """One condition that acts on named heads, as a stage resolved it."""

    stage: str
    condition: str
    role: str
    draw: int | None
    """Which random draw of a control; None where nothing was drawn."""
    intervention: str
    """Name of the intervention: `ablate_heads`."""
    heads: tuple[Head, ...]
    how: str
    """Its other fields in words: `zero, both`."""
    changed: bool
    """Whether the workload was another one too, so that its answers are to other prompts."""


@dataclass(frozen=True)
class Effect:
    """What a condition did, over the prompts that it shares with the untouched model."""

    num_prompts: int
    accuracy: float | None
    """Share of right answers with the heads changed; None where none can be told right or wrong."""
    accuracy_without: float | None
    """The same of the untouched model, on the same prompts."""
    loss: float | None
    """Answer loss less that of the untouched model, mean over prompts, in nats per token; None where none has one."""
    loss_interval: Interval | None


def played(record: Mapping[str, Any]) -> list[Played]:
    """Return the conditions of a run's record that act on heads they name, in the order of its stages."""
    stages = record.get("stages")
    found: list[Played] = []
    for stage, facts in stages.items() if isinstance(stages, Mapping) else ():
        listed = facts.get("conditions") if isinstance(facts, Mapping) else None
        for condition in listed if isinstance(listed, list) else ():
            found += _acting(str(stage), condition)
    return found[:_MOST_CONDITIONS]


class AnswersByCondition:
    """The answers of a run, ready to be paired by prompt; those that count in no number are left out."""

    def __init__(self, answers: Iterable[UnitAnswer]) -> None:
        self.treated: dict[tuple[str, str, int | None], dict[str, list[UnitAnswer]]] = {}
        """By stage, condition and draw, then by prompt."""
        self.untouched: dict[str, list[UnitAnswer]] = {}
        """Of baselines, by prompt."""
        for each in answers:
            if each.problem or not each.prompt:
                continue
            by_prompt = self.treated.setdefault((each.stage, each.condition, each.draw), {})
            by_prompt.setdefault(each.prompt, []).append(each)
            if each.role == "baseline":
                self.untouched.setdefault(each.prompt, []).append(each)


def effect(condition: Played, answers: AnswersByCondition, seed: int = 0) -> Effect:
    """Return what a condition did to the answer of each prompt, less what the model as it is answered.

    A prompt that was read several times counts as the mean. The interval is over prompts.
    """
    treated = answers.treated.get((condition.stage, condition.condition, condition.draw), {})
    untouched = answers.untouched
    prompts = sorted(set(treated) & set(untouched))
    pairs = [(treated[prompt], untouched[prompt]) for prompt in prompts]
    right = [(_mean(_right(a)), _mean(_right(b))) for a, b in pairs]
    right = [(a, b) for a, b in right if a is not None and b is not None]
    losses = [(_mean(_loss(a)), _mean(_loss(b))) for a, b in pairs]
    worse = np.array([a - b for a, b in losses if a is not None and b is not None])
    interval = None
    if len(worse) >= FEWEST_PROMPTS:
        low, high = mean_ends(worse, seed=seed)
        interval = Interval(low=float(low), high=float(high), method="BCa bootstrap over prompts")
    return Effect(
        num_prompts=len(prompts),
        accuracy=float(np.mean([a for a, _ in right])) if right else None,
        accuracy_without=float(np.mean([b for _, b in right])) if right else None,
        loss=float(worse.mean()) if len(worse) else None,
        loss_interval=interval,
    )


def alone(
    record: Mapping[str, Any], answers: Callable[[], Sequence[UnitAnswer]]
) -> Iterator[tuple[str, str, dict[Head, float]]]:
    """Yield for each form of ablation how much more each head's removal alone costs: name, words, nats by head.

    Where a head was removed alone under several conditions of the same form, that is their mean.
    """
    single = [each for each in played(record) if _is_single(each)]
    if not single:
        return
    read = AnswersByCondition(answers())
    found: dict[str, dict[Head, list[float]]] = {}
    for each in single:
        cost = effect(each, read).loss
        if cost is not None:
            found.setdefault(each.how or "ablate_heads", {}).setdefault(each.heads[0], []).append(cost)
    for how, by_head in found.items():
        words = (
            f"Answer loss with this head alone ablated ({how}) less that of the untouched model on the same prompts, "
            "mean over prompts; this toolkit's own."
        )
        yield how, words, {head: float(np.mean(costs)) for head, costs in by_head.items()}


def _is_single(each: Played) -> bool:
    return each.intervention == _ABLATION and len(each.heads) == 1 and not each.changed


def _acting(stage: str, condition: Any) -> Iterator[Played]:
    if not isinstance(condition, Mapping):
        return
    entered = condition.get("intervention")
    parts = entered if isinstance(entered, list) else [entered]
    for part in parts:
        for name, fields in part.items() if isinstance(part, Mapping) else ():
            heads = _heads(fields.get("heads")) if isinstance(fields, Mapping) else ()
            if not heads:
                continue
            others = (str(fields[key]) for key in ("form", "phase") if fields.get(key))
            draw = condition.get("draw")
            yield Played(
                stage=stage,
                condition=str(condition.get("name")),
                role=str(condition.get("role") or ""),
                draw=draw if type(draw) is int else None,
                # Beside others it does not act alone.
                intervention=name if len(parts) == 1 else f"{name}, with others",
                heads=heads,
                how=" ".join(others),
                changed=bool(condition.get("workload")),
            )


def _heads(value: Any) -> tuple[Head, ...]:
    if not isinstance(value, list):
        return ()
    pairs = [pair for pair in value if isinstance(pair, list) and len(pair) == 2]
    return tuple((pair[0], pair[1]) for pair in pairs if all(type(number) is int for number in pair))


def _right(answers: Iterable[UnitAnswer]) -> list[float]:
    return [float(each.correct) for each in answers if each.correct is not None]


def _loss(answers: Iterable[UnitAnswer]) -> list[float]:
    return [each.answer_loss for each in answers if each.answer_loss is not None]


def _mean(values: Sequence[float]) -> float | None:
    return float(np.mean(values)) if values else None
