"""Files made to harm: an error that says what is wrong, and nothing run, followed or allocated."""

import io
import json
import os
import pickle
import struct
import zipfile

import pytest
import torch
from safetensors.torch import save_file

from trainhooks.checkpoints.base import CheckpointError
from trainhooks.checkpoints.formats.pickled import Inert, read_pickle
from trainhooks.checkpoints.opening import open_checkpoint


class Command:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


def write_header(path, header, data=b"\0" * 16):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)


def zip_with(path, pickled, **entries):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr("archive/data.pkl", pickled)
        for name, data in entries.items():
            archive.writestr(f"archive/{name}", data)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "last.ckpt"])
def test_a_pickled_command_does_not_run(tmp_path, name):
    touched = tmp_path / "touched"
    torch.save({"w": torch.ones(2), "x": Command(touched)}, tmp_path / name)
    if name.endswith(".bin"):
        with pytest.raises(CheckpointError, match=r"names (posix|nt)\.system"):
            open_checkpoint(tmp_path)
    else:
        assert torch.equal(open_checkpoint(tmp_path).read("w"), torch.ones(2))
    assert not touched.exists()


def test_only_a_command_in_a_checkpoint_is_an_error_that_names_it(tmp_path):
    torch.save({"x": Command(tmp_path / "touched")}, tmp_path / "last.ckpt")
    with pytest.raises(CheckpointError, match=r"names posix\.system, which is not run"):
        open_checkpoint(tmp_path)
    assert not (tmp_path / "touched").exists()


