"""Whether what a module adds to its logits, key by key, is ALiBi: slope times position."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from probe.errors import NotReproducible
from probe.kernels.call import Call


def check_key_bias(
    call: Call, bias: Float[Tensor, "batch head key"] | None, sample: int, columns: tuple[int, int], where: str
) -> None:
    """Refuse a bias that is not the call's slopes times key position, up to a constant and its dtype's rounding.

    `columns` is the range of the bias that holds the call's keys.
    """
    if bias is None:
        return
    found = bias[sample if bias.shape[0] > 1 else 0, :, columns[0] : columns[1]].double()
    slope = torch.zeros(call.num_heads) if call.alibi_slope is None else call.alibi_slope
    expected = slope.double().to(found.device)[:, None] * torch.arange(call.num_keys, device=found.device)
    off = found - expected
    off = (off - off[:, :1]).abs().amax()
    allowed = 2 * torch.finfo(bias.dtype).eps * found.abs().amax()
    if off > allowed:
        raise NotReproducible(
            f"{where}: what it adds to the logits of each key is no ALiBi: off by {float(off):.3g} where "
            f"{float(allowed):.3g} is allowed for {str(bias.dtype).removeprefix('torch.')}"
        )
