"""A pickle read as inert records: no global that a file names is ever imported, called or built."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch

from trainhooks.checkpoints.base import CheckpointError
from trainhooks.checkpoints.formats.dtypes import MOST_DIMS, PICKLED, STORAGES, is_shape, is_sizes
from trainhooks.checkpoints.formats.pickle_machine import PickleMachine
from trainhooks.checkpoints.sources.byte_source import MOST_SIZE


class Inert:
    """Stands for an object of a class that was not imported: the `arguments` it was made with, the `state` it was
    given. What is set or appended on it is dropped."""

    __slots__ = ("arguments", "global_name", "state")

    def __init__(self, global_name: str = "", arguments: tuple[Any, ...] = ()) -> None:
        self.global_name, self.arguments = global_name, arguments
        self.state: Any = None

    def set_state(self, state: Any) -> None:
        """Keep it."""
        self.state = state

    def field(self, name: str) -> Any:
        """One field of a dataclass's pickled state; None where it has none of that name."""
        return self.state.get(name) if isinstance(self.state, dict) else None


class TensorStub:
    """Base of what stands for torch's own objects: a pickle cannot change it after it was checked."""

    def set_state(self, _: Any) -> None:
        """Refuse. Raises CheckpointError."""
        raise CheckpointError("the pickle tries to change a tensor's record after it was made; it is refused.")


class Dtype(TensorStub):
    """A torch dtype by name."""

    def __init__(self, name: str) -> None:
        self.name = name


class Storage(TensorStub):
    """A storage: its dtype's name, its entry's key in the zip and its length in elements."""

    def __init__(self, dtype: str, key: str, length: int) -> None:
        self.dtype, self.key, self.length = dtype, key, length


class Strided(TensorStub):
    """A tensor: a storage, the offset of its first element, its shape and strides, all in elements."""

    def __init__(self, storage: Storage, offset: int, shape: tuple[int, ...], stride: tuple[int, ...]) -> None:
        self.storage, self.offset, self.shape, self.stride = storage, offset, shape, stride

    @property
    def reach(self) -> int:
        """Elements from the first to the last, that one included; 0 for an empty tensor."""
        if 0 in self.shape:
            return 0
        return 1 + sum((size - 1) * step for size, step in zip(self.shape, self.stride, strict=True))


class Foreign(TensorStub):
    """A tensor that is there and not read: `what` it is in words, and its shape, () where the pickle does not tell."""

    def __init__(self, what: str, shape: tuple[int, ...] = ()) -> None:
        self.what, self.shape = what[:120], shape


class RebuildTensor(TensorStub):
    """In place of torch._utils._rebuild_tensor and _v2."""

    def __call__(self, storage: Any, offset: Any, shape: Any, stride: Any, *_: Any) -> Strided | Foreign:
        """A checked record. Raises CheckpointError."""
        sizes = is_shape(shape) and is_sizes(stride) and is_sizes((offset,))
        if isinstance(storage, Inert) and sizes:
            return Foreign(f"a tensor on a {storage.global_name or 'storage'} that is not known", tuple(shape))
        if not isinstance(storage, Storage) or not sizes or len(shape) != len(stride):
            raise CheckpointError("the pickle holds a tensor whose storage, offset, shape or stride is none.")
        tensor = Strided(storage, offset, shape, stride)
        if math.prod(shape) > storage.length or (tensor.reach and offset + tensor.reach > storage.length):
            raise CheckpointError(f"the pickle holds a tensor of shape {shape} that reaches outside its storage.")
        return tensor


class RebuildUntyped(TensorStub):
    """In place of torch._utils._rebuild_tensor_v3: a tensor that says its own dtype, on a storage of bytes."""

    def __call__(
        self, storage: Any, offset: Any, shape: Any, stride: Any, _: Any, __: Any, dtype: Any, *___: Any
    ) -> Any:
        """A checked record. Raises CheckpointError."""
        if isinstance(dtype, Inert) and is_shape(shape):
            return Foreign(f"a tensor of dtype {dtype.global_name}, which this torch does not know", tuple(shape))
        if not isinstance(dtype, Dtype):
            raise CheckpointError(f"the pickle holds a tensor whose dtype is a {type(dtype).__name__}.")
        if not isinstance(storage, Storage) or storage.dtype != "uint8":
            raise CheckpointError(f"the pickle holds a tensor of {dtype.name} whose storage is not one of bytes.")
        length = storage.length // getattr(torch, dtype.name).itemsize
        return RebuildTensor()(Storage(dtype.name, storage.key, length), offset, shape, stride)


class RebuildParameter(TensorStub):
    """In place of torch._utils._rebuild_parameter: the tensor inside."""

    def __call__(self, data: Any, *_: Any) -> Any:
        """The tensor inside."""
        return data


