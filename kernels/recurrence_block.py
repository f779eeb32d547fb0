"""A few tokens of a recurrence at once: the state forwards, and what is read of them backwards."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True, eq=False)
class RecurrenceBlock:
    """Consecutive tokens of a recurrence (see `Recurrence` for the letters), in the dtype that it is computed in."""

    key: Float[Tensor, "token state_head state"]
    """k, of each head."""
    value: Float[Tensor, "token state_head channel"]
    """v."""
    gate: Float[Tensor, "token state_head #channel"]
    """g."""
    summed: Float[Tensor, "token state_head #state #channel"]
    """Sum of the log-decays (less their `rate`) from the block's first token to each, in float64."""
    rate: Float[Tensor, "state_head #state #channel"] | None
    """Factor of the log-decays; None for 1."""
    delta: bool
    """Whether the delta rule holds; then gate and decay are the same for all channels, and there is no rate."""

    def advance(self, state: Float[Tensor, "state_head state channel"]) -> Float[Tensor, "state_head state channel"]:
        """Return the state after the block from the one before it."""
        value = self._corrected(state) if self.delta else self.value
        written = self._written(self.gate * value)
        return self._decay(self.summed[-1]) * state + written

    def attended(
        self, read: Float[Tensor, "state_head state #channel"]
    ) -> tuple[Float[Tensor, "token state_head #channel"], Float[Tensor, "state_head state #channel"]]:
        """Go back through the block: `read` is the derivative of some y with respect to the state after it.

        Returns that y's derivatives with respect to the values of the block's tokens, channel by channel, and with
        respect to the state before the block.
        """
        left = self._decay(self.summed[-1]) * read
        if not self.delta:
            return self.gate * self._seen(read), left
        # The derivatives m obey m_j + g_j Σ_{i > j} W_ij m_i = g_j k_j · (what is left of `read` at j).
        gate = self.gate[..., 0].T
        system = gate[..., None] * self._pairs().transpose(-1, -2)
        seen = (gate * self._seen(read)[..., 0].T)[..., None]
        m = torch.linalg.solve_triangular(system, seen, upper=True, unitriangular=True)
        taken = torch.einsum("hc,chn->hn", m[..., 0], self.key * self._decay(self.summed)[..., 0])
        return m[..., 0].T[..., None], left - taken[..., None]

    def _decay(self, log: Tensor) -> Tensor:
        """Return the decay over a stretch of tokens."""
        log = log.to(self.key.dtype)
        return (log if self.rate is None else log * self.rate).exp()

    def _until_end(self) -> Float[Tensor, "token state_head #state #channel"]:
        return self._decay(self.summed[-1] - self.summed)

    def _written(self, value: Float[Tensor, "token state_head channel"]) -> Tensor:
        """Return what of these gated values is in the state after the block."""
        decay = self._until_end()
        if decay.shape[-1] == 1:
            return torch.einsum("chn,chp->hnp", self.key * decay[..., 0], value)
        if decay.shape[-2] == 1:
            return torch.einsum("chn,chp->hnp", self.key, value * decay[..., 0, :])
        return (decay * self.key[..., None] * value[..., None, :]).sum(0)

    def _seen(self, read: Tensor) -> Float[Tensor, "token state_head #channel"]:
        """Return Σ_n k_j[n] read[n] with the decay from j to the block's end."""
        decay = self._until_end()
        if decay.shape[-1] == 1:
            return torch.einsum("chn,hnp->chp", self.key * decay[..., 0], read)
        if decay.shape[-2] == 1:
            return decay[..., 0, :] * torch.einsum("chn,hnp->chp", self.key, read)
        return torch.einsum("chn,chnp->chp", self.key, decay * read)

    def _corrected(self, state: Tensor) -> Float[Tensor, "token state_head channel"]:
        """Return u: the values less what the state holds at the keys when they come."""
        held = torch.einsum("chn,hnp->hcp", self.key * self._decay(self.summed)[..., 0], state)
        system = self._pairs() * self.gate[..., 0].T[:, None, :]
        wanted = self.value.transpose(0, 1) - held
        corrected: Tensor = torch.linalg.solve_triangular(system, wanted, upper=False, unitriangular=True)
        return corrected.transpose(0, 1)

    def _pairs(self) -> Float[Tensor, "state_head token token"]:
        """Return W_ij = k_i · (the decay from j to i) k_j for i > j, 0 elsewhere."""
        key = self.key.transpose(0, 1)
        summed = self.summed[..., 0].transpose(0, 1)
        later = torch.ones(key.shape[1], key.shape[1], dtype=torch.bool, device=key.device).tril(-1)
        stretch = summed[:, :, None] - summed[:, None, :]
        decay = self._decay(stretch.masked_fill(~later[..., None], 0)) * later[..., None]
        if decay.shape[-1] == 1:
            return (key @ key.transpose(-1, -2)) * decay[..., 0]
        return torch.einsum("hin,hijn,hjn->hij", key, decay, key)
