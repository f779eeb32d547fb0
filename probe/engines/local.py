"""This process reads the units, one after the other."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby

from probe.engines.engine import Engine, Job, Read
from probe.engines.unit import Unit, UnitRead


@dataclass(frozen=True)
class local(Engine):
    """This process, one unit after the other."""

    @contextmanager
    def at_work(self, job: Job) -> Iterator[Read]:
        """Read in this process."""

        def read(units: Sequence[Unit]) -> Generator[tuple[Unit, UnitRead], None, None]:
            for condition, those in groupby(units, lambda unit: unit.condition):
                with job.reader.under(condition):
                    for unit in those:
                        job.limits.check(job.folder)
                        yield unit, job.reader.read(unit, job.store)

        yield read
