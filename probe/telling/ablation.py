"""The experiment that removes chosen heads: as a casebook that can be played, as a command, and as Python."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

Head = tuple[int, int]
Form = Literal["zero", "uniform"]

DRAWS: Final = 20
"""Random draws of the control: enough that the treatment can be told from all of them at one in twenty."""
_END: Final = "CASEBOOK"


@dataclass(frozen=True)
class Ablation:
    """What removes some heads, beside as many others of the same layers."""

    name: str
    """Of the casebook."""
    condition: str
    """The conditions of a casebook's stage, as YAML."""
    casebook: str
    """A whole casebook with them, as YAML; empty where the run says nothing of its workload."""
    command: str
    """The lines of a shell that write the casebook and play it; empty alike."""
    python: str
    """The lines of a notebook that read the unit's prompt with the heads removed."""
    notes: tuple[str, ...]
    """What to know of it, in sentences."""


def ablation(
    record: Mapping[str, Any],
    model: str,
    heads: Sequence[Head],
    *,
    form: Form = "zero",
    heads_by_layer: Mapping[int, int],
    half: Literal["test", "both"] = "both",
    opened: str,
) -> Ablation:
    """Return how to remove `heads` from the model of a run.

    `heads_by_layer` says how many heads a layer has: where less than half of a layer's are left, no matched control can
    be drawn, and none is written. `opened` is the expression that opens the unit in Python.
    """
    chosen = sorted({(int(layer), int(head)) for layer, head in heads})
    pairs = [list(head) for head in chosen]
    name = "ablate-" + "-".join(f"{layer}.{head}".replace(".", "_") for layer, head in chosen)
    name = name if len(name) <= 40 else f"ablate-{len(chosen)}-heads"
    full = [layer for layer in {at for at, _ in chosen} if _too_many(layer, chosen, heads_by_layer)]
    played = json.dumps({"ablate_heads": {"heads": pairs, "form": form, "phase": "both"}})
    conditions = [
        "nothing: {role: baseline}",
        f"chosen-heads-removed: {{role: treatment, intervention: {played}}}",
    ]
    if not full:
        drawn = f"{{matched_to: chosen-heads-removed, draws: {DRAWS}}}"
        conditions.append(f"others-removed: {{role: control, intervention: {drawn}}}")
    casebook = _casebook(record, name, conditions, half)
    return Ablation(
        name=name,
        condition="conditions:\n" + "\n".join(f"  {line}" for line in conditions) + "\n",
        casebook=casebook,
        command=_command(name, casebook) if casebook else "",
        python=_python(model, chosen, form, opened),
        notes=tuple(_notes(casebook, full, half)),
    )


def _casebook(record: Mapping[str, Any], name: str, conditions: Sequence[str], half: str) -> str:
    known = record.get("casebook")
    if not isinstance(known, Mapping) or not isinstance(known.get("workload"), Mapping):
        return ""
    lines = [
        "format: 1",
        f"name: {name}",
        "question: What does removing these heads do that removing as many others does not?",
        f"model: {json.dumps(str(known.get('model') or 'needle'))}",
        f"seed: {int(known.get('seed') or 0)}",
        f"workload: {json.dumps(known['workload'])}",
        "stages:",
        "  - name: ablate",
        f"    half: {half}",
        "    conditions:",
        *(f"      {line}" for line in conditions),
        "    analyses: [head_ablation]",
    ]
    return "\n".join(lines) + "\n"


def _command(name: str, casebook: str) -> str:
    file = shlex.quote(f"{name}.yaml")
    # Quoted, so that the shell reads none of it; every line of the casebook begins with a key of its own.
    return f"cat > {file} <<'{_END}'\n{casebook}{_END}\nprobe run {file} --out {shlex.quote(name)}\n"


def _python(model: str, heads: Sequence[Head], form: Form, opened: str) -> str:
    return (
        "import probe\n\n"
        f"model = probe.load({model!r})\n"
        f"sample = {opened}.sample\n"
        "untouched = probe.trace(model, sample)\n"
        f"with probe.ablate_heads({list(heads)!r}, form={form!r})(model):\n"
        "    ablated = probe.trace(model, sample)\n"
        "untouched.outcome, ablated.outcome\n"
    )


def _notes(casebook: str, full: Sequence[int], half: str) -> list[str]:
    notes = []
    if not casebook:
        notes.append("This is a trace of its own: no workload is on record, so there is no casebook to play.")
    if full:
        layers = ", ".join(map(str, sorted(full)))
        notes.append(
            f"Of layer {layers} too few heads are left for a matched control of as many others: none is written, and "
            "what the removal does may be what removing any of them does."
        )
    if half == "test":
        notes.append("Read on the other half of the samples than the one that the heads were found on.")
    elif casebook:
        notes.append(
            "The prompts are those that the run read: heads chosen by what they do there may do less elsewhere. With "
            "another seed, or `half: test` after an analysis with `half: find`, they are held against other prompts."
        )
    return notes


def _too_many(layer: int, heads: Sequence[Head], heads_by_layer: Mapping[int, int]) -> bool:
    count = sum(at == layer for at, _ in heads)
    return 2 * count > heads_by_layer.get(layer, 0)
