"""Shards written by the assembler, read by everyone else's tools; the numbers come back bit for bit."""

import io
import json
import threading
from pathlib import Path

import numpy as np
import pytest
import zarr
from zarr.codecs import Crc32cCodec, TransposeCodec

from trainhooks.store.errors import StoreError
from trainhooks.store.format.profiles import ARCHIVE, LIVE, Profile, decompress, profile_named
from trainhooks.store.format.shards import Shard, ShardShape, recompress_shard, write_shard

SHAPE = ShardShape(block=4, rows=48, dim=5, inner_rows=16)


def matrices(steps: int, rows: int, *, seed: int = 0) -> np.ndarray:
    values = np.random.default_rng(seed).standard_normal((steps, rows, SHAPE.dim)).astype(np.float32)
    values[0, 0, :4] = np.nan, np.inf, -np.inf, -0.0
    values.view(np.uint32)[0, 1, 0] = 0x7FA00001  # a NaN with a payload
    return values


def written(values: np.ndarray, **settings) -> bytes:
    file = io.BytesIO()
    size = write_shard(
        file, lambda rows: values[:, rows], shape=SHAPE, steps=values.shape[0], rows=values.shape[1], **settings
    )
    assert size == len(file.getvalue())
    return file.getvalue()


def same_bits(a: np.ndarray, b: np.ndarray) -> bool:
    return a.shape == b.shape and bool((a.view(np.uint32) == np.ascontiguousarray(b).view(np.uint32)).all())


def make_array(path: Path, values: np.ndarray) -> zarr.Array:
    """An array declared by zarr-python, filled by the assembler with a profile that changes from block to block."""
    array = zarr.create_array(
        path,
        name="matrix",
        shape=values.shape,
        dtype="float32",
        chunks=(SHAPE.block, SHAPE.inner_rows, SHAPE.dim),
        shards=(SHAPE.block, SHAPE.rows, SHAPE.dim),
        filters=[TransposeCodec(order=(1, 2, 0))],
        compressors=[LIVE.codec(), Crc32cCodec()],
        fill_value=np.nan,
        dimension_names=("step", "token", "dim"),
    )
    for start in range(0, values.shape[0], SHAPE.block):
        for top in range(0, values.shape[1], SHAPE.rows):
            part = values[start : start + SHAPE.block, top : top + SHAPE.rows]
            file = path / f"matrix/c/{start // SHAPE.block}/{top // SHAPE.rows}/0"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(written(part, profile=ARCHIVE if start else LIVE))
    return array


@pytest.mark.parametrize(("steps", "rows"), [(8, 96), (4, 48), (1, 1), (6, 70), (3, 49)])
def test_zarr_reads_what_was_written(tmp_path, steps, rows):
    values = matrices(steps, rows + 1)[:, :rows]
    array = make_array(tmp_path, values)
    assert same_bits(np.asarray(array[:]), values)
    assert same_bits(np.asarray(array[:, rows - 1]), values[:, rows - 1])


def test_zarr_writes_the_same_content(tmp_path):
    """What lies beyond the array is NaN in both; zarr's own chunks of a whole shard are equal byte for byte."""
    values = matrices(4, 48)
    array = make_array(tmp_path, values)
    file = tmp_path / "matrix/c/0/0/0"
    ours = Shard(file.read_bytes(), shape=SHAPE, where="ours")
    array[:] = values
    theirs = Shard(file.read_bytes(), shape=SHAPE, where="theirs")
    for chunk in range(SHAPE.chunks):
        assert bytes(ours._frame(chunk)) == bytes(theirs._frame(chunk))


def halves(values: np.ndarray) -> np.ndarray:
    return (values.view(np.uint32) >> 16).astype(np.uint16)


