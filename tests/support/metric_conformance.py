"""What every metric promises, as checks that take any of them: tests/metrics/test_conformance.py runs them over all."""

from __future__ import annotations

import copy
import hashlib
import importlib
import inspect
import io
import pkgutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from loops import TinyLM, batches
from torch import Tensor, nn

import trainhooks.metrics
from trainhooks.core.errors import SettingsError
from trainhooks.core.variable import Variable
from trainhooks.metrics.base import NEEDS, Metric, State
from trainhooks.model import find_output_embedding, parameter_groups
from trainhooks.numerics.sketch import Sketcher
from trainhooks.store import Layout

RECORDS, SKETCH_SIZE, RATE = 4, 101, 0.25
ASKED_ONCE = "compute each record once"
"""A metric whose docstring says so moves on with each call; all others answer as often as they are asked."""


@dataclass(frozen=True)
class Case:
    """A metric with settings that fit `loops.TinyLM`.

    `nan` are the values that an ordinary run has no number for, by variable (or glob): "first" (at its first record)
    or "always", and the words of the variable's description, or of the class's docstring, that say so. `unfit` makes
    one that does not fit the model, by what is wrong with it, and the words that its refusal must hold.
    """

    make: Callable[[], Metric]
    nan: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    unfit: Mapping[str, tuple[Callable[[], Metric], Sequence[str]]] = field(default_factory=dict)

    @property
    def metric(self) -> type[Metric]:
        return type(self.make())


def metric_classes() -> set[type[Metric]]:
    """Every metric below `trainhooks.metrics` that a user can make: found by looking into each of its modules."""
    found: set[type[Metric]] = set()
    for info in pkgutil.walk_packages(trainhooks.metrics.__path__, "trainhooks.metrics."):
        for name, member in vars(importlib.import_module(info.name)).items():
            own = inspect.isclass(member) and member.__module__ == info.name and not name.startswith("_")
            if own and issubclass(member, Metric) and not inspect.isabstract(member):
                found.add(member)
    return found


# -- a run that can be shown to any number of metrics ----------------------------------------------------------


@dataclass(frozen=True)
class Moment:
    """One record: the state behind the update, and where one led here what was seen before its parameters moved."""

    after: State
    before: State | None = None
    hidden: tuple[Tensor, ...] = ()


def trajectory(dtype: torch.dtype = torch.float32, *, records: int = RECORDS) -> list[Moment]:
    """A tiny model in training, as a recorder shows it; each record has a copy of the model, so none ever changes."""
    model = TinyLM().to(dtype)
    optimizer = torch.optim.SGD(model.parameters(), lr=RATE)
    before: State | None = None
    hidden: list[Tensor] = []
    moments: list[Moment] = []
    references: dict[str, Any] = {}
    for step, ids in enumerate(batches(records)):
        state = _state(model, step, **references)
        if step:
            assert before is not None
            before = replace(before, step=step, learning_rate_sum=state.learning_rate_sum)
        moments.append(Moment(state, before, tuple(hidden)))
        head = state.output_embedding.float().clone()
        references = {
            "initial_head": references.get("initial_head", head),
            "previous_head": head,
            "initial_sketch": references.get("initial_sketch", state.sketch),
            "previous_sketch": state.sketch,
            "learning_rate_sum": RATE,
        }
        hidden.clear()
        seen = model.lm_head.register_forward_pre_hook(lambda _, entering: hidden.append(entering[0].detach().clone()))
        loss = nn.functional.cross_entropy(model(ids[:, :-1]).flatten(0, 1), ids[:, 1:].flatten())
        loss.backward()
        seen.remove()
        before = _state(model, step, **references)
        optimizer.step()
        optimizer.zero_grad()
    return moments


def _state(model: nn.Module, step: int, **references: Any) -> State:
    gradients = [parameter.grad for parameter in model.parameters()]
    model = copy.deepcopy(model)
    for parameter, gradient in zip(model.parameters(), gradients, strict=True):
        parameter.grad = None if gradient is None else gradient.clone()
    head = find_output_embedding(model)
    parts = parameter_groups(model, head)
    return State(
        step=step,
        model=model,
        head=head,
        groups={group: [parameter for _, parameter in members] for group, members in parts.items()},
        sketch=Sketcher(parts, size=SKETCH_SIZE).sketch(parts),
        **references,
    )


