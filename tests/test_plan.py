"""What a stage plays once findings are known."""

from __future__ import annotations

from typing import Any

import pytest

from probe.errors import UsageError
from probe.finding import Finding, Measurement, Suggestion
from probe.plan import CannotPlay, resolve
from probe.stage import Stage

HEADS = [[2, 9], [2, 2], [1, 5], [0, 0]]


def found(intervention: str = "ablate_heads", **fields: Any) -> dict[str, Finding]:
    suggestion = Suggestion(intervention=intervention, fields=fields or {"heads": HEADS, "form": "zero"}, reason="r")
    measured = Measurement(name="m", value=1.0, n=1)
    finding = Finding(
        analysis="retrieval_heads", question="?", claim="c.", verdict="supported", measured=measured,
        suggests=(suggestion,), definition="d", source="s",
    )  # fmt: skip
    return {"retrieval_heads": finding}


def stage(*tops: int) -> Stage:
    conditions: dict[str, Any] = {}
    for top in tops:
        treatment = {"from_finding": "retrieval_heads", "top": top, "fields": {"form": "uniform"}}
        conditions[f"top-{top}"] = {"role": "treatment", "intervention": treatment}
        conditions[f"others-{top}"] = {"role": "control", "intervention": {"matched_to": f"top-{top}", "draws": 2}}
    return Stage.model_validate({"name": "doses", "conditions": conditions})


def test_a_dose_is_the_strongest_of_the_suggested_heads_and_so_is_its_control() -> None:
    drawn: list[Any] = []

    def draw(heads: Any, draws: int) -> Any:
        drawn.append(heads)
        return [(tuple((layer, head + 20) for layer, head in heads), 1.0)] * draws

    played = {(p.name, p.draw): p for p in resolve(stage(1, 3), found(), draw)}
    assert played["top-1", None].intervention == {"ablate_heads": {"heads": HEADS[:1], "form": "uniform"}}
    assert played["top-3", None].intervention == {"ablate_heads": {"heads": HEADS[:3], "form": "uniform"}}
    assert sorted(map(len, drawn)) == [1, 3]
    assert played["others-3", 1].intervention == {
        "ablate_heads": {"heads": [[2, 29], [2, 22], [1, 25]], "form": "uniform"}
    }
    assert played["others-3", 1].matched_to == "top-3"


def test_a_dose_of_more_heads_than_were_found_is_left_out_with_its_control() -> None:
    played = resolve(stage(4, 5), found(), lambda heads, draws: [(heads, 1.0)] * draws)
    assert {p.name for p in played} == {"top-4", "others-4"}


def test_another_intervention_takes_the_suggested_heads_and_nothing_else() -> None:
    kept = {"from_finding": "retrieval_heads", "top": 2, "plays": "full_and_streaming_heads", "fields": {"budget": 32}}
    conditions = {
        "kept": {"intervention": kept},
        "others": {"role": "control", "intervention": {"matched_to": "kept", "draws": 1}},
    }
    asked = Stage.model_validate({"name": "kept", "conditions": conditions})
    first, second = resolve(asked, found(), lambda heads, draws: [(((0, 1), (0, 2)), 1.0)])
    assert first.intervention == {"full_and_streaming_heads": {"heads": HEADS[:2], "budget": 32}}
    assert second.intervention == {"full_and_streaming_heads": {"heads": [[0, 1], [0, 2]], "budget": 32}}


def test_a_suggestion_without_heads_has_no_top() -> None:
    with pytest.raises(UsageError, match="plays the top 1, and scale names no heads"):
        resolve(stage(1), found("scale", factor=2), lambda heads, draws: [])


def test_a_field_that_the_casebook_gets_wrong_stops_the_run_and_is_named() -> None:
    treatment = {"from_finding": "retrieval_heads", "fields": {"form": "zeroo"}}
    asked = Stage.model_validate({"name": "s", "conditions": {"c": {"role": "treatment", "intervention": treatment}}})
    with pytest.raises(UsageError, match=r"condition 'c', its fields form: .*zeroo") as caught:
        resolve(asked, found(), lambda heads, draws: [])
    # Not a stage that is passed over, as where a finding suggests what cannot be.
    assert not isinstance(caught.value, CannotPlay)
    asked = Stage.model_validate(
        {"name": "s", "conditions": {"c": {"role": "treatment", "intervention": {**treatment, "fields": {}}}}}
    )
    with pytest.raises(CannotPlay):
        resolve(asked, found(heads=[[0, 0]], form="zeroo"), lambda heads, draws: [])
