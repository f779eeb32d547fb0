"""How many directions the keys of a head really use."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from probe.kernels.call import Call
from probe.kernels.dense import Dense
from probe.kernels.keys import Keys, as_float64
from probe.kernels.statistic import ArrayFacts, Statistic
from probe.kernels.tally import Tally


@dataclass(frozen=True)
class key_spectrum(Statistic):
    """Singular values, over √n, of the n × d matrix of a key-value head's keys after rotation, largest first: the roots
    of the eigenvalues λ of mean k kᵀ; and the same of the keys less their mean (`centred`).

    The effective rank is exp(−Σ p log p) with p = λ / Σ λ, Roy and Vetterli's of the matrix mean k kᵀ (of the matrix
    of keys itself it would have p ∝ √λ); the participation ratio is (Σ λ)² / Σ λ². Both are 0 where every λ is. A λ
    below float64's rounding, d · 2⁻⁵² of the largest uncentred one, counts as 0. Keys that are hidden from every query
    do not count. Spectra do not merge: what is added up, chunk by chunk and in float64, is n, Σ k and Σ k kᵀ.
    """

    kind = "key"
    arrays: ClassVar = {
        "": ArrayFacts(("kv_head", "component"), "", merge="none"),
        "centred": ArrayFacts(("kv_head", "component"), "", merge="none", meaning="of the keys less their mean"),
        "effective_rank": ArrayFacts(("kv_head",), "", merge="none", meaning="effective rank"),
        "centred_effective_rank": ArrayFacts(
            ("kv_head",), "", merge="none", meaning="effective rank of the keys less their mean"
        ),
        "participation_ratio": ArrayFacts(("kv_head",), "", merge="none", meaning="participation ratio"),
        "centred_participation_ratio": ArrayFacts(
            ("kv_head",), "", merge="none", meaning="participation ratio of the keys less their mean"
        ),
    }
    source = "this toolkit's own; Roy and Vetterli 2007, EUSIPCO, define the effective rank"

    def reference(self, dense: Dense) -> dict[str, Tensor]:
        key = dense.call.key.double()
        if dense.call.key_visible is not None:
            key = key[:, dense.call.key_visible]
        room = (0, key.shape[-1] - min(key.shape[1:]))
        whole, centred = (
            torch.nn.functional.pad(torch.linalg.svdvals(each), room).square() / key.shape[1]
            for each in (key, key - key.mean(1, keepdim=True))
        )
        return _described(whole, centred)

    def tally(self) -> Tally:
        """Return the moments."""
        return _Moments(self)


class _Moments(Tally):
    """Number, mean, and Σ (k − mean)(k − mean)ᵀ of each head's keys, merged as by Chan et al. (1979), in float64."""

    def __init__(self, statistic: key_spectrum) -> None:
        super().__init__(statistic)
        self._count = 0
        self._mean = self._scatter = torch.empty(0)

    def take(self, call: Call, new: Keys) -> None:
        """Add the new keys."""
        for block in new.blocks():
            key = as_float64(block.key)
            if block.visible is not None:
                key = key[:, block.visible.to(key.device)]
            if key.shape[1]:
                mean = key.mean(1)
                centred = key - mean[:, None]
                self._add(key.shape[1], mean, centred.mT @ centred)

    def state(self) -> dict[str, Tensor]:
        """Return the moments."""
        if not self._count:
            return {}
        return {"count": torch.tensor(self._count), "mean": self._mean, "scatter": self._scatter}

    def merge(self, state: Mapping[str, Tensor]) -> None:
        """Add the moments of other keys."""
        self._add(int(state["count"]), state["mean"], state["scatter"])

    def finish(self, key_start: int, key_stop: int) -> dict[str, Tensor]:
        """Return what the moments say."""
        if not self._count:
            return {}
        mean, centred = self._mean.cpu(), self._scatter.cpu() / self._count
        finite = centred.isfinite().all(-1).all(-1)
        keep = finite[:, None, None]
        # The solver refuses what is not finite: those heads become NaN, the others stay what they are.
        centred = torch.where(keep, centred, 0.0)
        whole = centred + torch.where(keep, mean[:, :, None] * mean[:, None, :], 0.0)
        arrays = _described(*(torch.linalg.eigvalsh(each).flip(-1) for each in (whole, centred)))
        broken = {suffix: ~finite[:, None] if values.ndim == 2 else ~finite for suffix, values in arrays.items()}
        return {suffix: values.masked_fill(broken[suffix], torch.nan).float() for suffix, values in arrays.items()}

    def _add(self, count: int, mean: Tensor, scatter: Tensor) -> None:
        if self._count:
            total = self._count + count
            shift = mean.to(self._mean) - self._mean
            outer = shift[:, :, None] * shift[:, None, :] * (self._count * count / total)
            scatter = scatter.to(self._scatter) + self._scatter + outer
            mean = self._mean + shift * (count / total)
        self._count += count
        self._mean, self._scatter = mean, scatter


def _described(
    whole: Float[Tensor, "kv_head component"], centred: Float[Tensor, "kv_head component"]
) -> dict[str, Tensor]:
    """Return every array from the eigenvalues, largest first."""
    smallest = whole[:, :1] * whole.shape[-1] * torch.finfo(torch.float64).eps
    described = {}
    for prefix, eigenvalue in (("", whole), ("centred", centred)):
        kept = torch.where(eigenvalue > smallest, eigenvalue, 0.0)
        total = kept.sum(-1, keepdim=True)
        share = torch.where(total > 0, kept / total, 0.0)
        squares = share.square().sum(-1)
        entropy = torch.special.entr(share).sum(-1)
        name = f"{prefix}_".lstrip("_")
        described[prefix] = kept.sqrt()
        described[f"{name}effective_rank"] = torch.where(squares > 0, entropy.exp(), 0.0)
        described[f"{name}participation_ratio"] = torch.where(squares > 0, 1 / squares, 0.0)
    return described
