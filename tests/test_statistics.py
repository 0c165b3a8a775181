"""The formulas beside scipy's own, beside brute force, and beside a simulation of known truth."""

import itertools
import json
from math import comb

import numpy as np
import pytest
from conftest import ROOT
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from benchmarks import coverage
from pipeline.report import statistics


def test_interval_over_seeds_is_students():
    values = [0.85, 0.86, 0.84]
    found = statistics.over_seeds(values)
    expected = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high))
    assert found.p_value == pytest.approx(stats.ttest_1samp(values, 0).pvalue)


def test_difference_over_seeds_alone_is_welchs():
    ours, theirs = np.array([0.85, 0.86, 0.84]), np.array([0.80, 0.83, 0.82, 0.81, 0.80])
    # Each run has one value on every image: nothing varies over images.
    found = statistics.difference(*(np.repeat(side[:, None], 50, axis=1) for side in (ours, theirs)))
    welch = stats.ttest_ind(ours, theirs, equal_var=False)
    interval = welch.confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((interval.low, interval.high))
    assert found.p_value == pytest.approx(welch.pvalue)
    assert found.degrees_of_freedom == pytest.approx(welch.df)


def test_difference_over_images_alone_is_the_paired_test():
    ours, theirs = np.random.default_rng(0).random((2, 1, 40)).round()
    found = statistics.difference(ours, theirs)
    paired = stats.ttest_rel(ours[0], theirs[0])
    assert found.p_value == pytest.approx(paired.pvalue)
    assert (found.low, found.high) == pytest.approx(tuple(paired.confidence_interval(0.95)))


def test_difference_adds_both_kinds_of_variance():
    ours, theirs = np.random.default_rng(1).random((3, 200)).round(), np.random.default_rng(2).random((5, 200)).round()
    found = statistics.difference(ours, theirs)
    parts = [
        (np.var(ours.mean(1), ddof=1) / 3, 2),
        (np.var(theirs.mean(1), ddof=1) / 5, 4),
        (np.var(ours.mean(0) - theirs.mean(0), ddof=1) / 200, 199),
    ]
    variance = sum(part for part, _ in parts)
    freedom = variance**2 / sum(part**2 / freedom for part, freedom in parts)
    assert found.degrees_of_freedom == pytest.approx(freedom)
    assert found.high - found.low == pytest.approx(2 * stats.t.ppf(0.975, freedom) * np.sqrt(variance))


def test_equal_predictions_do_not_differ():
    correct = np.ones((3, 20))
    assert statistics.difference(correct, correct) == (0, 0, 0, np.inf, 1)


def test_one_image_and_one_seed_give_a_value_without_width():
    assert statistics.over_seeds_and_images(np.ones((1, 1)))[:3] == (1, 1, 1)


@given(st.integers(0, 30), st.integers(0, 30), st.integers(0, 30))
def test_mcnemar_is_the_exact_binomial_of_the_images_on_which_two_runs_differ(first, second, both):
    ours = np.array([1] * first + [0] * second + [1] * both + [0])
    theirs = np.array([0] * first + [1] * second + [1] * both + [0])
    n, fewer = first + second, min(first, second)
    tail = sum(comb(n, count) for count in range(fewer + 1)) / 2**n
    assert statistics.mcnemar(ours, theirs) == pytest.approx(min(1, 2 * tail))


def test_holm_by_hand():
    assert statistics.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert statistics.holm([0.9, 0.8]) == [1, 1]
    assert statistics.holm([]) == []


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_holm_rejects_what_the_step_down_procedure_rejects(p_values):
    rejected = set()
    for rank, index in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        if p_values[index] * (len(p_values) - rank) >= 0.05:
            break
        rejected.add(index)
    assert {index for index, p in enumerate(statistics.holm(p_values)) if p < 0.05} == rejected


def test_std_interval_covers_the_true_std_as_often_as_it_says():
    random = np.random.default_rng(0)
    covered = 0
    for _ in range(2_000):
        sides = [0.9 + 0.003 * random.standard_normal((seeds, 1)) for seeds in (3, 5)]
        low, high = statistics.std_interval(sides)
        covered += low <= 0.003 <= high
    assert 0.94 < covered / 2_000 < 0.96


@pytest.mark.parametrize(("std", "images"), [(0.002, 0), (0.003, 4e-7)])
def test_seeds_to_detect_reach_the_power_and_one_fewer_do_not(std, images):
    seeds = statistics.seeds_to_detect(0.003, std, images)
    random = np.random.default_rng(0)

    def power(seeds):
        found = 0
        for _ in range(4_000):
            sides = random.normal([[0.003], [0]], std, (2, seeds))
            of_seeds = sides.var(axis=1, ddof=1) / seeds
            variance = of_seeds.sum() + images
            freedom = variance**2 / (of_seeds**2 / (seeds - 1)).sum()
            shift = random.normal(0, np.sqrt(images))
            found += stats.t.sf(abs(sides[0].mean() - sides[1].mean() + shift) / np.sqrt(variance), freedom) < 0.025
        return found / 4_000

    assert power(seeds) > 0.78
    assert power(seeds - 1) < 0.81


def test_no_number_of_seeds_finds_what_the_images_hide():
    assert statistics.seeds_to_detect(0.003, 0.0, 0.003**2) is None
    assert statistics.seeds_to_detect(0.003, 0.0) == 2


def test_image_variance_leaves_out_the_randomness_of_seeds():
    random = np.random.default_rng(0)
    coins = [(random.random((20, 50_000)) < 0.5).astype(float) for _ in range(2)]  # images do not matter at all
    assert statistics.image_variance(*coins) < 1e-7
    easy = np.tile(np.arange(50_000) % 2, (2, 1)).astype(float)  # only images matter
    assert statistics.image_variance(easy, np.zeros((2, 50_000))) == pytest.approx(0.25 / 50_000, rel=1e-4)


RECORDED = json.loads((ROOT / "benchmarks/coverage.json").read_text())


def test_intervals_cover_the_truth_in_94_to_99_of_100_simulations():
    settings = {(row["std"], tuple(row["seeds"]), row["images"]): row["coverage"] for row in RECORDED["settings"]}
    assert set(settings) == set(itertools.product(coverage.STDS, coverage.SEEDS, coverage.IMAGES))
    assert all(0.94 <= covered <= 0.99 for covered in settings.values()), settings


@pytest.mark.slow
@pytest.mark.parametrize("std", coverage.STDS)
def test_recorded_coverage_is_that_of_this_code(std):
    (recorded,) = (
        row for row in RECORDED["settings"] if (row["std"], row["seeds"], row["images"]) == (std, [3, 3], 5_000)
    )
    found = coverage.simulate(std, (3, 3), 5_000)
    assert found["coverage"] == pytest.approx(recorded["coverage"], abs=0.001)
    assert found["mean_width"] == pytest.approx(recorded["mean_width"], rel=0.01)