Values = dict[str, np.ndarray]


def shown(metric: Metric, moment: Moment) -> State | None:
    """Let the metric observe what leads to a record; the state that it is then asked about, None where it has none."""
    if "hidden" in metric.needs:
        for entering in moment.hidden:
            metric.observe(entering, step=moment.after.step - 1)
    state = moment.after if metric.moment == "after_update" else moment.before
    return None if state is None else replace(state, shared={})


def on_host(values: Mapping[str, Tensor | float]) -> Values:
    return {name: _array(value) for name, value in values.items()}


def _array(value: Any) -> np.ndarray:
    return value.detach().cpu().numpy().copy() if isinstance(value, Tensor) else np.array(value)


def play(metric: Metric, moments: Sequence[Moment]) -> list[Values]:
    """The metric's values at each record that it has a say in."""
    states = (shown(metric, moment) for moment in moments)
    return [on_host(metric.compute(state)) for state in states if state is not None]


def assert_same_bits(found: Sequence[Values], expected: Sequence[Values], why: str) -> None:
    assert len(found) == len(expected), why
    for record, (one, other) in enumerate(zip(found, expected, strict=True)):
        assert set(one) == set(other), f"record {record}: {why}"
        different = [name for name in one if _bits(one[name]) != _bits(other[name])]
        assert not different, f"record {record}, {different}: {why}"


def _bits(array: np.ndarray) -> tuple[str, tuple[int, ...], bytes]:
    return str(array.dtype), array.shape, array.tobytes()


def layout_of(metric: Metric, state: State) -> Layout:
    """The store's layout for this metric: making it holds the declarations against each other."""
    vocab, dim = state.output_embedding.shape
    return Layout(vocab, dim, tuple(state.groups), SKETCH_SIZE, variables=metric.variables)


# -- the checks ------------------------------------------------------------------------------------------------


def check_declaration(case: Case) -> None:
    """A family and a quantity, a description, a floating type that can say NaN, needs that a recorder can keep."""
    metric = case.make()
    names = [variable.name for variable in metric.variables]
    assert names, "nothing is declared"
    assert len(set(names)) == len(names), "declared twice"
    assert case.make().variables == metric.variables, "equal settings, other variables"
    assert metric.needs <= NEEDS
    assert metric.moment in ("after_update", "before_update")
    for variable in metric.variables:
        assert variable.name.count(".") == 1, f"{variable.name} is no family.quantity"
        assert variable.description.strip(), f"{variable.name} is not described"
        assert variable.dtype in ("float32", "float64"), (
            f"{variable.name}: a {variable.dtype} that is missing is no NaN"
        )
        assert not variable.whole_run, f"{variable.name}: compute() cannot know the last record"
    assert _docs(metric), "no docstring"


def check_values(case: Case, moments: Sequence[Moment]) -> None:
    """Declared = produced: names, shapes, types; off the graph, on the embedding's device."""
    metric = case.make()
    declared = {variable.name: variable for variable in metric.variables}
    produced: set[str] = set()
    for moment in moments:
        if (state := shown(metric, moment)) is None:
            continue
        layout = layout_of(metric, state)
        values = metric.compute(state)
        assert set(values) <= set(declared), f"not declared: {set(values) - set(declared)}"
        produced |= set(values)
        for name, value in values.items():
            if isinstance(value, Tensor):
                assert not value.requires_grad, f"{name} holds the graph"
                assert value.device == state.output_embedding.device, f"{name} is on {value.device}"
            else:
                assert isinstance(value, float | int), f"{name} is a {type(value).__name__}"
            _check_array(declared[name], _array(value), layout)
    assert produced == set(declared), f"declared, never produced: {set(declared) - produced}"


def _check_array(variable: Variable, array: np.ndarray, layout: Layout) -> None:
    wanted = layout.row_shape(variable)
    assert array.shape == wanted, f"{variable.name} is {array.shape}, declared {wanted}"
    stored = array.astype(variable.dtype)
    same = np.array_equal(stored.astype(np.float64), array.astype(np.float64), equal_nan=True)
    assert same, f"{variable.name}: a {array.dtype} that the declared {variable.dtype} does not hold"


