"""A JSON record that knows its own hash, and lies on the disk twice: one flipped bit is found, and can be undone."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any, Final

from probe.errors import NotAvailable, StoreCorrupt
from probe.storage.durable import (
    MAX_JSON_BYTES,
    canonical_json,
    file_hash,
    json_bytes,
    read_bytes,
    read_json,
    write_json,
)
from probe.storage.object_path import Location

SEAL: Final = "seal"
"""Key of the SHA-256 over the canonical JSON of everything else in a record."""

_MAX_BYTES: Final = 2**30

COPY: Final = "run.copy.json"
"""The second of the two places that a run's record lies in."""


def sealed(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return a record with its seal."""
    rest = {key: value for key, value in record.items() if key != SEAL}
    return {**rest, SEAL: hashlib.sha256(canonical_json(rest).encode()).hexdigest()}


def intact(record: Mapping[str, Any]) -> bool:
    """Return whether a record is what was sealed; one that was never sealed is taken as it is."""
    return SEAL not in record or record[SEAL] == sealed(record)[SEAL]


def write_record(folder: Location, record: Mapping[str, Any]) -> None:
    """Write a run's record to both places; a crash between the two leaves two whole records, the first one newer."""
    whole = sealed(record)
    write_json(folder / "run.json", whole)
    write_json(folder / COPY, whole)


def read_sealed(path: Location) -> dict[str, Any]:
    """Return the record in a file; NotAvailable where there is none, StoreCorrupt where it is not what was sealed."""
    record = read_json(path)
    if not isinstance(record, dict):
        raise StoreCorrupt(f"{path} is not the record of a run")
    if not intact(record):
        raise StoreCorrupt(f"{path} was altered: its seal does not hold; `probe verify` says what is damaged")
    return record


def file_hashes(folder: Location, names: tuple[str, ...]) -> dict[str, str]:
    """Return the SHA-256 of those of the files that are there."""
    found = {}
    for name in names:
        try:
            _, found[name] = file_hash(folder / name, _MAX_BYTES)
        except NotAvailable:
            continue
        except StoreCorrupt:
            # A link, a device or what is far too large is no file of a run, and has no hash.
            found[name] = ""
    return found


def unsealed(path: Location) -> bool:
    """Return whether a file holds a record without a seal, as an earlier version wrote it."""
    try:
        record = read_json(path)
    except (NotAvailable, StoreCorrupt):
        return False
    return isinstance(record, dict) and SEAL not in record


def damaged_record(path: Location) -> str | None:
    """Return what is wrong with a sealed record, None where nothing is."""
    try:
        record = read_sealed(path)
    except NotAvailable:
        return "is missing"
    except StoreCorrupt as error:
        return f"is not what was written: {error}"
    if SEAL not in record:
        return "has no seal"
    # A number may be spelt in two ways: only the one that was written is what was written.
    if read_bytes(path, MAX_JSON_BYTES) != json_bytes(record, path):
        return "is not what was written: its seal holds, its spelling does not"
    return None
