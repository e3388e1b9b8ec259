"""A pickle's opcodes on a stack of our own: plain values and what the caller's `build` makes, nothing else.

Why not the standard library's: an unpickler that finds only inert classes still hashes what a file tells it to (a
tuple nested a million deep ends the process, one that holds itself twice sixty times over never ends), and makes 64
bytes of objects out of each byte.
"""

from __future__ import annotations

import pickletools
from collections.abc import Callable, Iterable
from typing import Any, Protocol

MOST_OPCODES = 4_000_000  # a tensor takes about 25, a piece of a distributed checkpoint about 40
MOST_NAME = 1_000  # characters of a module's and a class's name together
MOST_ARGUMENTS = 1_000  # of a call; torch's own have eight
MOST_KEY = 1 << 60  # larger whole numbers can be chosen to have one hash
_PUTS = ("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE")
_GETS = ("GET", "BINGET", "LONG_BINGET")
_VALUES: dict[str, Callable[[], Any]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_TUPLE": tuple,
    "EMPTY_LIST": list,
    "EMPTY_DICT": dict,
}
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


class Built(Protocol):
    """What stands for an object in a pickle."""

    def set_state(self, state: Any) -> None:
        """Take the state that the pickle gives it."""
        ...


class Build(Protocol):
    """What a pickle's names and calls become."""

    def name(self, whole: str) -> Any:
        """What stands for the global `module.name`."""
        ...

    def call(self, function: Any, arguments: tuple[Any, ...]) -> Any:
        """What stands for a call, or a new object, of what `name` or `call` gave."""
        ...

    def persistent(self, reference: Any) -> Any:
        """What stands for something outside the pickle."""
        ...

    def collection(self) -> Built:
        """What stands for a set, whose members are dropped."""
        ...


