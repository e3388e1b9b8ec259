"""docs/evidence.md is what the kept figures make of it: no number on it was typed."""

from pathlib import Path

import pytest
from recipe_scripts import REPRODUCE, scripts_of

pytest.importorskip("matplotlib")

ROOT = Path(__file__).parents[2]
KEPT = ROOT / "docs" / "evidence"
MOST_BYTES = 5_000_000


@pytest.fixture
def recipe():
    """The recipe's scripts, by name."""
    with scripts_of(REPRODUCE) as script:
        yield script


def test_the_page_is_made_of_the_kept_figures(recipe):
    kept = recipe("kept").read(KEPT)
    assert recipe("page").page(kept, KEPT.name) == (ROOT / "docs" / "evidence.md").read_text(encoding="utf-8")


def test_steering_is_told_in_the_unit_that_it_is_kept_in(recipe):
    ends = [cell["steering"][-1] for cell in recipe("kept").read(KEPT).cells]
    # a move that changes nothing misses ratios 2 and 5 by log 2 and log 5; by |achieved / ratio - 1| it were below 0.8
    assert all(0.9 < end["random_norm"] < 1.3 for end in ends)
    page = (ROOT / "docs" / "evidence.md").read_text(encoding="utf-8")
    assert "the median of |log(achieved / ratio)|" in page


def test_the_gain_is_that_of_saliencys_order(recipe):
    for cell in recipe("kept").read(KEPT).cells:
        end = cell["deletion"][-1]
        assert end["zero gain"] == pytest.approx(end["zero ascending"] - end["zero random"], abs=1e-4)


def test_what_is_kept_is_small_and_the_pictures_are_there():
    files = list(KEPT.iterdir())
    assert sum(path.stat().st_size for path in files) < MOST_BYTES
    page = (ROOT / "docs" / "evidence.md").read_text(encoding="utf-8")
    pictures = {path.name for path in files if path.suffix == ".png"}
    assert pictures
    assert all(f"({KEPT.name}/{name})" in page for name in pictures)


def test_english_and_code_have_five_seeds(recipe):
    kept, grid = recipe("kept").read(KEPT), recipe("grid")
    for cell in (grid.MAIN, grid.CODE):
        assert len(kept.families[cell.family]) == grid.MAIN_SEEDS
        assert kept.verdicts[cell.family]["seeds"] == grid.MAIN_SEEDS


def test_pictures_are_drawn_from_what_is_kept(recipe, tmp_path):
    recipe("pictures").draw(recipe("kept").read(KEPT), tmp_path)
    for path in tmp_path.iterdir():
        assert path.stat().st_size > 5_000
        assert (KEPT / path.name).is_file()


def test_an_interval_is_the_t_interval_of_a_mean_over_seeds(recipe):
    kept = recipe("kept")
    low, high = kept.interval([1.0, 2.0, 3.0])
    assert (low, high) == pytest.approx((2 - 4.302653 / 3**0.5, 2 + 4.302653 / 3**0.5), rel=1e-6)
    assert kept.spread([0.25, 0.5]) == "0.25, 0.50"
    assert kept.spread([]) == "-"
