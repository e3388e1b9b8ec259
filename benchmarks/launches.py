"""Kernel launches, and bytes between host and device, of one default record by part: counts that no noise touches.

    python benchmarks/launches.py --layers 12 48

A model of GPT-NeoX's parameters trains on the fake device of `tests/gpu`, which computes on the host; the record
after the second update is counted. Every operator on the device is a launch, and so is every copy; views and
allocations are left out. An operator over lists of tensors is as many launches as CUDA makes of it (see `in_lists`);
one that a GPU makes of several kernels (a sort, a factorisation) is one. Parts: each metric by its variables' first
word, `sketches` of parameter groups, `references` kept and brought back, and `snapshot`: all else, the sending
included. Prints JSON.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

import trainhooks as th
from trainhooks.metrics.defaults import default_metrics
from trainhooks.numerics.sketch import Sketcher
from trainhooks.recording.plan import StagingPlan
from trainhooks.recording.staging import PinnedStager

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "support"))
import fake_device
from delayed_streams import DelayedStreams

ALLOCATIONS = {"_unsafe_view", "empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "resize_"}
RECORD = 2
# what one of torch's kernels over lists holds (ATen/native/cuda/MultiTensorApply.cuh)
KERNEL_BLOCKS, BLOCK_ELEMENTS = 320, 1 << 16
KERNEL_TENSORS = {1: 110, 2: 64, 3: 48, 4: 36}


class Counting:
    """Counts the operators that the fake device computes, and the bytes it moves, for the part at work."""

    def __init__(self) -> None:
        self.part = "snapshot"
        self.launches: Counter[str] = Counter()
        self.bytes: Counter[str] = Counter()
        self.names: dict[str, Counter[str]] = {}
        self._compute = fake_device.compute
        fake_device.compute = self.compute

    def compute(self, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        """In place of the device's own: count, then compute."""
        result = self._compute(func, args, kwargs)
        name = func.overloadpacket.__name__
        leaves = [leaf for leaf in tree_leaves((args, kwargs, result)) if isinstance(leaf, Tensor)]
        there = {isinstance(leaf, fake_device.OnDevice) for leaf in leaves}
        if True in there and not func.is_view and name not in ALLOCATIONS:
            number = in_lists(args) if name.startswith("_foreach_") else 1
            self.launches[self.part] += number
            self.names.setdefault(self.part, Counter())[name] += number
            if name in ("copy_", "_to_copy") and there == {True, False}:
                self.bytes[self.part] += leaves[-1].nbytes
        return result

    def within(self, part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, counted as that part."""

        def counted(*args: Any, **kwargs: Any) -> Any:
            before, self.part = self.part, part
            try:
                return function(*args, **kwargs)
            finally:
                self.part = before

        return counted

    def clear(self) -> None:
        """Begin again."""
        self.launches.clear()
        self.bytes.clear()
        self.names.clear()


def in_lists(args: Any) -> int:
    """Kernels that one operator over lists of tensors makes on CUDA, up to the blocks that a full kernel splits."""
    lists = [arg for arg in args if isinstance(arg, (list, tuple)) and arg and isinstance(arg[0], Tensor)]
    if not lists:
        return 0
    blocks = sum(-(-tensor.numel() // BLOCK_ELEMENTS) for tensor in lists[0])
    return max(-(-len(lists[0]) // KERNEL_TENSORS[len(lists)]), -(-blocks // KERNEL_BLOCKS))


class NeoX(nn.Module):
    """The parameters of a GPT-NeoX of some layers under their names, without a forward pass."""

    def __init__(self, *, layers: int, width: int, vocab: int) -> None:
        super().__init__()
        self.gpt_neox = nn.Module()
        self.gpt_neox.embed_in = nn.Embedding(vocab, width)
        self.gpt_neox.layers = nn.ModuleList([_layer(width) for _ in range(layers)])
        self.gpt_neox.final_layer_norm = nn.LayerNorm(width)
        self.embed_out = nn.Linear(width, vocab, bias=False)

    def get_output_embeddings(self) -> nn.Module:
        """As Hugging Face's models have it."""
        return self.embed_out


def _layer(width: int) -> nn.Module:
    layer, layer_attention, layer_mlp = nn.Module(), nn.Module(), nn.Module()
    layer_attention.query_key_value, layer_attention.dense = nn.Linear(width, 3 * width), nn.Linear(width, width)
    layer_mlp.dense_h_to_4h, layer_mlp.dense_4h_to_h = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
    layer.input_layernorm, layer.post_attention_layernorm = nn.LayerNorm(width), nn.LayerNorm(width)
    layer.attention, layer.mlp = layer_attention, layer_mlp
    return layer


def count_record(counting: Counting, *, layers: int, width: int, vocab: int) -> dict[str, Any]:
    """Launches and bytes of one record, by part."""
    counts = torch.arange(1, vocab + 1).numpy()
    metrics = default_metrics(counts)
    torch.manual_seed(0)
    model = NeoX(layers=layers, width=width, vocab=vocab).to(fake_device.DEVICE)
    for metric in metrics:
        metric.enqueue = counting.within(metric.variables[0].name.split(".")[0], metric.enqueue)  # type: ignore[method-assign]
    recorder = th.Recorder(model, sinks=[th.MemorySink()], counts=None, metrics=metrics)
    labels = torch.randint(vocab, (2, 16)).to(fake_device.DEVICE)
    parameters = list(model.parameters())
    for _ in range(RECORD):
        recorder.begin_step(labels)
        recorder.before_update()
        with torch.no_grad():
            for parameter in parameters:
                parameter.mul_(1.001)
        counting.clear()
        recorder.after_update(learning_rate=0.1)
    found = {"launches": dict(counting.launches), "bytes": dict(counting.bytes)}
    by_name = {part: dict(names.most_common()) for part, names in counting.names.items()}
    recorder.close()
    return {
        "layers": layers,
        "width": width,
        "vocab": vocab,
        "parameters": len(parameters),
        "total": sum(found["launches"].values()),
        **found,
        "operators": by_name,
    }


def main() -> None:
    """Print one object for each number of layers."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, nargs="+", default=[12, 48])
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--vocab", type=int, default=50304)
    parser.add_argument("--references-on-host", action="store_true", help="as where the device has no room for them")
    parser.add_argument("--operators", action="store_true", help="also say which operators, by part")
    given = parser.parse_args()
    counting = Counting()
    DelayedStreams.device = fake_device.DEVICE
    stager = lambda self: PinnedStager(  # noqa: E731
        DelayedStreams(lag=0),
        slot_bytes=self.slot_bytes,
        records_at_once=1,
        keeps_on_device=not given.references_on_host,
    )
    StagingPlan.stager = stager  # type: ignore[method-assign]
    Sketcher.sketch_and_norms = counting.within("sketches", Sketcher.sketch_and_norms)  # type: ignore[method-assign]
    for name in ("offload", "to_device"):
        setattr(PinnedStager, name, counting.within("references", getattr(PinnedStager, name)))
    torch._C._set_only_lift_cpu_tensors(True)
    with fake_device.Computing():
        found = [count_record(counting, layers=layers, width=given.width, vocab=given.vocab) for layers in given.layers]
    for record in found:
        if not given.operators:
            del record["operators"]
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
