"""A Ray cluster for the length of a run: one that is there, or one of this machine's own that ends with the run."""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import secrets
import shutil
import signal
import socket
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import probe
from probe.errors import NotAvailable, UsageError

_FOLDER: Final = "probe-ray-"
_OBJECT_STORE_BYTES: Final = 128 << 20
"""Samples and commit records go through it, no arrays."""


@contextlib.contextmanager
def cluster(address: str | None, workers: int | None, cpus: int, gpus: float) -> Iterator[int]:
    """Join the cluster at an address, or start one with `workers` workers of so many CPUs and GPUs on this machine.

    Yields how many workers there is room for, of `workers` at most. A process that is connected already stays
    connected. Raises NotAvailable where there is no such cluster, UsageError where this machine has fewer GPUs.
    """
    if address is not None:
        _check_somebody_listens(address)
    with _environment(address):
        # Ray reads its settings when it is imported.
        import ray

        if ray.is_initialized() and address is None:
            yield _room(ray.cluster_resources(), workers, cpus, gpus)
            return
        logging.getLogger("ray").setLevel(logging.ERROR)
        folder = _own_folder() if address is None else None
        before = signal.getsignal(signal.SIGTERM)
        options: dict[str, Any] = {"address": address}
        if address is None:
            workers = workers or _fitting(cpus, gpus)
            options = {
                "address": "local",
                "num_cpus": workers * cpus,
                "include_dashboard": False,
                "object_store_memory": _OBJECT_STORE_BYTES,
                "_node_ip_address": "127.0.0.1",
                "_temp_dir": folder,
            }
        try:
            ray.init(**options, log_to_driver=False, configure_logging=False)
        except SystemExit:
            # A SIGTERM, by Ray's handler.
            if callable(before):
                before(signal.SIGTERM, None)
            raise
        except (ConnectionError, OSError, RuntimeError, ValueError) as error:
            if folder is not None:
                shutil.rmtree(folder, ignore_errors=True)
            where = "could not be started here" if address is None else f"at {address} cannot be joined"
            raise NotAvailable(f"a Ray cluster {where}: {_in_one_line(error)}") from error
        finally:
            # Ray puts a handler of its own in the place of what stops a run.
            if threading.current_thread() is threading.main_thread():
                signal.signal(signal.SIGTERM, before)
    try:
        there = ray.cluster_resources()
        if address is None and gpus and _room(there, workers, cpus, gpus) < (workers or 1):
            raise UsageError(
                f"{workers} workers of {gpus:g} GPUs each do not fit on this machine, which has {there.get('GPU', 0):g}"
            )
        yield _room(there, workers, cpus, gpus)
    finally:
        ray.shutdown()
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)


def _check_somebody_listens(address: str) -> None:
    """Raise NotAvailable where nothing answers at an address: Ray itself would go on asking for many minutes."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal():
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()
    except (OSError, OverflowError) as error:
        raise NotAvailable(f"a Ray cluster at {address} cannot be joined: {error}") from error


def _own_folder() -> str:
    """Make a folder for a cluster's sockets and logs, nobody else's to read; remove those of processes that are gone.

    Short: the name of a socket has room for a hundred characters.
    """
    for left in Path(tempfile.gettempdir()).glob(f"{_FOLDER}*-*"):
        process = left.name.removeprefix(_FOLDER).partition("-")[0]
        if process.isdecimal() and not left.is_symlink() and left.stat().st_uid == os.getuid():
            try:
                os.kill(int(process), 0)
            except ProcessLookupError:
                shutil.rmtree(left, ignore_errors=True)
            except OSError:
                continue
    return tempfile.mkdtemp(prefix=f"{_FOLDER}{os.getpid()}-")


def _fitting(cpus: int, gpus: float) -> int:
    """Return how many workers this machine has room for."""
    fit = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    fit //= cpus
    if gpus:
        import torch

        devices = torch.cuda.device_count()
        fit = min(fit, int(1 / gpus) * devices if gpus <= 1 else int(devices / gpus))
    return max(fit, 1)


def _room(there: Mapping[str, float], workers: int | None, cpus: int, gpus: float) -> int:
    """Return how many workers a cluster has room for, of `workers` at most.

    One that grows when it is asked to says less than it will have: then as many as were asked for.
    """
    fit = int(there.get("CPU", 0) / cpus)
    if gpus:
        fit = min(fit, int(there.get("GPU", 0) / gpus))
    return workers if workers is not None else max(fit, 1)


@contextlib.contextmanager
def _environment(address: str | None) -> Iterator[None]:
    """Within the block Ray finds the settings that a cluster of our own is to have."""
    wanted = {
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
        # What the cluster has to say of itself it prints among our own output; whom it concerns reads it there.
        "RAY_DEDUP_LOGS_SKIP_REGEX": ".",
        "RAY_SCHEDULER_EVENTS": "0",
    }
    if address is None:
        # Its workers import this toolkit, which need not be installed.
        paths = [str(Path(probe.__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
        wanted["PYTHONPATH"] = os.pathsep.join(path for path in paths if path)
    # Its servers listen on every address of the machine: who has not this run's token is turned away.
    if address is None and "RAY_AUTH_MODE" not in os.environ:
        wanted["RAY_AUTH_TOKEN"] = _token()
        if "ray" not in sys.modules:
            wanted["RAY_AUTH_MODE"] = "token"
    # Ray itself sets the mode where it finds a token, and leaves it: without the token no later cluster would start.
    before = {name: os.environ.get(name) for name in (*wanted, "RAY_AUTH_MODE")}
    os.environ.update(wanted)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


@functools.cache
def _token() -> str:
    """Return what opens the clusters that this process starts; Ray reads it once for a process."""
    return secrets.token_hex(32)


def _in_one_line(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)[:300]
