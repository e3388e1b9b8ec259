"""Pieces of tensors that the ranks of a split model hold, joined as Megatron's layers split them."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from trainhooks.checkpoints.base import CheckpointError, TensorEntry
from trainhooks.checkpoints.formats.settings import padding_note
from trainhooks.checkpoints.formats.stored_tensor import Part, StoredTensor, joined_notes, placed, renamed, unreadable
from trainhooks.model.head_names import HEADS, INPUTS, is_named

Tensors = Mapping[str, StoredTensor]
WHOLE = ("norm", "ln_", "position", "rotary", "inv_freq", "router", "rope")  # every rank holds them whole
BY_ROWS = (
    "query_key_value", "linear_qkv", "dense_h_to_4h", "linear_fc1", "query", "key_value", "q_proj", "k_proj", "v_proj",
    "gate_proj", "up_proj", "wq", "wk", "wv", "w1", "w3",
)  # fmt: skip
OUTPUTS = ("dense", "linear_proj", "o_proj", "wo")
"""Of these an attention's has [hidden, hidden / ranks]."""
COUNTS = ("tensor_model_parallel_size", "model_parallel_size", "mp_world_size", "padded_vocab_size")
"""Settings that say, or by which it was checked, how many ranks there are."""
BY_COLUMNS = ("dense", "linear_proj", "dense_4h_to_h", "linear_fc2", "o_proj", "down_proj", "wo", "w2")


GUESSED = "that these are all ranks is known by the attention's shape alone"


def joined_ranks(
    ranks: Sequence[Tensors], *, name: str, settings: Mapping[str, object], by_columns: Collection[str] = ()
) -> dict[str, StoredTensor]:
    """The tensors of a model that was split over `ranks`, given in order; one rank's are its own.

    Embedding and head are joined by rows, with what `settings` say of padding; the parts of a block as their names
    say, `by_columns` what is known to be split so; a piece whose rule is not known is listed and fails when it is
    read. Raises CheckpointError where ranks hold pieces of different shapes, or more or fewer rows than the settings
    announce.
    """
    found = {}
    for key in dict.fromkeys(key for rank in ranks for key in rank):
        pieces = [rank[key] for rank in ranks if key in rank]
        if key in by_columns and len(pieces) == len(ranks) > 1:
            found[key] = _joined(pieces, axis=1, note=f"joined by columns from {len(pieces)} ranks")
        elif len(pieces) != len(ranks):
            what = f"a tensor that only {len(pieces)} of {len(ranks)} ranks hold"
            found[key] = unreadable(key, what=what, shape=(), file=pieces[0].entry.file)
        else:
            found[key] = _whole(key, pieces, name=name, settings=settings)
    rows = max((one.entry.shape[0] for key, one in found.items() if is_vocabulary(key) and one.entry.shape), default=0)
    if rows and not by_columns and not _says_that_all_are_there(ranks, rows, name=name, settings=settings):
        for key in filter(is_vocabulary, found):
            found[key] = renamed(found[key], note=joined_notes(found[key].entry.note, GUESSED))
    return found


def _says_that_all_are_there(ranks: Sequence[Tensors], rows: int, *, name: str, settings: Mapping[str, object]) -> bool:
    """Whether it is known that the last ranks are not missing: by the settings, or by the ids, which need a row each
    of the joined `rows`. False where several ranks are told by the attention's matrices alone.

    Raises CheckpointError where these say another number, and where nothing says that several ranks are all.
    """
    if any(isinstance(settings.get(setting), int) for setting in COUNTS):
        return True
    ids = [size for key in ("vocab_size", "orig_vocab_size") if isinstance(size := settings.get(key), int)]
    if ids and rows < min(ids):
        raise CheckpointError(
            f"{name}: its {len(ranks)} tensor ranks hold {rows} rows for {min(ids)} ids: fetch the others."
        )
    if ids:
        return True
    told = {count for key, stored in ranks[0].items() if (count := _ranks_of(key, stored.entry)) is not None}
    if told == {len(ranks)} or (not told and len(ranks) == 1):
        return len(ranks) == 1
    if len(told) == 1:
        raise CheckpointError(
            f"{name} holds {len(ranks)} tensor ranks of {told.pop()}: fetch the others' files. (That number is by its "
            "attention's shape, where heads make up the width; else join them with their framework's tool.)"
        )
    raise CheckpointError(
        f"{name} holds {len(ranks)} tensor ranks, and nothing in them says whether these are all: their "
        "arguments are not saved. Join them with the tool of their framework, and give the joined file."
    )


