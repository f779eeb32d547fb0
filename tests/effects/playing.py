"""What an analysis says of traces whose truth is known: how often it is quiet on nulls, and from what strength it sees.

`tests/effects/<analysis>.py` says what is planted. It holds

- `null(seed)`, and further functions `null_<kind>(seed)`: traces without the effect; its docstring's first sentence
  says what they are made of; `null_trained` and `null_untrained` run a model, and are left out of the fast tests;
- `planted(strength, seed)`: traces with it; the first sentence of the docstring says what the strength is;
- `STRENGTHS`, rising, the last one strong enough that the analysis must say `supported` every time;
- where the effect is about heads, `TRUTH`: the heads planted, at every strength; and `found(finding)`: the heads that a
  finding names, without which they are those that it suggests to ablate;
- `PARAMETERS`, where the analysis is not called with its defaults.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from scipy import stats

from probe import discovery
from probe.finding import Finding

Heads = frozenset[tuple[int, int]]
VERDICTS: Final = ("supported", "refuted", "inconclusive")
OF_MODELS: Final = ("null_trained", "null_untrained")
"""Kinds of null that run a model, a specimen or one with random weights."""
MOST_FALSE: Final = 0.05
"""Largest upper 95 % bound of the share of nulls of which an analysis says `supported`."""


@dataclass(frozen=True)
class Effects:
    """What is planted for one analysis."""

    analysis: str
    nulls: Mapping[str, Callable[[int], list[Any]]]
    """Makers of traces without the effect, by what they are made of."""
    planted: Callable[[float, int], list[Any]]
    strengths: Sequence[float]
    what: str
    """What is planted, and what its strength is."""
    truth: Heads | None
    found: Callable[[Finding], Heads]
    parameters: Mapping[str, Any]

    def finding(self, traces: Iterable[Any]) -> Finding:
        """Return what the analysis finds in these traces."""
        answer: Finding = discovery.get("analyses", self.analysis)(traces, **self.parameters)
        return answer


def analyses() -> list[str]:
    """Return the analyses for which something is planted."""
    there = {path.stem for path in Path(__file__).parent.glob("*.py")}
    return [name for name in discovery.names("analyses") if name in there]


def effects(analysis: str, *, models: bool = True) -> Effects:
    """Import what is planted for an analysis; without `models`, leave out the nulls that a model has to be run for."""
    module = importlib.import_module(f"tests.effects.{analysis}")
    kinds = [name for name in vars(module) if name == "null" or name.startswith("null_")]
    makers = [getattr(module, name) for name in kinds if models or name not in OF_MODELS]
    truth = getattr(module, "TRUTH", None)
    return Effects(
        analysis=analysis,
        nulls={first_sentence(maker): maker for maker in makers},
        planted=module.planted,
        strengths=module.STRENGTHS,
        what=first_sentence(module.planted),
        truth=None if truth is None else frozenset(tuple(head) for head in truth),
        found=getattr(module, "found", suggested),
        parameters=getattr(module, "PARAMETERS", {}),
    )


def first_sentence(function: Callable[..., Any]) -> str:
    """Return the first sentence of a docstring, which is a part of the published table."""
    text = " ".join((inspect.getdoc(function) or "").split("\n\n")[0].split())
    if not text:
        raise ValueError(f"{function.__module__}.{function.__name__} does not say what it makes")
    return text.split(". ")[0].removesuffix(".") + "."


def suggested(finding: Finding) -> Heads:
    """Return the heads that a finding suggests to ablate."""
    heads: list[Any] = [head for s in finding.suggests for head in s.fields.get("heads", ())]  # type: ignore[union-attr]
    return frozenset((int(layer), int(head)) for layer, head in heads)


def upper_bound(supported: int, n: int) -> float:
    """Return the exact upper 95 % bound (one-sided, Clopper-Pearson) of a share."""
    return 1.0 if supported >= n else float(stats.beta.ppf(0.95, supported + 1, n - supported))


def on_nulls(planted: Effects, seeds: Iterable[int]) -> Iterator[dict[str, Any]]:
    """Yield, for each kind of null, how often the analysis gave each verdict, and the bound on `supported`."""
    seeds = [*seeds]
    for made_of, maker in planted.nulls.items():
        verdicts = [planted.finding(maker(seed)).verdict for seed in seeds]
        counts = {verdict: verdicts.count(verdict) for verdict in VERDICTS}
        bound = round(upper_bound(counts["supported"], len(seeds)), 4)
        yield {"made_of": made_of, "n": len(seeds), **counts, "upper_bound": bound}


def on_planted(planted: Effects, seeds: Iterable[int]) -> Iterator[dict[str, Any]]:
    """Yield, for each strength, how often the analysis says `supported`, and which of the planted heads it names."""
    seeds = [*seeds]
    for strength in planted.strengths:
        findings = [planted.finding(planted.planted(strength, seed)) for seed in seeds]
        row: dict[str, Any] = {"strength": strength, "n": len(seeds)}
        row["supported"] = sum(finding.verdict == "supported" for finding in findings)
        if planted.truth is not None:
            named = [planted.found(finding) for finding in findings]
            right = sum(len(heads & planted.truth) for heads in named)
            every = sum(map(len, named))
            row["precision"] = round(right / every, 4) if every else None
            row["recall"] = round(right / (len(planted.truth) * len(seeds)), 4)
        yield row


def measured(analysis: str, *, num_nulls: int, num_planted: int) -> dict[str, Any]:
    """Return an analysis' part of the table, as JSON values."""
    planted = effects(analysis)
    return {
        "analysis": analysis,
        "what": planted.what,
        "nulls": [*on_nulls(planted, range(num_nulls))],
        "planted": [*on_planted(planted, range(1_000_000, 1_000_000 + num_planted))],
    }
