"""A finished store in the hands of others: zarr-python, xarray and TensorStore read every number."""

import numpy as np
import pytest
import xarray
import zarr


@pytest.fixture
def finished(sparse_run, write):
    """Two full blocks and one that is not."""
    return write(sparse_run, records=29)


def with_zarr(path):
    group = zarr.open_group(path, mode="r")
    return lambda name: group[name][:]


def with_xarray(path):
    dataset = xarray.open_zarr(path, chunks=None)
    return lambda name: dataset[name].values


def with_tensorstore(path):
    tensorstore = pytest.importorskip("tensorstore")

    def read(name):
        spec = {"driver": "zarr3", "kvstore": {"driver": "file", "path": f"{path / name}/"}}
        return tensorstore.open(spec, open=True).result().read().result()

    return read


@pytest.mark.parametrize("reader", [with_zarr, with_xarray, with_tensorstore])
def test_every_number_reads_as_it_was_written(finished, sparse_run, reader):
    read = reader(finished)
    run, steps = sparse_run, range(29)
    snapshot_steps = [step for step in steps if run.has_snapshot(step)]
    assert read("step").tolist() == list(steps)
    assert read("snapshot_step").tolist() == snapshot_steps
    np.testing.assert_array_equal(read("output_embedding"), [run.matrix(step) for step in snapshot_steps])
    np.testing.assert_array_equal(read("label_counts"), [run.counts(step) for step in snapshot_steps])
    np.testing.assert_array_equal(read("sketch"), [run.sketch(step) for step in steps])
    np.testing.assert_array_equal(read("token_count"), run.layout.token_count)
    for variable in run.layout.variables:
        shape = run.layout.row_shape(variable)
        missing = np.full(shape, np.nan if variable.dtype.startswith("float") else -1)
        wanted = [run.values(step).get(variable.name, missing) for step in steps]
        np.testing.assert_array_equal(read(variable.name), np.array(wanted).astype(variable.dtype), variable.name)