def _ranks_of(key: str, entry: TensorEntry) -> int | None:
    """Among how many ranks an attention's output matrix was split; None for another tensor."""
    module, _, leaf = key.rpartition(".")
    above, _, last = module.rpartition(".")
    attention = leaf == "weight" and last in OUTPUTS and "att" in above.rpartition(".")[2].lower()
    if not attention or len(entry.shape) != 2 or not entry.shape[1] or entry.shape[0] % entry.shape[1]:
        return None
    return entry.shape[0] // entry.shape[1]


def is_vocabulary(key: str) -> bool:
    """Whether a tensor has a row, or a number, for each id: the embedding, the head or its bias."""
    module, _, leaf = key.rpartition(".")
    return (leaf == "weight" and is_named(module, (*HEADS, *INPUTS))) or (leaf == "bias" and is_named(module, HEADS))


def _whole(key: str, pieces: Sequence[StoredTensor], *, name: str, settings: Mapping[str, object]) -> StoredTensor:
    first = pieces[0]
    if len({(piece.entry.shape, piece.entry.dtype) for piece in pieces}) > 1:
        shapes = ", ".join(str(piece.entry.shape) for piece in pieces[:8])
        raise CheckpointError(f"{name}: the ranks hold {key!r} as {shapes}: pieces of different runs, or padded apart.")
    if is_vocabulary(key) and first.entry.shape and not first.entry.unreadable:
        return _vocabulary(key, pieces, name=name, settings=settings)
    axis = None if len(pieces) == 1 else _axis(key, first.entry)
    if axis is None:
        return first
    if axis < 0:
        what = f"a piece of one of {len(pieces)} ranks, and how they are joined is not known"
        return unreadable(key, what=what, shape=(), file=first.entry.file)
    return _joined(pieces, axis=axis, note=f"joined from {len(pieces)} ranks")


def _vocabulary(key: str, pieces: Sequence[StoredTensor], *, name: str, settings: Mapping[str, object]) -> StoredTensor:
    """By rows; whole where every rank holds all of it, as the settings say."""
    count, rows = len(pieces), pieces[0].entry.shape[0]
    told = settings.get("padded_vocab_size")
    whole = count == 1 or rows == told
    if count > 1 and not isinstance(told, int) and _are_alike(pieces):
        raise CheckpointError(
            f"{name}: its {count} ranks hold {key!r} with the same numbers: copies of the whole, or pieces? Nothing "
            "here says it. Give one rank's file where it holds the whole model."
        )
    rows = rows if whole else rows * count
    if isinstance(told, int) and rows != told:
        raise CheckpointError(
            f"{name}: {count} ranks hold {rows} rows of {key!r}; its settings announce {told}. A rank's file is "
            "missing, or it is of another run."
        )
    padding = padding_note(rows, settings)
    if whole:
        return renamed(pieces[0], note=padding) if padding else pieces[0]
    ranks = f"joined by rows from {count} ranks"
    return _joined(pieces, axis=0, note=f"{ranks}; {padding}" if padding else ranks)


def _are_alike(pieces: Sequence[StoredTensor]) -> bool:
    """Whether all pieces begin and end with the same bytes."""
    return len({piece.digest(full=False) for piece in pieces}) == 1


def _axis(key: str, entry: TensorEntry) -> int | None:
    """The axis that ranks share; None for what each holds whole, -1 where that is not known."""
    module, _, leaf = key.rpartition(".")
    last = module.rpartition(".")[2]
    if not entry.shape or any(word in key.lower() for word in WHOLE) or (last in BY_COLUMNS and leaf == "bias"):
        return None
    if last in BY_ROWS:
        return 0
    return 1 if last in BY_COLUMNS and len(entry.shape) == 2 else -1


def _joined(pieces: Sequence[StoredTensor], *, axis: int, note: str) -> StoredTensor:
    entry = pieces[0].entry
    size = entry.shape[axis]
    shape = (*entry.shape[:axis], size * len(pieces), *entry.shape[axis + 1 :])
    starts = [tuple(rank * size if at == axis else 0 for at in range(len(shape))) for rank in range(len(pieces))]
    files = ",".join(dict.fromkeys(piece.entry.file for piece in pieces))
    whole = TensorEntry(entry.key, entry.dtype, shape, files, sum(piece.entry.nbytes for piece in pieces), note=note)

    def locate() -> tuple[Part, ...]:
        return tuple(part for piece, at in zip(pieces, starts, strict=True) for part in placed(piece, at))

    return StoredTensor(whole, locate)
