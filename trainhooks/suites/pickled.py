"""A pickle read as inert records: no global that a file names is ever imported, called or built."""

from __future__ import annotations

import io
import math
import pickle
import pickletools
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

from trainhooks.suites.base import CheckpointError

STORAGES = {
    "DoubleStorage": "float64",
    "FloatStorage": "float32",
    "HalfStorage": "float16",
    "BFloat16Storage": "bfloat16",
    "LongStorage": "int64",
    "IntStorage": "int32",
    "ShortStorage": "int16",
    "CharStorage": "int8",
    "ByteStorage": "uint8",
    "BoolStorage": "bool",
}
DTYPES = frozenset((*STORAGES.values(), "float8_e4m3fn", "float8_e5m2", "complex64", "complex128"))
MEMO_OPCODES = frozenset(("PUT", "BINPUT", "LONG_BINPUT"))


class Inert:
    """Stands for an object of a class that was not imported: `arguments` it was made with, `state` it was given.

    Whatever a pickle does to it stays here; what is appended or set on it is dropped.
    """

    global_name = ""

    def __new__(cls, *arguments: Any, **_: Any) -> Inert:
        """Keep the arguments, run nothing."""
        self = object.__new__(cls)
        self.arguments = arguments
        self.state = None
        return self

    arguments: tuple[Any, ...]
    state: Any

    def __init__(self, *_: Any, **__: Any) -> None: ...

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def __setitem__(self, *_: Any) -> None: ...

    def append(self, *_: Any) -> None:
        """Drop it."""

    def extend(self, *_: Any) -> None:
        """Drop them."""

    def add(self, *_: Any) -> None:
        """Drop it."""

    def field(self, name: str) -> Any:
        """One field of a dataclass's pickled state; None where it has none of that name."""
        return self.state.get(name) if isinstance(self.state, dict) else None


class Record:
    """Base of what stands for torch's own objects: a pickle cannot change it after it was checked."""

    def __setstate__(self, _: Any) -> None:
        raise CheckpointError("the pickle tries to change a tensor's record after it was made; it is refused.")


class Dtype(Record):
    """A torch dtype by name."""

    def __init__(self, name: str) -> None:
        self.name = name


class Storage(Record):
    """A storage: its dtype's name, its entry's key in the zip and its length in elements."""

    def __init__(self, dtype: str, key: str, length: int) -> None:
        self.dtype, self.key, self.length = dtype, key, length


class Strided(Record):
    """A tensor: a storage, the offset of its first element, its shape and strides, all in elements."""

    def __init__(self, storage: Storage, offset: int, shape: tuple[int, ...], stride: tuple[int, ...]) -> None:
        self.storage, self.offset, self.shape, self.stride = storage, offset, shape, stride

    @property
    def reach(self) -> int:
        """Elements from the first to the last, that one included; 0 for an empty tensor."""
        if 0 in self.shape:
            return 0
        return 1 + sum((size - 1) * step for size, step in zip(self.shape, self.stride, strict=True))


class RebuildTensor(Record):
    """In place of torch._utils._rebuild_tensor and _v2."""

    def __call__(self, storage: Any, offset: Any, shape: Any, stride: Any, *_: Any) -> Strided:
        """A checked record. Raises CheckpointError."""
        sizes = all(
            isinstance(values, tuple) and all(type(value) is int and value >= 0 for value in values)
            for values in (shape, stride, (offset,))
        )
        if not isinstance(storage, Storage) or not sizes or len(shape) != len(stride):
            raise CheckpointError("the pickle holds a tensor whose storage, offset, shape or stride is none.")
        tensor = Strided(storage, offset, shape, stride)
        if math.prod(shape) > storage.length or (tensor.reach and offset + tensor.reach > storage.length):
            raise CheckpointError(f"the pickle holds a tensor of shape {shape} that reaches outside its storage.")
        return tensor


class RebuildParameter(Record):
    """In place of torch._utils._rebuild_parameter: the tensor inside."""

    def __call__(self, data: Any, *_: Any) -> Any:
        """The tensor inside."""
        return data


class RebuildSubclass(Record):
    """In place of torch._tensor._rebuild_from_type_v2: the tensor inside, without its Python attributes."""

    def __call__(self, rebuild: Any, _: Any, arguments: Any, __: Any) -> Any:
        """The tensor inside; an inert object where it is rebuilt by anything but the functions above."""
        if isinstance(rebuild, (RebuildTensor, RebuildParameter)) and isinstance(arguments, tuple):
            return rebuild(*arguments)
        return Inert()


KNOWN: dict[str, Callable[[], Any]] = {
    "collections.OrderedDict": lambda: OrderedDict,
    "torch.Size": lambda: tuple,
    "torch._utils._rebuild_tensor": RebuildTensor,
    "torch._utils._rebuild_tensor_v2": RebuildTensor,
    "torch._utils._rebuild_parameter": RebuildParameter,
    "torch._utils._rebuild_parameter_with_state": RebuildParameter,
    "torch._tensor._rebuild_from_type_v2": RebuildSubclass,
}


class InertUnpickler(pickle.Unpickler):
    """Reads a pickle as dicts, lists, numbers, text and the records above.

    `strict`: any other global raises CheckpointError that names it. Otherwise it becomes a class derived from
    `Inert`, which does nothing, and its name goes to `unknown`.
    """

    def __init__(self, data: bytes, *, name: str, strict: bool) -> None:
        super().__init__(io.BytesIO(data))
        self.name, self.strict = name, strict
        self.unknown: set[str] = set()

    def find_class(self, module: str, name: str) -> Any:
        """A record or an inert class; never what the name says."""
        whole = f"{module}.{name}"
        if whole in KNOWN:
            return KNOWN[whole]()
        if module in ("torch", "torch.storage") and (name in STORAGES or name in DTYPES):
            return Dtype(STORAGES.get(name, name))
        self.unknown.add(whole)
        if self.strict:
            raise CheckpointError(
                f"{self.name}: its pickle names {whole}, which a state dict does not need; nothing of it was run. "
                "Save the state dict alone, or as safetensors."
            )
        return type("Inert", (Inert,), {"global_name": whole})

    def persistent_load(self, pid: Any) -> Any:
        """A storage's record."""
        match pid:
            case ("storage", Dtype() as dtype, str() as key, _, int() as length) if length >= 0:
                return Storage(dtype.name, key, length)
            case ("storage", *_):
                return Inert()
        raise CheckpointError(f"{self.name}: its pickle refers to something outside that is no storage.")


def read_pickle(data: bytes, *, name: str, strict: bool) -> tuple[Any, set[str]]:
    """What a pickle holds, inert, and the globals it named that stand as placeholders. Raises CheckpointError."""
    try:
        # a memo index is an allocation: 2^32 of them would take the machine down before anything is checked
        for opcode, argument, _ in pickletools.genops(data):
            if opcode.name in MEMO_OPCODES and isinstance(argument, int) and argument > len(data):
                raise CheckpointError(f"{name}: its pickle memoizes at {argument}, beyond its own length.")
        unpickler = InertUnpickler(data, name=name, strict=strict)
        return unpickler.load(), unpickler.unknown
    except CheckpointError as error:
        raise error if str(error).startswith(name) else CheckpointError(f"{name}: {error}") from error
    except Exception as error:  # a broken pickle raises anything
        raise CheckpointError(f"{name}: its pickle cannot be read: {type(error).__name__}: {error}.") from error
