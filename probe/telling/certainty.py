"""How sure a finding is, in one line: interval, number of observations, control and test."""

from __future__ import annotations

from probe.finding import Comparison, Finding, Interval, Measurement


def certainty(finding: Finding, *, brief: bool = False) -> str:
    """Return what stands behind the claim: interval and its method, n, what was left out, the control, the test.

    `brief` leaves the names of method, control and test to the long form.
    """
    measured = finding.measured
    if measured.value is None:
        return f"Not measured ({_observations(measured)})."
    parts = [f"{_interval(measured.interval, brief)}, {_observations(measured)}"]
    if finding.control is not None:
        parts.append(f"control {_value(finding.control)}" if brief else _control(finding.control))
    if finding.comparison is not None:
        parts += _p_value(finding.comparison) if brief else [_test(finding.comparison)]
    text = "; ".join(parts)
    return text[0].upper() + text[1:] + "."


def _interval(interval: Interval | None, brief: bool) -> str:
    if interval is None:
        return "no interval"
    method = "" if brief else f" ({interval.method})"
    return f"{100 * interval.level:.3g} % interval {interval.low:.3g} to {interval.high:.3g}{method}"


def _observations(measured: Measurement) -> str:
    dropped = f", {measured.dropped} left out" if measured.dropped else ""
    return f"n = {measured.n}{dropped}"


def _control(control: Measurement) -> str:
    return f"control: {control.name} {_value(control)}"


def _value(measured: Measurement) -> str:
    if measured.value is None:
        return f"not measured (n = {measured.n})"
    unit = f" {measured.unit}" if measured.unit else ""
    interval = f" {measured.interval}" if measured.interval is not None else ""
    return f"{measured.value:.3g}{unit}{interval} (n = {measured.n})"


def _test(comparison: Comparison) -> str:
    parts = [comparison.name]
    if comparison.difference is not None:
        interval = f" {comparison.interval}" if comparison.interval is not None else ""
        parts.append(f"difference {comparison.difference:+.3g}{interval}")
    parts += [*_p_value(comparison), f"n = {comparison.n}"]
    return f"{parts[0]}: {', '.join(parts[1:])}"


def _p_value(comparison: Comparison) -> list[str]:
    if comparison.p_value is None:
        return []
    if comparison.p_value < 1e-6:
        return ["p < 1e-6"]
    return [f"p {'≤' if comparison.p_is_bound else '='} {comparison.p_value:.2g}"]
