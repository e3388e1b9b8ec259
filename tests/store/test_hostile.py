"""Stores that mean harm: sealed by whoever made them, with names, links, pipes and claims that are not a store's."""

import json
import os
import socket
import subprocess
import sys
import zlib
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from trainhooks.store import Layout, StoreError, StoreWriter, open_store
from trainhooks.store.format.journal import write_piece
from trainhooks.store.format.root import read_root
from trainhooks.store.maintenance.compact import compact
from trainhooks.store.maintenance.copying import snapshot
from trainhooks.store.maintenance.export import export_step
from trainhooks.store.maintenance.repair import repair
from trainhooks.store.maintenance.verify import verify
from trainhooks.store.storage.local import LocalStorage

OTHER = Layout(vocab=70, dim=3, groups=("embedding", "block.0"), sketch_size=5)


def read(path):
    return open_store(path).summary()


def export(path):
    with TemporaryDirectory() as folder:
        export_step(open_store(path), step=3, out=Path(folder) / "out" / "step.npy", form="npy")


def copy(path):
    with TemporaryDirectory() as folder:
        snapshot(path, out=Path(folder) / "copy")


def resume(path):
    """As a run would that has the store's own layout, where it says one."""
    try:
        layout = read_root(LocalStorage(path)).layout
    except StoreError:
        layout = OTHER
    StoreWriter(path, layout, mode="resume").release()


USES = [read, export, copy, verify, resume, repair, compact]


def load(path):
    return json.loads((path / "zarr.json").read_text())


def seal(path, document, files=None):
    """Write a root, and a manifest of these files, whose checksums fit: they are no signature."""
    declared = document["attributes"]["trainhooks"]
    if files is not None:
        text = json.dumps({"files": files}).encode()
        declared["manifest"] = f".manifest-{zlib.crc32(text):08x}.json"
        (path / declared["manifest"]).write_bytes(text)
    declared["checksum"] = "00000000"
    text = json.dumps(document).encode()
    (path / "zarr.json").write_bytes(text.replace(b'"00000000"', b'"%08x"' % zlib.crc32(text), 1))


def manifest(path):
    name = load(path)["attributes"]["trainhooks"]["manifest"]
    return json.loads((path / name).read_text())["files"]


def outcome(use, path):
    """What a use of a store comes to: nothing raised but StoreError, and where verify returns, it found the damage."""
    try:
        found = use(path)
    except StoreError as error:
        return str(error)
    return "; ".join(map(str, found.problems)) if use is verify else ""


@pytest.mark.parametrize("name", ["../../victim", "../new/deep", "/etc", "a/b", "..", "", "step/../../x"])
@pytest.mark.parametrize("use", USES)
def test_no_name_of_an_array_leads_out(write, sparse_run, tmp_path, name, use):
    path = write(sparse_run, records=6)
    (tmp_path / "victim").mkdir()
    (tmp_path / "victim" / "zarr.json").write_text("PRECIOUS")
    before = sorted(tmp_path.parent.rglob("*"))
    document = load(path)
    document["consolidated_metadata"]["metadata"][name] = {"zarr_format": 3, "node_type": "array", "shape": [0]}
    seal(path, document)
    said = outcome(use, path)
    assert name in said
    assert (tmp_path / "victim" / "zarr.json").read_text() == "PRECIOUS"
    assert {file.parts[-1] for file in tmp_path.parent.rglob("*")} - {file.parts[-1] for file in before} <= {
        Path(load(path)["attributes"]["trainhooks"]["manifest"]).name
    }


@pytest.mark.parametrize(
    "key", ["step/c/../../../victim/zarr.json", "/etc/passwd", "step/c/-1", "step/c/00", "x/c/0", "step/c/0/0", "step"]
)
@pytest.mark.parametrize("use", USES)
def test_no_key_of_a_manifest_leads_out(write, sparse_run, key, use):
    path = write(sparse_run, records=6)
    seal(path, load(path), files={**manifest(path), key: [1, "00000000"]})
    said = outcome(use, path)
    if use is not repair:  # makes a list of its own
        assert repr(key) in said


@pytest.mark.parametrize("name", ["../other", "/etc/passwd", ".lock"])
def test_a_manifest_has_a_manifests_name(write, sparse_run, name):
    path = write(sparse_run, records=6)
    document = load(path)
    document["attributes"]["trainhooks"]["manifest"] = name
    seal(path, document)
    for use in USES:
        assert "manifest" in outcome(use, path)


@pytest.mark.parametrize("folder", ["step", "output_embedding", "step/c", ".journal"])
@pytest.mark.parametrize("use", USES)
def test_a_folder_that_is_a_link_is_not_followed(write, sparse_run, tmp_path, folder, use):
    path = write(sparse_run, records=11, close=False)
    elsewhere = tmp_path / "elsewhere"
    (path / folder).rename(elsewhere)
    (path / folder).symlink_to(elsewhere)
    before = {file: file.read_bytes() for file in elsewhere.rglob("*") if file.is_file()}
    assert outcome(use, path)
    assert {file: file.read_bytes() for file in elsewhere.rglob("*") if file.is_file()} == before


def plant(kind, path, tmp_path):
    content = path.read_bytes() if path.is_file() else b"{}"
    path.unlink(missing_ok=True)
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "link":
        (tmp_path / "aside").write_bytes(content)
        path.symlink_to(tmp_path / "aside")
    elif kind == "dangling":
        path.symlink_to(tmp_path / "nowhere")
    elif kind == "folder":
        path.mkdir()
    else:
        here = os.getcwd()
        os.chdir(path.parent)  # a socket's path may not be long
        with socket.socket(socket.AF_UNIX) as made:
            made.bind(path.name)
        os.chdir(here)


