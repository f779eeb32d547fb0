"""The contract of a case: one thing that a benchmark measures beside the others."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

from probe.benchmark.result import Job, Plan, Section
from probe.benchmark.timing import Step

WIDTHS = {"float32": 4, "bfloat16": 2, "float16": 2}
"""Bytes of a number of each dtype that can be measured."""


@dataclass(frozen=True)
class Prepared:
    """A job whose inputs are made."""

    steps: Sequence[Step]
    """What is timed, one after the other."""
    ran: Callable[[], str | None] = lambda: None
    """Name, once they ran, of the implementation that did; None where there is one alone."""


class Case(ABC):
    """One thing to measure: which jobs a plan makes of it, what it needs, and the steps that are timed.

    Importing one costs no torch, so that a stored result is shown at once; `prepare` imports it.
    """

    name: ClassVar[str]
    """What jobs call it."""
    section: ClassVar[Section]
    """The table that it stands in."""

    @abstractmethod
    def label(self, job: Job, ran: str | None = None) -> str:
        """Return what a table calls the job, with the implementation that ran where that is known."""

    @abstractmethod
    def jobs(self, plan: Plan, length: int) -> Iterator[Job]:
        """Yield the jobs that a plan makes of this case at one length."""

    @abstractmethod
    def needed_bytes(self, plan: Plan, job: Job) -> int | None:
        """Return what a job takes at least beyond the process itself, by arithmetic; None where that is not known."""

    @abstractmethod
    def prepare(self, plan: Plan, job: Job) -> Prepared:
        """Make the inputs, and return the steps that are timed."""
