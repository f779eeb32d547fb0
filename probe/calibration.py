"""What reading takes on this machine: a few prompts are read as a run reads them, and a curve is laid through."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np

from probe.engines.unit import Unit
from probe.engines.unit_reader import UnitReader
from probe.errors import NotAvailable
from probe.limits import folder_bytes
from probe.plan import Played
from probe.sample import Sample
from probe.storage.store import RunStore

LONGEST_SECONDS: Final = 1.5
"""A prompt that is expected to take longer is not read to learn what prompts take."""
_APART: Final = 1.4
"""How much longer than the last a prompt is that is worth reading."""
_LEAST: Final = 3
"""Lengths that are read whatever they take, where prompts differ so much: a curve needs as many."""
_BYTES_OF_ENTRY: Final = 400
"""What a unit adds to the run's own files: its line in the commit record."""


@dataclass(frozen=True)
class Trial:
    """One prompt that was read."""

    length: int
    """Tokens of the prompt."""
    seconds: float
    bytes: int
    """Sizes of the files that it left, added up."""
    peak_bytes: int | None
    """Most memory while it was read: on the device where that is a GPU, else of the process; None if not known."""


@dataclass(frozen=True)
class Curve:
    """`a + b·n + c·n²` of the prompt length n, none of the three below 0."""

    a: float = 0.0
    b: float = 0.0
    c: float = 0.0

    def __call__(self, length: float) -> float:
        return self.a + self.b * length + self.c * length * length

    @classmethod
    def through(cls, points: Sequence[tuple[int, float]], *, degree: int = 2) -> Curve:
        """Return the curve of least squares of the relative errors; of a single point, what is the same everywhere.

        With fewer points than coefficients the lower powers go first: nothing is made up beyond what was seen.
        """
        from scipy.optimize import nnls

        terms = min(degree + 1, len({length for length, _ in points}))
        # A prompt's activations are linear in its length and its attention quadratic.
        lengths, values = np.array([p[0] for p in points], float), np.array([max(p[1], 1e-9) for p in points])
        powers = (lengths[:, None] / lengths.max()) ** np.arange(terms)
        weights, _ = nnls(powers / values[:, None], np.ones(len(points)))
        scaled = [float(w / lengths.max() ** i) for i, w in enumerate(weights)]
        return cls(*scaled, *[0.0] * (3 - terms))


@dataclass
class Calibration:
    """Reads prompts into a folder that is thrown away, with the reader of a run."""

    reader: UnitReader
    folder: Path
    until: float
    """When, by `time.perf_counter`, no further prompt is begun."""
    once: float = 0.0
    """Seconds that first readings took beyond later ones, such as for compiling; a run spends them too."""
    _number: int = 0
    _sizes: dict[str, int] = field(default_factory=dict)

    @property
    def over(self) -> bool:
        """Whether the time for trials is spent."""
        return time.perf_counter() >= self.until

    @contextlib.contextmanager
    def store(self) -> Iterator[RunStore]:
        """Hold the folder within the block."""
        with RunStore(self.folder) as self._store:
            yield self._store

    def read(
        self,
        condition: Played,
        samples: Sequence[Sample],
        requests: Sequence[Mapping[str, Any]],
        *,
        stage: str = "",
        twice: bool = False,
    ) -> list[Trial]:
        """Return what each sample took under a condition; with `twice` the first time does not count but as `once`.

        Raises NotAvailable where a sample cannot be read, with the reason.
        """
        trials = []
        asked = tuple(dict(request) for request in requests) if condition.capture else ()
        with self.reader.under(condition):
            for sample in samples:
                if twice:
                    first = self._read(condition, sample, asked, stage)
                trials.append(self._read(condition, sample, asked, stage))
                if twice:
                    self.once += max(0.0, first.seconds - trials[-1].seconds)
                if self.over:
                    break
        return trials

    def _read(self, condition: Played, sample: Sample, requests: tuple[Mapping[str, Any], ...], stage: str) -> Trial:
        self._number += 1
        name = f"trial-{self._number:06d}-000000000000"
        came = self.reader.read(Unit(name, (0, self._number), stage, condition, sample, requests), self._store)
        if came.record is None:
            raise NotAvailable(f"{condition.name} {sample.name} cannot be read: {came.failed}")
        size = folder_bytes(self.folder / "trace.zarr" / name) + _BYTES_OF_ENTRY
        return Trial(len(sample), came.seconds, size, came.peak_bytes)


def spread(samples: Sequence[Sample], read: Any, *, until: float) -> list[Trial]:
    """Read the shortest sample, then longer ones for as long as each is expected to take little; `read(sample)` reads.

    Where the next longer sample would take long, the longest is cut to lengths between, so that a curve can be laid.
    """
    ordered = sorted(samples, key=len)
    trials: list[Trial] = [read(ordered[0])]
    longest = ordered[-1]
    while len(trials) < _LEAST or time.perf_counter() < until:
        last = trials[-1]
        longer = [sample for sample in ordered if len(sample) >= _APART * last.length]
        if not longer or len(trials) == 5:
            break
        # Quadratic, at the most.
        most = last.length * (LONGEST_SECONDS / max(last.seconds, 1e-9)) ** 0.5
        wanted = max(2 * last.length, int(most))
        if wanted > most and len(trials) >= _LEAST and len(longer[0]) > most:
            break
        within = [sample for sample in longer if len(sample) <= wanted]
        trials.append(read(within[-1] if within else cut(longest, min(wanted, len(longest)))))
    return trials


def cut(sample: Sample, length: int) -> Sample:
    """Return the first tokens of a sample, with the spans that lie in them: a text of that length."""
    return dataclasses.replace(
        sample,
        tokens=sample.tokens[:length],
        spans=tuple(span for span in sample.spans if span.stop <= length),
        text=sample.text[: len(sample.text) * length // len(sample)],
    )