@pytest.mark.parametrize("reader", ["zarr", "tensorstore"])
@pytest.mark.parametrize(("steps", "rows"), [(4, 48), (3, 20), (1, 1)])
def test_upper_halves_are_read_as_the_numbers_that_they_stand_for(tmp_path, reader, steps, rows):
    values = (matrices(steps, 48)[:, :rows].view(np.uint32) & np.uint32(0xFFFF0000)).view(np.float32)
    array = make_array(tmp_path, values)
    (tmp_path / "matrix/c/0/0/0").write_bytes(written(halves(values)))
    if reader == "tensorstore":
        tensorstore = pytest.importorskip("tensorstore")
        store = {"driver": "file", "path": str(tmp_path / "matrix")}
        array = tensorstore.open({"driver": "zarr3", "kvstore": store}, read=True).result().read().result()
    assert same_bits(np.asarray(array[:]), values)


def test_a_tile_of_halves_and_whole_numbers_keeps_both():
    values = matrices(4, 48)
    values[1:3] = (values[1:3].view(np.uint32) & np.uint32(0xFFFF0000)).view(np.float32)
    for mixed in ((0, 1), (1, 0)):
        kept = values[[0, 1]] if mixed == (0, 1) else values[[1, 0]]

        def tiles(rows: slice, kept: np.ndarray = kept, mixed: tuple[int, ...] = mixed):
            return (halves(part[rows]) if half else part[rows] for half, part in zip(mixed, kept, strict=True))

        file = io.BytesIO()
        write_shard(file, tiles, shape=SHAPE, steps=2, rows=48)
        assert file.getvalue() == written(kept)


def test_tensorstore_reads_what_was_written(tmp_path):
    tensorstore = pytest.importorskip("tensorstore")
    values = matrices(6, 70)
    make_array(tmp_path, values)
    store = {"driver": "file", "path": str(tmp_path / "matrix")}
    read = tensorstore.open({"driver": "zarr3", "kvstore": store}, read=True).result().read().result()
    assert same_bits(np.asarray(read), values)


def test_xarray_reads_what_was_written(tmp_path):
    import xarray

    values = matrices(6, 70)
    make_array(tmp_path, values)
    with xarray.open_zarr(tmp_path, consolidated=False) as data:
        assert data["matrix"].dims == ("step", "token", "dim")
        assert same_bits(data["matrix"].values, values)


@pytest.mark.parametrize("profile", [LIVE, ARCHIVE], ids=lambda profile: profile.name)
def test_chunks_lie_as_the_format_says(profile):
    """A second, naive reading of the file by the specification alone."""
    values = matrices(3, 20)
    data = written(values, profile=profile)
    index = np.frombuffer(data[-3 * 16 - 4 : -4], "<u8").reshape(3, 2)
    assert index[0, 0] == 0
    assert index[1, 0] == index[0, 1]
    assert (index[2] == 2**64 - 1).all()  # rows 32 to 47 are beyond the 20
    for chunk in range(2):
        offset, size = map(int, index[chunk])
        got = decompress(data[offset : offset + size - 4]).reshape(16, SHAPE.dim, 4)
        rows = min(16, 20 - 16 * chunk)
        assert same_bits(got[:rows, :, :3].transpose(2, 0, 1), values[:, 16 * chunk : 16 * chunk + rows])
        assert np.isnan(got[rows:]).all()
        assert np.isnan(got[:, :, 3]).all()


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_bytes_do_not_depend_on_threads(threads):
    values = matrices(4, 48)
    assert written(values, threads=threads) == written(values)


def test_tiles_may_come_one_snapshot_at_a_time():
    values = matrices(4, 48)
    file = io.BytesIO()
    buffer = threading.local()

    def tiles(rows: slice):
        for matrix in values:
            buffer.part = np.array(matrix[rows])
            yield buffer.part
            buffer.part.fill(7)  # a caller may use its buffer again

    write_shard(file, tiles, shape=SHAPE, steps=4, rows=48)
    assert file.getvalue() == written(values)


def test_tiles_are_bounded_and_asked_for_once():
    values, asked = matrices(4, 40), []

    def tiles(rows: slice) -> np.ndarray:
        asked.append((rows.start, rows.stop))
        return values[:, rows]

    write_shard(io.BytesIO(), tiles, shape=SHAPE, steps=4, rows=40)
    assert sorted(asked) == [(0, 16), (16, 32), (32, 40)]


