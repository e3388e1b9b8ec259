from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from loops import TinyLM, batches, train
from torch.utils.data import DataLoader, TensorDataset

import trainhooks as th
from trainhooks.corpora import count_loader, counts_of_store

VOCAB = 11


def rows(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(0, VOCAB, shape, generator=torch.Generator().manual_seed(seed))


def counted(ids: torch.Tensor) -> list[int]:
    """A slow twin: every id by itself."""
    slow = Counter(ids.reshape(-1).tolist())
    return [slow[token] for token in range(VOCAB)]


class TestWhatIsTaken:
    ids = rows(13, 8)

    def test_a_tensor_is_shifted_by_the_loss(self) -> None:
        for batches_of in (DataLoader(self.ids, batch_size=4), DataLoader(TensorDataset(self.ids), batch_size=4)):
            found = count_loader(batches_of, vocab_size=VOCAB)
            assert found.counts.tolist() == counted(self.ids[:, 1:])
            assert (found.documents, found.tokens_read) == (None, 13 * 8)
            assert "the first position of each row left out" in found.rule

    def test_a_pair_is_shifted_already(self) -> None:
        found = count_loader([(self.ids[:, :-1], self.ids[:, 1:])], vocab_size=VOCAB)
        assert found.counts.tolist() == counted(self.ids[:, 1:])
        assert found.rule == "labels of a loader, batch[1]: every position counted; id -100 left out"

    def test_a_mapping_with_labels(self) -> None:
        labels = self.ids.clone()
        labels[:, 5:] = -100
        found = count_loader([{"input_ids": self.ids, "labels": labels}], vocab_size=VOCAB)
        assert found.counts.tolist() == counted(self.ids[:, 1:5])
        assert "batch['labels']" in found.rule

    def test_a_mapping_of_ids_and_their_mask(self) -> None:
        mask = torch.ones_like(self.ids)
        mask[:, 6:] = 0
        found = count_loader([{"input_ids": self.ids, "attention_mask": mask}], vocab_size=VOCAB)
        assert found.counts.tolist() == counted(self.ids[:, 1:6])
        found = count_loader([{"input_ids": self.ids, "labels": None}], vocab_size=VOCAB)
        assert found.counts.tolist() == counted(self.ids[:, 1:])

    def test_the_user_knows_better(self) -> None:
        pair = [(self.ids, self.ids[:, ::2])]
        assert count_loader(pair, vocab_size=VOCAB, labels=0).counts.tolist() == counted(self.ids)
        taken = count_loader(pair, vocab_size=VOCAB, labels=lambda batch: batch[0][:2])
        assert taken.counts.tolist() == counted(self.ids[:2])
        shifted = count_loader(pair, vocab_size=VOCAB, labels=0, shift=True)
        assert shifted.counts.tolist() == counted(self.ids[:, 1:])
        named = count_loader([{"target": self.ids}], vocab_size=VOCAB, labels="target", shift=False)
        assert named.counts.tolist() == counted(self.ids)
        without = count_loader([self.ids], vocab_size=VOCAB, ignore_index=3, shift=False)
        assert without.counts.tolist() == [0 if token == 3 else c for token, c in enumerate(counted(self.ids))]

    def test_how_batches_are_cut_changes_nothing(self) -> None:
        whole = count_loader(DataLoader(self.ids, batch_size=13), vocab_size=VOCAB)
        parts = count_loader(DataLoader(self.ids, batch_size=3, shuffle=True), vocab_size=VOCAB)
        assert np.array_equal(whole.counts, parts.counts)


@pytest.mark.parametrize("own", [False, True])
def test_random_numbers_go_on_as_if_nothing_had_been_counted(own: bool) -> None:
    generator = torch.Generator().manual_seed(5) if own else None
    loader = DataLoader(rows(20, 4), batch_size=4, shuffle=True, generator=generator)
    torch.manual_seed(0)
    expected, drawn = torch.cat(list(loader)), torch.rand(3)
    torch.manual_seed(0)
    if generator is not None:
        generator.manual_seed(5)
    count_loader(loader, vocab_size=VOCAB)
    assert torch.equal(torch.cat(list(loader)), expected)
    assert torch.equal(torch.rand(3), drawn)


class TestRefusals:
    @pytest.mark.parametrize(
        ("batch", "message"),
        [
            ({"text": 1}, "a mapping with text; needed labels or input_ids"),
            ((1, 2, 3), "a tuple of 3; needed a tensor"),
            ("words", "a str; needed a tensor"),
            (torch.rand(2, 3), "dtype torch.float32; needed token ids"),
            (torch.tensor(3), "batch 0 are a single number"),
            (({"a": 1},), "labels are dict; needed one tensor"),
            ({"input_ids": torch.ones(2, 3, dtype=int), "attention_mask": torch.ones(2)}, r"shape \(2,\), input_ids"),
        ],
    )
    def test_other_batches(self, batch: object, message: str) -> None:
        with pytest.raises(ValueError, match=message):
            count_loader([batch], vocab_size=VOCAB)

    def test_a_place_that_is_not_there(self) -> None:
        with pytest.raises(ValueError, match="it has no 'labels'"):
            count_loader([{"input_ids": rows(1, 2)}], vocab_size=VOCAB, labels="labels")
        with pytest.raises(ValueError, match="it has no 2"):
            count_loader([(rows(1, 2), rows(1, 2))], vocab_size=VOCAB, labels=2)

    @pytest.mark.parametrize("foreign", [VOCAB, -1, -(2**40)])
    def test_foreign_ids_are_named_with_their_place(self, foreign: int) -> None:
        bad = rows(2, 3).clone()
        bad[1, 2] = foreign
        with pytest.raises(ValueError, match=rf"id {foreign} in batch 1 at \(1, 2\) is outside 0 ... 10"):
            count_loader([rows(2, 3), bad], vocab_size=VOCAB)

    def test_batches_of_two_kinds(self) -> None:
        with pytest.raises(ValueError, match="batch 1 would be counted otherwise than batch 0"):
            count_loader([rows(2, 3), (rows(2, 3), rows(2, 3))], vocab_size=VOCAB)

    @pytest.mark.parametrize("loader", [[], [torch.full((2, 3), -100)], [torch.ones(2, 1, dtype=int)]])
    def test_nothing_to_count(self, loader: list) -> None:
        with pytest.raises(ValueError, match="nothing to count"):
            count_loader(loader, vocab_size=VOCAB)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("labels") / "run.zarr"
    model = TinyLM()
    with th.Recorder(model, store=path) as recorder:
        train(model, batches(5), recorder)
    return path


class TestStore:
    def test_the_labels_up_to_a_step(self, store: Path) -> None:
        opened = th.open_store(store)
        steps = [int(step) for step in opened.snapshot_steps if step]
        for step in steps:
            found = counts_of_store(store, step=step)
            assert np.array_equal(found.counts, opened.label_counts(step))
            assert str(step) in found.rule
        assert np.array_equal(counts_of_store(opened).counts, opened.label_counts(steps[-1]))
        assert counts_of_store(opened).vocab_size == opened.vocab

    def test_steps_without_labels(self, store: Path) -> None:
        with pytest.raises(ValueError, match="no label had been seen at step 0"):
            counts_of_store(store, step=0)
        with pytest.raises(ValueError, match="no snapshot at step 999"):
            counts_of_store(store, step=999)