def check_finite(case: Case, moments: Sequence[Moment]) -> None:
    """Each number is finite at each record, but for those that are said to be NaN: exactly those, and it is said."""
    metric = case.make()
    docs = _docs(metric)
    by_name = {variable.name: variable for variable in metric.variables}
    expected: dict[str, set[str]] = {"first": set(), "always": set()}
    for pattern, (when, words) in case.nan.items():
        names = {name for name in by_name if fnmatchcase(name, pattern)}
        assert names, f"{pattern} is no variable"
        for name in names:
            said = _squeezed(by_name[name].description), docs, _numbers_page().get(name, "")
            assert any(words in text for text in said), f"{name}: nobody says {words!r}"
        expected[when] |= names
    for record, values in enumerate(play(metric, moments)):
        missing = {name for name in by_name if name not in values or not np.isfinite(values[name]).all()}
        allowed = expected["always"] | (set() if record else expected["first"])
        assert missing == allowed, f"record {record}: NaN or left out {sorted(missing - allowed)}, " + (
            f"said to be NaN and not {sorted(allowed - missing)}"
        )


@cache
def _numbers_page() -> dict[str, str]:
    """The rows of docs/numbers.md by variable."""
    page = Path(__file__).parents[2] / "docs" / "numbers.md"
    rows = (line for line in page.read_text(encoding="utf-8").splitlines() if line.startswith("| `"))
    return {row.split("`")[1]: row for row in rows}


def _docs(metric: Metric) -> str:
    return _squeezed(inspect.getdoc(type(metric)) or "")


def _squeezed(text: str) -> str:
    return " ".join(text.split())


def check_asked_twice(case: Case, moments: Sequence[Moment]) -> None:
    """The same bits from two that are made alike, and from one that is asked twice for each record."""
    expected = play(case.make(), moments)
    assert_same_bits(play(case.make(), moments), expected, "made alike")
    if ASKED_ONCE in _docs(case.make()):
        return
    metric = case.make()
    again = []
    for moment in moments:
        if (state := shown(metric, moment)) is None:
            continue
        first = on_host(metric.compute(state))
        assert_same_bits([on_host(metric.compute(state))], [first], "asked again, with what the record shares")
        again.append(on_host(metric.compute(replace(state, shared={}))))
    assert_same_bits(again, expected, "asked again")


def check_device_path(case: Case, moments: Sequence[Moment]) -> None:
    """What `enqueue` sends, concluded on the host, is what `compute` says; others' values pass through `conclude`."""
    expected, metric, found = play(case.make(), moments), case.make(), []
    foreign = np.array([1.0, np.nan])
    for moment in moments:
        if (state := shown(metric, moment)) is None:
            continue
        # what one sends from an accelerator in place of its values
        sent = on_host(getattr(metric, "gram_values", metric.enqueue)(state))
        concluded = {
            name: np.asarray(value) for name, value in metric.conclude(sent | {"another.value": foreign}).items()
        }
        assert concluded.pop("another.value") is foreign, "another metric's value"
        found.append(concluded)
        weight = state.output_embedding
        assert metric.sent_bytes(weight) >= 0
        kept = metric.kept_bytes(state)
        assert set(kept) <= {"device", "host"}
        assert all(isinstance(size, int) and size >= 0 for size in kept.values())
    assert_same_bits(found, expected, "by enqueue and conclude")


def check_training_untouched(case: Case, moments: Sequence[Moment]) -> None:
    """Parameters, gradients, modes, hooks, random numbers and what the record holds: not a bit is another."""
    metric = case.make()
    for moment in moments:
        before = _fingerprint(moment)
        if (state := shown(metric, moment)) is not None:
            metric.kept_bytes(state)
            metric.conclude(on_host(metric.enqueue(state)))
            metric.compute(replace(state, shared={}))
            metric.load_state_dict(metric.state_dict())
            metric.forget()
        now = _fingerprint(moment)
        assert now == before, f"step {moment.after.step}: {[name for name in now if now[name] != before.get(name)]}"


