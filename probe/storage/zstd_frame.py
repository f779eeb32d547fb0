"""What a zstd frame says of itself before it is unpacked."""

from __future__ import annotations


def content_bytes(frame: bytes) -> int:
    """Return the size that a zstd frame says it unpacks to (RFC 8878, section 3.1.1.1), -1 where it says none."""
    if len(frame) < 6 or frame[:4] != b"\x28\xb5\x2f\xfd":
        return -1
    descriptor = frame[4]
    single_segment = descriptor >> 5 & 1
    start = 5 + (1 - single_segment) + (0, 1, 2, 4)[descriptor & 3]
    num_bytes = (single_segment, 2, 4, 8)[descriptor >> 6]
    if not num_bytes:
        return -1
    return int.from_bytes(frame[start : start + num_bytes], "little") + (256 if num_bytes == 2 else 0)
