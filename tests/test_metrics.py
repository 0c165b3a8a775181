import subprocess
import sys

import keras
import numpy as np
import pytest
import sklearn.metrics
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from pipeline.evaluation import metrics

in_its_own_time = settings(deadline=None)  # a busy machine is no failure


def confident(*classes, confidence):
    """Probabilities that give each class the confidence and share the rest equally."""
    probabilities = np.full((len(classes), 10), (1 - confidence) / 9)
    probabilities[np.arange(len(classes)), classes] = confidence
    return probabilities


@st.composite
def predictions(draw):
    """Probabilities [n, 10] and labels [n]."""
    n = draw(st.integers(1, 40))
    weights = draw(hnp.arrays(np.float64, (n, 10), elements=st.floats(0.001, 1)))
    return weights / weights.sum(axis=1, keepdims=True), draw(hnp.arrays(np.int32, n, elements=st.integers(0, 9)))


def test_perfect_confident():
    labels = np.arange(10)
    probabilities = confident(*labels, confidence=1.0)
    confusion = metrics.confusion_matrix(probabilities, labels)
    assert metrics.accuracy(probabilities, labels) == 1
    assert metrics.cross_entropy(probabilities, labels) == 0
    assert metrics.calibration_error(probabilities, labels, bins=15) == 0
    assert (confusion == np.eye(10)).all()
    assert (metrics.precision(confusion) == 1).all()
    assert (metrics.recall(confusion) == 1).all()


def test_worst_confident():
    labels = np.arange(10)
    probabilities = confident(*(labels + 1) % 10, confidence=1.0)
    confusion = metrics.confusion_matrix(probabilities, labels)
    assert metrics.accuracy(probabilities, labels) == 0
    assert metrics.cross_entropy(probabilities, labels) == pytest.approx(7 * np.log(10))
    assert metrics.calibration_error(probabilities, labels, bins=15) == 1
    assert (metrics.precision(confusion) == 0).all()
    assert (metrics.recall(confusion) == 0).all()


def test_metrics_by_hand():
    labels = np.array([0, 0, 0, 1, 2])
    probabilities = confident(0, 0, 1, 1, 1, confidence=0.7)
    confusion = metrics.confusion_matrix(probabilities, labels)
    assert confusion[:3, :3].tolist() == [[2, 1, 0], [0, 1, 0], [0, 1, 0]]
    assert metrics.accuracy(probabilities, labels) == 0.6
    assert metrics.cross_entropy(probabilities, labels) == pytest.approx(-(3 * np.log(0.7) + 2 * np.log(0.3 / 9)) / 5)
    assert metrics.precision(confusion)[:3] == pytest.approx([1, 1 / 3, 0])
    assert metrics.recall(confusion)[:3] == pytest.approx([2 / 3, 1, 0])


def test_class_that_is_never_predicted_has_precision_0_without_a_warning():
    confusion = np.zeros((10, 10), np.int64)
    confusion[:, 3] = 5
    with np.errstate(all="raise"):
        assert metrics.precision(confusion).tolist() == [0, 0, 0, 0.1, 0, 0, 0, 0, 0, 0]
        assert metrics.recall(confusion.T)[0] == 0


def test_calibration_error_by_hand():
    # Bins (0, 0.5] and (0.5, 1]: one of two right at 0.4, none of two right at 0.9.
    probabilities = np.vstack([confident(0, 0, confidence=0.4), confident(0, 0, confidence=0.9)])
    assert metrics.calibration_error(probabilities, np.array([0, 1, 2, 3]), bins=2) == pytest.approx(
        0.5 * abs(0.5 - 0.4) + 0.5 * abs(0 - 0.9)
    )


def test_confidence_on_the_border_belongs_to_the_lower_bin():
    probabilities = np.vstack([confident(0, confidence=0.5), confident(0, 0, confidence=0.4)])
    # All in one bin: one right of three against a confidence of 1.3 in all.
    assert metrics.calibration_error(probabilities, np.array([0, 1, 1]), bins=2) == pytest.approx(abs(1 - 1.3) / 3)