def _fingerprint(moment: Moment) -> dict[str, object]:
    # Python's own generator is not here: the checker of annotations draws from it
    found: dict[str, object] = {
        "torch's random numbers": _digest(torch.get_rng_state()),
        "NumPy's random numbers": repr(np.random.get_state()),
        "gradients are on": torch.is_grad_enabled(),
        "default dtype": torch.get_default_dtype(),
        "threads": torch.get_num_threads(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
    }
    for number, hidden in enumerate(moment.hidden):
        found[f"hidden {number}"] = _digest(hidden)
    for when, state in (("after", moment.after), ("before", moment.before)):
        if state is None:
            continue
        for name, parameter in state.model.named_parameters():
            grad = None if parameter.grad is None else _digest(parameter.grad)
            place = parameter.data_ptr(), parameter.dtype, parameter.requires_grad, parameter._version
            found[f"{when}: {name}"] = (id(parameter), place, _digest(parameter), grad)
        for path, module in state.model.named_modules():
            hooks = len(module._forward_hooks), len(module._forward_pre_hooks), len(module._backward_hooks)
            found[f"{when}: module {path}"] = (module.training, hooks, sorted(vars(module)))
        for name in ("initial_head", "previous_head", "sketch", "initial_sketch", "previous_sketch"):
            kept = getattr(state, name)
            found[f"{when}: {name}"] = None if kept is None else _digest(kept)
        found[f"{when}: shared"] = len(state.shared)
    return found


def _digest(tensor: Tensor) -> str:
    raw = tensor.detach().cpu().reshape(-1).view(torch.uint8).numpy().tobytes()
    return hashlib.blake2b(raw).hexdigest()


def check_state_round_trip(case: Case, moments: Sequence[Moment]) -> None:
    """Saved after any record, through a file without pickled code or in memory, a run goes on to the bit."""
    whole = play(case.make(), moments)
    skipped = len(moments) - len(whole)  # the first record of a metric that needs gradients
    fresh = case.make()
    fresh.load_state_dict(_through_a_file(case.make().state_dict()))
    assert_same_bits(play(fresh, moments), whole, "the state of one that has seen nothing")
    for cut in range(1, len(moments)):
        donor = case.make()
        play(donor, moments[:cut])
        saved = donor.state_dict()
        filed = _through_a_file(saved)
        rest = whole[max(cut - skipped, 0) :]
        assert_same_bits(play(donor, moments[cut:]), rest, f"state_dict() at {cut} changed the one that was asked")
        for how, state in (("through a file", filed), ("kept in memory", saved)):
            heir = case.make()
            heir.load_state_dict(state)
            assert_same_bits([on_host_tree(heir.state_dict())], [on_host_tree(state)], f"{how}: saved again at {cut}")
            assert_same_bits(play(heir, moments[cut:]), rest, f"{how}: loaded at {cut}")


def on_host_tree(state: object) -> Values:
    """A state's leaves by their path, as arrays."""
    bytes_of = {
        path: leaf.reshape(-1).view(torch.uint8) if isinstance(leaf, Tensor) else leaf for path, leaf in _leaves(state)
    }
    return on_host(bytes_of)


def _leaves(state: object, path: str = "") -> Iterator[tuple[str, object]]:
    if isinstance(state, Mapping):
        for name, value in state.items():
            yield from _leaves(value, f"{path}/{name}")
    elif isinstance(state, list | tuple):
        for number, value in enumerate(state):
            yield from _leaves(value, f"{path}/{number}")
    else:
        assert state is None or isinstance(state, Tensor | float | int | str | bool), f"{path} is a {type(state)}"
        yield path, state


def _through_a_file(state: dict[str, Any]) -> dict[str, Any]:
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    loaded: dict[str, Any] = torch.load(file, weights_only=True)
    return loaded


def check_refusal(metric: Metric, words: Sequence[str], moments: Sequence[Moment]) -> None:
    """Settings that do not fit: one `SettingsError` at the first record, that says what there is and what is needed."""
    before = [_fingerprint(moment) for moment in moments]
    for moment in moments:
        if (state := shown(metric, moment)) is None:
            continue
        try:
            metric.compute(state)
        except SettingsError as error:
            check_message(str(error), words)
            break
        raise AssertionError(f"step {moment.after.step}: {type(metric).__name__} is not refused")
    assert [_fingerprint(moment) for moment in moments] == before


def check_message(message: str, words: Sequence[str]) -> None:
    assert "\n" not in message.strip(), f"one sentence or two in one line, not {message!r}"
    assert message.rstrip().endswith((".", "...")), f"{message!r} is no sentence"
    lacking = [word for word in words if word not in message]
    assert not lacking, f"{message!r} does not say {lacking}"
