"""What the integrations' tests share: a tiny model, windows of made-up text, a recorder that notes its calls."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from trainhooks.integrations import host
from trainhooks.recording.recorder import Recorder

VOCAB, CONTEXT = 200, 16

# third parties' own warnings, each with its text
HOST_WARNINGS = (
    "ignore:Checkpoint directory .* exists and is not empty",
    "ignore:Detected call of `lr_scheduler.step\\(\\)` before `optimizer.step\\(\\)`",
    "ignore:You defined a `validation_step` but have no `val_dataloader`",
    "ignore:The '.*dataloader' does not have many workers",
    "ignore:The number of training batches",
    "ignore:.*`isinstance\\(treespec, LeafSpec\\)` is deprecated",
    "ignore:.*tensorboardX.*:UserWarning",
    "ignore:You're resuming from a checkpoint that ended before the epoch ended",
    "ignore:`training_step` returned `None`",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            for line in HOST_WARNINGS:
                item.add_marker(pytest.mark.filterwarnings(line))


@dataclass(frozen=True)
class Call:
    """One call of the recorder: the moment, its arguments, the head's weight and gradient then."""

    moment: str
    arguments: dict[str, Any]
    weight: Tensor
    gradient: Tensor | None


class SpyRecorder(Recorder):
    """A recorder that notes every call before it acts."""

    def __init__(self, model: nn.Module, **settings: Any) -> None:
        super().__init__(model, **settings)
        self.calls: list[Call] = []

    def _note(self, moment: str, **arguments: Any) -> None:
        weight = self.head.weight
        gradient = None if weight.grad is None else weight.grad.clone()
        self.calls.append(Call(moment, arguments, weight.detach().clone(), gradient))

    def begin_step(self, labels: Tensor | None = None) -> None:
        self._note("begin_step", labels=labels)
        super().begin_step(labels)

    def before_update(self) -> None:
        self._note("before_update")
        super().before_update()

    def after_update(self, **arguments: Any) -> None:
        self._note("after_update", **arguments)
        super().after_update(**arguments)

    def close(self, **how: float) -> None:
        self._note("close", **how)
        super().close(**how)

    def moments(self) -> list[str]:
        return [call.moment for call in self.calls]

    def of(self, moment: str) -> list[Call]:
        return [call for call in self.calls if call.moment == moment]


@pytest.fixture
def spy(monkeypatch: pytest.MonkeyPatch) -> type[SpyRecorder]:
    """Integrations build a `SpyRecorder`."""
    monkeypatch.setattr(host, "Recorder", SpyRecorder)
    return SpyRecorder


@pytest.fixture
def build_tiny() -> Callable[[], nn.Module]:
    """A function that builds the same tiny model at each call: 2 layers, 32 wide, 200 tokens."""
    from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

    config = GPTNeoXConfig(
        vocab_size=VOCAB,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=CONTEXT + 1,
        tie_word_embeddings=False,
        use_cache=False,
    )

    def build() -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(5)
            return GPTNeoXForCausalLM(config)

    return build


@pytest.fixture
def make_windows() -> Callable[[int], Tensor]:
    """A function that makes n windows of 17 ids from a Zipf law: int64 [n, 17]."""

    def make(n: int) -> Tensor:
        generator = torch.Generator().manual_seed(3)
        weights = 1 / torch.arange(1, VOCAB + 1)
        return torch.multinomial(weights, n * (CONTEXT + 1), replacement=True, generator=generator).view(n, -1)

    return make


def seen_labels(windows: Tensor) -> Tensor:
    """Counts of the labels of whole windows: int64 [200]."""
    return torch.bincount(windows[:, 1:].reshape(-1), minlength=VOCAB)
