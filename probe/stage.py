"""A casebook's stages: what is done to the model or to the prompt, what is captured, and which analyses follow."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Discriminator, Field, JsonValue, Tag, model_validator

from probe.errors import UsageError

_LABEL: Final = r"[a-z0-9][a-z0-9_-]{0,40}"

Role = Literal["baseline", "needle_absent", "gold_only", "treatment", "control", "other"]


class Strict(BaseModel):
    """A part of a casebook: an unknown key or a wrong type is refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class FromFinding(Strict):
    """Play what an earlier stage's finding suggested."""

    from_finding: str = Field(
        description="Name of the analysis whose suggestion is played, or what its finding is called (`as`)."
    )
    fields: dict[str, JsonValue] = Field(default_factory=dict, description="Fields that replace the suggestion's.")
    top: int | None = Field(
        default=None,
        ge=1,
        description="Only the first so many of the suggested heads, strongest first; not played where there are fewer.",
    )
    plays: str | None = Field(
        default=None,
        description="Name of another intervention that takes the suggested heads as its `heads`; of the suggestion it "
        "takes nothing else.",
    )


class MatchedControl(Strict):
    """Random heads matched to another condition's: as many, of the same layers, of like output norm, never those."""

    matched_to: str = Field(description="Name of the condition (of this stage) whose heads are matched.")
    draws: int = Field(default=20, ge=1, le=10_000, description="How many sets are drawn; each is played.")


def _kind_of_intervention(value: Any) -> str:
    """Tell the forms apart by the key that only one of them has, so that an error is about the form that was meant."""
    if isinstance(value, list | tuple):
        return "<together>"
    if isinstance(value, FromFinding) or (isinstance(value, dict) and "from_finding" in value):
        return "<finding>"
    if isinstance(value, MatchedControl) or (isinstance(value, dict) and "matched_to" in value):
        return "<matched>"
    return "<named>"


Named = dict[str, dict[str, JsonValue]]
"""An intervention by name, with its fields."""

Part = Annotated[
    Annotated[FromFinding, Tag("<finding>")] | Annotated[Named, Tag("<named>")],
    Discriminator(
        _kind_of_intervention,
        custom_error_type="part_of_a_list",
        custom_error_message="a list holds interventions and what findings suggest, neither lists nor matched_to",
    ),
]

Intervention = Annotated[
    Annotated[FromFinding, Tag("<finding>")]
    | Annotated[MatchedControl, Tag("<matched>")]
    | Annotated[list[Part], Field(min_length=2), Tag("<together>")]
    | Annotated[Named, Tag("<named>")],
    Discriminator(_kind_of_intervention),
]


def parts_of(intervention: Intervention | None) -> list[FromFinding | Named]:
    """Return what a condition enters, in order, matched controls left out."""
    if intervention is None or isinstance(intervention, MatchedControl):
        return []
    return list(intervention) if isinstance(intervention, list) else [intervention]


class Condition(Strict):
    """What is done to the model or to the prompt, and what part it plays in the comparison."""

    role: Role = Field(default="other", description="What part the condition plays in the analyses.")
    workload: dict[str, JsonValue] = Field(default_factory=dict, description="Workload fields that it replaces.")
    intervention: Intervention | None = Field(
        default=None,
        description="An intervention by name with its fields, one that a finding suggested (from_finding), a list of "
        "these, entered in their order, or a matched random control (matched_to).",
    )
    capture: bool = Field(default=False, description="Whether attention is captured, or behaviour alone is read.")


def _or_a_mapping(schema: dict[str, Any]) -> None:
    """Let the published schema take a mapping as well as the list that it stands for."""
    listed = {key: schema.pop(key) for key in ("type", "items") if key in schema}
    schema["anyOf"] = [listed, {"type": "object", "minProperties": 1}]


class Stage(Strict):
    """Conditions that are read, then the analyses of everything read so far."""

    name: str = Field(pattern=f"^{_LABEL}$")
    half: Literal["find", "test", "both"] = Field(default="both", description="Which half of the samples is read.")
    lengths: Literal["all", "solved"] = Field(
        default="all", description="`solved`: only lengths up to the effective length that an earlier finding gave."
    )
    conditions: dict[str, Condition]
    capture: tuple[JsonValue, ...] = Field(
        default=(),
        description="Statistics captured besides those that the analyses need: a list of names and "
        "{name: {parameter: value}}, or one mapping of these. The parameter `layers` limits one to some layers, a list "
        "in the parameters' place is those layers; queries_and_keys: [0, 3] keeps what any window of their heads is "
        "computed from.",
        json_schema_extra=_or_a_mapping,
    )
    analyses: tuple[JsonValue, ...] = Field(
        default=(),
        description="Analyses, by name or {name: {parameter: value}}; {name: {…}, as: label} gives the finding a name "
        "of its own, where one analysis gives several.",
    )

    @model_validator(mode="before")
    @classmethod
    def _lists_are_tuples(cls, value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        if isinstance(value.get("capture"), dict):
            value = {**value, "capture": tuple({name: given} for name, given in value["capture"].items())}
        lists = {k: tuple(v) for k, v in value.items() if k in ("capture", "analyses") and isinstance(v, list)}
        return {**value, **lists}


def named(request: JsonValue) -> tuple[str, dict[str, Any]]:
    """Split `name` or `{name: {parameter: value}}` into name and parameters; a list in their place is `layers`."""
    if isinstance(request, str):
        return request, {}
    if isinstance(request, dict) and len(request) == 1:
        name, parameters = next(iter(request.items()))
        if isinstance(parameters, list):
            return name, {"layers": list(parameters)}
        if parameters is None or isinstance(parameters, dict):
            return name, dict(parameters or {})
    raise UsageError(f"expected a name or {{name: {{parameter: value}}}}, got {request!r}")


def labelled(request: JsonValue) -> tuple[str, dict[str, Any], str]:
    """Split an analysis' request into name, parameters, and what its finding is called: `as`, else the name."""
    if not isinstance(request, dict) or "as" not in request:
        name, parameters = named(request)
        return name, parameters, name
    name, parameters = named({key: value for key, value in request.items() if key != "as"})
    label = request["as"]
    if not isinstance(label, str) or not re.fullmatch(_LABEL, label):
        raise UsageError(f"`as` is a name of small letters, digits, _ and -, at most 41, not {label!r}")
    return name, parameters, label


_CONDITIONS: Final = ("among", "leave_out", "text", "baseline", "treatment")
"""Parameters by which analyses name conditions."""


def unknown_name(parameter: str, value: JsonValue, stages: Sequence[Stage]) -> str | None:
    """Return what an analysis' parameter names that none of `stages` has, in words; None where there is nothing."""
    if parameter == "stage":
        there = [stage.name for stage in stages]
    elif parameter in _CONDITIONS:
        there = [name for stage in stages for each in stage.conditions for name in (each, f"{stage.name}/{each}")]
    else:
        return None
    named = value if isinstance(value, list) else [value]
    unknown = [each for each in named if isinstance(each, str) and each not in there]
    what = "stage" if parameter == "stage" else "condition"
    shown = sorted({name for name in there if "/" not in name})
    return f"no {what} {unknown[0]!r} so far; there are {', '.join(shown)}" if unknown else None
