"""What `probe bench` was asked and what it measured, as JSON: every repeat, and the machine that it ran on."""

from __future__ import annotations

import statistics
from typing import Final, Literal

from pydantic import BaseModel, ConfigDict, Field

FORMAT: Final = 1
"""Version of the JSON form; raised when a reader of the old form would misread the new one."""

Section = Literal["layer", "model"]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class LayerShape(_Frozen):
    """One attention layer over one sequence, causal."""

    heads: int = Field(ge=1)
    kv_heads: int = Field(ge=1)
    head_dim: int = Field(ge=1)


class ModelShape(_Frozen):
    """A model of the Llama kind with random weights, or one that is loaded by name."""

    name: str = Field(description="A shape's name, or what was loaded: a specimen, a hub id, a folder's last part.")
    loaded: bool = Field(default=False, description="Whether it was loaded; the numbers below are then absent.")
    layers: int = 0
    hidden: int = 0
    intermediate: int = 0
    heads: int = 0
    kv_heads: int = 0
    head_dim: int = 0
    vocabulary: int = 0

    @property
    def num_parameters(self) -> int:
        """Number of weights: embedding, output projection, and the layers' matrices."""
        attention = 2 * self.hidden * self.head_dim * (self.heads + self.kv_heads)
        return 2 * self.vocabulary * self.hidden + self.layers * (attention + 3 * self.hidden * self.intermediate)


class Plan(_Frozen):
    """What is measured, and how."""

    device: str
    dtype: str
    threads: int = Field(ge=1, description="Threads that torch computes with on a CPU.")
    repeats: int = Field(ge=1, description="Most timed runs of each measurement.")
    enough_seconds: float = Field(ge=0, description="No further run of a measurement begins after this many seconds.")
    layer: LayerShape | None = Field(description="None where no layer was measured.")
    layer_lengths: tuple[int, ...]
    engines: tuple[str, ...] = Field(description="The scan's implementations that were asked for.")
    statistics: dict[str, tuple[str, ...]] = Field(description="Name of a set → the statistics in it.")
    model: ModelShape | None = Field(description="None where no model was measured.")
    model_lengths: tuple[int, ...]
    chunk_tokens: int = Field(ge=1, description="Tokens of a prompt that go through a traced model at once.")


class Job(_Frozen):
    """One measurement that is to be made."""

    case: str = Field(description="Name of the case, see `probe.benchmark.cases`.")
    length: int = Field(ge=1, description="Tokens.")
    engine: str | None = Field(default=None, description="The scan's implementation, where the case has one.")
    statistics: str | None = Field(default=None, description="Name of a set of the plan's statistics.")


class Measurement(_Frozen):
    """What came of one job."""

    job: Job
    ran: str | None = Field(default=None, description="The engine that computed, in the scan's own words.")
    parts: dict[str, tuple[float, ...]] = Field(
        default={}, description="Name of a step → seconds that it took in each timed run."
    )
    warm_up_seconds: float | None = Field(default=None, description="The first run at this length, which is not timed.")
    loading_seconds: float | None = Field(
        default=None, description="The run before that, at a few tokens: imports, compilation."
    )
    clock: str | None = Field(default=None, description="`cuda events` or `perf_counter`.")
    before_bytes: int | None = Field(
        default=None, description="Memory in use before the first run, inputs and weights and code included."
    )
    peak_bytes: int | None = Field(default=None, description="Most memory in use from then on.")
    memory: str | None = Field(default=None, description="What counted the memory.")
    busy_cores: float | None = Field(default=None, description="Cores that worked for other programs meanwhile.")
    needed_bytes: int | None = Field(default=None, description="Memory that it takes at least beyond its inputs.")
    available_bytes: int | None = Field(default=None, description="Memory that was free before it.")
    skipped: str | None = Field(default=None, description="Why it was not measured; None where it was.")

    @property
    def seconds(self) -> tuple[float, ...]:
        """Seconds of each timed run, its steps together."""
        return tuple(sum(run) for run in zip(*self.parts.values(), strict=True))

    @property
    def median(self) -> float | None:
        """Median of the runs' seconds; None where nothing was measured."""
        return statistics.median(self.seconds) if self.seconds else None

    def median_of(self, part: str) -> float | None:
        """Return the median seconds of one step; None where it has none of that name."""
        return statistics.median(self.parts[part]) if self.parts.get(part) else None

    @property
    def extra_bytes(self) -> int | None:
        """Memory that it took beyond its inputs; None where nothing was measured."""
        return None if self.peak_bytes is None or self.before_bytes is None else self.peak_bytes - self.before_bytes


class Machine(_Frozen):
    """What it ran on. Names no host, user or folder."""

    system: str
    processor: str
    cores: int = Field(description="Cores that this process may use.")
    all_cores: int = Field(description="Cores of the machine.")
    memory_bytes: int | None
    gpu: str | None
    gpu_memory_bytes: int | None
    compiler: str | None = Field(description="The C++ compiler that torch would use, by name.")
    python: str
    torch: str
    triton: str | None
    transformers: str | None


class Bench(_Frozen):
    """One run of `probe bench`."""

    format: Literal[1] = FORMAT
    probe: str = Field(description="Version of this toolkit.")
    made: str = Field(description="When it began, UTC.")
    command: str
    complete: bool = Field(description="False while it runs, and where it was stopped.")
    machine: Machine
    plan: Plan
    measurements: tuple[Measurement, ...]