@pytest.mark.parametrize("kind", ["pipe", "socket", "link", "dangling", "folder"])
@pytest.mark.parametrize("what", ["zarr.json", ".lock", ".compacting.json", "manifest", "chunk", "metadata", "piece"])
def test_what_is_no_plain_file_is_not_opened(write, sparse_run, tmp_path, kind, what):
    path = write(sparse_run, records=11, close=False)
    storages = {"chunk": path / "step/c/0", "metadata": path / "step/zarr.json"}
    storages |= {"manifest": next(path.glob(".manifest-*")), "piece": next((path / ".journal").iterdir())}
    plant(kind, storages.get(what, path / what), tmp_path)
    for use in USES:
        # it may also have the place of a file that is to be written
        with suppress(StoreError, IsADirectoryError):
            use(path)


def test_keys_stay_inside(tmp_path):
    storage = LocalStorage(tmp_path / "storage")
    storage.create()
    for key in ("../x", "a/../../x", "/x", "a//b", ".", "", "a\0b"):
        for use in (storage.read, storage.mmap, storage.delete, lambda key: storage.put(key, b"")):
            with pytest.raises(StoreError, match="no name of a file"):
                use(key)
        assert not storage.exists(key)


def claim(path, records):
    document = load(path)
    for metadata in document["consolidated_metadata"]["metadata"].values():
        if metadata["dimension_names"][0] == "step":
            metadata["shape"][0] = records
    seal(path, document)


@pytest.mark.parametrize("records", [10**6, 10**12, 2**52, 2**70, -1])
def test_more_records_than_the_files_hold_are_refused(write, sparse_run, records):
    path = write(sparse_run, records=6)
    claim(path, records)
    for use in USES:
        said = outcome(use, path)
        assert said or use is repair  # it reads no chunk of a store that was closed


MOST_CPU_SECONDS = 20  # for each command: the system ends what takes more
MOST_KILOBYTES = 1_500_000

CALLS = """
import json, resource, sys
from pathlib import Path
from trainhooks.cli import app
codes = []
for call in json.loads(sys.argv[1]):
    used = sum(resource.getrusage(resource.RUSAGE_SELF)[:2])
    resource.setrlimit(resource.RLIMIT_CPU, (int(used) + int(sys.argv[2]), resource.RLIM_INFINITY))
    try:
        app(call)
        codes.append(0)
    except SystemExit as ended:
        codes.append(ended.code)
peak = [line.split()[1] for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")]
print(json.dumps([codes, int(peak[0])]))
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the most memory is read from /proc, not here")
def test_absurd_claims_are_refused_by_every_command_in_bounded_memory_and_time(write, sparse_run, tmp_path):
    path = write(sparse_run, records=6)
    claim(path, 10**12)
    store, new = str(path), str(tmp_path / "new")
    calls = [
        ["inspect", store],
        ["verify", store],
        ["snapshot", store, "--out", new],
        ["export", store, "--step", "3", "--out", new],
        ["verdict", store],
        ["probe", store],
        ["probe", store, "--step", "3", "--seen"],
        ["audit", store],
        ["compact", store],
        ["compact", store, "--codec", "pcodec", "--out", new],
        ["plan", "--vocab", "1000000000000", "--dim", "1000000000", "--steps", "1000000000000"],
        ["plan", "--vocab", "9", "--dim", "9", "--steps", "9", "--sketch-size", "0", "--groups", "1000000000000"],
        ["plan", "--vocab", "50304", "--dim", "768", "--steps", "1000000000000"],
    ]
    done = subprocess.run(
        [sys.executable, "-c", CALLS, json.dumps(calls), str(MOST_CPU_SECONDS)],
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    codes, kilobytes = json.loads(done.stdout.splitlines()[-1])
    refused, damaged, not_an_option = 1, 2, 64
    assert codes == [refused, damaged, *[refused] * 9, not_an_option, 0], done.stderr
    assert "Traceback" not in done.stderr
    assert kilobytes < MOST_KILOBYTES
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    "change", [{"vocab": 10**11}, {"sketch_size": 10**8}, {"groups": ["g"] * 3}, {"block": 2**40}, {"dim": 10**9}]
)
def test_a_layout_that_claims_more_than_there_is(write, sparse_run, change):
    path = write(sparse_run, records=6, close=False)
    document = load(path)
    document["attributes"]["trainhooks"]["layout"].update(change)
    seal(path, document)
    for use in USES:
        assert outcome(use, path)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("chunk_grid", {"name": "regular", "configuration": {"chunk_shape": [0]}}),
        ("codecs", [{"name": "numcodecs.pickle"}]),
        ("codecs", 3),
        ("chunk_key_encoding", {"name": "v2"}),
        ("storage_transformers", [{"name": "x"}]),
        ("fill_value", []),
    ],
)
def test_metadata_are_the_formats(write, sparse_run, key, value):
    path = write(sparse_run, records=6)
    document = load(path)
    document["consolidated_metadata"]["metadata"]["step"][key] = value
    seal(path, document)
    for use in USES:
        assert outcome(use, path)


def test_a_journal_of_missing_rows_cannot_claim_memory(write, sparse_run):
    path = write(sparse_run, records=1)
    wide = replace(sparse_run.layout, sketch_size=10**6, block=1, snapshots=False)
    writer = StoreWriter(path.with_name("wide.zarr"), wide)
    writer.release()
    storage = LocalStorage(writer.path)
    for step in range(400):
        write_piece(storage, {}, step=step, attempt=0, has_snapshot=False)
    with pytest.raises(StoreError, match="claims"):
        open_store(writer.path)
