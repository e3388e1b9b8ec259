import re

import pytest
import torch
from test_audit import Fake, audited, run

from trainhooks.checkpoints.audit.known_reports import KNOWN_BAD, REPORTED, known_bad
from trainhooks.checkpoints.steps import PYTHIA_GRID

HEAD = ["embed_out.weight"]


def touched(repository, steps=PYTHIA_GRID, tensors=HEAD):
    return {step for _, found in known_bad(repository, steps=steps, tensors=tensors) for step in found}


def test_every_report_has_a_source_and_steps():
    for report in (*KNOWN_BAD, *REPORTED):
        assert re.fullmatch(r"https://(github\.com|huggingface\.co)/[\w./-]+/(issues|discussions)/\d+", report.source)
        assert report.note
        assert len(set(report.steps)) == len(report.steps)
        assert report.steps or report in REPORTED


def test_most_of_one_model_is_its_own_end():
    found = touched("EleutherAI/pythia-2.8b")
    # 86 branches serve the final matrices; the last of them rightly
    assert len(found) == 85
    assert found <= set(PYTHIA_GRID)
    assert 143000 not in found
    assert not {66000, 101000, 142000} & found


def test_only_the_tensors_concerned_count():
    assert touched("EleutherAI/pythia-12b") == {1}
    assert touched("EleutherAI/pythia-12b", tensors=["gpt_neox.embed_in.weight"]) == {1, 50000, 58000}


@pytest.mark.parametrize(
    ("repository", "steps"),
    [
        ("EleutherAI/pythia-70m", {1}),
        ("EleutherAI/pythia-160m-weight-seed2", {0}),
        ("EleutherAI/pythia-410m-seed9", {40000}),
        ("EleutherAI/pythia-160m-deduped", set()),
        ("someone/pythia-2.8b", set()),
    ],
)
def test_repositories_by_their_whole_id(repository, steps):
    assert touched(repository) == steps


def test_only_the_steps_at_hand_count():
    assert touched("allenai/OLMo-2-1124-7B", steps=[101000, 102000]) == {101000}
    assert known_bad("allenai/OLMo-2-1124-7B", steps=[102000], tensors=HEAD) == []


BEYOND_THE_FIRST = [
    "stanford-crfm/mistral/issues/199",
    "stanford-crfm/mistral/issues/182",
    "jzhang38/TinyLlama/issues/72",
    "jzhang38/TinyLlama/issues/41",
    "allenai/OLMo-7B-0424-hf/discussions/4",
    "allenai/OLMo-2-1124-7B/discussions/6",
    "allenai/OLMo/issues/842",
    "allenai/OLMo/issues/879",
    "allenai/OLMo/issues/726",
    "allenai/OLMo-core/issues/729",
    "allenai/OLMo/issues/883",
    "allenai/OLMo/issues/813",
    "yulan-team/YuLan-Mini-Before-Annealing/discussions/1",
    "EleutherAI/pythia/issues/195",
    "EleutherAI/pythia/issues/108",
    "EleutherAI/pythia/issues/94",
    "EleutherAI/pythia/issues/107",
    "EleutherAI/pythia/issues/141",
    "EleutherAI/pythia/issues/198",
]
SAID = {  # a repository, its steps, and what is said without any look at the contents
    "stanford-crfm/arwen-gpt2-medium-x21": ((1000,), "labels are doubted"),
    "stanford-crfm/alias-gpt2-small-x21": ((1000,), "sorted as text.*it is said to be repaired"),
    "TinyLlama/TinyLlama-1.1B-intermediate-step-240k-503b": ((240000,), "a user found it to work differently"),
    "allenai/OLMo-2-1124-13B": ((200000,), "nothing before step 102500"),
    "allenai/OLMo-1B": ((1000,), "steps from 117850 to 330000 are absent"),
    "allenai/OLMo-7B": ((1000,), "some steps are absent"),
    "allenai/Olmo-3-1025-7B": ((1000,), "1415 addresses"),
    "allenai/OLMo-2-0425-1B": ((1000,), "names of stage 2 said 50B"),
    "yulan-team/YuLan-Mini-Before-Annealing": ((243198,), "phase 27"),
    "EleutherAI/neox-ckpt-pythia-6.9b-deduped-v1": ((1000,), "early checkpoints are identical"),
    "EleutherAI/pythia-12b": ((1000,), "branches or files were missing"),
    "EleutherAI/pythia-6.9b": ((1000,), "branches or files were missing"),
    "EleutherAI/pythia-1b": ((1000,), "branches or files were missing"),
}


