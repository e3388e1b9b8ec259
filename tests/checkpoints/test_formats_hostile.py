"""Checkpoints of other projects' formats that are made to harm: one clear error, nothing run, followed or allocated."""

import json
import os
import pickle
import struct
import zipfile

import pytest
import torch
from foreign_formats import HEAD, NEEDS_TENSORSTORE, WRITERS, gguf_bytes, save, text

from trainhooks.checkpoints.base import CheckpointError
from trainhooks.checkpoints.head_key import head_key
from trainhooks.checkpoints.opening import open_checkpoint

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled", "ignore::FutureWarning")


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    """One good checkpoint of each format, as bytes by path."""
    held = {}
    for form in WRITERS:
        if form not in NEEDS_TENSORSTORE or pytest.importorskip("tensorstore", reason="tensorstore is not installed"):
            folder = tmp_path_factory.mktemp("good") / "step1"
            WRITERS[form](folder)
            files = [path for path in folder.rglob("*") if path.is_file()]
            held[form] = {str(path.relative_to(folder)): path.read_bytes() for path in files}
    return held


def lay_out(folder, files):
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return folder


def read(folder):
    """The head, or the one error that may come out."""
    try:
        checkpoint = open_checkpoint(folder)
        return checkpoint.read(head_key(checkpoint).key)
    except CheckpointError:
        return None


