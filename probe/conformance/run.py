"""The conformance run: every architecture through a backend, then configurations drawn at random."""

from __future__ import annotations

import logging
import math
import platform
from collections.abc import Callable, Sequence
from importlib.metadata import version
from typing import Final

import torch
from transformers import PreTrainedModel
from transformers.utils import logging as transformers_logging

import probe
from probe.conformance.check import TOLERANCE, Checked, Outcome, check
from probe.conformance.random_configs import random_recipes
from probe.conformance.random_model import Recipe, random_model, recipe, recipes
from probe.conformance.result import Architecture, Conformance, RandomConfiguration, Verdict, Way

_WORST: Final[tuple[Verdict, ...]] = ("wrong", "failed", "unchecked", "exact", "refused")
"""Of several ways' verdicts the first that occurs is the architecture's: it is exact where some way is, and refused
where every way is; each way's own verdict stands beside it."""


def run(
    names: Sequence[str] = (),
    *,
    backend: str | None = None,
    random: int = 0,
    seed: int = 0,
    on_done: Callable[[str, str], None] = lambda name, verdict: None,
) -> Conformance:
    """Try architectures (all where none is named) and `random` random configurations; one core suffices.

    Without a `backend` each is tried through those that its recipe names. Raises UsageError for an architecture that
    there is no recipe for.
    """
    asked = [recipe(name) for name in names] if names else list(recipes().values())
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    logging.getLogger("probe").setLevel(logging.ERROR)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        architectures = []
        for each in asked:
            for of in (backend,) if backend else each.backends:
                architectures.append(architecture(each, of))
                on_done(f"{each.name} ({of})", architectures[-1].verdict)
        drawn = []
        for made, fields in random_recipes(random, seed, names):
            drawn.append(_random(made, fields))
            on_done(f"{made.name} {fields}", drawn[-1].verdict)
    finally:
        torch.set_num_threads(threads)
    return Conformance(
        versions={
            "probe": probe.__version__,
            "python": platform.python_version(),
            **{name: version(name) for name in ("torch", "transformers")},
        },
        tolerance=TOLERANCE,
        architectures=tuple(architectures),
        seed=seed if random else None,
        random=tuple(drawn),
    )


def architecture(made: Recipe, backend: str = "huggingface", *, seed: int = 0) -> Architecture:
    """Try one architecture."""
    model, checked = _checked(made, backend, seed)
    ways = {name: _way(outcome) for name, outcome in checked.outcomes.items()}
    verdict = _verdict(list(ways.values()))
    reasons = [way.reason for way in ways.values() if way.verdict == verdict and way.reason]
    reasons += [f"{name}: {way.reason}" for name, way in ways.items() if way.verdict == "refused"]
    known = [way.deviation for way in ways.values() if way.deviation is not None and way.compared]
    return Architecture(
        name=made.name, names=made.names, family=_family(model, checked),
        model_class="" if model is None else type(model).__name__, backend=backend, has=tuple(checked.features),
        verdict=verdict, reason=reasons[0] if reasons else "", deviation=max(known, default=None), ways=ways,
        how=checked.how, unchecked=tuple(sorted(checked.seen - checked.compared)),
    )  # fmt: skip


def _random(made: Recipe, fields: dict[str, str]) -> RandomConfiguration:
    _, checked = _checked(made, "huggingface", 0)
    ways = [_way(outcome) for outcome in checked.outcomes.values()]
    known = [way.deviation for way in ways if way.deviation is not None and way.compared]
    # One way that is refused counts: a person who asks for it gets nothing.
    verdict = next(
        (each for each in ("wrong", "failed", "unchecked", "refused") if each in {w.verdict for w in ways}), ""
    )
    reason = next((way.reason for way in ways if way.verdict == verdict), "")
    return RandomConfiguration(
        architecture=made.name, fields=fields, verdict=verdict or "exact", reason=reason,  # type: ignore[arg-type]
        deviation=max(known, default=None),
    )  # fmt: skip


def _checked(made: Recipe, backend: str, seed: int) -> tuple[PreTrainedModel | None, Checked]:
    try:
        model = random_model(made, seed=seed)
    except Exception as error:  # noqa: BLE001 (a configuration that transformers itself does not take)
        said = f"transformers does not make it: {type(error).__name__}: {' '.join(str(error).split())[:200]}"
        return None, Checked({"prefill": Outcome("unchecked", said)})
    return model, check(model, seed=seed, backend=backend)


def _way(outcome: Outcome) -> Way:
    deviation = outcome.deviation if outcome.compared and math.isfinite(outcome.deviation) else None
    shown = None if deviation is None else float(f"{deviation:.2g}")
    return Way(
        verdict=outcome.verdict, reason=outcome.reason, deviation=shown, compared=outcome.compared  # type: ignore[arg-type]
    )  # fmt: skip


def _verdict(ways: list[Way]) -> Verdict:
    found = {way.verdict for way in ways}
    return next(verdict for verdict in _WORST if verdict in found)


def _family(model: PreTrainedModel | None, checked: Checked) -> str:
    if model is None:
        return ""
    if getattr(model.config, "is_encoder_decoder", False):
        return "encoder-decoder"
    if "bidirectional" in checked.features or type(model).__name__.endswith("ForMaskedLM"):
        return "encoder"
    if "recurrent" in checked.features:
        return "recurrent"
    hybrid = any(word.startswith("recurrent") or word == "layers without attention" for word in checked.features)
    return "hybrid" if hybrid else "decoder"
