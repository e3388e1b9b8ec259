"""Codec profiles: how the output embedding's inner chunks are compressed.

Every profile is blosc with zstd, so every one is core Zarr v3. A blosc frame says by itself how it was made: frames of
several profiles in one array, whatever its metadata names, are read alike by every reader.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Float32, UInt16
from numcodecs import Blosc  # type: ignore[import-untyped]
from zarr.codecs import BloscCodec

from trainhooks.store.format.blosc_frames import widened
from trainhooks.store.format.precision import unpack

_ITEM = np.dtype("<f4")
_FLAGS, _SHUFFLE_FLAG, _BITSHUFFLE_FLAG = 2, 0x1, 0x4  # a byte of blosc's header, and bits in it
_SHUFFLES = {"shuffle": Blosc.SHUFFLE, "bitshuffle": Blosc.BITSHUFFLE}


@dataclass(frozen=True)
class Profile:
    """Blosc's settings: zstd at level `level` (1 to 9), after a `shuffle` of bytes ("shuffle") or bits ("bitshuffle").

    `block_bytes` is what blosc compresses at a time, 0: as it thinks best for the level.

    Raises ValueError for a level or a shuffle that is not known.
    """

    name: str
    level: int
    shuffle: str
    block_bytes: int = 0

    def __post_init__(self) -> None:
        if not 1 <= self.level <= 9:
            raise ValueError(f"profile {self.name!r} has level {self.level}; zstd in blosc has levels 1 to 9.")
        if self.shuffle not in _SHUFFLES:
            raise ValueError(f"profile {self.name!r} has shuffle {self.shuffle!r}; use one of {', '.join(_SHUFFLES)}.")

    def compress(self, values: Float32[np.ndarray, "..."]) -> bytes:
        """One blosc frame of float32 values in the order in which they lie in memory (C order).

        Releases the interpreter's lock outside the main thread and starts no threads there.
        """
        frame: bytes = self._blosc.encode(np.ascontiguousarray(values, dtype=_ITEM))
        return frame

    def compress_upper(self, upper: UInt16[np.ndarray, "..."]) -> bytes:
        """As `compress`, of the float32 values whose upper halves these are; their lower halves are zero."""
        frame = widened(self._upper_blosc.encode(np.ascontiguousarray(upper, dtype="<u2")))
        return self.compress(unpack(upper)) if frame is None else frame

    def made(self, frame: bytes | memoryview) -> bool:
        """Whether a blosc frame has this profile's shuffle; a frame does not say its level."""
        flag = _BITSHUFFLE_FLAG if self.shuffle == "bitshuffle" else _SHUFFLE_FLAG
        return frame[_FLAGS] & (_BITSHUFFLE_FLAG | _SHUFFLE_FLAG) == flag

    def codec(self) -> BloscCodec:
        """The same settings as an array's metadata declare them."""
        return BloscCodec(
            cname="zstd",
            clevel=self.level,
            shuffle="bitshuffle" if self.shuffle == "bitshuffle" else "shuffle",
            typesize=_ITEM.itemsize,
            blocksize=self.block_bytes,
        )

    @cached_property
    def _blosc(self) -> Blosc:
        return Blosc(cname="zstd", clevel=self.level, shuffle=_SHUFFLES[self.shuffle], blocksize=self.block_bytes)

    @cached_property
    def _upper_blosc(self) -> Blosc:
        size = self.block_bytes // 2
        return Blosc(cname="zstd", clevel=self.level, shuffle=_SHUFFLES[self.shuffle], blocksize=size)


def decompress(frame: bytes) -> Float32[np.ndarray, "value"]:
    """The float32 values of a blosc frame of any profile. Raises RuntimeError or ValueError where it is damaged."""
    return np.frombuffer(Blosc().decode(frame), dtype=_ITEM).astype(np.float32, copy=False)


# keeps up with training
LIVE = Profile("live", level=1, shuffle="bitshuffle", block_bytes=1 << 21)
# for runs that have ended. Large blocks let low bytes of neighbours meet: at level 5 they give what blosc's own choice
# gives between levels 7 and 9, and 20 times as fast as 9 (bfloat16, 32 snapshots: 10.1 against 9.1 and 11.0 times
# smaller than raw float32)
ARCHIVE = Profile("archive", level=5, shuffle="shuffle", block_bytes=1 << 21)
PROFILES = {profile.name: profile for profile in (LIVE, ARCHIVE)}


def profile_named(name: str) -> Profile:
    """The profile of that name. Raises ValueError for an unknown one."""
    if name not in PROFILES:
        raise ValueError(f"profile {name!r} is not known; use one of {', '.join(PROFILES)}.")
    return PROFILES[name]
