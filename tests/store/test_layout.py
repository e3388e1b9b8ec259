from dataclasses import replace

import numpy as np
import pytest

from trainhooks.core.variable import Variable
from trainhooks.store import Layout
from trainhooks.store.format.layout import differences


def test_json_and_back(layout):
    again = Layout.from_json(layout.to_json())
    assert again.to_json() == layout.to_json()
    assert differences(layout, again) == []


def test_every_problem_is_reported_at_once():
    with pytest.raises(ValueError, match="does not fit together") as caught:
        Layout(
            vocab=0,
            dim=4,
            groups=("a", "a"),
            sketch_size=2,
            precision="float16",
            variables=(Variable("sketch"), Variable("x", dims=("bin",)), Variable("y", dtype="bool")),
            attributes={"when": object(), "loss": float("nan")},
            token_text=["a"],
        )
    text = str(caught.value)
    for part in (
        "vocab is 0",
        "more than once: a",
        "float16",
        "variable sketch: the name is the store's own",
        "'bin' has no size",
        "dtype 'bool' cannot mark what is missing",
        "attributes['when']",
        "attributes['loss']",
        "token_text has 1 entries; the output embedding has 0 rows",
    ):
        assert part in text


@pytest.mark.parametrize(
    ("variables", "said"),
    [
        ((Variable("a.b"), Variable("a.b")), "declared 2 times"),
        ((Variable("a", dims=("n",), sizes={"n": 2}), Variable("b", sizes={"n": 3})), "and 2 in another"),
        ((Variable("a", dims=("token",), sizes={"token": 2}),), "not its to give"),
        ((Variable("n"), Variable("a", dims=("n",), sizes={"n": 2})), "not its to give"),
        ((Variable("a", dims=("n",), sizes={"n": 0}),), "must be a whole number of 1 or more"),
        ((Variable("a", dims=("dim", "dim")),), "appears twice"),
        ((Variable("a", dims=("sketch_bucket",)),), "'sketch_bucket' has no size"),
    ],
)
def test_variables_that_clash(variables, said):
    with pytest.raises(ValueError, match=said):
        Layout(vocab=4, dim=2, groups=("all",), sketch_size=0, variables=variables)


def test_content_that_does_not_fit():
    plain = Layout(vocab=2, dim=2, groups=(), sketch_size=0)
    with pytest.raises(ValueError, match="padding rows have 0"):
        replace(plain, token_count=np.arange(3))
    with pytest.raises(ValueError, match="counts are whole numbers"):
        replace(plain, token_count=np.ones(2))
    with pytest.raises(ValueError, match="not valid Unicode"):
        replace(plain, token_text=["a", "\ud800"])
    with pytest.raises(ValueError, match="no groups to sketch"):
        replace(plain, sketch_size=8)


def test_differences_are_all_listed(layout):
    first, *rest = layout.variables
    other = replace(
        layout,
        dim=4,
        precision=10,
        block=16,
        variables=(replace(first, dtype="float32"), *rest[1:], Variable("new.one")),
    )
    found = "\n".join(differences(layout, other))
    assert "dim: the store has 3, the run 4" in found
    assert "precision: the store has 'float32', the run 10" in found
    assert "block: the store has 32, the run 16" in found
    assert "variable probe.heldout_spearman, dtype: the store has 'float64', the run 'float32'" in found
    assert "variable convergence.norm: in the store, not in the run" in found
    assert "variable new.one: in the run, not in the store" in found
    assert len(found.splitlines()) == 6


def test_wording_order_and_names_of_precisions_do_not_differ(layout):
    described = tuple(replace(variable, description="other words") for variable in layout.variables[::-1])
    assert differences(layout, replace(layout, precision=23, variables=described)) == []
