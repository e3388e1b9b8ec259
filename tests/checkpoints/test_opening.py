"""One contract for every format: the tensors that were saved, bit for bit, as safetensors and torch read them."""

import json
from collections import OrderedDict

import pytest
import torch
from safetensors.torch import save_file

from trainhooks.checkpoints.base import CheckpointError
from trainhooks.checkpoints.formats import pickled
from trainhooks.checkpoints.opening import open_checkpoint


def state(seed=0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    head = torch.randn(300, 96, generator=generator).to(dtype)  # above the size that is mapped
    head[3, 4] = float("nan")
    return OrderedDict(
        {
            "embed_out.weight": head,
            "layers.0.bias": torch.arange(7, dtype=dtype),
            "empty": torch.empty(0, 5, dtype=dtype),
        }
    )


def save_sharded(folder, tensors, name, save):
    parts = {f"a-{i}.{name.rpartition('.')[2]}": key for i, key in enumerate(tensors)}
    for file, key in parts.items():
        save({key: tensors[key]}, folder / file)
    index = {"metadata": {}, "weight_map": {key: file for file, key in parts.items()}}
    (folder / f"{name}.index.json").write_text(json.dumps(index))


def save_dcp(folder, tensors):
    import torch.distributed.checkpoint as dcp

    dcp.save(dict(tensors), checkpoint_id=folder, no_dist=True)


class Trainer:
    """Stands for what a training framework pickles beside the weights."""

    def __init__(self):
        self.rate = 0.1


FORMATS = {
    "safetensors": lambda folder, tensors: save_file(tensors, folder / "model.safetensors"),
    "safetensors shards": lambda folder, tensors: save_sharded(folder, tensors, "model.safetensors", save_file),
    "bin": lambda folder, tensors: torch.save(tensors, folder / "pytorch_model.bin"),
    "bin shards": lambda folder, tensors: save_sharded(folder, tensors, "pytorch_model.bin", torch.save),
    "parameters": lambda folder, tensors: torch.save(
        {k: torch.nn.Parameter(v, requires_grad=v.is_floating_point()) for k, v in tensors.items()},
        folder / "pytorch_model.bin",
    ),
    "lightning": lambda folder, tensors: torch.save(
        {"epoch": 1, "hyper_parameters": Trainer(), "callbacks": {"x": Trainer()}, "state_dict": tensors},
        folder / "last.ckpt",
    ),
    "wrapped": lambda folder, tensors: torch.save(
        {"model": {"module": tensors}, "optimizer": {"state": {0: {"m": tensors["embed_out.weight"]}}}}, folder / "x.pt"
    ),
    "dcp": save_dcp,
}

NEWER = (torch.float8_e4m3fn, torch.float8_e5m2, torch.uint16, torch.uint32, torch.uint64, torch.complex64)


def same(one, other):
    return (
        one.dtype == other.dtype
        and one.shape == other.shape
        and torch.equal(one.contiguous().view(torch.uint8), other.contiguous().view(torch.uint8))
    )


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")
@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64], ids=str)
def test_every_format_gives_what_was_saved(tmp_path, form, dtype):
    tensors = state(dtype=dtype)
    FORMATS[form](tmp_path, tensors)
    checkpoint = open_checkpoint(tmp_path)
    assert set(checkpoint.tensors) == set(tensors)
    for key, tensor in tensors.items():
        entry = checkpoint.tensors[key]
        assert (entry.key, entry.shape, f"torch.{entry.dtype}") == (key, tuple(tensor.shape), str(dtype))
        assert entry.nbytes == tensor.nbytes
        assert same(checkpoint.read(key), tensor)
        assert same(checkpoint.read(key), tensor), "a second read gives the same"
    with pytest.raises(CheckpointError, match="has no tensor 'nothing'"):
        checkpoint.read("nothing")


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")
@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("dtype", NEWER, ids=str)
def test_newer_dtypes_are_read_from_every_format(tmp_path, form, dtype):
    base = torch.arange(24).reshape(4, 6).to(dtype)
    tensors = {"whole": base.clone(), "column": base[:, 2].clone(), "empty": base[:0].clone()}
    if "safetensors" not in form:  # that format stores no views
        tensors |= {"view": base[1:3, 2:5], "transposed": base.T}
    FORMATS[form](tmp_path, {"embed_out.weight": base, **tensors})
    checkpoint = open_checkpoint(tmp_path)
    for key, tensor in tensors.items():
        entry = checkpoint.tensors[key]
        assert (entry.shape, f"torch.{entry.dtype}", entry.nbytes) == (tuple(tensor.shape), str(dtype), tensor.nbytes)
        assert same(checkpoint.read(key), tensor)
    assert len(checkpoint.identity("whole", full=True)) == 32


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")
@pytest.mark.parametrize("form", FORMATS)
def test_a_new_dtype_beside_it_does_not_close_a_file(tmp_path, form):
    scales = torch.ones(4).to(torch.float8_e8m0fnu)
    FORMATS[form](tmp_path, {"embed_out.weight": torch.ones(4, 2), "scales": scales})
    checkpoint = open_checkpoint(tmp_path)
    assert same(checkpoint.read("embed_out.weight"), torch.ones(4, 2))
    if "safetensors" in form:
        with pytest.raises(CheckpointError, match="dtype F8_E8M0, which torch does not read"):
            checkpoint.read("scales")
    else:
        assert same(checkpoint.read("scales").view(torch.uint8), scales.view(torch.uint8))