class RebuildSubclass(TensorStub):
    """In place of torch._tensor._rebuild_from_type_v2: the tensor inside, without its Python attributes."""

    def __call__(self, rebuild: Any, kind: Any, arguments: Any, _: Any) -> Any:
        """The tensor inside; a record of what it is where it is rebuilt by anything but the functions above."""
        if isinstance(rebuild, (RebuildTensor, RebuildUntyped, RebuildParameter)) and isinstance(arguments, tuple):
            # a pickle may hold one rebuild in another; the longest has seven arguments
            return rebuild(*arguments[:MOST_DIMS])
        kind = kind.global_name if isinstance(kind, Inert) else ""
        shapes = (
            (tuple(one) for one in arguments[:MOST_DIMS] if isinstance(one, tuple) and is_shape(one))
            if isinstance(arguments, tuple)
            else ()
        )
        return Foreign(f"a {kind or 'tensor of its own class'}", next(iter(shapes), ()))


class MakeMapping(TensorStub):
    """In place of collections.OrderedDict: a dict, empty as pickles make it."""

    def __call__(self) -> dict[Any, Any]:
        """An empty dict."""
        return {}


class MakeSize(TensorStub):
    """In place of torch.Size: a tuple."""

    def __call__(self, sizes: Any = ()) -> Any:
        """The sizes; an inert object where they are none."""
        return tuple(sizes) if isinstance(sizes, (tuple, list)) and len(sizes) <= MOST_DIMS else Inert()


KNOWN: dict[str, Callable[[], Any]] = {
    "collections.OrderedDict": MakeMapping,
    "torch.Size": MakeSize,
    "torch._utils._rebuild_tensor": RebuildTensor,
    "torch._utils._rebuild_tensor_v2": RebuildTensor,
    "torch._utils._rebuild_tensor_v3": RebuildUntyped,
    "torch._utils._rebuild_parameter": RebuildParameter,
    "torch._utils._rebuild_parameter_with_state": RebuildParameter,
    "torch._tensor._rebuild_from_type_v2": RebuildSubclass,
}
MOST_UNKNOWN = 1_000  # names kept to be told
CALLABLE = (MakeMapping, MakeSize, RebuildTensor, RebuildUntyped, RebuildParameter, RebuildSubclass)


class InertBuild:
    """What a pickle's names become: the records above; no name is imported.

    `strict`: any other name raises CheckpointError that says it. Otherwise it stands as an `Inert`, and goes to
    `unknown`.
    """

    def __init__(self, *, name: str, strict: bool) -> None:
        self._file, self._strict = name, strict
        self.unknown: set[str] = set()

    def name(self, whole: str) -> Any:
        """A record or an inert object; never what the name says."""
        if whole in KNOWN:
            return KNOWN[whole]()
        module, _, last = whole.rpartition(".")
        if module in ("torch", "torch.storage") and (last in STORAGES or last in PICKLED):
            return Dtype(STORAGES.get(last, last))
        if len(self.unknown) < MOST_UNKNOWN:
            self.unknown.add(whole)
        if self._strict:
            raise CheckpointError(
                f"{self._file}: its pickle names {whole[:200]}, which a state dict does not need; nothing of it was "
                "run. Save the state dict alone, or as safetensors."
            )
        return Inert(whole)

    def call(self, function: Any, arguments: tuple[Any, ...]) -> Any:
        """The record that a known function makes; an inert object with its arguments for any other."""
        if isinstance(function, CALLABLE):
            return function(*arguments)
        return Inert(function.global_name if isinstance(function, Inert) else "", arguments)

    def persistent(self, reference: Any) -> Any:
        """A storage's record."""
        match reference:
            case ("storage", Dtype() as dtype, str() as key, _, int() as length) if 0 <= length < MOST_SIZE:
                return Storage(dtype.name, key, length)
            case ("storage", Inert() as unknown, *_):
                return Inert(unknown.global_name)
            case ("storage", *_):
                return Inert()
        raise CheckpointError(f"{self._file}: its pickle refers to something outside that is no storage.")

    def collection(self) -> Inert:
        """A set without its members."""
        return Inert()


def read_pickle(data: bytes, *, name: str, strict: bool) -> tuple[Any, set[str]]:
    """What a pickle holds, inert, and the globals it named that stand as placeholders. Raises CheckpointError."""
    build = InertBuild(name=name, strict=strict)
    try:
        return PickleMachine(build, keys=(Inert,)).run(data), build.unknown
    except CheckpointError as error:
        raise error if str(error).startswith(name) else CheckpointError(f"{name}: {error}") from error
    except Exception as error:  # a broken pickle raises anything
        told = str(error)[:200]
        raise CheckpointError(f"{name}: its pickle cannot be read: {type(error).__name__}: {told}.") from error
