"""A crc32c behind the bytes of a chunk."""

from __future__ import annotations

import google_crc32c

from trainhooks.store.errors import StoreError

_CHECKSUM_BYTES = 4


def sealed(data: bytes) -> bytes:
    """The data followed by their crc32c, little-endian."""
    value: int = google_crc32c.value(data)
    return data + value.to_bytes(_CHECKSUM_BYTES, "little")


def unsealed(data: bytes, *, where: str) -> bytes:
    """The data without their crc32c. Raises StoreError where it does not fit them."""
    content, checksum = data[:-_CHECKSUM_BYTES], data[-_CHECKSUM_BYTES:]
    if google_crc32c.value(content).to_bytes(_CHECKSUM_BYTES, "little") != checksum:
        raise StoreError(f"{where} is damaged: its checksum does not fit.")
    return content
