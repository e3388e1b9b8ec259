"""Files that claim more than they hold, and honest ones that are long: the most memory and the time that reading takes.

Targets of `faults_files.py --claims`: each file is made in one process and read in another, which must end in a result
or in an error of this package with at most 1.5 GB held and within 20 s (a hub that drips: a minute).
"""

from __future__ import annotations

import gzip
import json
import os
import resource
import socket
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from faults_readers import REFUSED, read_checkpoint
from faults_stores import make, read, seal

from trainhooks.checkpoints.opening import open_checkpoint
from trainhooks.core.token_counts import TokenCounts
from trainhooks.corpora.base import Settings
from trainhooks.corpora.counting import count_corpus
from trainhooks.corpora.sources import open_sources
from trainhooks.store import StoreError

VOCAB = 50304
PEAK_BYTES, SECONDS, DRIP_SECONDS = 1.5e9, 20, 70
DOCUMENTS, IDS = 1024, 100_000
LONG_TEXT = 100 << 20  # characters
STOPPED_SECONDS = 180
MACHINE_BYTES = 6 << 30  # more is not asked of the machine


def tokenizer(folder: Path) -> str:
    """A tokenizer of bytes, as a file."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    made = Tokenizer(models.BPE({letter: number for number, letter in enumerate(alphabet)}, []))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.save(str(folder / "tokenizer.json"))
    return str(folder / "tokenizer.json")


def count(folder: Path, name: str) -> None:
    """Count a file of the folder, or a data set that is streamed."""
    path = name if name.startswith("dataset:") else str(folder / name)
    settings = Settings(vocab_size=VOCAB, tokenizer=tokenizer(folder))
    count_corpus(open_sources([path], settings), settings=settings, workers=1)


def _lists(lengths: list[int], *, zeros: bool) -> Any:
    """Lists of ids of these lengths, one after the other."""
    import pyarrow as pa

    total = sum(lengths)
    ids = np.zeros(total, np.int32) if zeros else np.random.default_rng(0).integers(0, VOCAB, total, dtype=np.int32)
    return pa.ListArray.from_arrays(pa.array(np.cumsum([0, *lengths]), pa.int32()), pa.array(ids))


def _long_among_empty() -> Any:
    """One row of 2^28 ids, all 0, and 2^20 empty ones behind it."""
    return _lists([1 << 28, *[0] * (1 << 20)], zeros=True)


def _repeated_text(rows: int) -> Any:
    """One long text, in each row."""
    import pyarrow as pa

    text = pa.array(["a " * (LONG_TEXT // 2)], pa.large_string())
    return pa.DictionaryArray.from_arrays(pa.array([0] * rows, pa.int32()), text)


def _parquet(path: Path, column: Any, name: str) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table({name: column}), path, compression="zstd", row_group_size=1 << 30)


def _arrow(path: Path, column: Any, name: str) -> None:
    import pyarrow as pa

    table = pa.table({name: column})
    with pa.ipc.new_file(path, table.schema, options=pa.ipc.IpcWriteOptions(compression="zstd")) as file:
        file.write_table(table)


def _lines_gz(path: Path, begin: bytes, block: bytes, blocks: int, end: bytes) -> None:
    with gzip.open(path, "wb", compresslevel=1) as file:
        file.write(begin)
        for _ in range(blocks):
            file.write(block)
        file.write(end)


def _counts_npz(folder: Path) -> None:
    """2 GB of zeros, deflated."""
    with (
        zipfile.ZipFile(folder / "a.npz", "w", zipfile.ZIP_DEFLATED) as archive,
        archive.open("counts.npy", "w", force_zip64=True) as file,
    ):
        np.lib.format.write_array_header_1_0(file, {"descr": "<i8", "fortran_order": False, "shape": (1 << 28,)})
        for _ in range(1 << 7):
            file.write(bytes(1 << 24))


def _counts_npy(folder: Path) -> None:
    """A header that claims 8 TB."""
    with (folder / "a.npy").open("wb") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "<i8", "fortran_order": False, "shape": (1 << 40,)})


def _counts_csv(folder: Path) -> None:
    """25,000 lines, each with a number of 4,000 digits."""
    with (folder / "a.csv").open("w") as file:
        file.write("id,count\n")
        for token in range(25_000):
            file.write(f"{token},{'9' * 4000}\n")


def _safetensors(folder: Path) -> None:
    """A header of 2^62 numbers."""
    text = json.dumps({"a": {"dtype": "F32", "shape": [1 << 31, 1 << 31], "data_offsets": [0, 1 << 62]}}).encode()
    (folder / "a.safetensors").write_bytes(len(text).to_bytes(8, "little") + text)


def _header_entries(folder: Path) -> None:
    """A header of 1.5 million tensors without a number."""
    entry = '"dtype":"F32","shape":[0],"data_offsets":[0,0]'
    text = ("{" + ",".join(f'"{n}":{{{entry}}}' for n in range(1_500_000)) + "}").encode()
    (folder / "a.safetensors").write_bytes(len(text).to_bytes(8, "little") + text)


def _torch_zip(folder: Path) -> None:
    """300,000 tensors that share one number."""
    one = torch.zeros(1)
    torch.save({str(number): one for number in range(300_000)}, folder / "a.pt")


def _megatron(folder: Path) -> None:
    """An index of 2^40 sequences."""
    head = b"MMIDIDX\0\0" + (1).to_bytes(8, "little") + b"\x08" + (1 << 40).to_bytes(8, "little") * 2
    (folder / "a.idx").write_bytes(head)
    (folder / "a.bin").write_bytes(bytes(8))


def _store(folder: Path) -> None:
    """10^12 records in 20 kB."""
    root = make(folder / "run.zarr", close=True) / "zarr.json"
    document = json.loads(root.read_bytes())
    for metadata in document["consolidated_metadata"]["metadata"].values():
        if metadata["dimension_names"][0] == "step":
            metadata["shape"][0] = 10**12
    root.write_bytes(seal(document))


def _nothing(folder: Path) -> None:
    """All is done by the use."""


def _dripping_hub(folder: Path) -> None:
    """Ask a hub that sends a byte in half a second."""
    import huggingface_hub.constants

    server = socket.create_server(("127.0.0.1", 0))
    threading.Thread(target=_drip, args=(server,), daemon=True).start()
    huggingface_hub.constants.ENDPOINT = f"http://127.0.0.1:{server.getsockname()[1]}"
    open_checkpoint("owner/name")


def _drip(server: socket.socket) -> None:
    while True:
        client, _ = server.accept()
        client.recv(1 << 16)
        client.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n")
        while True:
            client.sendall(b" ")
            time.sleep(0.5)


Claim = tuple[Callable[[Path], object], Callable[[Path], object]]
CLAIMS: dict[str, Claim] = {
    "counts .npz, 2 GB of zeros": (_counts_npz, lambda f: TokenCounts.load(f / "a.npz")),
    "counts .npy, 8 TB by its header": (_counts_npy, lambda f: TokenCounts.load(f / "a.npy")),
    "counts .csv, 100 MB of digits": (_counts_csv, lambda f: TokenCounts.load(f / "a.csv")),
    "safetensors, 2^62 numbers": (_safetensors, lambda f: read_checkpoint(f / "a.safetensors")),
    "safetensors, 1.5 million tensors": (_header_entries, lambda f: open_checkpoint(f / "a.safetensors")),
    "torch zip, 300,000 tensors": (_torch_zip, lambda f: open_checkpoint(f / "a.pt")),
    "Megatron index, 2^40 sequences": (_megatron, lambda f: count(f, "a.idx")),
    "store, 10^12 records": (_store, lambda f: read(f / "run.zarr")),
    "Parquet, 1,024 documents of 100,000 ids": (
        lambda f: _parquet(f / "a.parquet", _lists([IDS] * DOCUMENTS, zeros=False), "input_ids"),
        lambda f: count(f, "a.parquet"),
    ),
    "Arrow, 1,024 documents of 100,000 ids": (
        lambda f: _arrow(f / "a.arrow", _lists([IDS] * DOCUMENTS, zeros=False), "input_ids"),
        lambda f: count(f, "a.arrow"),
    ),
    "streamed, 1,024 documents of 100,000 ids": (
        lambda f: _parquet(f / "a.parquet", _lists([IDS] * DOCUMENTS, zeros=False), "input_ids"),
        lambda f: count(f, f"dataset:{f}:train"),
    ),
    "Parquet, 2^28 ids in one of a million rows": (
        lambda f: _parquet(f / "a.parquet", _long_among_empty(), "input_ids"),
        lambda f: count(f, "a.parquet"),
    ),
    "Arrow, 2^28 ids in one of a million rows": (
        lambda f: _arrow(f / "a.arrow", _long_among_empty(), "input_ids"),
        lambda f: count(f, "a.arrow"),
    ),
    "streamed, 2^28 ids in one of a million rows": (
        lambda f: _parquet(f / "a.parquet", _long_among_empty(), "input_ids"),
        lambda f: count(f, f"dataset:{f}:train"),
    ),
    "Parquet, 64 rows of one text of 100 MB": (
        lambda f: _parquet(f / "a.parquet", _repeated_text(64), "text"),
        lambda f: count(f, "a.parquet"),
    ),
    "Arrow, 64 rows of one text of 100 MB": (
        lambda f: _arrow(f / "a.arrow", _repeated_text(64), "text"),
        lambda f: count(f, "a.arrow"),
    ),
    "streamed, 64 rows of one text of 100 MB": (
        lambda f: _parquet(f / "a.parquet", _repeated_text(64), "text"),
        lambda f: count(f, f"dataset:{f}:train"),
    ),
    "JSON lines, one of 4 GB, in gzip": (
        lambda f: _lines_gz(f / "a.jsonl.gz", b'{"text": "', b"a" * (1 << 24), 1 << 8, b'"}\n'),
        lambda f: count(f, "a.jsonl.gz"),
    ),
    "JSON lines, one of 64 MB of brackets": (
        lambda f: (f / "a.jsonl").write_bytes(b"[" * (60 << 20) + b"\n"),
        lambda f: count(f, "a.jsonl"),
    ),
    "JSON lines, one of 12 million objects": (
        lambda f: (f / "a.jsonl").write_bytes(b'{"text":[' + b"{}," * (12 << 20) + b"{}]}\n"),
        lambda f: count(f, "a.jsonl"),
    ),
    "hub that drips": (_nothing, _dripping_hub),
}


def measure(name: str, folder: Path) -> tuple[str, bool]:
    """A line of the table for one claim, and whether it is within its bounds."""
    for what in ("make", "use"):
        began = time.monotonic()
        command = [sys.executable, __file__, what, name, str(folder)]
        try:
            told = subprocess.run(command, capture_output=True, text=True, timeout=STOPPED_SECONDS, check=False)
        except subprocess.TimeoutExpired:
            return f"| {name} | no end in {STOPPED_SECONDS} s | | |", False
        if told.returncode:
            return (
                f"| {name} | {what}: {told.stderr.strip()[-200:]!r} after {time.monotonic() - began:.0f} s | | |",
                False,
            )
    outcome, seconds, peak = json.loads(told.stdout.splitlines()[-1])
    most = DRIP_SECONDS if name.startswith("hub") else SECONDS
    size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    line = f"| {name} | {size / 1e6:.1f} | {outcome} | {seconds:.1f} | {peak / 1e9:.2f} |"
    return line, peak <= PEAK_BYTES and seconds <= most and not outcome.startswith("foreign")


def use(name: str, folder: Path) -> None:
    """Read what was made, and print what came of it, the seconds and the peak of this process's memory in bytes."""
    resource.setrlimit(resource.RLIMIT_DATA, (MACHINE_BYTES, MACHINE_BYTES))
    began = time.monotonic()
    try:
        CLAIMS[name][1](folder)
        outcome = "read"
    except (*REFUSED, StoreError) as error:
        outcome = f"refused: {str(error).replace(str(folder), '')[-120:]}" if "-v" in sys.argv else "refused"
    except Exception as error:
        outcome = f"foreign {type(error).__name__}: {str(error)[:100]}"
    seconds = time.monotonic() - began
    status = Path("/proc/self/status").read_text(encoding="ascii")
    peak = next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmHWM"))
    print(json.dumps([outcome, seconds, peak]), flush=True)
    os._exit(0)  # a hub's thread may wait for its next byte


if __name__ == "__main__":
    step, claim, where = sys.argv[1:4]
    CLAIMS[claim][0](Path(where)) if step == "make" else use(claim, Path(where))
