import math

import jaxtyping
import pytest
import torch
from synthetic_deletion import planted

from trainhooks.intervene.deletion import curves
from trainhooks.intervene.deletion.curves import deletion_curves, thinned
from trainhooks.intervene.deletion.orders import deletion_orders, probability_slope, second_moment
from trainhooks.intervene.deletion.variants import VARIANTS, build_codes, edited_head, rank_code


def evaluate(*, fractions=(0.25, 0.5, 1.0), bias=None, **options):
    weight, hidden, labels, document = planted(**options)
    slope = probability_slope(weight, hidden, bias=bias)
    orders = deletion_orders(weight, hidden, slope=slope, random=3)
    codes = build_codes(weight, hidden, orders=orders)
    curves = deletion_curves(
        weight, hidden, labels=labels, document=document, codes=codes, fractions=fractions, bias=bias
    )
    return (weight, hidden, labels, document), codes, curves


def slow(before, after, labels):
    """The four measures in float64 from two full sets of logits."""
    p, q = before.log_softmax(1), after.log_softmax(1)
    m = ((p.exp() + q.exp()) / 2).log()
    kl = (p.exp() * (p - q)).sum(1)
    js = ((p.exp() * (p - m)).sum(1) + (q.exp() * (q - m)).sum(1)) / 2
    same = (p.argmax(1) == q.argmax(1)).double()
    return torch.stack([kl, js, same, (p - q).gather(1, labels[:, None])[:, 0]]).mean(1)


@pytest.mark.parametrize("with_bias", [False, True])
def test_every_code_agrees_with_a_full_product_in_float64(with_bias):
    bias = torch.linspace(-1, 1, 400) if with_bias else None
    (weight, hidden, labels, _), codes, curves = evaluate(bias=bias)
    offset = torch.zeros(400).double() if bias is None else bias.double()
    before = hidden.double() @ weight.double().T + offset
    for code, means in zip(codes, curves.mean()[0], strict=True):
        for deleted, mean in zip(curves.deleted, means, strict=True):
            edited, moved = edited_head(weight, code=code, deleted=deleted, bias=bias)
            after = hidden.double() @ edited.double().T + (0 if moved is None else moved.double())
            expected = slow(before, after, labels)
            expected[2] = mean[2] if deleted == 24 else expected[2]  # all logits tie: any token counts
            torch.testing.assert_close(mean, expected, atol=3e-5, rtol=1e-3, msg=code.label)


def test_compensated_is_the_regression_of_the_definition():
    (weight, hidden, *_), codes, _ = evaluate()
    moment = second_moment(hidden)
    code = next(code for code in codes if code.variant == "compensated")
    gone, kept = code.order.dimensions[:7], code.order.dimensions[7:]
    fill = moment[gone][:, kept] @ torch.linalg.inv(moment[kept][:, kept])
    expected = weight[:, kept].double() + weight[:, gone].double() @ fill
    edited, _ = edited_head(weight, code=code, deleted=7)
    torch.testing.assert_close(edited[:, kept].double(), expected, atol=1e-4, rtol=1e-3)
    assert not edited[:, gone].any()


def test_no_compensated_order_beats_the_rank_reference_on_calibration():
    (weight, hidden, *_), codes, _ = evaluate()
    logits = (weight - weight.mean(0)) @ hidden.T

    def error(code):
        edited, _ = edited_head(weight, code=code, deleted=12)
        return float((logits - (edited - edited.mean(0)) @ hidden.T).square().sum())

    best = error(rank_code(weight, second_moment(hidden)))
    assert all(best <= error(code) * (1 + 1e-4) for code in codes if code.variant != "context_mean")


def test_a_uniform_output_is_what_full_deletion_leaves():
    (weight, hidden, *_), _, curves = evaluate(fractions=(1.0,))
    p = (hidden.double() @ weight.double().T).log_softmax(1)
    entropy = -(p.exp() * p).sum(1).mean()
    zero = curves.mean()[0, 0, 0]
    assert float(zero[0]) == pytest.approx(math.log(400) - float(entropy), abs=1e-4)


