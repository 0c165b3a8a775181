import io

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from pipeline.evaluation import metrics, predictions
from pipeline.system.command import PipelineError

LABELS = np.arange(4)
PROBABILITIES = np.eye(10)[:4]


def npz(**arrays):
    content = io.BytesIO()
    np.savez(content, **arrays)
    return content.getvalue()


def whole(**changed):
    arrays = predictions.decode(predictions.encode(PROBABILITIES, LABELS, PROBABILITIES, LABELS))._asdict()
    return npz(**arrays | changed)


@given(hnp.arrays(np.float64, (8, 10), elements=st.floats(0, 1)), st.floats(0, 1e-4))
def test_float16_keeps_the_most_probable_class(probabilities, apart):
    probabilities[:, 7] = probabilities[:, 3] + apart  # near ties, which float16 may not tell apart
    stored = predictions.to_float16(probabilities)
    assert (stored.argmax(axis=1) == probabilities.argmax(axis=1)).all()
    assert np.abs(stored - probabilities).max() <= 2**-10  # an ulp below 2


def test_tie_in_float16_is_broken_for_the_class_that_was_ahead():
    probabilities = np.full((1, 10), 0.0)
    probabilities[0, [2, 5]] = 0.4, 0.40000001
    assert probabilities.astype(np.float16).argmax() == 2  # what plain rounding would say
    assert predictions.to_float16(probabilities).argmax() == 5


def test_what_is_read_is_what_was_written_and_equal_bytes(tmp_path):
    random = np.random.default_rng(0)
    probabilities = random.dirichlet(np.ones(10), 50)
    labels = random.integers(0, 10, 50)
    content = predictions.encode(probabilities, labels, PROBABILITIES, LABELS)
    assert content == predictions.encode(probabilities, labels, PROBABILITIES, LABELS)
    (tmp_path / predictions.FILE).write_bytes(content)
    evaluation = {"test_accuracy": round(metrics.accuracy(probabilities, labels), 6), "val_accuracy": 1.0}
    found = predictions.read(tmp_path, evaluation)
    assert (found.test_labels == labels).all()
    assert np.abs(found.test_probabilities - probabilities).max() < 2**-11
    for wrong in ({"test_accuracy": 0.5}, {"val_accuracy": 0.75}):
        with pytest.raises(
            PipelineError, match=rf"probabilities\.npz .*accuracy is .*dvc repro evaluate@{tmp_path.name}"
        ):
            predictions.read(tmp_path, evaluation | wrong)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"not a zip",
        whole()[:100],
        npz(test_probabilities=np.zeros((4, 10), np.float16)),
        whole(test_probabilities=np.full((4, 10), np.nan, np.float16)),
        whole(test_probabilities=PROBABILITIES),
        whole(val_labels=np.full(4, 10, np.uint8)),
        whole(val_labels=np.zeros(3, np.uint8)),
        whole(test_labels=np.array([{}] * 4)),
        whole(more=np.zeros(20_000_000, np.uint8)),
    ],
    ids=["empty", "text", "truncated", "lacking", "NaN", "float64", "label 10", "fewer labels", "objects", "huge"],
)
def test_damaged_file_is_refused_in_one_line(tmp_path, content):
    (tmp_path / predictions.FILE).write_bytes(content)
    with pytest.raises(PipelineError, match=r"probabilities\.npz cannot be read .*dvc repro evaluate@") as raised:
        predictions.read(tmp_path, {"test_accuracy": 1.0, "val_accuracy": 1.0})
    assert len(str(raised.value).splitlines()) == 1


def test_missing_file_is_named(tmp_path):
    with pytest.raises(PipelineError, match=r"probabilities\.npz cannot be read .*No such file.*dvc repro evaluate@"):
        predictions.read(tmp_path, {})
