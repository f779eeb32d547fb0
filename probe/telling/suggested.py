"""What a finding suggests to try, as the lines that try it."""

from __future__ import annotations

import json

from probe.finding import Suggestion


def as_yaml(suggestion: Suggestion) -> str:
    """Return the condition of a casebook's stage that plays a suggestion."""
    several = suggestion.intervention == "together"
    entered = suggestion.fields["interventions"] if several else {suggestion.intervention: suggestion.fields}
    played = json.dumps(entered, ensure_ascii=True)
    return f"conditions:\n  suggested:\n    role: treatment\n    intervention: {played}"


def as_python(suggestion: Suggestion) -> str:
    """Return the lines of a notebook that play a suggestion on a model and a sample that are there."""
    arguments = ", ".join(f"{name}={value!r}" for name, value in suggestion.fields.items())
    return f"with probe.{suggestion.intervention}({arguments})(model):\n    probe.trace(model, sample)"