def test_recompression_keeps_every_bit():
    values = matrices(3, 20)
    live = Shard(written(values), shape=SHAPE, where="live")
    file = io.BytesIO()
    assert recompress_shard(file, live, profile=ARCHIVE) == len(file.getvalue())
    assert file.getvalue() == written(values, profile=ARCHIVE)
    archive = Shard(file.getvalue(), shape=SHAPE, where="archive")
    assert live.made_by(LIVE)
    assert not live.made_by(ARCHIVE)
    assert archive.made_by(ARCHIVE)
    assert not archive.made_by(LIVE)
    back = io.BytesIO()
    recompress_shard(back, archive, profile=LIVE)
    assert back.getvalue() == written(values)


def test_every_flipped_byte_is_found():
    data = written(matrices(4, 48))
    for position in np.random.default_rng(1).choice(len(data), 200, replace=False):
        damaged = bytearray(data)
        damaged[position] ^= 0x10
        with pytest.raises(StoreError, match=r"damaged|index is wrong"):
            read_all(bytes(damaged))


@pytest.mark.parametrize("length", [0, 10, 100, -1])
def test_a_torn_shard_is_found(length):
    data = written(matrices(4, 48))
    with pytest.raises(StoreError, match=r"cut short|damaged"):
        read_all(data[:length])


def read_all(data: bytes) -> None:
    shard = Shard(data, shape=SHAPE, where="shard")
    for chunk in range(SHAPE.chunks):
        shard.values(chunk)


@pytest.mark.parametrize("error", [OSError("disk full"), KeyboardInterrupt()])
def test_errors_pass_through(error):
    def tiles(rows: slice) -> np.ndarray:
        if rows.start:
            raise error
        return matrices(4, 16)

    with pytest.raises(type(error)):
        write_shard(io.BytesIO(), tiles, shape=SHAPE, steps=4, rows=48)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("trainhooks-shard")]


@pytest.mark.parametrize(
    ("tile", "message"),
    [
        (np.zeros((4, 15, 5), np.float32), "needed 4 of float32"),
        (np.zeros((4, 16, 5)), "float64"),
        (np.zeros((5, 16, 5), np.float32), "snapshot 5"),
        (np.zeros((3, 16, 5), np.float32), "has 3 snapshots, needed 4"),
    ],
)
def test_tiles_that_do_not_fit_are_refused(tile, message):
    with pytest.raises(ValueError, match=message):
        write_shard(io.BytesIO(), lambda _: tile, shape=SHAPE, steps=4, rows=48)


def test_sizes_that_make_no_sense_are_refused():
    for steps, rows in ((0, 1), (5, 1), (1, 0), (1, 49)):
        with pytest.raises(ValueError, match="a shard holds 1 to 4 of 1 to 48"):
            write_shard(io.BytesIO(), lambda _: [], shape=SHAPE, steps=steps, rows=rows)
    with pytest.raises(ValueError, match="multiple of inner_rows"):
        ShardShape(4, 50, 5, 16)


def test_profiles():
    assert profile_named("archive") is ARCHIVE
    with pytest.raises(ValueError, match="live, archive"):
        profile_named("tape")
    with pytest.raises(ValueError, match="levels 1 to 9"):
        Profile("x", level=10, shuffle="shuffle")
    with pytest.raises(ValueError, match="bitshuffle"):
        Profile("x", level=1, shuffle="none")
    declared = json.loads(json.dumps(LIVE.codec().to_dict()))["configuration"]
    assert declared == {"typesize": 4, "cname": "zstd", "clevel": 1, "shuffle": "bitshuffle", "blocksize": 1 << 21}


def test_the_archive_profile_is_smaller_where_snapshots_move_slowly():
    """Like weights late in training: a few of the kept bits change from step to step."""
    rng = np.random.default_rng(2)
    walk = np.cumsum(rng.standard_normal((32, 64, 128)) * 1e-4, axis=0) + rng.standard_normal((64, 128)) * 0.1
    bits = walk.astype(np.float32).view(np.uint32) & np.uint32(0xFFFF0000)
    values = np.ascontiguousarray(bits.view(np.float32).transpose(1, 2, 0))
    live, archive = len(LIVE.compress(values)), len(ARCHIVE.compress(values))
    assert archive < live
    assert live < values.nbytes / 5
