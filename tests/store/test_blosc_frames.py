"""Frames that are put together of blocks: to the byte what blosc makes of the whole."""

import numpy as np
import pytest
from numcodecs import Blosc

from trainhooks.store.format.blosc_frames import Frame, replaced_from, widened

CODEC = Blosc(cname="zstd", clevel=1, shuffle=Blosc.BITSHUFFLE)
MANY_BLOCKS = ((1024, 8, "<i8"), (1024, 101, "<f4"), (96, 3333, "<f4"), (257, 2001, "<i2"), (512, 205, "<f8"))


def drawn(shape: tuple[int, ...], dtype: str) -> np.ndarray:
    return (50 * np.random.default_rng(0).standard_normal(shape)).astype(dtype)


@pytest.mark.parametrize(("rows", "row", "dtype"), MANY_BLOCKS)
def test_a_frame_of_which_rows_were_replaced_is_the_frame_of_all_rows(rows, row, dtype):
    missing = -1 if "i" in dtype else np.nan
    whole = np.full((rows, row), missing, dtype=dtype)
    for start, count in ((0, 5), (5, 32), (37, rows // 3), (37 + rows // 3, rows - 37 - rows // 3)):
        before = whole.copy()
        before[start + 1 : start + 9] = 3  # of a fold that never counted
        values = drawn((count, row), dtype)
        whole[start : start + count] = values
        frame = replaced_from(CODEC.encode(before), CODEC, values, start=start * row, items=rows * row, missing=missing)
        assert frame == CODEC.encode(whole)


def test_what_cannot_be_taken_apart_is_left_to_the_codec():
    def replaced(data: bytes, *, items: int = 1 << 16) -> bytes | None:
        return replaced_from(data, CODEC, np.zeros(4, "<f4"), start=8, items=items, missing=np.nan)

    content = np.zeros(1 << 16, "<f4")
    assert replaced(CODEC.encode(content)) is not None
    assert replaced(CODEC.encode(content), items=1 << 17) is None  # of another size
    assert replaced(CODEC.encode(content[:64]), items=64) is None  # one block
    assert replaced(Blosc(clevel=0).encode(content)) is None  # not compressed
    assert replaced(Blosc(cname="blosclz", clevel=1).encode(content)) is None  # blocks in several streams
    assert replaced(Blosc(cname="zstd", shuffle=Blosc.SHUFFLE).encode(content)) is None
    assert replaced(CODEC.encode(np.zeros(1 << 15, "<f8"))) is None


def test_a_frame_that_is_cut_or_names_places_outside_is_an_error():
    data = CODEC.encode(drawn((1 << 16,), "<f4"))
    frame = Frame.parse(data)
    assert frame is not None
    assert len(frame.blocks) > 4
    assert frame.join() == data
    assert np.array_equal(
        np.frombuffer(CODEC.decode(frame.alone(2)), "<f4"), drawn((1 << 16,), "<f4")[2 * 8192 :][:8192]
    )
    for broken in (data[:9], data[:-1], data + b"\0", data[:16] + b"\xff\xff\xff\x7f" + data[20:]):
        with pytest.raises(ValueError, match="frame"):
            Frame.parse(broken)
    for size in (b"\0\0\0\0", b"\xff\xff\xff\xff"):  # of a block
        with pytest.raises(ValueError, match="frame"):
            Frame.parse(data[:8] + size + data[12:])
    place = int.from_bytes(data[16:20], "little")
    for length in (b"\xff\xff\xff\xff", b"\0\0\0\0", b"\xff\xff\xff\x7f"):
        with pytest.raises(ValueError, match="outside its frame"):
            Frame.parse(data[:place] + length + data[place + 4 :])


def test_blocks_that_share_their_bytes_make_no_more_than_the_frame_says():
    """A file of 66 kB would be joined into one of 4 MB, one of 1 MB into one of 2 GB."""
    good = Frame.parse(CODEC.encode(np.zeros(1 << 19, "<f4")))
    assert good is not None
    assert len(good.blocks) == 64
    long = (1 << 16).to_bytes(4, "little") + bytes(1 << 16)
    start = 16 + 4 * 64
    head = good.head + b"".join(part.to_bytes(4, "little") for part in (good.size, good.block_size, start + len(long)))
    with pytest.raises(ValueError, match=f"behind {good.block_size} bytes"):
        Frame.parse(head + start.to_bytes(4, "little") * 64 + long)


def test_blocks_that_are_smaller_than_the_codec_makes_are_left_to_it():
    """It would be given their size and take a larger one."""
    values = np.zeros(256, "<f4")
    head = CODEC.encode(np.zeros(1 << 16, "<f4"))[:4]
    data = Frame(head, values.nbytes, 64, [(64).to_bytes(4, "little") + bytes(64)] * 16).join()
    assert np.array_equal(np.frombuffer(CODEC.decode(data), "<f4"), values)
    assert replaced_from(data, CODEC, np.full(40, 7, "<f4"), start=20, items=256, missing=np.nan) is None


def test_upper_halves_make_a_frame_of_the_whole_numbers():
    upper = drawn((300, 1000), "<i2").view("<u2")
    for block_size in (1 << 12, 1 << 16, 1 << 20):
        for shuffle in (Blosc.BITSHUFFLE, Blosc.SHUFFLE):
            codec = Blosc(cname="zstd", clevel=1, shuffle=shuffle, blocksize=block_size)
            frame = widened(codec.encode(upper))
            assert frame is not None
            assert np.array_equal(np.frombuffer(Blosc().decode(frame), "<u4"), upper.reshape(-1).astype("<u4") << 16)
    assert widened(CODEC.encode(upper.view("<u4"))) is None
    assert widened(CODEC.encode(upper[:1, :999])) is None  # a shuffle leaves the last seven out
    assert widened(CODEC.encode(np.random.default_rng(0).integers(0, 1 << 16, 1 << 16).astype("<u2"))) is None
