"""A device that is a process of its own to torch, computes on the host, and notes every wait that a GPU would need.

    python tests/support/fake_device.py

trains a small model on it with a recorder and prints, as JSON, what would have waited in records after the second one:
for each wait the operator, and the line of this package that asked for it. A process has it for good, so run it alone.
"""

from __future__ import annotations

import json
import traceback
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor
from torch.utils._mode_utils import no_dispatch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

PACKAGE = Path(__file__).parents[2] / "trainhooks"
# each reads on the host what the device computed: a number, a size, or whether a factorisation went well
WAITING = {
    "_linalg_check_errors", "_linalg_eigh", "_linalg_svd", "_local_scalar_dense", "_unique2", "bincount", "equal",
    "is_nonzero", "linalg_eig", "linalg_eigvals", "linalg_lstsq", "masked_select", "nonzero", "repeat_interleave",
    "unique_consecutive", "unique_dim",
}  # fmt: skip
INDEXING = {"index", "index_put", "index_put_", "_index_put_impl_"}


class Device(ModuleType):
    """What torch asks of a device's module."""

    _is_initialized = staticmethod(lambda: True)
    is_available = staticmethod(lambda: True)
    device_count = staticmethod(lambda: 1)
    current_device = staticmethod(lambda: 0)
    get_amp_supported_dtype = staticmethod(lambda: [torch.bfloat16])
    get_rng_state = staticmethod(lambda device=None: torch.zeros(0))
    set_rng_state = staticmethod(lambda state, device=None: None)
    manual_seed_all = staticmethod(lambda seed: None)
    _is_in_bad_fork = staticmethod(lambda: False)


class OnDevice(Tensor):
    """A tensor that says it lies on the device; `here` has its values."""

    here: Tensor

    @staticmethod
    def __new__(cls, here: Tensor) -> OnDevice:
        made: OnDevice = Tensor._make_wrapper_subclass(
            cls,
            here.shape,
            strides=here.stride(),
            storage_offset=here.storage_offset(),
            dtype=here.dtype,
            device=DEVICE,
            requires_grad=here.requires_grad,
        )
        made.here = here
        return made

    def tolist(self):
        """Numbers, which torch does not give for a class of its own."""
        return self.cpu().tolist()

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return compute(func, args, kwargs or {})


class Computing(TorchDispatchMode):
    """Factories that ask for the device, and moves to it."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return compute(func, args, kwargs or {})


waits: set[str] = set()


def compute(func, args, kwargs):
    """Run an operator on the host, its tensors unwrapped, and note it where a GPU would make the host wait."""
    tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
    there = {id(tensor.here): tensor for tensor in tensors if isinstance(tensor, OnDevice)}
    named = kwargs.get("device")
    on_device = bool(there) if named is None else torch.device(named).type == DEVICE.type
    apart = kwargs.get("non_blocking", len(args) > 2 and args[2])  # third of copy_, of nothing else that matters here
    if would_wait(func.overloadpacket.__name__, tensors, apart=apart, there=bool(there), to_device=on_device):
        waits.add(f"{func} {asked_by()}")
    kwargs = kwargs if named is None else {**kwargs, "device": torch.device("cpu")}
    result = func(*tree_map(unwrapped, args), **tree_map(unwrapped, kwargs))
    if torch.Tag.inplace_view in func.tags:
        with no_dispatch():  # the shape that is told changes too
            func(*args, **kwargs)

    def wrapped(value):
        if not isinstance(value, Tensor):
            return value
        made = OnDevice(value) if on_device else value
        return there.get(id(value), made)

    return tree_map(wrapped, result)


def unwrapped(value):
    """The tensor on the host."""
    return value.here if isinstance(value, OnDevice) else value


def would_wait(name, tensors, *, apart, there, to_device):
    """Whether the host must wait: for a value, or for a move between the two that is not told to go on its own."""
    if name in ("_to_copy", "copy_"):
        mixed = {isinstance(tensor, OnDevice) for tensor in tensors} == {True, False} or there != to_device
        return mixed and not apart
    boolean = any(tensor.dtype in (torch.bool, torch.uint8) for tensor in tensors[1:])
    return there and (name in WAITING or (name in INDEXING and boolean))


def asked_by() -> str:
    """The innermost line of the package on the stack, else the loop's."""
    for frame in reversed(traceback.extract_stack()):
        path = Path(frame.filename)
        if path.is_relative_to(PACKAGE):
            return f"{path.relative_to(PACKAGE)}:{frame.lineno} {frame.line}"
    return "the loop"


_setup_privateuseone_for_python_backend("pretended", backend_module=Device("pretended"))
DEVICE = torch.device("pretended", 0)


def main(*, steps: int = 4) -> dict[str, list[str]]:
    """Waits by setting of a recorder that has one."""
    from delayed_streams import DelayedStreams
    from loops import VOCAB, TinyLM, batches

    import trainhooks as th
    from trainhooks.recording.plan import StagingPlan
    from trainhooks.recording.staging import PinnedStager

    class Gradient(th.Metric):
        variables = (th.Variable("gradient"),)
        moment = "before_update"

        def compute(self, state):
            return {"gradient": state.head.weight.grad.norm()}

    DelayedStreams.device = DEVICE
    StagingPlan.stager = lambda self: PinnedStager(DelayedStreams(lag=1), slot_bytes=self.slot_bytes)
    data = batches(steps)
    counts = torch.bincount(data.flatten(), minlength=VOCAB).numpy()
    counts[:3] = 0
    texts = [" " * (token % 2) + "x" * (token % 7 + 1) for token in range(VOCAB)]
    found = {}
    torch._C._set_only_lift_cpu_tensors(True)  # torch.tensor(..., device=) then moves by an operator, as others do
    with Computing():
        for name, settings in {
            "defaults": {"counts": counts},
            "without counts": {"counts": None},
            "bfloat16": {"counts": counts, "precision": "bfloat16", "metrics": []},
            "token texts": {"counts": counts, "token_texts": texts},
            "lead": {"metrics": [th.LeadParts(counts)]},
            "exact": {"metrics": [th.ExactConvergence(patterns=["layers.*"])]},
            "before the update": {"metrics": [Gradient()]},
            "probability": {"metrics": [th.ProbabilityProbe(counts, positions_per_sequence=4)]},
        }.items():
            model = TinyLM().to(DEVICE)
            optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
            recorder = th.Recorder(model, sinks=[th.MemorySink()], **settings)
            for step, ids in enumerate(data.to(DEVICE)):
                if step == 2:  # what depends on counts alone has been prepared
                    waits.clear()
                recorder.begin_step(ids[:, 1:])
                loss = torch.nn.functional.cross_entropy(model(ids[:, :-1]).flatten(0, 1), ids[:, 1:].flatten())
                loss.backward()
                recorder.before_update()
                optimizer.step()
                optimizer.zero_grad()
                recorder.after_update(loss=loss, learning_rate=0.1)
            found[name] = sorted(what for what in waits if not what.endswith("the loop"))
            recorder.close()
    return found


if __name__ == "__main__":
    print(json.dumps(main(), indent=1))