class PickleMachine:
    """Runs one pickle, once.

    Containers are real dicts, lists and tuples; a dict keeps the items whose keys are text, bytes, whole numbers or
    objects that `keys` admits (hashed by identity), and drops the others. Buffers outside the pickle, copyreg's
    codes and Python 2's class opcodes are refused.
    """

    def __init__(self, build: Build, *, keys: tuple[type, ...] = ()) -> None:
        self._build = build
        self._keys = (str, bytes, *keys)
        self._stack: list[Any] = []
        self._outer: list[list[Any]] = []  # one stack a mark that is open
        self._memo: dict[int, Any] = {}

    def run(self, data: bytes) -> Any:
        """What the pickle leaves. Raises ValueError, IndexError, KeyError or TypeError where it is broken."""
        for count, (opcode, argument, _) in enumerate(pickletools.genops(data)):
            if count >= MOST_OPCODES:
                raise ValueError(f"it has more than {MOST_OPCODES} opcodes")
            self._step(opcode.name, argument)
        return self._stack.pop()

    def _step(self, name: str, argument: Any) -> None:
        stack = self._stack
        if name in _GETS:
            stack.append(self._memo[argument])
        elif name in _PUTS:
            self._memo[len(self._memo) if argument is None else argument] = stack[-1]
        elif name in _VALUES:
            stack.append(_VALUES[name]())
        elif name in _TUPLES:
            self._fold(_TUPLES[name])
        elif name == "MARK":
            self._outer.append(stack)
            self._stack = []
        elif (handler := _HANDLERS.get(name)) is not None:
            handler(self)
        elif name == "GLOBAL":
            stack.append(self._named(*argument.partition(" ")[::2]))
        elif name.startswith(_PLAIN):
            stack.append(argument)
        elif name not in _NOTHING:
            raise ValueError(f"it uses {name}, which is not read")

    def _fold(self, count: int) -> None:
        if len(self._stack) < count:
            raise ValueError("it takes more than it put down")
        self._stack[-count:] = [tuple(self._stack[-count:])]

    def _to_mark(self) -> list[Any]:
        items, self._stack = self._stack, self._outer.pop()
        return items

    def _put_items(self, target: Any, items: Iterable[Any]) -> None:
        pairs = list(items)
        if isinstance(target, dict):
            for key, value in zip(pairs[::2], pairs[1::2], strict=True):
                if isinstance(key, self._keys) or (isinstance(key, int) and abs(key) < MOST_KEY):
                    target[key] = value

    def _extend(self, items: list[Any]) -> None:
        if isinstance(self._stack[-1], list):
            self._stack[-1].extend(items)

    def _dict(self) -> None:
        items = self._to_mark()
        self._stack.append({})
        self._put_items(self._stack[-1], items)

    def _set_item(self) -> None:
        value, key = self._stack.pop(), self._stack.pop()
        self._put_items(self._stack[-1], (key, value))

    def _set_items(self) -> None:
        items = self._to_mark()
        self._put_items(self._stack[-1], items)

    def _append(self) -> None:
        value = self._stack.pop()
        self._extend([value])

    def _frozenset(self) -> None:
        self._to_mark()
        self._stack.append(self._build.collection())

    def _stack_global(self) -> None:
        name, module = self._stack.pop(), self._stack.pop()
        if not isinstance(name, str) or not isinstance(module, str):
            raise ValueError("a name in it is no text")
        self._stack.append(self._named(module, name))

    def _named(self, module: str, name: str) -> Any:
        if len(module) + len(name) > MOST_NAME:
            raise ValueError(f"a name in it has more than {MOST_NAME} characters")
        return self._build.name(f"{module}.{name}")

    def _call(self) -> None:
        arguments, function = self._stack.pop(), self._stack.pop()
        if not isinstance(arguments, tuple):
            raise ValueError("a call in it has no tuple of arguments")
        if len(arguments) > MOST_ARGUMENTS:
            raise ValueError(f"a call in it has {len(arguments)} arguments; {MOST_ARGUMENTS} are allowed")
        self._stack.append(self._build.call(function, arguments))

    def _call_with_names(self) -> None:
        self._stack.pop()
        self._call()

    def _set_state(self) -> None:
        state, target = self._stack.pop(), self._stack[-1]
        if not isinstance(target, (dict, list, tuple)):  # of a mapping's own attributes nothing is wanted
            target.set_state(state)

    def _pop(self) -> None:
        if self._stack:
            self._stack.pop()
        else:
            self._to_mark()

    def _tuple(self) -> None:
        items = self._to_mark()
        self._stack.append(tuple(items))

    def _list(self) -> None:
        items = self._to_mark()
        self._stack.append(items)

    def _appends(self) -> None:
        items = self._to_mark()
        self._extend(items)

    def _empty_set(self) -> None:
        self._stack.append(self._build.collection())

    def _persistent(self) -> None:
        self._stack.append(self._build.persistent(self._stack.pop()))


_NOTHING = ("PROTO", "FRAME", "STOP")
_PLAIN = ("BININT", "LONG1", "LONG4", "INT", "LONG", "FLOAT", "BINFLOAT", "BINUNICODE", "SHORT_BINUNICODE", "UNICODE",
          "STRING", "BINSTRING", "SHORT_BINSTRING", "BINBYTES", "SHORT_BINBYTES", "BYTEARRAY8")  # fmt: skip
_HANDLERS: dict[str, Callable[[PickleMachine], Any]] = {
    "TUPLE": PickleMachine._tuple,
    "LIST": PickleMachine._list,
    "DICT": PickleMachine._dict,
    "SETITEM": PickleMachine._set_item,
    "SETITEMS": PickleMachine._set_items,
    "APPEND": PickleMachine._append,
    "APPENDS": PickleMachine._appends,
    "EMPTY_SET": PickleMachine._empty_set,
    "ADDITEMS": PickleMachine._to_mark,
    "FROZENSET": PickleMachine._frozenset,
    "STACK_GLOBAL": PickleMachine._stack_global,
    "REDUCE": PickleMachine._call,
    "NEWOBJ": PickleMachine._call,
    "NEWOBJ_EX": PickleMachine._call_with_names,
    "BUILD": PickleMachine._set_state,
    "BINPERSID": PickleMachine._persistent,
    "POP": PickleMachine._pop,
    "POP_MARK": PickleMachine._to_mark,
}