def test_a_dtype_that_this_torch_does_not_know_fails_when_it_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr(pickled, "PICKLED", frozenset({"float32", "uint8"}))  # a torch that is older than the file
    torch.save({"w": torch.ones(4).to(torch.float8_e5m2fnuz), "x": torch.ones(4)}, tmp_path / "x.pt")
    checkpoint = open_checkpoint(tmp_path)
    assert same(checkpoint.read("x"), torch.ones(4))
    assert checkpoint.tensors["w"].shape == (4,)
    with pytest.raises(CheckpointError, match=r"'w' is a tensor of dtype torch\.float8_e5m2fnuz, which this torch"):
        checkpoint.read("w")


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")
def test_the_full_identity_is_one_over_formats_and_changes_with_a_bit(tmp_path):
    found = set()
    for form, save in FORMATS.items():
        folder = tmp_path / form
        folder.mkdir()
        save(folder, state())
        found.add(open_checkpoint(folder).identity("embed_out.weight", full=True))
    assert len(found) == 1
    other = state()
    other["embed_out.weight"][0, 0] += 1
    folder = tmp_path / "other"
    folder.mkdir()
    FORMATS["bin"](folder, other)
    assert open_checkpoint(folder).identity("embed_out.weight", full=True) not in found


def test_the_short_identity_sees_the_ends_and_the_full_one_the_middle(tmp_path):
    ids = {}
    for name, at in (("same", None), ("again", None), ("first", 0), ("middle", 500_000), ("last", 999_999)):
        values = torch.zeros(1_000_000)
        if at is not None:
            values[at] = 1
        save_file({"w": values}, tmp_path / f"{name}.safetensors")
        checkpoint = open_checkpoint(tmp_path / f"{name}.safetensors")
        ids[name] = checkpoint.identity("w"), checkpoint.identity("w", full=True)
    assert ids["same"] == ids["again"]
    assert len({ids[name][0] for name in ("same", "first", "last")}) == 3
    assert ids["middle"][0] == ids["same"][0]
    assert len({full for _, full in ids.values()}) == 4


def test_views_of_one_storage_are_read_as_views(tmp_path):
    base = torch.arange(24.0).reshape(4, 6)
    tensors = {"whole": base, "tied": base, "transposed": base.T, "column": base[:, 2], "block": base[1:3, 2:5]}
    torch.save(tensors, tmp_path / "pytorch_model.bin")
    checkpoint = open_checkpoint(tmp_path)
    for key, tensor in tensors.items():
        assert torch.equal(checkpoint.read(key), tensor)
        assert checkpoint.read(key).is_contiguous()
    assert checkpoint.identity("whole") == checkpoint.identity("tied") != checkpoint.identity("transposed")
    assert checkpoint.identity("whole", full=True) != checkpoint.identity("transposed", full=True)


def test_writing_to_what_was_read_leaves_the_file_alone(tmp_path):
    save_file(state(), tmp_path / "model.safetensors")
    before = (tmp_path / "model.safetensors").read_bytes()
    open_checkpoint(tmp_path).read("embed_out.weight").zero_()
    assert (tmp_path / "model.safetensors").read_bytes() == before


def test_safetensors_come_before_pickles_and_config_is_read(tmp_path):
    save_file({"a": torch.ones(2)}, tmp_path / "model.safetensors")
    torch.save({"b": torch.ones(2)}, tmp_path / "pytorch_model.bin")
    (tmp_path / "config.json").write_text('{"vocab_size": 5}')
    checkpoint = open_checkpoint(tmp_path)
    assert list(checkpoint.tensors) == ["a"]
    assert checkpoint.config == {"vocab_size": 5}


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")
def test_pieces_of_a_distributed_checkpoint_are_put_together(tmp_path):
    """Two ranks' row blocks of one matrix, in two files, as a sharded save writes them."""
    from trainhooks.checkpoints.base import TensorEntry
    from trainhooks.checkpoints.formats.stored_tensor import Part, StoredTensor, row_major
    from trainhooks.checkpoints.opening import LocalFolder

    whole = torch.arange(40.0).reshape(10, 4)
    parts = []
    for name, first, stop in (("0", 0, 7), ("1", 7, 10)):
        (tmp_path / name).write_bytes(whole[first:stop].numpy().tobytes())
        source = LocalFolder.list(tmp_path).open(name)
        shape = (stop - first, 4)
        parts.append(Part(source, 0, source.size, shape, row_major(shape), (first, 0)))
    entry = TensorEntry("w", "float32", (10, 4), "0,1", 160)
    assert torch.equal(StoredTensor(entry, lambda: tuple(parts)).read(), whole)
    with pytest.raises(CheckpointError, match="hold 28 numbers"):
        StoredTensor(entry, lambda: tuple(parts[:1])).read()


@pytest.mark.parametrize(
    ("names", "told"),
    [([], "holds nothing"), (["a.safetensors", "b.safetensors"], "give one file's path"), (["notes.txt"], "notes.txt")],
)
def test_a_folder_without_weights_says_what_it_holds(tmp_path, names, told):
    for name in names:
        (tmp_path / name).write_bytes(b"x" * 30)
    with pytest.raises(CheckpointError, match=told):
        open_checkpoint(tmp_path)
