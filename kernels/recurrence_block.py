"""A few tokens of a recurrence at once: the state forwards, and what is read of them backwards."""

from __future__ import annotations

from collections.abc import Iterator
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
    summed_factor: Float[Tensor, "token state_head #state #channel"] | None
    """Sum of what is added to the log-decays times their rate; None for nothing, and where there is no rate."""
    delta: bool
    """Whether the delta rule holds; then gate and decay are the same for all channels, and there is no rate."""

    def advance(self, state: Float[Tensor, "state_head state channel"]) -> Float[Tensor, "state_head state channel"]:
        """Return the state after the block from the one before it."""
        value = self._corrected(state) if self.delta else self.value
        written = self._written(self.gate * value)
        return self.decay_over() * state + written

    def decay_over(self) -> Float[Tensor, "state_head #state #channel"]:
        """Return the decay from the state before the block to the one after it."""
        return self._decay(self.summed[-1], None if self.summed_factor is None else self.summed_factor[-1])

    def outputs(
        self, query: Float[Tensor, "token state_head state"], state: Float[Tensor, "state_head state channel"]
    ) -> tuple[Float[Tensor, "token state_head channel"], Float[Tensor, "state_head state channel"]]:
        """Return what the queries read of the states after each token, without the delta rule, and the last state."""
        if self.one_decay:
            held = torch.einsum("chn,hnp->chp", query, state) * self.decay_from_start()[..., 0]
            return held + self.read_within(query), self.advance(state)
        read = []
        for q, now in zip(query, self.states_each(state), strict=True):
            state = now
            read.append(torch.einsum("hn,hnp->hp", q, state))
        return torch.stack(read), state

    def states_each(
        self, state: Float[Tensor, "state_head state channel"]
    ) -> Iterator[Float[Tensor, "state_head state channel"]]:
        """Yield the state after each token, one by one, without the delta rule."""
        for decay, key, value in zip(self.decay_each(), self.key, self.gate * self.value, strict=True):
            state = torch.addcmul(key[..., None] * value[..., None, :], decay, state)
            yield state

    def decay_each(self) -> Float[Tensor, "token state_head #state #channel"]:
        """Return the decay at each token."""
        nothing = torch.zeros_like(self.summed[:1])
        factor = self.summed_factor
        factors = None if factor is None else factor.diff(dim=0, prepend=torch.zeros_like(factor[:1]))
        return self._decay(self.summed.diff(dim=0, prepend=nothing), factors)

    def read_within(
        self, query: Float[Tensor, "query state_head state"], window: int | None = None
    ) -> Float[Tensor, "query state_head channel"]:
        """Return what the block's last tokens, as many as there are queries, read of the block's own, with one decay.

        With a `window`, of the `window` tokens that end with each alone.
        """
        num_queries, num_keys = len(query), len(self.key)
        log = self.summed[..., 0, 0] if self.rate is None else self.summed[..., 0, 0] * self.rate[..., 0, 0]
        log = (log if self.summed_factor is None else log + self.summed_factor[..., 0, 0]).T
        ahead = torch.arange(num_keys - num_queries, num_keys, device=log.device)[:, None]
        ahead = ahead - torch.arange(num_keys, device=log.device)
        seen = (ahead >= 0) if window is None else (ahead >= 0) & (ahead < window)
        stretch = (log[:, -num_queries:, None] - log[:, None, :]).masked_fill(~seen, -torch.inf)
        products = query.transpose(0, 1) @ self.key.permute(1, 2, 0)
        written = (self.gate * self.value).transpose(0, 1)
        return ((products * stretch.to(products.dtype).exp()) @ written).transpose(0, 1)

    @property
    def one_decay(self) -> bool:
        """Whether all entries of a state have the same decay."""
        shapes = [each.shape[-2:] for each in (self.summed, self.rate, self.summed_factor) if each is not None]
        return all(shape == (1, 1) for shape in shapes)

    def attended(
        self, read: Float[Tensor, "state_head state #channel"]
    ) -> tuple[Float[Tensor, "token state_head #channel"], Float[Tensor, "state_head state #channel"]]:
        """Go back through the block: `read` is the derivative of some y with respect to the state after it.

        Returns that y's derivatives with respect to the values of the block's tokens, channel by channel, and with
        respect to the state before the block.
        """
        left = self.decay_over() * read
        if not self.delta:
            return self.gate * self._seen(read), left
        # The derivatives m obey m_j + g_j Σ_{i > j} W_ij m_i = g_j k_j · (what is left of `read` at j).
        gate = self.gate[..., 0].T
        system = gate[..., None] * self._pairs().transpose(-1, -2)
        seen = (gate * self._seen(read)[..., 0].T)[..., None]
        m = torch.linalg.solve_triangular(system, seen, upper=True, unitriangular=True)
        taken = torch.einsum("hc,chn->hn", m[..., 0], self.key * self.decay_from_start()[..., 0])
        return m[..., 0].T[..., None], left - taken[..., None]

    def _decay(self, log: Tensor, factor: Tensor | None = None) -> Tensor:
        """Return the decay over a stretch of tokens, from its sums of log-decays and of factors' logarithms."""
        log = log.to(self.key.dtype)
        log = log if self.rate is None else log * self.rate
        return (log if factor is None else log + factor.to(log.dtype)).exp()

    def decay_from_start(self) -> Float[Tensor, "token state_head #state #channel"]:
        """Return the decay from the state before the block to the one after each token."""
        return self._decay(self.summed, self.summed_factor)

    def decay_until_end(self) -> Float[Tensor, "token state_head #state #channel"]:
        """Return the decay from the state after each token to the one after the block."""
        factor = self.summed_factor
        return self._decay(self.summed[-1] - self.summed, None if factor is None else factor[-1] - factor)

    def _written(self, value: Float[Tensor, "token state_head channel"]) -> Tensor:
        """Return what of these gated values is in the state after the block."""
        decay = self.decay_until_end()
        if decay.shape[-1] == 1:
            return torch.einsum("chn,chp->hnp", self.key * decay[..., 0], value)
        if decay.shape[-2] == 1:
            return torch.einsum("chn,chp->hnp", self.key, value * decay[..., 0, :])
        return (decay * self.key[..., None] * value[..., None, :]).sum(0)

    def _seen(self, read: Tensor) -> Float[Tensor, "token state_head #channel"]:
        """Return Σ_n k_j[n] read[n] with the decay from j to the block's end."""
        decay = self.decay_until_end()
        if decay.shape[-1] == 1:
            return torch.einsum("chn,hnp->chp", self.key * decay[..., 0], read)
        if decay.shape[-2] == 1:
            return decay[..., 0, :] * torch.einsum("chn,hnp->chp", self.key, read)
        return torch.einsum("chn,chnp->chp", self.key, decay * read)

    def _corrected(self, state: Tensor) -> Float[Tensor, "token state_head channel"]:
        """Return u: the values less what the state holds at the keys when they come."""
        held = torch.einsum("chn,hnp->hcp", self.key * self.decay_from_start()[..., 0], state)
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
