"""Files with bytes changed, cut and moved: they are read, or refused by an error of this package; nothing else."""

import numpy as np
import pytest
import torch
from safetensors.torch import save

from trainhooks.corpora.base import Settings
from trainhooks.corpora.megatron import megatron_pieces
from trainhooks.suites.base import CheckpointError
from trainhooks.suites.checkpoint import open_checkpoint
from trainhooks.suites.dcp import METADATA
from trainhooks.tokens import TokenCounts

MUTATIONS = 60
TENSORS = {"embed.weight": torch.arange(12.0).reshape(4, 3), "other": torch.ones(2, dtype=torch.bfloat16)}


def mutated(data, random):
    """Some bytes set, a run of them cut, doubled or filled, or the end cut off."""
    data = bytearray(data)
    for _ in range(random.integers(1, 5)):
        at = int(random.integers(len(data))) if data else 0
        stop = at + int(random.integers(1, 17))
        way = random.integers(5)
        if way == 0:
            data[at : at + 1] = bytes([random.integers(256)])
        elif way == 1:
            del data[at:stop]
        elif way == 2:
            data[at:at] = data[at:stop]
        elif way == 3:
            data[at:stop] = bytes([random.choice([0, 255])]) * len(data[at:stop])
        else:
            del data[max(at, len(data) // 2) :]
    return bytes(data)


def read_checkpoint(path):
    checkpoint = open_checkpoint(path)
    for key in checkpoint.tensors:
        try:
            checkpoint.read(key)
        except CheckpointError:
            continue


def safetensors(folder):
    path = folder / "a.safetensors"
    path.write_bytes(save(TENSORS))
    return path, lambda: read_checkpoint(path)


def torch_zip(folder):
    torch.save(TENSORS, folder / "a.pt")
    return folder / "a.pt", lambda: read_checkpoint(folder / "a.pt")


def distributed(folder):
    import torch.distributed.checkpoint as dcp

    dcp.save(dict(TENSORS), checkpoint_id=folder / "dcp", no_dist=True)
    return folder / "dcp" / METADATA, lambda: read_checkpoint(folder / "dcp")


def counts(folder):
    path = folder / "counts.npz"
    TokenCounts(np.arange(1, 40), documents=3, rule="all").save(path)
    return path, lambda: TokenCounts.load(path)


def plain_counts(folder):
    path = folder / "counts.npy"
    TokenCounts(np.arange(1, 40)).save(path)
    return path, lambda: TokenCounts.load(path)


def csv_counts(folder):
    path = folder / "counts.csv"
    TokenCounts(np.arange(1, 40)).save(path)
    return path, lambda: TokenCounts.load(path)


def megatron(folder):
    sizes, ids = np.array([3, 2, 4], "<i4"), np.arange(9, dtype="<u2")
    pointers, documents = np.array([0, 6, 10], "<i8"), np.array([0, 1, 3], "<i8")
    head = b"MMIDIDX\0\0" + (1).to_bytes(8, "little") + b"\x08" + (3).to_bytes(8, "little") * 2
    (folder / "a.bin").write_bytes(ids.tobytes())
    path = folder / "a.idx"
    path.write_bytes(head + sizes.tobytes() + pointers.tobytes() + documents.tobytes())
    return path, lambda: [piece.tally(Settings(vocab_size=9)) for piece in megatron_pieces(path)]


TARGETS = [safetensors, torch_zip, distributed, counts, plain_counts, csv_counts, megatron]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.__name__)
def test_a_mutated_file_is_read_or_refused(tmp_path, target):
    path, read = target(tmp_path)
    good, random, refused = path.read_bytes(), np.random.default_rng(7), 0
    read()
    for number in range(MUTATIONS):
        path.write_bytes(mutated(good, random))
        error = raised_by(read)
        if error is not None:
            assert type(error) in (ValueError, CheckpointError), f"mutation {number}: {error!r}"
            assert path.name in str(error) or path.parent.name in str(error), f"mutation {number}: {error}"
            refused += 1
    assert refused > MUTATIONS // 4


def raised_by(read):
    try:
        read()
    except Exception as error:
        return error
    return None
