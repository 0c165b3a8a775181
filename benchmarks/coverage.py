"""How often the 95 % interval of a difference covers the truth: `python -m benchmarks.coverage` writes coverage.json.

Two recipes of known accuracy are simulated. An image has a difficulty for each recipe, which the two largely share; a
seed shifts the recipe's true accuracy; whether a run classifies an image correctly is then drawn by chance. Each
repetition draws new images and new seeds and asks whether the interval covers the true difference.
"""

import argparse
import itertools
import json
from math import sqrt
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from pipeline.report import statistics

STDS = (0.0, 0.002, 0.005, 0.009)  # of the true accuracy, over seeds
SEEDS = ((3, 3), (3, 5), (10, 10))
IMAGES = (5_000, 10_000)
ACCURACIES = (0.92, 0.91)
DIFFICULTY_STD = (
    3.0  # beside draws of standard deviation 1: two seeds of a recipe then disagree on 5 to 6 % of the images
)
CORRELATION = 0.8  # of an image's difficulty for the two recipes: they then disagree on 9 %
REPETITIONS = 4_000


def main() -> None:
    """Simulates every setting, prints a line each and writes all of them."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.coverage", description=__doc__)
    parser.add_argument("--output", type=Path, default=Path("benchmarks/coverage.json"))
    output = parser.parse_args().output
    rows = []
    for std, seeds, images in itertools.product(STDS, SEEDS, IMAGES):
        rows.append(simulate(std, seeds, images))
        print(json.dumps(rows[-1]), flush=True)
    report = {"level": statistics.LEVEL, "accuracies": ACCURACIES, "repetitions": REPETITIONS, "settings": rows}
    output.write_text(json.dumps(report, indent=1) + "\n")


def simulate(std: float, seeds: tuple[int, int], images: int) -> dict[str, Any]:
    """Coverage and mean width of the interval in one setting; the same each time."""
    random = np.random.default_rng([round(1e6 * std), *seeds, images])
    truth = ACCURACIES[0] - ACCURACIES[1]
    covered, width = 0, 0.0
    for _ in range(REPETITIONS):
        shared = random.standard_normal(images)
        sides = [_draw(random, shared, *side, std) for side in zip(ACCURACIES, seeds, strict=True)]
        estimate = statistics.difference(*sides)
        covered += estimate.low <= truth <= estimate.high
        width += estimate.high - estimate.low
    return {
        "std": std,
        "seeds": list(seeds),
        "images": images,
        "coverage": round(covered / REPETITIONS, 4),
        "mean_width": round(width / REPETITIONS, 5),
    }


def _draw(random: np.random.Generator, shared: np.ndarray, accuracy: float, seeds: int, std: float) -> np.ndarray:
    """Whether each run classifies each image correctly, float64 [seeds, images]."""
    own = random.standard_normal(len(shared))
    difficulty = DIFFICULTY_STD * (sqrt(CORRELATION) * shared + sqrt(1 - CORRELATION) * own)
    # Averaged over images, a run is correct with exactly its seed's true accuracy.
    true = np.clip(random.normal(accuracy, std, seeds), 0.01, 0.99)
    ability = sqrt(1 + DIFFICULTY_STD**2) * stats.norm.ppf(true)
    draws = random.standard_normal((seeds, len(shared)), dtype=np.float32)
    return (ability[:, None] + draws > difficulty).astype(np.float64)


if __name__ == "__main__":
    main()