@in_its_own_time
@given(predictions(), st.integers(1, 30))
def test_calibration_error_is_that_of_brute_force(predictions, bins):
    probabilities, labels = predictions
    total = 0.0
    for number in range(bins):
        low, high = np.linspace(0, 1, bins + 1)[number : number + 2]
        inside = [index for index, row in enumerate(probabilities) if low < row.max() <= high]
        if inside:
            right = np.mean([probabilities[index].argmax() == labels[index] for index in inside])
            total += len(inside) / len(labels) * abs(right - np.mean([probabilities[index].max() for index in inside]))
    assert metrics.calibration_error(probabilities, labels, bins) == pytest.approx(total)


@in_its_own_time
@given(predictions())
def test_metrics_are_those_of_scikit_learn(predictions):
    probabilities, labels = predictions
    predicted, classes = probabilities.argmax(axis=1), range(10)
    confusion = metrics.confusion_matrix(probabilities, labels)
    assert metrics.accuracy(probabilities, labels) == pytest.approx(sklearn.metrics.accuracy_score(labels, predicted))
    assert metrics.cross_entropy(probabilities, labels) == pytest.approx(
        sklearn.metrics.log_loss(labels, probabilities, labels=classes)
    )
    assert (confusion == sklearn.metrics.confusion_matrix(labels, predicted, labels=classes)).all()
    arguments = {"labels": classes, "average": None, "zero_division": 0}
    assert metrics.precision(confusion) == pytest.approx(
        sklearn.metrics.precision_score(labels, predicted, **arguments)
    )
    assert metrics.recall(confusion) == pytest.approx(sklearn.metrics.recall_score(labels, predicted, **arguments))


@in_its_own_time
@given(predictions())
def test_confusion_precision_and_recall_are_those_of_brute_force(predictions):
    probabilities, labels = predictions
    predicted = probabilities.argmax(axis=1)
    pairs = list(zip(labels, predicted, strict=True))
    confusion = metrics.confusion_matrix(probabilities, labels)
    assert confusion.tolist() == [[pairs.count((row, column)) for column in range(10)] for row in range(10)]
    assert np.trace(confusion) / len(labels) == pytest.approx(metrics.accuracy(probabilities, labels))
    for name in range(10):
        num_correct = pairs.count((name, name))
        assert metrics.precision(confusion)[name] == pytest.approx(num_correct / max(1, list(predicted).count(name)))
        assert metrics.recall(confusion)[name] == pytest.approx(num_correct / max(1, list(labels).count(name)))


@settings(max_examples=20, deadline=None)
@given(predictions())
def test_cross_entropy_is_that_of_keras(predictions):
    probabilities, labels = predictions
    expected = keras.losses.sparse_categorical_crossentropy(labels, probabilities).numpy().mean()
    assert metrics.cross_entropy(probabilities, labels) == pytest.approx(expected, rel=1e-5, abs=1e-6)


def test_most_confident_errors_come_first():
    probabilities = np.vstack([confident(1, confidence=c) for c in (0.5, 0.9, 0.99, 0.7, 0.9)])
    labels = np.array([0, 0, 1, 0, 2])  # the third is right
    assert metrics.most_confident_errors(probabilities, labels, 10).tolist() == [1, 4, 3, 0]
    assert metrics.most_confident_errors(probabilities, labels, 2).tolist() == [1, 4]


def test_errors_of_equal_confidence_keep_their_order():
    probabilities = np.vstack(
        [confident(1, 2, 3, confidence=c) for c in [0.5, 0.8] * 50]
    )  # enough for numpy to mix them up
    expected = sorted(range(300), key=lambda index: -probabilities[index].max())
    assert metrics.most_confident_errors(probabilities, np.zeros(300, int), 300).tolist() == expected


@in_its_own_time
@given(predictions(), st.integers(1, 50))
def test_most_confident_errors_are_errors_and_none_left_out_is_more_confident(predictions, count):
    probabilities, labels = predictions
    chosen = metrics.most_confident_errors(probabilities, labels, count)
    wrong = {index for index in range(len(labels)) if probabilities[index].argmax() != labels[index]}
    assert len(set(chosen)) == len(chosen) == min(count, len(wrong))
    assert set(chosen) <= wrong
    confidence = probabilities.max(axis=1)
    assert confidence[chosen].tolist() == sorted((confidence[index] for index in wrong), reverse=True)[: len(chosen)]


def test_metrics_come_without_tensorflow():
    code = "import sys, pipeline.evaluation.metrics; sys.exit('tensorflow' in sys.modules or 'keras' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
