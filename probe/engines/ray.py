"""Workers of a Ray cluster read the units, each with the model in it."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from probe.engines.engine import Engine, Job, Read
from probe.errors import NotAvailable, UsageError

if TYPE_CHECKING:
    from probe.hooks.models.huggingface import HuggingFaceModel


@dataclass(frozen=True)
class ray(Engine):
    """Workers of a Ray cluster, on this machine or on many (see docs/ray.md)."""

    address: str | None = None
    """Where the cluster is (`host:port`, or `auto` on one of its machines); by default one is started here, and ends
    with the run."""
    workers: int | None = None
    """Number of workers at most; by default as many as there is room for."""
    gpus_per_worker: float | None = None
    """GPUs that each worker has; 0.5 puts two on one. By default 1 where the model lies on a GPU, else none."""
    cpus_per_worker: int = 1
    """CPUs that each worker has, and threads that it computes with."""

    def __post_init__(self) -> None:
        for name, least in (("workers", 1), ("cpus_per_worker", 1)):
            value = getattr(self, name)
            if value is not None and (type(value) is not int or value < least):
                raise UsageError(f"{name} is a whole number from {least} on, not {value!r}")
        gpus = self.gpus_per_worker
        if gpus is not None and not (type(gpus) in (int, float) and (0 <= gpus <= 1 or (gpus > 1 and gpus % 1 == 0))):
            raise UsageError(f"gpus_per_worker is a part of one GPU or a whole number of them, not {gpus!r}")
        if self.address is not None and (not self.address or "://" in self.address):
            raise UsageError(
                f"the address {self.address!r} is none of a cluster: write host:port, or auto on one of its machines "
                "(a Ray Client, ray://, does not see the run's folder)"
            )

    def check(self, model: HuggingFaceModel) -> None:
        """Raise NotAvailable where Ray is missing, UsageError for a model that no worker could open as it is here."""
        if importlib.util.find_spec("ray") is None:
            raise NotAvailable("the engine ray needs Ray, which is not installed: pip install 'longcontext-probe[ray]'")
        if model.is_remote:
            raise UsageError(f"{model.name} runs on NDIF: there is nothing to read here that workers could share")
        if model.opened is None:
            raise UsageError(
                f"workers open the model themselves, and {model.name} was given as an object: give the engine ray a "
                "specimen's name, a hub id or a folder"
            )
        device, gpus = model.device, self.gpus_per_worker
        if device.type == "cuda" and gpus == 0:
            raise UsageError(f"{model.name} lies on {device}, and a worker without a GPU (gpus_per_worker 0) has none")
        if device.type != "cuda" and gpus:
            raise UsageError(f"{model.name} lies on {device}: for workers with GPUs write --device cuda")
        if device.type == "cuda" and device.index and model.opened.get("device_map") is None:
            raise UsageError(f"Ray chooses each worker's GPU: write --device cuda, not {device}")

    def gpus_for(self, model: HuggingFaceModel) -> float:
        """Return how many GPUs each worker has for this model."""
        return float(model.device.type == "cuda") if self.gpus_per_worker is None else self.gpus_per_worker

    @contextmanager
    def at_work(self, job: Job) -> Iterator[Read]:
        """Read with workers, which are there from the first unit on until the block ends."""
        from probe.engines.ray_crew import Crew

        with Crew(self, job) as crew:
            yield crew.read