PICKLES = {
    "memo bomb": b"\x80\x02}r\xff\xff\xff\x7f.",
    "no pickle": b"hello",
    "cut": pickle.dumps({"a": 1})[:-3],
    "no tensor": pickle.dumps({"a": 1}),
    "outside reference": b"\x80\x02X\x01\x00\x00\x00aQ.",
    # hashed as keys, the first ends the process and the second never ends
    "deep key": b"\x80\x02}K\x01" + b"\x85" * 100_000 + b"K\x01s.",
    "key that holds itself": b"\x80\x02}K\x01" + b"q\x00h\x00\x86" * 60 + b"K\x01s.",
    "twice on the stack": b"\x80\x02}K\x012\x86K\x01s.",
    "numbers of one hash": pickle.dumps({i * (2**61 - 1): 0 for i in range(1, 2000)}),
    "mapping with methods of its own": b"\x80\x02ccollections\nOrderedDict\n)R}X\x05\x00\x00\x00items"
    b"ctorch._utils\n_rebuild_parameter\nsb.",
    "nothing on the stack": b"\x80\x02\x86.",
    "storage is none": b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n(K\x01K\x00K\x01\x85K\x01\x85\x89NtR.",
}

UNTYPED = b"\x80\x02ctorch._utils\n_rebuild_tensor_v3\n"
UNTYPED += b"((X\x07\x00\x00\x00storagectorch\n%s\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpuK\x07tQ"
UNTYPED += b"K\x00%s\x85K\x01\x85\x89N%stR."
PICKLES |= {
    "untyped beyond its bytes": UNTYPED % (b"UntypedStorage", b"K\x04", b"ctorch\nuint16\n"),
    "untyped of no dtype": UNTYPED % (b"UntypedStorage", b"K\x01", b"K\x01"),
    "untyped on a storage of floats": UNTYPED % (b"FloatStorage", b"K\x01", b"ctorch\nuint16\n"),
}


@pytest.mark.parametrize("case", PICKLES)
def test_a_broken_pickle_is_an_error(tmp_path, case):
    zip_with(tmp_path / "pytorch_model.bin", PICKLES[case])
    with pytest.raises(CheckpointError, match=r"pytorch_model\.bin"):
        open_checkpoint(tmp_path)


def test_mappings_that_unfold_without_end_are_walked_once(tmp_path):
    nested = {"w": 1}
    for _ in range(60):
        nested = {"a": nested, "b": nested}
    zip_with(tmp_path / "x.pt", pickle.dumps(nested))
    with pytest.raises(CheckpointError, match="no tensor"):
        open_checkpoint(tmp_path)


def test_a_record_cannot_be_changed_after_it_was_checked(tmp_path):
    torch.save({"w": torch.ones(4)}, tmp_path / "good.pt")
    with zipfile.ZipFile(tmp_path / "good.pt") as archive:
        pickled = archive.read("good/data.pkl")
    made = pickled.rindex(b"R") + 1
    changed = pickled[:made] + b"}X\x06\x00\x00\x00offsetM\xff\xffsb" + pickled[made:]
    zip_with(tmp_path / "bad.pt", changed, **{"data/0": b"\0" * 16})
    with pytest.raises(CheckpointError, match="refused"):
        open_checkpoint(tmp_path / "bad.pt")


def test_a_shape_larger_than_its_storage_is_refused(tmp_path):
    torch.save({"w": torch.ones(1).expand(1 << 40)}, tmp_path / "x.pt")
    with pytest.raises(CheckpointError, match="outside its storage"):
        open_checkpoint(tmp_path)


def test_a_legacy_file_says_what_to_do(tmp_path):
    torch.save({"w": torch.ones(2)}, tmp_path / "pytorch_model.bin", _use_new_zipfile_serialization=False)
    with pytest.raises(CheckpointError, match="no zip: torch before"):
        open_checkpoint(tmp_path)


def test_big_endian_and_compressed_files_are_refused(tmp_path):
    torch.save({"w": torch.ones(2)}, tmp_path / "good.pt")
    for name, method, order in (("big", zipfile.ZIP_STORED, b"big"), ("small", zipfile.ZIP_DEFLATED, b"little")):
        with (
            zipfile.ZipFile(tmp_path / "good.pt") as archive,
            zipfile.ZipFile(tmp_path / f"{name}.pt", "w", method) as out,
        ):
            for info in archive.infolist():
                out.writestr(info.filename, order if info.filename.endswith("byteorder") else archive.read(info))
    with pytest.raises(CheckpointError, match="big-endian"):
        open_checkpoint(tmp_path / "big.pt")
    with pytest.raises(CheckpointError, match="compressed"):
        open_checkpoint(tmp_path / "small.pt")


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
@pytest.mark.parametrize("kept", [0, 4, 300, 5000])
def test_a_truncated_file_is_an_error(tmp_path, name, kept):
    tensors = {"w": torch.arange(4000.0)}
    (save_file if name.endswith("tensors") else torch.save)(tensors, tmp_path / name)
    os.truncate(tmp_path / name, kept)
    with pytest.raises(CheckpointError, match=name):
        open_checkpoint(tmp_path)


GOOD = {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}
HEADERS = {
    "outside": ({"w": {**GOOD, "shape": [5], "data_offsets": [0, 20]}}, "outside the file"),
    "a petabyte": ({"w": {**GOOD, "shape": [1 << 48], "data_offsets": [0, 1 << 50]}}, "outside the file"),
    "shape of a petabyte": ({"w": {**GOOD, "shape": [1 << 48]}}, "does not fill"),
    "backwards": ({"w": {**GOOD, "data_offsets": [16, 0]}}, "outside"),
    "dimensions": ({"w": {**GOOD, "shape": [1] * 100_000 + [4]}}, "of 100001 dimensions"),
    "empty and endless": ({"w": {**GOOD, "shape": [0, 1 << 62, 1 << 62], "data_offsets": [0, 0]}}, "whole numbers"),
    "negative": ({"w": {**GOOD, "shape": [-4]}}, "whole numbers"),
    "true": ({"w": {**GOOD, "shape": [True, 4]}}, "whole numbers"),
    "one offset": ({"w": {**GOOD, "data_offsets": [0]}}, "two whole numbers"),
    "overlap": ({"w": GOOD, "v": {**GOOD, "shape": [2], "data_offsets": [8, 16]}}, "overlaps"),
    "no object": ({"w": 3}, "is no object"),
    "a list": ([], "must be an object"),
    "deep": (b"[" * 100_000, "no JSON"),
    "long number": (b'{"w": ' + b"9" * 10_000 + b"}", "no JSON"),
    "no text": (b"\xff\xfe", "no JSON"),
    "twice": (b'{"w": {}, "w": {}}', "twice"),
}


@pytest.mark.parametrize("case", HEADERS)
def test_a_bad_safetensors_header_is_an_error(tmp_path, case):
    header, told = HEADERS[case]
    write_header(tmp_path / "model.safetensors", header)
    with pytest.raises(CheckpointError, match=told):
        open_checkpoint(tmp_path)


def test_a_header_of_a_gigabyte_is_not_read(tmp_path):
    path = tmp_path / "model.safetensors"
    path.write_bytes(struct.pack("<Q", 1 << 30))
    os.truncate(path, (1 << 30) + 100)
    with pytest.raises(CheckpointError, match="announces a header of 1073741824 bytes"):
        open_checkpoint(tmp_path)


def test_all_problems_are_told(tmp_path):
    write_header(tmp_path / "model.safetensors", {"a": 1, "b": {**GOOD, "shape": [9]}})
    with pytest.raises(CheckpointError, match=r"'a': is no object; 'b': F32 of shape \[9\]"):
        open_checkpoint(tmp_path)


def index(folder, file):
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"w": file}}))


