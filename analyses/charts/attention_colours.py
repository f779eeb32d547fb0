"""How probabilities become colours: few bytes to a browser at any size, and a way back to the number."""

from __future__ import annotations

import base64
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

EXACT_CELLS: Final = 256
"""Rows and columns up to which numbers go to the browser as float32; beyond, as one of 254 steps of colour."""

DECADES: Final = 5
"""Powers of ten below the largest value that the logarithmic colours reach."""

_STEPS: Final = 254
_BAD: Final = 255
# viridis: ranked alike by every kind of colour vision, and in grey.
_COLOURS: Final = (
    "#440154", "#482878", "#3e4989", "#31688e", "#26828e", "#1f9e89", "#35b779", "#6ece58", "#b5de2b", "#fde725",
)  # fmt: skip


@dataclass(frozen=True)
class Colours:
    """How a value becomes a colour, and what a browser needs to read the value back."""

    scale: str
    """`log` or `linear`."""
    low: float
    """Value of the darkest colour."""
    high: float
    """Value of the brightest colour."""
    steps: bool
    """Whether values go over as steps of colour: 1 to 254, 0 for nothing, 255 for what is not finite."""

    def to_json(self) -> dict[str, Any]:
        """Return it for the browser."""
        return {"scale": self.scale, "low": self.low, "high": self.high, "steps": self.steps, "last": _STEPS}


def colours(values: np.ndarray[Any, Any], scale: str) -> Colours:
    """Choose the range of colours by the largest value `[row column]`."""
    finite = values[np.isfinite(values)]
    high = float(finite.max()) if finite.size and finite.max() > 0 else 1.0
    low = high * 10.0**-DECADES if scale == "log" else 0.0
    return Colours(scale, low, high, max(values.shape) > EXACT_CELLS or finite.size < values.size)


def encoded(values: np.ndarray[Any, Any], how: Colours) -> np.ndarray[Any, Any]:
    """Return what the browser gets: float32 (the values, or their log10) or uint8 steps."""
    with np.errstate(divide="ignore", invalid="ignore"):
        if not how.steps:
            shown = np.log10(values) if how.scale == "log" else np.where(values == 0, np.nan, values)
            return np.where(np.isfinite(shown), shown, np.nan).astype(np.float32)
        if how.scale == "log":
            share = np.log(values / np.float32(how.low)) / np.float32(np.log(how.high / how.low))
        else:
            share = values / np.float32(how.high)
        steps = 1 + np.rint(np.clip(share, 0, 1) * (_STEPS - 1))
    steps = np.where(values == 0, 0, steps)
    return np.asarray(np.where(np.isfinite(values), steps, _BAD), np.uint8)


def typed(values: np.ndarray[Any, Any]) -> dict[str, Any]:
    """Return an array as plotly.js takes it without a list of numbers."""
    kind = {"float32": "f4", "uint8": "u1"}[values.dtype.name]
    data = base64.b64encode(np.ascontiguousarray(values).tobytes()).decode("ascii")
    packed = {"dtype": kind, "bdata": data}
    return packed | ({"shape": ", ".join(map(str, values.shape))} if values.ndim > 1 else {})


def colour_axis(how: Colours, all_finite: bool, bar: dict[str, Any]) -> dict[str, Any]:
    """Return a heatmap's colours and its colour bar, whose place and title `bar` says."""
    bar = {"thickness": 12, "outlinewidth": 0, **bar}
    if how.scale == "log":
        ends = np.log10([how.low, how.high])
        marks = np.arange(np.ceil(ends[0]), np.floor(ends[1]) + 1)
        at, said = marks, [f"{10.0**mark:.0e}" if mark < -3 else f"{10.0**mark:g}" for mark in marks]
    else:
        ends = np.array([0.0, how.high])
        at = np.linspace(0, how.high, 5)
        said = [f"{value:.3g}" for value in at]
    scale: list[list[Any]] = [[index / (len(_COLOURS) - 1), colour] for index, colour in enumerate(_COLOURS)]
    if not how.steps:
        bar |= {"tickvals": at.tolist(), "ticktext": said}
        return {"zmin": float(ends[0]), "zmax": float(ends[1]), "colorscale": scale, "colorbar": bar}
    places = 1 + (at - ends[0]) / (ends[1] - ends[0]) * (_STEPS - 1)
    top = _BAD if not all_finite else _STEPS
    bar |= {"tickvals": [*places.tolist(), *([] if all_finite else [_BAD])]}
    bar |= {"ticktext": [*said, *([] if all_finite else ["not finite"])]}
    # Nothing at all is transparent; what is not finite has a colour that the scale has not.
    inner = [[(0.5 + share * (_STEPS - 0.5)) / top, colour] for share, colour in scale]
    outer = [] if all_finite else [[(_STEPS + 0.5) / top, "#d01c8b"], [1.0, "#d01c8b"]]
    if not all_finite:
        inner.append([(_STEPS + 0.5) / top, _COLOURS[-1]])
    scale = [[0.0, "rgba(0,0,0,0)"], [0.5 / top, "rgba(0,0,0,0)"], *inner, *outer]
    return {"zmin": 0, "zmax": top, "colorscale": scale, "colorbar": bar}
