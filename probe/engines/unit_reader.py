"""Reads a unit with a model into a store, and says what came of it: the same in whichever process."""

from __future__ import annotations

import contextlib
import errno
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from probe import capture, plan
from probe.engines.unit import Unit, UnitRead
from probe.errors import DeviceLost, NotReproducible, RunFolderInUse, StoreUnreachable
from probe.hooks.loading.lost_device import lost_device
from probe.hooks.sequence.sample_read import prepared
from probe.kernels.non_finite_heads import NonFiniteHead, in_words
from probe.plan import Played
from probe.private import withheld_sample
from probe.reader import Reading
from probe.reading_cost import measured
from probe.storage.handed_over import HandedOver
from probe.storage.store import RunStore

if TYPE_CHECKING:
    from probe.hooks.models.huggingface import HuggingFaceModel


@dataclass
class UnitReader:
    """Reads units of one run."""

    model: HuggingFaceModel
    provenance: Mapping[str, Any]
    """What every unit says of the model and of what runs it."""
    reading: Reading
    private: bool = False

    @contextlib.contextmanager
    def under(self, condition: Played) -> Iterator[None]:
        """Within the block the model is as the condition has it; raises DeviceLost where a device computes no more."""
        intervention = plan.intervention_of(condition)
        try:
            with contextlib.nullcontext() if intervention is None else intervention(self.model):
                yield
        # A block's end touches the device too, and its error would hide what was raised before.
        except RuntimeError as error:
            self._check_devices(error)
            raise

    def read(self, unit: Unit, store: RunStore | HandedOver) -> UnitRead:
        """Read a unit of the condition that the model is under; what befalls the one sample is named, not raised.

        Raises NotReproducible, which is about the model, DeviceLost, StoreUnreachable, RunFolderInUse where another
        process took the run over, and OSError where the disk is full: the next unit would fare no better.
        """
        began = time.perf_counter()
        sample = prepared(self.model.hf, unit.sample)
        writer = store.begin_unit(
            unit.id,
            place=unit.place,
            stage=unit.stage,
            condition=unit.condition.name,
            facts=unit.condition.facts(),
            sample=withheld_sample(sample) if self.private else sample,
            provenance={**self.provenance, "positions": self.model.positions(len(sample))},
        )
        try:
            with measured(self.model.device) as cost:
                outcome = capture.read(
                    self.model, sample, unit.requests, writer, private=self.private, reading=self.reading
                )
            writer.note(cost=cost)
        except (NotReproducible, StoreUnreachable, RunFolderInUse):
            writer.abandon()
            raise
        except OSError as error:
            writer.abandon()
            # No sample's fault: the next one would find the disk as full.
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise
            return UnitRead(None, type(error).__name__ if self.private else f"OSError: {error}")
        # Whatever else befalls one sample (memory, an odd shape) is counted and named, and the others go on.
        except Exception as error:  # noqa: BLE001
            writer.abandon()
            self._check_devices(error)
            # What an error says may quote what was read.
            return UnitRead(None, type(error).__name__ if self.private else f"{type(error).__name__}: {error}")
        except BaseException:
            writer.abandon()
            raise
        bad = in_words([NonFiniteHead(**head) for head in writer.non_finite])
        record = writer.commit(outcome)
        return UnitRead(record, outcome.failed, bad, time.perf_counter() - began, cost["peak_bytes"])

    def _check_devices(self, error: Exception) -> None:
        """Raise DeviceLost where the error is not the sample's: no other could be read here either."""
        if isinstance(error, RuntimeError) and (why := lost_device(self.model.hf)):
            raise DeviceLost(why) from error
