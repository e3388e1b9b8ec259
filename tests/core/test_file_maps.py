"""Pages of a mapped file that was read are given back; those that were written to, and other memory, never are."""

import numpy as np
import pytest
import torch

from tests.support.resident_pages import needs_pages, resident_bytes
from trainhooks.checkpoints.sources.byte_source import LocalFile
from trainhooks.core.file_maps import any_let_go, let_go, was_read

SIZE = 1 << 22
SLACK = 1 << 17  # a fault brings up to 64 KiB, on either side


@pytest.fixture
def content(tmp_path):
    values = np.random.default_rng(0).integers(256, size=SIZE, dtype=np.uint8)
    (tmp_path / "file").write_bytes(values.tobytes())
    return values


def mapped(folder, start: int = 0) -> torch.Tensor:
    return torch.frombuffer(LocalFile.open(folder / "file").read(start, SIZE), dtype=torch.uint8)


def held(folder) -> int:
    return sum(sum(maps) for maps in resident_bytes(folder).values())


@needs_pages
@pytest.mark.parametrize("start", [0, 4096 + 24])
def test_what_was_read_goes_and_comes_again_as_it_was(tmp_path, content, start):
    tensor = mapped(tmp_path, start)
    assert tensor.sum() == content[start:].sum()
    assert held(tmp_path) >= SIZE - SLACK
    assert let_go(tensor.data_ptr())
    assert held(tmp_path) == 0
    for at in range(0, len(tensor), 1 << 20):
        part = tensor[at : at + (1 << 20)]
        assert part.sum() == content[start:][at : at + (1 << 20)].sum()
        was_read(part.data_ptr(), part.numel())
        assert held(tmp_path) <= SLACK
    np.testing.assert_array_equal(tensor.numpy(), content[start:])


@needs_pages
def test_a_page_that_was_written_to_is_kept_and_so_is_all_of_its_map(tmp_path, content):
    tensor = mapped(tmp_path)
    assert let_go(tensor.data_ptr())
    tensor[SIZE // 2] = content[SIZE // 2] ^ 1
    was_read(tensor.data_ptr(), SIZE // 4)  # not these: they are the file's
    was_read(tensor.data_ptr(), SIZE)
    assert tensor[SIZE // 2] == content[SIZE // 2] ^ 1
    assert not let_go(tensor.data_ptr())
    assert tensor[SIZE // 2] == content[SIZE // 2] ^ 1
    assert (tmp_path / "file").read_bytes() == content.tobytes()


@needs_pages
def test_only_what_was_let_go_is_dropped(tmp_path, content):
    first, second = mapped(tmp_path), mapped(tmp_path)
    first.sum(), second.sum()
    assert let_go(first.data_ptr())
    was_read(second.data_ptr(), SIZE)
    assert held(tmp_path) >= SIZE - SLACK


def test_memory_without_a_file_is_left_alone(tmp_path, content):
    memory = torch.ones(SIZE, dtype=torch.uint8)
    assert not let_go(memory.data_ptr())
    was_read(memory.data_ptr(), SIZE)
    assert memory.sum() == SIZE


def test_a_map_that_is_gone_is_forgotten(tmp_path, content):
    tensor = mapped(tmp_path)
    address = tensor.data_ptr()
    let_go(address)
    del tensor
    assert not any_let_go()
    assert not let_go(address)


def test_nothing_is_dropped_where_the_system_does_not_tell(tmp_path, content, monkeypatch):
    def refuse(*_):
        raise FileNotFoundError

    tensor = mapped(tmp_path)
    monkeypatch.setattr("trainhooks.core.file_maps.os.open", refuse)
    assert not let_go(tensor.data_ptr())
    assert not any_let_go()
