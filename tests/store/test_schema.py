import ast
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import trainhooks.store
from trainhooks.store import Layout, StoreWriter, required_bytes
from trainhooks.store.format.schema import array_specs, shard_rows


def layout_of(vocab: int, dim: int, block: int = 32) -> Layout:
    return Layout(vocab=vocab, dim=dim, groups=(), sketch_size=0, block=block)


@pytest.mark.parametrize(
    ("vocab", "dim", "parts"), [(50304, 768, 3), (8192, 256, 1), (50688, 5120, 16), (97, 4, 1), (5, 4, 1)]
)
def test_shards_are_the_fewest_equal_parts_that_fit(vocab, dim, parts):
    rows = shard_rows(layout_of(vocab, dim))
    inner = min(64, vocab)
    assert rows % inner == 0
    assert -(-vocab // rows) == parts
    assert rows * dim * 32 * 4 <= 2 * 1024**3
    if parts > 1:  # one part fewer would not fit
        assert -(-vocab // (parts - 1)) * dim * 32 * 4 > 2 * 1024**3


def test_a_shard_is_at_least_one_inner_chunk():
    assert shard_rows(layout_of(1000, 260_000)) == 64


def test_chunks_of_small_arrays_are_long_and_of_large_ones_few_blocks(layout):
    specs = {spec.name: spec for spec in array_specs(replace(layout, block=10))}
    assert specs["step"].chunks == specs["probe.heldout_spearman"].chunks == (1020,)
    assert specs["sketch"].chunks == (1020, 2, 5)
    from trainhooks.core.variable import Variable

    wide = replace(layout, vocab=50304, token_count=None, token_text=None)
    wide = replace(wide, variables=(Variable("norm.rows", dims=("token",), dtype="float32"),))
    assert {spec.name: spec for spec in array_specs(wide)}["norm.rows"].chunks == (320, 50304)


@pytest.mark.parametrize(("records", "every"), [(0, 1), (1, 1), (9, 1), (23, 3)])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_required_bytes_bound_what_lies_on_disk_at_any_moment(run, tmp_path, records, every, precision):
    run = replace(run, layout=replace(run.layout, block=4, precision=precision), snapshot_every=every)
    writer = StoreWriter(tmp_path / "s.zarr", run.layout)
    bound = required_bytes(run.layout, records=records, snapshots=len(range(0, records, every)))
    used = [disk_bytes(writer.path)]
    for step in range(records):
        run.append(writer, [step])
        used.append(disk_bytes(writer.path))
    writer.close()
    assert max(used) <= bound


def disk_bytes(path: Path) -> int:
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())


def test_required_bytes_is_near_the_raw_size_of_a_long_run():
    layout = layout_of(8192, 256)
    raw = 10_000 * 8192 * (256 * 4 + 8)
    bound = required_bytes(layout, records=10_000, snapshots=10_000)
    assert raw < bound < 1.05 * raw
    assert np.all(np.diff([required_bytes(layout, records=n, snapshots=n) for n in (0, 1, 40, 400)]) > 0)


def test_required_bytes_refuses_nonsense(layout):
    with pytest.raises(ValueError, match="0 <= snapshots <= records"):
        required_bytes(layout, records=1, snapshots=2)
    with pytest.raises(ValueError, match="snapshots=False"):
        required_bytes(replace(layout, snapshots=False), records=2, snapshots=2)


def test_the_package_needs_no_torch():
    """Its files import numpy, zarr and what it stands on, xarray, jaxtyping and the standard library alone;
    obstore and safetensors where they are used."""
    allowed = {"numpy", "zarr", "numcodecs", "google_crc32c", "xarray", "pcodec", "jaxtyping", "obstore", "safetensors"}
    import sys

    for file in Path(trainhooks.store.__file__).parent.glob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                names = [node.module]
            for name in names:
                top = name.split(".")[0]
                ours = name == "trainhooks.core.variable" or name.startswith("trainhooks.store")
                assert ours or top in allowed or top in sys.stdlib_module_names, f"{file.name} imports {name}"


def test_ten_thousand_steps_of_a_large_vocabulary_are_under_two_thousand_files():
    from trainhooks.core.variable import Variable

    numbers = tuple(Variable(f"a.n{i}") for i in range(50))
    slopes = tuple(
        Variable(f"probe.slope{i}", dims=("fold", "dim"), dtype="float32", sizes={"fold": 5}) for i in range(3)
    )
    groups = tuple(f"block.{i}" for i in range(20))
    large = Layout(vocab=50304, dim=768, groups=groups, sketch_size=1024, variables=numbers + slopes)
    files = 2  # root and manifest
    for spec in array_specs(large):
        shape = spec.shape(records=10_001, snapshots=10_001)
        parts = [-(-size // part) for size, part in zip(shape, spec.shards or spec.chunks, strict=True)]
        files += 1 + int(np.prod(parts))
    assert files < 2_000
