"""Intervals and tests for accuracies over seeds and images.

`correct` is an array [seeds, images]: 1 where a run of that seed classifies the image correctly, else 0. Any other
value per seed and image, such as a loss, works too. Intervals are 95 %, tests are two-sided.
"""

from collections.abc import Sequence
from math import inf, sqrt
from typing import NamedTuple

import numpy as np
from scipy import stats

LEVEL = 0.95
ALPHA = 1 - LEVEL
POWER = 0.8
MAX_SEEDS = 100  # that anyone would train


class Estimate(NamedTuple):
    """A mean or a difference of means."""

    value: float
    low: float
    high: float
    degrees_of_freedom: float
    p_value: float  # of the hypothesis that the true value is 0


Components = list[tuple[float, float]]  # variances that add up to that of an estimate, with their degrees of freedom


def over_seeds(values: Sequence[float]) -> Estimate:
    """Mean over two or more seeds, with Student's t interval. It covers the mean of further seeds, for these images.

    Source: Student, "The Probable Error of a Mean", 1908.
    """
    return _estimate(float(np.mean(values)), _variance_of_mean(np.asarray(values)))


def over_seeds_and_images(correct: np.ndarray) -> Estimate:
    """Mean over seeds and images; the interval covers further seeds and images. With one seed: further images only."""
    return _estimate(
        float(correct.mean()), _variance_of_mean(correct.mean(axis=1)) + _variance_of_mean(correct.mean(axis=0))
    )


def difference(correct: np.ndarray, other: np.ndarray) -> Estimate:
    """Difference of two recipes' means on the same images, with a Welch-type interval.

    Its variance adds three components: that over the seeds of either side, divided by their number, and that over the
    images of the seed-averaged paired difference, divided by their number. A side of one seed has no seed component:
    then the interval is of these weights, not of the recipe. The part of the images' variance that is random between
    seeds is counted in both kinds, which makes the interval slightly too wide: benchmarks/coverage.json.

    Source: Welch, "The Generalization of 'Student's' Problem when Several Different Population Variances are
        Involved", 1947. Degrees of freedom: Satterthwaite, "An Approximate Distribution of Estimates of Variance
        Components", 1946.
    """
    per_image = correct.mean(axis=0) - other.mean(axis=0)
    of_seeds = _variance_of_mean(correct.mean(axis=1)) + _variance_of_mean(other.mean(axis=1))
    return _estimate(float(per_image.mean()), of_seeds + _variance_of_mean(per_image))


def mcnemar(correct: np.ndarray, other: np.ndarray) -> float:
    """Exact p value of the hypothesis that two sets of weights have equal accuracy, [images] each.

    Of the images that exactly one of the two classifies correctly, either has half, up to chance.

    Source: McNemar, "Note on the Sampling Error of the Difference between Correlated Proportions or Percentages", 1947;
        for classifiers: Dietterich, "Approximate Statistical Tests for Comparing Supervised Classification Learning
        Algorithms", 1998.
    """
    first, second = int((correct > other).sum()), int((correct < other).sum())
    return float(stats.binomtest(first, first + second).pvalue) if first + second else 1.0


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjusted p values: rejecting those below 0.05 makes one false rejection or more with a probability below 0.05.

    Source: Holm, "A Simple Sequentially Rejective Multiple Test Procedure", 1979.
    """
    adjusted, largest = [1.0] * len(p_values), 0.0
    for rank, index in enumerate(np.argsort(p_values, kind="stable")):
        largest = max(largest, (len(p_values) - rank) * p_values[index])
        adjusted[index] = min(1.0, largest)
    return adjusted


def std_interval(correct: Sequence[np.ndarray]) -> tuple[float, float]:
    """Limits of the standard deviation of accuracy over seeds, pooled over recipes of two or more seeds.

    Source: the chi-squared interval of a normal sample's variance, e.g. Snedecor, Cochran, "Statistical Methods", 1989.
    """
    squares = sum(float(np.var(seeds.mean(axis=1), ddof=1)) * (len(seeds) - 1) for seeds in correct)
    freedom = sum(len(seeds) - 1 for seeds in correct)
    low, high = stats.chi2.ppf([1 - ALPHA / 2, ALPHA / 2], freedom)
    return sqrt(squares / low), sqrt(squares / high)


def image_variance(correct: np.ndarray, other: np.ndarray) -> float:
    """Variance of a difference of means that more seeds do not lower: that of the images, without seeds' randomness."""
    per_image = correct.mean(axis=0) - other.mean(axis=0)
    random = sum(side.var(axis=0, ddof=1).mean() / len(side) for side in (correct, other))
    return max(0.0, float(per_image.var(ddof=1) - random)) / len(per_image)


def seeds_to_detect(true_difference: float, seed_std: float, variance_of_images: float = 0.0) -> int | None:
    """Seeds of either recipe with which a 5 % test finds a true difference with 80 % probability; None: over 100.

    Source: the power of the t test, by the noncentral t distribution, e.g. Chow, Shao, Wang, Lokhnygina, "Sample Size
        Calculations in Clinical Research", 2017, section 3.2.
    """
    for seeds in range(2, MAX_SEEDS + 1):
        of_seeds = 2 * seed_std**2 / seeds
        error = sqrt(of_seeds + variance_of_images)
        if not error:
            return seeds
        freedom = min(1e6, 2 * (seeds - 1) * (error**2 / of_seeds) ** 2 if of_seeds else inf)
        critical = stats.t.ppf(1 - ALPHA / 2, freedom)
        if stats.nct.sf(critical, freedom, true_difference / error) >= POWER:
            return seeds
    return None


def _variance_of_mean(values: np.ndarray) -> Components:
    """Empty for a single value."""
    n = len(values)
    return [(float(values.var(ddof=1)) / n, n - 1)] if n > 1 else []


def _estimate(value: float, components: Components) -> Estimate:
    variance = sum(component for component, _ in components)
    if variance == 0:
        return Estimate(value, value, value, inf, float(value == 0))
    freedom = variance**2 / sum(component**2 / freedom for component, freedom in components)
    error = sqrt(variance)
    half_width = float(stats.t.ppf(1 - ALPHA / 2, freedom)) * error
    p_value = float(2 * stats.t.sf(abs(value) / error, freedom))
    return Estimate(value, value - half_width, value + half_width, freedom, p_value)
