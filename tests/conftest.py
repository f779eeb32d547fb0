"""What every test runs under."""

from __future__ import annotations

import os

# Before torch is imported. The models of these tests are tiny: threads only wait for one another, and two test runs on
# one machine would slow each other a hundredfold.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
# Nothing may be fetched: a test that asks a hub for anything fails at once.
os.environ["HF_HUB_OFFLINE"] = "1"

import torch

# Triton reads this when it is imported: without a GPU its kernels run interpreted, with one they run compiled.
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"