CHANGES = {
    "empty": lambda data: b"",
    "half": lambda data: data[: len(data) // 2],
    "first bytes": lambda data: data[:5],
    "last byte gone": lambda data: data[:-1],
    "ones": lambda data: b"\xff" * len(data),
    "zeros": lambda data: b"\0" * len(data),
    "a length of 2^62": lambda data: struct.pack("<Q", 1 << 62) + data[8:],
    "another file": lambda data: b"PK\x03\x04 and no zip",
    "a list": lambda data: b"[[[[]]]]",
    "twice": lambda data: data + data,
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("form", WRITERS)
def test_a_changed_file_is_an_error_or_makes_no_difference(tmp_path, good, form, change):
    for number, name in enumerate(good[form]):
        changed = {**good[form], name: CHANGES[change](good[form][name])}
        found = read(lay_out(tmp_path / str(number), changed))
        assert found is None or found.shape == HEAD.shape, name


class Command:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


PICKLED = [form for form in WRITERS if form not in (*NEEDS_TENSORSTORE, "nanotron", "GGUF")]


@pytest.mark.parametrize("form", PICKLED)
def test_no_pickles_command_is_run(tmp_path, good, form):
    touched = tmp_path / "touched"
    files = dict(good[form])
    for name, content in files.items():
        if name.endswith(".metadata"):
            files[name] = pickle.dumps({"state_dict_metadata": Command(touched)})
        elif content[:4] == b"PK\x03\x04" and not name.endswith(".distcp"):
            files[name] = with_command(tmp_path / "made", content, touched)
    read(lay_out(tmp_path / "step1", files))
    assert not touched.exists()


def with_command(path, content, touched):
    """The same file whose pickle calls a command first."""
    path.write_bytes(content)
    with zipfile.ZipFile(path) as archive:
        held = {info.filename: archive.read(info) for info in archive.infolist()}
    command = pickle.dumps(Command(touched), protocol=2)[2:-1] + b"0"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for name, data in held.items():
            archive.writestr(name, data[:2] + command + data[2:] if name.endswith("data.pkl") else data)
    return path.read_bytes()


@pytest.mark.parametrize("form", WRITERS)
def test_links_in_a_loop_and_pipes_in_place_of_files(tmp_path, good, form):
    for number, name in enumerate(list(good[form])[:6]):
        for kind in ("loop", "pipe"):
            folder = lay_out(tmp_path / f"{number}{kind}", good[form])
            (folder / name).unlink()
            if kind == "loop":
                (folder / name).symlink_to(folder / name)
            else:
                os.mkfifo(folder / name)
            found = read(folder)
            assert found is None or found.shape == HEAD.shape, name


@pytest.mark.parametrize("form", ["OLMo-core", "GPT-NeoX layers", "ZeRO 3", "nanotron", "Levanter"])
def test_folders_that_are_links_are_not_gone_into(tmp_path, good, form):
    inside = lay_out(tmp_path / "outside", good[form])
    (tmp_path / "step1").mkdir()
    (tmp_path / "step1" / "model").symlink_to(inside, target_is_directory=True)
    with pytest.raises(CheckpointError, match="holds no weights"):
        open_checkpoint(tmp_path / "step1")


def header(*, tensors=0, settings=0, rest=b""):
    return b"GGUF" + struct.pack("<IQQ", 3, tensors, settings) + rest


def record(name=b"output.weight", axes=(32, 62), kind=0, offset=0):
    shape = struct.pack("<I", len(axes)) + b"".join(struct.pack("<Q", size) for size in axes)
    return struct.pack("<Q", len(name)) + name + shape + struct.pack("<IQ", kind, offset)


WORDS = text("a") + struct.pack("<IIQ", 9, 8, 1 << 60)
LYING_GGUF = {
    "more tensors than are read": (header(tensors=1 << 60), "the limits"),
    "more settings than are read": (header(settings=1 << 50), "the limits"),
    "tensors that are not there": (header(tensors=1000), "header reaches beyond"),
    "a version to come": (b"GGUF" + struct.pack("<IQQ", 9, 0, 0), "version 9"),
    "texts without end": (header(settings=1, rest=WORDS), "texts"),
    "numbers without end": (header(settings=1, rest=text("a") + struct.pack("<IIQ", 9, 10, 1 << 60)), "reaches beyond"),
    "an array of arrays": (header(settings=1, rest=text("a") + struct.pack("<IIQ", 9, 9, 1)), "type 9"),
    "a type that is none": (header(settings=1, rest=text("a") + struct.pack("<I", 99)), "type 99"),
    "a name of a gigabyte": (header(tensors=1, rest=struct.pack("<Q", 1 << 30) + b"a"), "are allowed"),
    "a hundred axes": (header(tensors=1, rest=record(axes=(1,) * 100)), "100 axes"),
    "a shape beyond counting": (header(tensors=1, rest=record(axes=(1 << 40, 1 << 40))), "shape that is none"),
    "a petabyte": (header(tensors=1, rest=record(axes=(1 << 24, 1 << 24))), "were asked for"),
    "data outside the file": (header(tensors=1, rest=record(offset=1 << 60)), "were asked for"),
    "one name twice": (header(tensors=2, rest=2 * record(axes=(1, 1))) + b"\0" * 64, "twice"),
    "a kind that is none": (header(tensors=1, rest=record(kind=77)), "type 77"),
    "no whole blocks": (header(tensors=1, rest=record(axes=(33, 2), kind=8)), "no whole blocks"),
    "an alignment of 0": (
        header(tensors=1, settings=1, rest=text("general.alignment") + struct.pack("<II", 4, 0) + record(axes=(1, 1))),
        "alignment",
    ),
    "no tensor": (header(), "holds no tensor"),
}


@pytest.mark.parametrize("case", LYING_GGUF)
def test_a_gguf_header_that_lies(tmp_path, case):
    content, told = LYING_GGUF[case]
    if case in ("a kind that is none", "no whole blocks"):
        pytest.importorskip("gguf", reason="kinds of blocks are known through the gguf package")
    (tmp_path / "model.gguf").write_bytes(content + b"\0" * 8)
    with pytest.raises(CheckpointError, match=told):
        open_checkpoint(tmp_path)


def zero_3(folder, **changes):
    state = {"zero_stage": 3, "partition_count": 1, "fp32_flat_groups": [torch.zeros(64)]} | changes.pop("state", {})
    saved = {"module": {}, "param_shapes": [{"lm_head.weight": torch.Size([8, 8])}], **changes}
    save(folder / "zero_pp_rank_0_mp_rank_00_model_states.pt", saved)
    save(folder / "zero_pp_rank_0_mp_rank_00_optim_states.pt", {"optimizer_state_dict": state})
    return folder


LYING_ZERO_3 = {
    "more numbers than there are": ({"param_shapes": [{"lm_head.weight": torch.Size([8, 9])}]}, "ends beyond the 64"),
    "a shape beyond counting": ({"param_shapes": [{"lm_head.weight": (1 << 40, 1 << 40)}]}, "no shapes"),
    "a shape that is none": ({"param_shapes": [{"lm_head.weight": "8x8"}]}, "no shapes"),
    "groups of another kind": ({"state": {"fp32_flat_groups": [torch.zeros(8, 8)]}}, "no flat float32 groups"),
    "groups that repeat one number": (
        {"state": {"fp32_flat_groups": [torch.zeros(1).expand(64)]}},
        "outside its|no flat",
    ),
    "ranks without end": ({"state": {"partition_count": 1 << 60}}, "1 of 1152921504606846976 data ranks"),
    "another stage": ({"state": {"zero_stage": 2}}, "no flat float32 groups"),
}


@pytest.mark.parametrize("case", LYING_ZERO_3)
def test_zero_3_states_that_lie(tmp_path, case):
    changes, told = LYING_ZERO_3[case]
    with pytest.raises(CheckpointError, match=told):
        open_checkpoint(zero_3(tmp_path, **dict(changes)))


LYING_SLICES = {
    "outside the whole": ("0,31,None|None,None,None#40,71,None|None,None,None", "(62, 32)"),
    "of another size": ("0,31,None|None,None,None#0,30,None|None,None,None", "(62, 32)"),
    "backwards": ("31,0,None|None,None,None#31,0,None|None,None,None", "(62, 32)"),
    "in strides": ("0,31,2|None,None,None#0,31,2|None,None,None", "(62, 32)"),
    "no slices": ("x" * 1000, "(62, 32)"),
    "a whole beyond counting": ("0,31,None|None,None,None#0,31,None|None,None,None", f"({1 << 50}, {1 << 50})"),
    "three axes": ("0,31,None|None,None,None#0,31,None|None,None,None", "(62, 32, 1)"),
}


@pytest.mark.parametrize("case", LYING_SLICES)
def test_nanotron_slices_that_lie(tmp_path, good, case):
    from safetensors.torch import save_file

    pairs, shape = LYING_SLICES[case]
    folder = lay_out(tmp_path, good["nanotron"])
    file = (
        folder / "model" / "model" / "lm_head" / "pp_block" / "model_weight_pp-rank-0-of-1_tp-rank-0-of-2.safetensors"
    )
    save_file(
        {"data": HEAD[:31].clone()}, file, metadata={"local_global_slices_pairs": pairs, "unsharded_shape": shape}
    )
    with pytest.raises(CheckpointError, match=r"slices|whole shape"):
        open_checkpoint(folder)


LYING_ZARR = {
    "shape": ([1 << 40, 1 << 40], "shape or chunks that are none"),
    "chunks": ([1 << 30, 32], "larger than it"),
    "dtype": ("|O", "array of dtype"),
}


@pytest.mark.parametrize("field", LYING_ZARR)
def test_zarr_metadata_that_lies(tmp_path, good, field):
    value, told = LYING_ZARR[field]
    folder = lay_out(tmp_path, good["Levanter"])
    place = folder / "model" / "lm_head" / "weight" / ".zarray"
    place.write_text(json.dumps({**json.loads(place.read_text()), field: value}))
    with pytest.raises(CheckpointError, match=told):
        head_key(open_checkpoint(folder))


def test_a_quantised_tensor_longer_than_its_file(tmp_path):
    pytest.importorskip("gguf", reason="kinds of blocks are known through the gguf package")
    (tmp_path / "model.gguf").write_bytes(gguf_bytes({"output.weight": ((62, 32), 8, b"\0" * 34)}))
    with pytest.raises(CheckpointError, match="were asked for"):
        open_checkpoint(tmp_path)
