"""Which variants of the Triton kernels are compiled ahead of time, and what each takes of a GPU.

`python -m probe.kernels.triton_variants --out FILE` compiles all of them for compute capability 8.0, 9.0 and 10.0,
without a GPU, and writes registers, spills and shared memory as JSON.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from probe.kernels.call import Call
from probe.kernels.statistic import names, parse

ARCHITECTURES = (80, 90, 100)
"""Compute capability times ten: A100, H100, B200."""
FEATURES: Mapping[str, Sequence[Any]] = {
    "dtype": ("bfloat16", "float16", "float32"),
    "channels": (128, 32, 60, 64, 80, 96, 256),
    "group": (4, 1, 3, 8),
    "length": (32768, 100),
    "softcap": (False, True),
    "alibi": (False, True),
    "bias": (False, True),
    "hidden": (False, True),
    "window": (False, True),
    "deterministic": (False, True),
}
"""What calls differ in, the usual first."""
_BIASES = ("alibi", "bias")


@dataclass(frozen=True)
class Variant:
    """Some statistics of one kind of call."""

    statistics: tuple[str, ...]
    """Names of the statistics."""
    features: Mapping[str, Any]
    """One value of each of `FEATURES`."""

    def call(self) -> Call:
        """Return a call of that kind, whose tensors are not to be read."""
        f = self.features
        heads, length = 4 * f["group"], f["length"]
        # A chunk of a longer prompt: its numbers are divisible by 16, which the compiler is told, as is usual.
        query = torch.empty_strided(
            (heads, min(length, 2048), f["channels"]), (f["channels"], heads * f["channels"], 1), dtype=_dtype(f)
        )
        key = torch.empty_strided((4, length, f["channels"]), (f["channels"], 4 * f["channels"], 1), dtype=_dtype(f))
        return Call(
            layer=0,
            query=query,
            key=key,
            value=key,
            scale=f["channels"] ** -0.5,
            query_start=length - query.shape[1],
            softcap=30.0 if f["softcap"] else None,
            window=64 if f["window"] else None,
            alibi_slope=torch.ones(heads) if f["alibi"] else None,
            distance_bias=torch.zeros(heads, 257) if f["bias"] else None,
            distance_bias_start=-128 if f["bias"] else 0,
            key_visible=torch.ones(length, dtype=torch.bool) if f["hidden"] else None,
        )


def core_table() -> tuple[str, ...]:
    """Return every statistic of kind `scan`."""
    return tuple(name for name in names() if parse(name).kind == "scan")


def variants() -> Iterator[Variant]:
    """Yield the core table in each dtype and width, each statistic alone, and a cover of all pairs of features."""
    usual = {name: values[0] for name, values in FEATURES.items()}
    for dtype, channels in itertools.product(FEATURES["dtype"], (64, 128, 256)):
        yield Variant(core_table(), usual | {"dtype": dtype, "channels": channels})
    for name in core_table():
        if parse(name).on_triton():
            yield Variant((name,), usual)
    for features in pairwise(FEATURES):
        yield Variant(core_table(), features)


def pairwise(choices: Mapping[str, Sequence[Any]]) -> Iterator[dict[str, Any]]:
    """Yield few combinations in which every two values of every two choices meet; a softcap meets no bias."""
    missing = {
        ((a, x), (b, y))
        for a, b in itertools.combinations(choices, 2)
        for x, y in itertools.product(choices[a], choices[b])
        if not (a == "softcap" and b in _BIASES and x and y)
    }
    while missing:
        # Begin with a pair that is missing, then take for each choice the value that brings the most.
        combination = dict(min(missing, key=str))
        for name, values in choices.items():
            if name not in combination:
                allowed = [v for v in values if not (name in _BIASES and v and combination.get("softcap"))]
                biased = any(combination.get(each) for each in _BIASES)
                allowed = [v for v in allowed if not (name == "softcap" and v and biased)]
                combination[name] = max(allowed, key=lambda v: _new(combination | {name: v}, missing, list(choices)))
        combination = {name: combination[name] for name in choices}
        missing -= set(itertools.combinations(combination.items(), 2))
        yield combination


def _new(combination: Mapping[str, Any], missing: set[Any], order: Sequence[str]) -> int:
    items = [(name, combination[name]) for name in order if name in combination]
    return len(missing.intersection(itertools.combinations(items, 2)))


def _dtype(features: Mapping[str, Any]) -> torch.dtype:
    dtype: torch.dtype = getattr(torch, features["dtype"])
    return dtype


def compiled(variant: Variant, architecture: int) -> list[dict[str, Any]]:
    """Compile one variant and return a row for each of its kernels."""
    # Needs Triton, and never its interpreter.
    from probe.kernels.triton_resources import compile_for

    resources = compile_for(
        architecture,
        variant.call(),
        [parse(name) for name in variant.statistics],
        deterministic=variant.features["deterministic"],
    )
    said = "core table" if variant.statistics == core_table() else ", ".join(variant.statistics)
    return [{"statistics": said, **variant.features, **dataclasses.asdict(found)} for found in resources]


def compiled_or_why_not(variant: Variant, architecture: int) -> list[dict[str, Any]]:
    """Compile one variant; where that fails return one row that says why."""
    try:
        return compiled(variant, architecture)
    except Exception as error:  # noqa: BLE001 (whatever a compiler raises belongs into the table)
        said = "core table" if variant.statistics == core_table() else ", ".join(variant.statistics)
        return [{"statistics": said, **variant.features, "architecture": architecture, "error": str(error)[-2000:]}]


def main(arguments: Sequence[str] | None = None) -> None:
    """Compile everything and write what it takes."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--out", type=Path, required=True, help="the JSON file to write")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    options = parser.parse_args(arguments)
    jobs = list(itertools.product(variants(), ARCHITECTURES))
    with ProcessPoolExecutor(options.workers) as pool:
        rows = [row for rows in pool.map(compiled_or_why_not, *zip(*jobs, strict=True)) for row in rows]
    import triton

    told = {"format": 1, "triton": triton.__version__, "torch": str(torch.__version__), "kernels": rows}
    options.out.write_text(json.dumps(told, indent=0) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