def of(repository, states):
    return audited(states, kind="hub", name=repository, wanted=tuple(states))


def said(audit):
    return " ".join(audit.notes)


def test_all_that_was_reported_of_public_suites_is_here():
    sources = {report.source for report in (*KNOWN_BAD, *REPORTED)}
    assert {source for source in BEYOND_THE_FIRST if not any(one.endswith(source) for one in sources)} == set()


@pytest.mark.parametrize("repository", SAID)
def test_a_report_that_names_no_wrong_contents_is_a_note(repository):
    steps, told = SAID[repository]
    audit = of(repository, run((*steps, 900000)))
    assert re.search(f"reported: .*{told}", said(audit))
    assert audit.broken == {}


def test_a_branch_that_is_no_ancestor_is_left_out_whatever_it_holds():
    audit = of("TinyLlama/tinyLlama-intermediate-checkpoints", run((480000, 715000, 1195000)))
    assert list(audit.broken) == [715000]
    assert "TinyLlama/issues/72" in audit.broken[715000]


def test_final_weights_are_held_against_the_contents():
    states = run((1000, 2000, 143000))
    shows = states | {1000: states[143000].clone(), 2000: states[143000].clone()}
    assert list(of("EleutherAI/pythia-2.8b", shows).broken) == [1000, 2000]
    audit = of("EleutherAI/pythia-2.8b", shows | {2000: states[2000]})
    assert list(audit.broken) == [1000]
    (finding,) = (one for one in audit.findings if one.kind == "known bad")
    assert "here the contents of 2000 do not show it, so they stay: repaired since?" in finding.message


@pytest.mark.parametrize(
    ("repository", "step"), [("EleutherAI/pythia-12b-deduped", 32000), ("allenai/OLMo-7B-0424-hf", 200500)]
)
def test_a_repaired_report_counts_where_the_contents_still_show_it(repository, step):
    states = run((1000, step, 300000))
    audit = of(repository, states)
    assert audit.broken == {}
    assert f"it is said to be repaired); here the contents of {step} do not show it" in said(audit)
    audit = of(repository, states | {step: states[300000].clone()})
    assert list(audit.broken) == [step]
    assert "the contents still show it" in audit.broken[step]


def test_branches_that_serve_the_same_are_held_against_the_contents():
    states = run((100000, 101000, 175000, 300000, 400000))
    same = {step: states[101000].clone() for step in (175000, 300000)}
    assert list(of("allenai/OLMo-2-1124-7B", states | same).broken) == [101000, 175000, 300000]
    audit = of("allenai/OLMo-2-1124-7B", states)
    assert audit.broken == {}
    assert any("do not show it" in one.message for one in audit.findings)


def test_steps_that_repeat_the_first_are_held_against_the_contents():
    states = run((0, 1, 2, 4, 8))
    audit = of("EleutherAI/pythia-70m", states)
    assert audit.broken == {}
    assert "step2 equals step0 too" in said(audit)
    assert "here the contents of 2 do not show it" in said(audit)
    same = states | {1: states[0].clone(), 2: states[0].clone()}
    assert list(of("EleutherAI/pythia-70m", same).broken) == [1, 2]
    assert "do not show it" not in said(of("EleutherAI/pythia-70m", same))


def test_a_branch_without_weights_that_has_some_now_stays():
    states = run((39000, 40000, 41000))
    audit = of("EleutherAI/pythia-410m-seed9", states)
    assert audit.broken == {}
    assert any("do not show it, so they stay" in one.message for one in audit.findings)
    audit = of("EleutherAI/pythia-410m-seed9", states | {40000: ValueError("no weights")})
    assert list(audit.broken) == [40000]


def test_an_initialization_that_the_run_did_not_begin_from_is_left_out():
    audit = of("EleutherAI/pythia-160m-weight-seed1", {0: Fake({"lm_head.weight": torch.ones(40, 6)}), **run((1, 2))})
    assert 0 in audit.broken
    assert "do not descend" in audit.broken[0]
