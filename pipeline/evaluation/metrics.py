"""Metrics of a classifier, from probabilities, float [n, classes], and labels, int [n]. NumPy only."""

import numpy as np


def accuracy(probabilities: np.ndarray, labels: np.ndarray) -> float:
    """Fraction of images whose most probable class (the first one, in a tie) is the true one."""
    return float(np.mean(probabilities.argmax(axis=1) == labels))


def cross_entropy(probabilities: np.ndarray, labels: np.ndarray) -> float:
    """Mean of -log of the true class's probability, in nats; clipped at 1e-7, as in Keras."""
    return float(-np.log(np.clip(probabilities[np.arange(len(labels)), labels], 1e-7, 1)).mean())


def confusion_matrix(probabilities: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Number of images by true class (row) and most probable class (column), int64 [classes, classes]."""
    classes = probabilities.shape[1]
    cells = labels * classes + probabilities.argmax(axis=1)
    return np.bincount(cells, minlength=classes**2).reshape(classes, classes)


def precision(confusion: np.ndarray) -> np.ndarray:
    """Of the images predicted as a class, the fraction that belongs to it, [classes]; 0 if none is predicted."""
    return np.diag(confusion) / np.maximum(confusion.sum(axis=0), 1)


def recall(confusion: np.ndarray) -> np.ndarray:
    """Of the images of a class, the fraction predicted as it, [classes]; 0 if it has no images."""
    return np.diag(confusion) / np.maximum(confusion.sum(axis=1), 1)


def calibration_error(probabilities: np.ndarray, labels: np.ndarray, bins: int) -> float:
    """Expected calibration error, 0..1: the mean distance between confidence and accuracy.

    Confidence is the probability of the most probable class. Each bin contributes |accuracy - mean confidence|,
    weighted by its fraction of the images.

    Args:
        probabilities: float [n, classes].
        labels: int [n].
        bins: of equal width, open on the left: (0, 1/bins], …, (1 - 1/bins, 1].

    Source: Naeini, Cooper, Hauskrecht, "Obtaining Well Calibrated Probabilities Using Bayesian Binning", 2015; in this
        form Guo, Pleiss, Sun, Weinberger, "On Calibration of Modern Neural Networks", 2017, eq. 3.
    """
    return float(calibration_terms(probabilities, labels, bins).mean())


def calibration_terms(probabilities: np.ndarray, labels: np.ndarray, bins: int) -> np.ndarray:
    """Each image's contribution to the calibration error, float [n]; their mean is the error. Arguments as there."""
    confidence = probabilities.max(axis=1)
    gap = (probabilities.argmax(axis=1) == labels) - confidence
    bin_of = np.digitize(confidence, np.linspace(0, 1, bins + 1)[1:-1], right=True)
    return gap * np.sign(np.bincount(bin_of, weights=gap))[bin_of]


def most_confident_errors(probabilities: np.ndarray, labels: np.ndarray, count: int) -> np.ndarray:
    """Indices of at most `count` misclassified images, the most confident first, int [m]."""
    wrong = np.flatnonzero(probabilities.argmax(axis=1) != labels)
    return wrong[np.argsort(-probabilities[wrong].max(axis=1), kind="stable")][:count]