@pytest.mark.parametrize(
    "file", ["../../x.safetensors", "/etc/x.safetensors", "a/../../x.safetensors", "..\\x", "", "a\0b"]
)
def test_an_index_cannot_lead_out(tmp_path, file):
    index(tmp_path, file)
    with pytest.raises(CheckpointError, match="outside the checkpoint"):
        open_checkpoint(tmp_path)


def test_an_index_cannot_lead_out_by_a_link_but_the_hub_cache_may(tmp_path):
    folder = tmp_path / "models--a--b" / "snapshots" / "1"
    (folder / "sub").mkdir(parents=True)
    save_file({"w": torch.ones(2)}, tmp_path / "elsewhere")
    (folder / "sub" / "x.safetensors").symlink_to(tmp_path / "elsewhere")
    index(folder, "sub/x.safetensors")
    with pytest.raises(CheckpointError, match="link out of the folder"):
        open_checkpoint(folder)
    blobs = tmp_path / "models--a--b" / "blobs"
    blobs.mkdir()
    save_file({"w": torch.ones(2)}, blobs / "abc")
    (folder / "sub" / "x.safetensors").unlink()
    (folder / "sub" / "x.safetensors").symlink_to(blobs / "abc")
    assert torch.equal(open_checkpoint(folder).read("w"), torch.ones(2))


def test_links_in_a_loop_and_pipes_are_errors(tmp_path):
    (tmp_path / "model.safetensors").symlink_to(tmp_path / "other")
    (tmp_path / "other").symlink_to(tmp_path / "model.safetensors")
    for place in (tmp_path, tmp_path / "other"):
        with pytest.raises(CheckpointError, match="cannot be read"):
            open_checkpoint(place)
    (tmp_path / "pipe").mkdir()
    os.mkfifo(tmp_path / "pipe" / "model.safetensors")
    with pytest.raises(CheckpointError, match="no regular file"):
        open_checkpoint(tmp_path / "pipe")


def test_an_index_of_absent_tensors_or_of_nothing_is_an_error(tmp_path):
    save_file({"v": torch.ones(2)}, tmp_path / "a.safetensors")
    index(tmp_path, "a.safetensors")
    with pytest.raises(CheckpointError, match="lack: 'w'"):
        open_checkpoint(tmp_path)
    (tmp_path / "model.safetensors.index.json").write_text("{}")
    with pytest.raises(CheckpointError, match="no weight_map"):
        open_checkpoint(tmp_path)


def test_distributed_metadata_runs_nothing(tmp_path):
    (tmp_path / ".metadata").write_bytes(pickle.dumps(Command(tmp_path / "touched")))
    with pytest.raises(CheckpointError, match="no metadata"):
        open_checkpoint(tmp_path)
    assert not (tmp_path / "touched").exists()


