"""Full float32, whatever the model's own forward pass runs under."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch


@contextmanager
def exact(device: torch.device) -> Iterator[None]:
    """Within the block products of float32 matrices are of float32, without autocast and without gradients.

    Whatever was set before (TF32 by either of torch's two interfaces, autocast) holds again afterwards.
    """
    # Torch's older interface to this raises where the newer one was used.
    backends: Any = torch.backends
    products = backends.cuda.matmul, backends.mkldnn.matmul
    before = [each.fp32_precision for each in products]
    for each in products:
        each.fp32_precision = "ieee"
    try:
        with torch.inference_mode(False), torch.no_grad(), torch.autocast(device.type, enabled=False):
            yield
    finally:
        for each, precision in zip(products, before, strict=True):
            each.fp32_precision = precision
