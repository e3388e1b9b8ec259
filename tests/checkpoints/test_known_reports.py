import pytest

from trainhooks.checkpoints.audit.known_reports import KNOWN_BAD, known_bad
from trainhooks.checkpoints.steps import PYTHIA_GRID

HEAD = ["embed_out.weight"]


def touched(repository, steps=PYTHIA_GRID, tensors=HEAD):
    return {step for _, found in known_bad(repository, steps=steps, tensors=tensors) for step in found}


def test_every_report_has_a_source_and_steps():
    for report in KNOWN_BAD:
        assert report.source.startswith("https://github.com/")
        assert report.source.rsplit("/", 1)[1].isdigit()
        assert report.note
        assert len(set(report.steps)) == len(report.steps) > 0


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
