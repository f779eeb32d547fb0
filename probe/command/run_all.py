"""`probe run all`: every casebook that ships, one after the other, each in its own folder, and what came of each."""

from __future__ import annotations

import dataclasses
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from probe import discovery
from probe.errors import NotAsExpected, ProbeError, SomeUnitsFailed, StoppedByLimit, UsageError
from probe.progress import Progress

if TYPE_CHECKING:
    from probe.casebook import Casebook

ALL = "all"
"""What stands in the place of a casebook's name."""
_OF_ONE_WORKLOAD = ("lengths", "depths", "haystack")
_OF_LOADING = ("model", "backend", "remote", "device", "dtype", "trust_remote_code", "device_map")


@dataclasses.dataclass(frozen=True)
class Came:
    """What came of one casebook."""

    casebook: str
    """Its name."""
    status: str
    """`complete`, `partial`, `failed` or `does not concern the model`."""
    seconds: float
    """How long it took, reading its model included."""
    folder: str | None = None
    """Where the run lies."""
    verdicts: Mapping[str, int] = dataclasses.field(default_factory=dict)
    """Number of findings by verdict."""
    expected: int | None = None
    """Number of expectations; None where nothing was played or nothing is expected."""
    unmet: tuple[str, ...] = ()
    """Expectations that are not met, each with what was found."""
    why: str = ""
    """Why it failed, or does not concern the model."""


def run_all(
    options: Mapping[str, Any], *, command: Callable[[str, Path | None], str], force: bool, progress: Progress
) -> Iterator[Came]:
    """Play every casebook that ships with `probe.run`'s options, and yield what came of each as soon as it is known.

    With `out` each run lies in a folder of the casebook's name below it. One that fails is named, and the others go on.
    `command(name, out)` is the command line that plays one alone. A model that is given is loaded once. Raises
    UsageError for an option that only one workload can have, and what loading a model raises.
    """
    from probe import capture

    for name in _OF_ONE_WORKLOAD:
        if options.get(name) is not None:
            raise UsageError(f"--{name} is one casebook's; `probe run NAME --{name} …` plays it alone")
    options = dict(options)
    below = options.pop("out", None)
    if options.get("model") is not None:
        loading = {name: options.pop(name) for name in _OF_LOADING if name in options}
        options["model"] = capture.load(loading.pop("model"), **loading)
    for name in discovery.names("casebooks"):
        out = None if below is None else Path(below) / name
        began = time.monotonic()
        came = _one(name, out, options, command(name, out), force, progress)
        yield dataclasses.replace(came, seconds=round(time.monotonic() - began, 1))


def _one(name: str, out: Path | None, options: Mapping[str, Any], again: str, force: bool, progress: Progress) -> Came:
    from probe.casebook import load
    from probe.player import run

    progress.message(f"casebook {name}")
    try:
        book = load(name)
        if why := unconcerned(book, options.get("model")):
            return Came(name, "does not concern the model", 0, why=why)
        finished = run(book, **options, out=out, force=force, command=again, progress=progress)
    except StoppedByLimit:
        raise
    except ProbeError as error:
        return Came(name, "failed", 0, why=str(error))
    # Whatever befalls one casebook is named, and the others go on.
    except Exception as error:  # noqa: BLE001
        return Came(name, "failed", 0, why=f"an error of probe's own: {type(error).__name__}: {error}")
    results = finished.record.get("expected", {}).get("results")
    return Came(
        name,
        finished.record["status"],
        0,
        folder=str(finished.path),
        verdicts=dict(Counter(finding.verdict for finding in finished.findings())),
        expected=None if results is None else len(results),
        unmet=tuple(f"{each['expected']}; found {each['found']}" for each in results or () if not each["met"]),
    )


def unconcerned(book: Casebook, model: Any) -> str:
    """Return why a casebook does not concern a model, which has none of the layers asked about; empty where it does.

    A casebook's own model always does. One analysis that needs attention is enough to refuse a run of a model without
    any; one about recurrence beside others is not.
    """
    from probe.stage import labelled

    if model is None:
        return ""
    asked = [
        (discovery.get("analyses", name), parameters)
        for stage in book.stages
        for name, parameters, _ in map(labelled, stage.analyses)
    ]
    if not getattr(model, "recurrent_layers", None) and asked and all(each.about_recurrence for each, _ in asked):
        return f"it asks about recurrent layers, and {model.name} has none"
    of_attention = [
        each.__name__
        for each, parameters in asked
        if not each.about_recurrence and not each.does_without_attention and each.needs(**parameters)
    ]
    if not model.attention_layers and of_attention:
        return f"it asks about attention ({', '.join(of_attention)}), and no layer of {model.name} attends"
    return ""


def conclude(came: list[Came], *, check: bool) -> None:
    """Raise where a casebook failed or was partial, or, with `check`, where an expectation is not met."""
    unmet = [each.casebook for each in came if each.unmet]
    if check and unmet:
        raise NotAsExpected(f"expectations are not met in {', '.join(unmet)}")
    failed = [each.casebook for each in came if each.status not in ("complete", "does not concern the model")]
    if failed:
        raise SomeUnitsFailed(f"{len(failed)} of {len(came)} casebooks failed or are partial: {', '.join(failed)}")
