"""Errors that this toolkit raises on purpose, each with the exit code that the command line gives it."""

from __future__ import annotations


class ProbeError(Exception):
    """The root of every error raised on purpose; `str(error)` is one message for a person, no traceback needed."""

    exit_code = 70


class UsageError(ProbeError):
    """An argument, a casebook or a workload asks for something that cannot be."""

    exit_code = 2


class CasebookError(UsageError):
    """A casebook is invalid; the message names file, line, column and what was expected."""


class NotAvailable(ProbeError):
    """A model, a tokenizer or a text that is not there; the message names it."""

    exit_code = 3


class NotReproducible(NotAvailable):
    """A model whose attention the toolkit cannot reproduce exactly; the message names the model and the reason."""


class DeviceTooSmall(ProbeError):
    """The device has no room for even the smallest chunk; the message says what was asked, what is free, what is held.

    In a run the unit fails with it and the others go on, as with any other error of one sample.
    """

    exit_code = 4


class RankLost(ProbeError):
    """One of several processes that read a prompt together is gone or silent; the message names its rank."""

    exit_code = 4


class DeviceLost(NotAvailable):
    """A device no longer computes, whatever it is given; a run ends with it, and the same command goes on later."""


class MissingStatistic(UsageError):
    """An analysis meets a trace that lacks what it needs; the message names both."""


class SomeUnitsFailed(ProbeError):
    """Some units of a run failed; the report is partial and names them."""

    exit_code = 4


class StoreUnreachable(ProbeError):
    """Object storage does not answer, or refuses; a run ends with it, and the same command goes on later."""

    exit_code = 4


class NoRoom(ProbeError):
    """The disk has less room than a run needs; nothing was written. The message says how much is needed and free."""

    exit_code = 4


class StoppedByLimit(ProbeError):
    """A run has taken the time or the disk that it may take; the same command with more goes on."""

    exit_code = 7


class NotAsExpected(ProbeError):
    """A run was held against what its casebook expects, and does not show it."""

    exit_code = 1


class StoreCorrupt(ProbeError):
    """A stored array, manifest or commit record is not what was written; the message names it."""

    exit_code = 5


class NewerFormat(StoreCorrupt):
    """A file has the form of a newer version of this toolkit; the message names both versions."""


class RunFolderInUse(ProbeError):
    """The run folder is held by another process, or holds another run."""

    exit_code = 6
