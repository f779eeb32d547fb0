"""A finding: a question, a claim in one sentence, its value with interval, its control, and what it suggests."""

from __future__ import annotations

import html
import json
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue

FORMAT = 1
"""Version of the JSON form of findings; raised when a reader of the old form would misread the new one."""

Verdict = Literal["supported", "refuted", "inconclusive"]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Interval(_Frozen):
    """A confidence interval."""

    low: float = Field(allow_inf_nan=False)
    high: float = Field(allow_inf_nan=False)
    level: float = 0.95
    method: str = Field(description="How it was computed, e.g. `Clopper-Pearson`, `bootstrap over prompts`.")

    def __str__(self) -> str:
        return f"[{self.low:.3g}, {self.high:.3g}]"


class Measurement(_Frozen):
    """A number with its uncertainty and the number of observations behind it."""

    name: str
    value: float | None = Field(
        allow_inf_nan=False, description="None where nothing could be measured; the finding's notes say why."
    )
    unit: str = ""
    interval: Interval | None = None
    n: int = Field(description="Observations used.")
    dropped: int = Field(default=0, description="Observations left out; the finding's notes say why.")

    def __str__(self) -> str:
        if self.value is None:
            return "not measured"
        unit = f" {self.unit}" if self.unit else ""
        interval = f" {self.interval}" if self.interval else ""
        return f"{self.value:.3g}{unit}{interval} (n = {self.n})"


class Comparison(_Frozen):
    """A test of the value against its control."""

    name: str = Field(description="The test, e.g. `exact McNemar test, paired by sample`.")
    difference: float | None = Field(default=None, allow_inf_nan=False)
    interval: Interval | None = None
    p_value: float | None = Field(default=None, ge=0, le=1)
    p_is_bound: bool = Field(
        default=False, description="Whether p is an upper bound, since no permutation drawn went as far."
    )
    n: int


class Suggestion(_Frozen):
    """An intervention with its fields filled in, which a casebook's next stage or the explorer can play."""

    intervention: str = Field(description="Name of the intervention, e.g. `ablate_heads`.")
    fields: dict[str, JsonValue] = Field(description="Its fields, e.g. {heads: [[2, 5]]}.")
    reason: str = Field(description="One sentence: why this is worth trying.")


class Figure(_Frozen):
    """A plotly figure as JSON, with the sentence that says how to read it."""

    name: str
    title: str
    caption: str
    plotly: dict[str, JsonValue] = Field(description="`json.loads(figure.to_json())`; `data` and `layout`.")

    def show(self) -> None:
        """Draw it where plotly draws: below a notebook's cell, or in a browser."""
        from plotly.graph_objects import Figure as PlotlyFigure

        PlotlyFigure(self.plotly).show()

    def _repr_html_(self) -> str:
        from plotly.graph_objects import Figure as PlotlyFigure

        drawn = PlotlyFigure(self.plotly).to_html(full_html=False, include_plotlyjs=True)
        return f"{drawn}<p><small>{html.escape(self.caption)}</small></p>"


class Finding(_Frozen):
    """The answer to one question, as an analysis gives it. Round-trips through JSON."""

    format: Literal[1] = 1
    analysis: str = Field(description="Name of the analysis that made it.")
    name: str = Field(
        default="", description="What the casebook calls it, where it has a name of its own beside the analysis'."
    )
    question: str
    headline: str = Field(default="", description="The answer in a few words, for a title; no brackets.")
    claim: str = Field(description="The answer in one sentence, with its number and interval.")
    verdict: Verdict = Field(
        description="Whether the phenomenon asked about is there: supported, refuted (against a stated margin) or "
        "inconclusive."
    )
    measured: Measurement = Field(description="The headline number.")
    control: Measurement | None = Field(default=None, description="The number that it is compared with.")
    comparison: Comparison | None = None
    details: tuple[Measurement, ...] = Field(default=(), description="Further numbers, each with its interval.")
    columns: tuple[str, ...] = Field(default=(), description="Names of the table's columns.")
    table: tuple[tuple[JsonValue, ...], ...] = Field(default=(), description="The table behind the claim, row by row.")
    figures: tuple[Figure, ...] = ()
    suggests: tuple[Suggestion, ...] = ()
    notes: tuple[str, ...] = Field(default=(), description="What was dropped, assumed, or is this toolkit's own.")
    definition: str = Field(description="The definition used, with its parameters.")
    source: str = Field(description="Paper and section, or `this toolkit's own`.")
    evidence: tuple[str, ...] = Field(default=(), description="Units (traces) that the value was computed from.")
    parameters: dict[str, JsonValue] = Field(default_factory=dict, description="Parameters of the analysis.")

    def records(self) -> list[dict[str, JsonValue]]:
        """Return the table as a list of rows by column name."""
        return [dict(zip(self.columns, row, strict=True)) for row in self.table]

    def to_json(self) -> dict[str, Any]:
        """Return the finding as JSON values; `from_json` turns them back into an equal finding."""
        value: dict[str, Any] = json.loads(self.model_dump_json())
        return value

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Finding:
        """Rebuild a finding from `to_json`'s result; raises pydantic's ValidationError naming what is wrong."""
        return cls.model_validate(value)

    def __str__(self) -> str:
        return self.claim

    def _repr_html_(self) -> str:
        from plotly.graph_objects import Figure as PlotlyFigure

        figures = "".join(
            PlotlyFigure(figure.plotly).to_html(full_html=False, include_plotlyjs=i == 0)
            + f"<p><small>{html.escape(figure.caption)}</small></p>"
            for i, figure in enumerate(self.figures)
        )
        rows = [f"<p><b>{html.escape(self.claim)}</b></p>", f"<p>{html.escape(self.question)} · {self.verdict}</p>"]
        measurements = [self.measured, *([self.control] if self.control else []), *self.details]
        cells = "".join(
            f"<tr><td style='text-align:left'>{html.escape(m.name)}</td><td>{html.escape(str(m))}</td></tr>"
            for m in measurements
        )
        notes = "".join(f"<li>{html.escape(note)}</li>" for note in self.notes)
        source = f"<p><small>{html.escape(self.definition)} ({html.escape(self.source)})</small></p>"
        return "".join(rows) + f"<table>{cells}</table>" + figures + f"<ul>{notes}</ul>" + source
