"""What `analyze --params all` takes of a suite of Pythia-160M's shape, against reading its bytes once.

    python benchmarks/analyze_all.py                              # 12 layers of 768, 50304 rows: 2.6 GB of disk
    python benchmarks/analyze_all.py --layers 1 --dim 64 --vocab 2000 --checkpoints 2

Prints JSON, for float32 and for float16. Processor time of one thread on a warm page cache, a checkpoint: `read` is a
sum of every stored number, before and after; `all` and `head` whole analyses without counts and audit; of `all` the
`groups` are norms, exact distances and sketches of all parameters, the `head_metrics` the head's own (Gram, spectrum,
geometry, its way to the final state), and `rest` opening, the store and what is done once a suite. On a cold one, in
seconds of a clock (which say little where others use the machine): `cold_read` reads each file's bytes in order,
`cold_all` is the analysis; files are dropped from the cache by posix_fadvise, Linux only.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from safetensors.torch import save_file

from trainhooks.analyze import analyze_suite
from trainhooks.analyze.group_sums import GroupSums
from trainhooks.analyze.measure import CheckpointMeasurer
from trainhooks.checkpoints.opening import open_checkpoint

DTYPES = {"float32": torch.float32, "float16": torch.float16}
PARTS = {"groups": (GroupSums, "measure"), "head_metrics": (CheckpointMeasurer, "_head_values")}


def shapes(*, layers: int, dim: int, vocab: int) -> dict[str, tuple[int, ...]]:
    """A GPT-NeoX, by name."""
    norm, inner = {"weight": (dim,), "bias": (dim,)}, 4 * dim
    block = {
        **{f"{name}.{leaf}": shape for name in ("input_layernorm", "post_attention_layernorm")
           for leaf, shape in norm.items()},
        "attention.query_key_value.weight": (3 * dim, dim), "attention.query_key_value.bias": (3 * dim,),
        "attention.dense.weight": (dim, dim), "attention.dense.bias": (dim,),
        "mlp.dense_h_to_4h.weight": (inner, dim), "mlp.dense_h_to_4h.bias": (inner,),
        "mlp.dense_4h_to_h.weight": (dim, inner), "mlp.dense_4h_to_h.bias": (dim,),
    }  # fmt: skip
    named = {f"gpt_neox.layers.{i}.{name}": shape for i in range(layers) for name, shape in block.items()}
    named |= {f"gpt_neox.final_layer_norm.{leaf}": shape for leaf, shape in norm.items()}
    return {**named, "gpt_neox.embed_in.weight": (vocab, dim), "embed_out.weight": (vocab, dim)}


def write_suite(folder: Path, *, dtype: torch.dtype, checkpoints: int, **size: int) -> list[Path]:
    """A walk of noise; nothing but safetensors writes it. Returns the checkpoints' folders."""
    config = {
        "model_type": "gpt_neox", "vocab_size": size["vocab"], "hidden_size": size["dim"],
        "num_hidden_layers": size["layers"], "num_attention_heads": max(size["dim"] // 64, 1),
        "intermediate_size": 4 * size["dim"], "max_position_embeddings": 2048, "tie_word_embeddings": False,
    }  # fmt: skip
    noise = torch.Generator().manual_seed(0)
    state = {name: 0.02 * torch.randn(shape, generator=noise) for name, shape in shapes(**size).items()}
    places = [folder / f"step{1000 * number}" for number in range(checkpoints)]
    for place in places:
        place.mkdir(parents=True)
        save_file({name: tensor.to(dtype) for name, tensor in state.items()}, place / "model.safetensors")
        (place / "config.json").write_text(json.dumps(config), encoding="utf-8")
        for tensor in state.values():
            tensor.add_(torch.randn(tensor.shape, generator=noise), alpha=0.005)
    return places


def processor_seconds(call: Callable[[], object]) -> float:
    """Processor time of one call."""
    began = time.process_time()
    call()
    return time.process_time() - began


@contextmanager
def parts_timed() -> Iterator[Counter[str]]:
    """Processor time of the parts that are named."""
    took: Counter[str] = Counter()

    def timed(name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*given: Any, **more: Any) -> Any:
            began = time.thread_time()
            try:
                return call(*given, **more)
            finally:
                took[name] += time.thread_time() - began

        return wrapped

    with ExitStack() as patched:
        for name, (owner, method) in PARTS.items():
            patched.enter_context(mock.patch.object(owner, method, timed(name, getattr(owner, method))))
        yield took


def sum_all(places: list[Path]) -> None:
    """Every stored number, once."""
    for place in places:
        checkpoint = open_checkpoint(place)
        for key in checkpoint.tensors:
            checkpoint.read(key).sum().item()


def drop(places: list[Path]) -> None:
    """Take the files out of the page cache."""
    for place in places:
        file = os.open(place / "model.safetensors", os.O_RDONLY)
        os.fdatasync(file)
        os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(file)


def read_bytes(places: list[Path]) -> None:
    """The files' bytes in order, into one buffer."""
    held = bytearray(1 << 22)
    for place in places:
        with (place / "model.safetensors").open("rb", buffering=0) as file:
            while file.readinto(held):
                pass


def cold_seconds(places: list[Path], call: Callable[[], object]) -> float:
    """Wall time of one call on files that are not in memory."""
    drop(places)
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def compare(folder: Path, places: list[Path], *, repeats: int) -> dict[str, float]:
    """Seconds a checkpoint: the least of some rounds, interleaved."""
    rounds: list[dict[str, float]] = []
    for number in range(repeats + 1):
        at = folder / str(number)

        def analysis(params: str, at: Path = at) -> None:
            out, suite = at.with_suffix(f".{params}.zarr"), places[0].parent
            analyze_suite(suite, counts=None, out=out, params=params, workers=1, audit=False, mode="overwrite")

        before = processor_seconds(lambda: sum_all(places))
        with parts_timed() as parts:
            whole = processor_seconds(lambda: analysis("all"))
        head = processor_seconds(lambda: analysis("head"))
        after = processor_seconds(lambda: sum_all(places))
        found = {"read": (before + after) / 2, "all": whole, "head": head, **parts}
        found["rest"] = whole - sum(parts.values())
        found["cold_read"] = cold_seconds(places, lambda: read_bytes(places))
        found["cold_all"] = cold_seconds(places, lambda: analysis("all"))
        rounds.append(found)
    least = {name: min(found[name] for found in rounds[1:]) / len(places) for name in rounds[0]}
    ratios = {"all_ratio": least["all"] / least["read"], "cold_ratio": least["cold_all"] / least["cold_read"]}
    return {name: round(value, 4) for name, value in (least | ratios).items()}


def main() -> None:
    """Write each suite, measure it, and print what was found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--dim", type=int, default=768)
    parser.add_argument("--vocab", type=int, default=50304)
    parser.add_argument("--checkpoints", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=2, help="rounds after one that warms up")
    parser.add_argument("--folder", type=Path, help="where the suites are written, on the disk that is meant")
    given = parser.parse_args()
    torch.set_num_threads(1)
    size = {"layers": given.layers, "dim": given.dim, "vocab": given.vocab}
    found: dict[str, object] = {**size, "checkpoints": given.checkpoints}
    for name, dtype in DTYPES.items():
        with tempfile.TemporaryDirectory(dir=given.folder) as folder:
            places = write_suite(Path(folder) / "suite", dtype=dtype, checkpoints=given.checkpoints, **size)
            found[name] = compare(Path(folder), places, repeats=given.repeats)
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
