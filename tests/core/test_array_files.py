"""Arrays whose files claim what they do not hold."""

import io
import zipfile

import numpy as np
import pytest

from trainhooks.core.array_files import read_arrays
from trainhooks.core.token_counts import TokenCounts


def npy(shape, data, dtype="<i8"):
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, {"descr": dtype, "fortran_order": False, "shape": shape})
    return file.getvalue() + data


def archive(path, method=zipfile.ZIP_STORED, **members):
    with zipfile.ZipFile(path, "w", method) as file:
        for name, data in members.items():
            file.writestr(f"{name}.npy", data)


@pytest.mark.parametrize(
    ("shape", "dtype", "told"),
    [
        ((10**12,), "<i8", "at most"),
        ((1 << 22,), "<i8", "are there"),
        ((2, 2), "<i8", "are there"),
        ((0,), "<i8", "are there"),
        ((8,), "|O", "Python objects"),
        ((8, 0), "<i8", "are there"),
    ],
)
def test_a_shape_that_the_bytes_do_not_hold_is_refused_unread(tmp_path, shape, dtype, told):
    archive(tmp_path / "a.npz", counts=npy(shape, bytes(64), dtype))
    (tmp_path / "a.npy").write_bytes(npy(shape, bytes(64), dtype))
    for name in ("a.npz", "a.npy"):
        with pytest.raises(ValueError, match=f"holds no token counts.*{told}"):
            TokenCounts.load(tmp_path / name)


def test_what_grows_beyond_measure_is_refused_unread(tmp_path, monkeypatch):
    monkeypatch.setattr("trainhooks.core.array_files.MOST_BYTES", 1 << 20)
    archive(tmp_path / "a.npz", zipfile.ZIP_DEFLATED, counts=npy((1 << 18,), bytes(1 << 21)))
    with pytest.raises(ValueError, match="at most 1048576 are read"):
        TokenCounts.load(tmp_path / "a.npz")


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_methods_without_a_bound_are_refused(tmp_path, method):
    archive(tmp_path / "a.npz", method, counts=npy((8,), bytes(64)))
    with pytest.raises(ValueError, match="needed stored or deflated"):
        TokenCounts.load(tmp_path / "a.npz")


@pytest.mark.parametrize("field", [np.zeros((2000, 2)), np.array(["a", "b"]), np.array("a" * 100_000)])
def test_text_fields_are_one_short_text(tmp_path, field):
    np.savez(tmp_path / "a.npz", counts=np.ones(3, np.int64), rule=field)
    with pytest.raises(ValueError, match="needed one short text"):
        TokenCounts.load(tmp_path / "a.npz")


def test_numbers_that_are_none_are_refused(tmp_path):
    for number in (np.inf, np.nan, np.ones(3), "a"):
        np.savez(tmp_path / "a.npz", counts=np.ones(3, np.int64), documents=number)
        with pytest.raises(ValueError, match="holds no token counts"):
            TokenCounts.load(tmp_path / "a.npz")


def test_orders_dtypes_and_both_kinds_of_archive_are_read(tmp_path):
    arrays = {"a": np.asfortranarray(np.arange(6).reshape(2, 3)), "b": np.array("text"), "c": np.arange(3, dtype=">u2")}
    for save in (np.savez, np.savez_compressed):
        save(tmp_path / "a.npz", **arrays)
        found = read_arrays(tmp_path / "a.npz", ("a", "b", "c", "d"))
        assert found.keys() == arrays.keys()
        for name, array in arrays.items():
            np.testing.assert_array_equal(found[name], array)