def test_an_added_vector_and_the_order_of_positions_change_nothing():
    weight, hidden, labels, document = planted()
    code = build_codes(weight, hidden, orders=deletion_orders(weight, hidden, slope=torch.ones(24), random=1))[:2]
    first = deletion_curves(weight, hidden, labels=labels, document=document, codes=code).mean()
    shuffle = torch.randperm(len(hidden), generator=torch.Generator().manual_seed(1))
    again = deletion_curves(
        weight + 0.3, hidden[shuffle], labels=labels[shuffle], document=document[shuffle], codes=code
    ).mean()
    smooth = [0, 1, 3]  # near-ties of the most probable token may fall either way
    torch.testing.assert_close(first[..., smooth], again[..., smooth], atol=2e-5, rtol=1e-3)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"fractions": (0.5, 0.5)}, "rising"),
        ({"fractions": (0.5, 1.5)}, "up to 1"),
        ({"labels": torch.full((320,), 400)}, "400 rows"),
        ({"document": torch.zeros(3, dtype=torch.int64)}, "3 document numbers"),
        ({"bias": torch.full((400,), torch.nan)}, "not finite"),
    ],
)
def test_what_cannot_be_measured_is_refused(change, match, monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # the code's own check is what is tested
    weight, hidden, labels, document = planted()
    arguments = {"labels": labels, "document": document, "codes": []} | change
    with pytest.raises(ValueError, match=match):
        deletion_curves(weight, hidden, **arguments)


def test_thinned_random_orders_are_those_of_their_positions_alone():
    weight, hidden, labels, document = planted()
    orders = deletion_orders(weight, hidden, slope=torch.ones(24), names=("norm",), random=1)
    options = {"codes": build_codes(weight, hidden, orders=orders, variants=("zero",)), "fractions": (0.5,)}
    found = deletion_curves(weight, hidden, labels=labels, document=document, thin=3, **options)
    kept = torch.arange(320) % 16 % 3 == 0
    assert torch.equal(thinned(document, 3), kept)
    alone = deletion_curves(weight, hidden[kept], labels=labels[kept], document=document[kept], **options)
    every = deletion_curves(weight, hidden, labels=labels, document=document, **options)
    torch.testing.assert_close(found.mean()[:, 1], alone.mean()[:, 1], atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(found.mean()[:, [0, 2]], every.mean()[:, [0, 2]], atol=1e-6, rtol=1e-5)
    assert found.evaluated.sum(1).tolist() == [320, 120, 320]
    with pytest.raises(ValueError, match="thin is 0"):
        deletion_curves(weight, hidden, labels=labels, document=document, thin=0, **options)


@pytest.mark.parametrize("threads", [2, 5])
def test_the_number_of_threads_changes_no_bit_and_comes_back(threads, monkeypatch):
    monkeypatch.setattr(curves, "CPU_ELEMENTS", 400 * 7)  # many blocks, the last one shorter
    weight, hidden, labels, document = planted()
    orders = deletion_orders(weight, hidden, slope=torch.ones(24), names=("norm",), random=1)
    options = {"codes": build_codes(weight, hidden, orders=orders), "labels": labels, "document": document, "thin": 2}
    before = torch.get_num_threads()
    found = []
    try:
        for number in (1, threads):
            torch.set_num_threads(number)
            found.append(deletion_curves(weight, hidden, **options))
            assert torch.get_num_threads() == number
    finally:
        torch.set_num_threads(before)
    assert torch.equal(found[0].sums, found[1].sums)
    assert torch.equal(found[0].loss, found[1].loss)


def test_the_threads_come_back_after_an_error_in_one(monkeypatch):
    def broken(*_, **__):
        raise RuntimeError("in a block")

    monkeypatch.setattr(curves, "_evaluate", broken)
    weight, hidden, labels, document = planted()
    codes = build_codes(weight, hidden, orders=[], variants=("zero",))
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        with pytest.raises(RuntimeError, match="in a block"):
            deletion_curves(weight, hidden, labels=labels, document=document, codes=codes)
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)


def test_a_number_of_dimensions_out_of_range_is_refused():
    weight, hidden, *_ = planted()
    with pytest.raises(ValueError, match="has 24"):
        edited_head(weight, code=rank_code(weight, second_moment(hidden)), deleted=25)


def test_every_variant_is_built_for_every_order():
    _, codes, _ = evaluate()
    assert [code.variant for code in codes].count("zero") == 8
    assert {code.variant for code in codes} == {*VARIANTS, "rank_k"}
