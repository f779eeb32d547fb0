"""What every test runs under."""

from __future__ import annotations

import atexit
import os
import shutil
import signal
import tempfile

# Before torch is imported. The models of these tests are tiny: threads only wait for one another, and two test runs on
# one machine would slow each other a hundredfold.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
# Nothing may be fetched: a test that asks a hub for anything fails at once.
os.environ["HF_HUB_OFFLINE"] = "1"
# What is remembered of models stays out of the home of whoever runs the tests, and is new in every run.
os.environ["PROBE_CACHE"] = tempfile.mkdtemp(prefix="probe-cache-")

# A shell that runs the tests in the background has them ignore Ctrl-C, and every process that they start with them.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

import torch

from tests.reliability.figures import measured, pytest_addoption, pytest_configure

__all__ = ["measured", "pytest_addoption", "pytest_configure"]

atexit.register(shutil.rmtree, os.environ["PROBE_CACHE"], ignore_errors=True)

# Triton reads this when it is imported: without a GPU its kernels run interpreted, with one they run compiled.
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"