def test_a_file_that_shrinks_while_it_is_read_is_an_error(tmp_path):
    save_file({"w": torch.zeros(100_000)}, tmp_path / "model.safetensors")
    checkpoint = open_checkpoint(tmp_path)
    os.truncate(tmp_path / "model.safetensors", 1000)
    with pytest.raises(CheckpointError, match="shorter"):
        checkpoint.read("w")


def test_the_shipped_reader_and_torch_agree_that_the_good_ones_are_good(tmp_path):
    buffer = io.BytesIO()
    torch.save({"w": torch.ones(3)}, buffer)
    (tmp_path / "pytorch_model.bin").write_bytes(buffer.getvalue())
    assert torch.equal(open_checkpoint(tmp_path).read("w"), torch.load(tmp_path / "pytorch_model.bin")["w"])


def test_a_pickle_of_too_many_opcodes_and_a_header_of_too_many_arrays(tmp_path, monkeypatch):
    monkeypatch.setattr("trainhooks.checkpoints.formats.pickle_machine.MOST_OPCODES", 1000)
    monkeypatch.setattr("trainhooks.checkpoints.sources.byte_source.MOST_CONTAINERS", 1000)
    zip_with(tmp_path / "x.pt", pickle.dumps([[] for _ in range(1000)]))
    with pytest.raises(CheckpointError, match="more than 1000 opcodes"):
        open_checkpoint(tmp_path / "x.pt")
    write_header(tmp_path / "x.safetensors", {"w": [[]] * 1000})
    with pytest.raises(CheckpointError, match="more than 1000 arrays"):
        open_checkpoint(tmp_path / "x.safetensors")


def test_distributed_metadata_that_says_nothing_readable(tmp_path):
    metadata = pytest.importorskip("torch.distributed.checkpoint.metadata")
    endless = (1,)
    for _ in range(60):
        endless = (endless, endless)
    for size, chunks, told in ((endless, [], "of no sizes"), (torch.Size([4]), [3], "no record")):
        properties = metadata.TensorProperties(dtype=torch.float32)
        described = metadata.TensorStorageMetadata(properties=properties, size=size, chunks=chunks)
        (tmp_path / ".metadata").write_bytes(pickle.dumps(metadata.Metadata({"w": described}, None, {})))
        with pytest.raises(CheckpointError, match=told):
            open_checkpoint(tmp_path)


def op_text(text):
    return b"X" + struct.pack("<I", len(text)) + text


WORK = {
    "a call of a million arguments": (b"\x80\x02cfoo\nbar\n(" + b"K\x01" * 100_000 + b"tR.", "100000 arguments"),
    "a name of a million letters": (
        b"\x80\x02" + op_text(b"a" * 100_000) + b"\x8c\x01b\x93.",
        "more than 1000 characters",
    ),
    "a global of a million letters": (b"\x80\x02c" + b"a" * 100_000 + b"\nb\n.", "more than 1000 characters"),
}


@pytest.mark.parametrize("case", WORK)
def test_a_pickle_that_makes_much_of_little_is_refused(case):
    data, told = WORK[case]
    with pytest.raises(CheckpointError, match=told):
        read_pickle(data, name="file", strict=False)


def test_sizes_that_a_list_announces_are_no_sizes(tmp_path):
    held, _ = read_pickle(b"\x80\x02ctorch\nSize\n(" + b"K\x01" * 100 + b"t\x85R.", name="file", strict=False)
    assert type(held) is Inert


def test_more_tensors_than_are_read_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr("trainhooks.checkpoints.formats.torch_zip.MOST_TENSORS", 3)
    torch.save({str(number): torch.ones(1) for number in range(4)}, tmp_path / "a.pt")
    with pytest.raises(CheckpointError, match="more than 3 tensors"):
        open_checkpoint(tmp_path / "a.pt")


def test_a_header_of_too_many_values_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr("trainhooks.checkpoints.sources.byte_source.MOST_VALUES", 3)
    write_header(tmp_path / "a.safetensors", {"__metadata__": {str(number): "1" for number in range(9)}})
    with pytest.raises(CheckpointError, match="more than 3 values"):
        open_checkpoint(tmp_path / "a.safetensors")
