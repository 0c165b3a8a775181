import json
import subprocess
import sys
from types import SimpleNamespace

import keras
import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import pipeline
from pipeline import evaluate
from pipeline.records import record
from pipeline.system import command
from pipeline.system.command import PipelineError
from pipeline.training import dataset

in_its_own_time = settings(deadline=None)  # a busy machine is no failure
PICTURES = ("curves.png", "confusion_matrix.png", "mistakes.png")
HISTORY = [
    {"epoch": 1, "loss": 2.2, "accuracy": 0.2, "val_loss": 2.1, "val_accuracy": 0.25, "learning_rate": 0.1},
    {"epoch": 2, "loss": 2.0, "accuracy": 0.3, "val_loss": 1.9, "val_accuracy": 0.35, "learning_rate": 0.05},
]


def answers(*classes, confidence):
    """Probabilities that give each class the confidence and share the rest equally."""
    chances = np.full((len(classes), 10), (1 - confidence) / 9)
    chances[np.arange(len(classes)), classes] = confidence
    return chances


@st.composite
def answered(draw):
    """Probabilities [n, 10] and labels [n]."""
    n = draw(st.integers(1, 40))
    weights = draw(hnp.arrays(np.float64, (n, 10), elements=st.floats(0.001, 1)))
    return weights / weights.sum(axis=1, keepdims=True), draw(hnp.arrays(np.int32, n, elements=st.integers(0, 9)))


def test_perfect_answers():
    labels = np.arange(10)
    chances = answers(*labels, confidence=1.0)
    confusion = evaluate.confusion_matrix(chances, labels)
    assert evaluate.accuracy(chances, labels) == 1
    assert evaluate.cross_entropy(chances, labels) == 0
    assert evaluate.calibration_error(chances, labels, bins=15) == 0
    assert (confusion == np.eye(10)).all()
    assert (evaluate.precision(confusion) == 1).all()
    assert (evaluate.recall(confusion) == 1).all()


def test_worst_answers():
    labels = np.arange(10)
    chances = answers(*(labels + 1) % 10, confidence=1.0)
    confusion = evaluate.confusion_matrix(chances, labels)
    assert evaluate.accuracy(chances, labels) == 0
    assert evaluate.cross_entropy(chances, labels) == pytest.approx(7 * np.log(10))
    assert evaluate.calibration_error(chances, labels, bins=15) == 1
    assert (evaluate.precision(confusion) == 0).all()
    assert (evaluate.recall(confusion) == 0).all()


def test_metrics_by_hand():
    labels = np.array([0, 0, 0, 1, 2])
    chances = answers(0, 0, 1, 1, 1, confidence=0.7)
    confusion = evaluate.confusion_matrix(chances, labels)
    assert confusion[:3, :3].tolist() == [[2, 1, 0], [0, 1, 0], [0, 1, 0]]
    assert evaluate.accuracy(chances, labels) == 0.6
    assert evaluate.cross_entropy(chances, labels) == pytest.approx(-(3 * np.log(0.7) + 2 * np.log(0.3 / 9)) / 5)
    assert evaluate.precision(confusion)[:3] == pytest.approx([1, 1 / 3, 0])
    assert evaluate.recall(confusion)[:3] == pytest.approx([2 / 3, 1, 0])


def test_class_that_is_never_predicted_has_precision_0_without_a_warning():
    confusion = np.zeros((10, 10), np.int64)
    confusion[:, 3] = 5
    with np.errstate(all="raise"):
        assert evaluate.precision(confusion).tolist() == [0, 0, 0, 0.1, 0, 0, 0, 0, 0, 0]
        assert evaluate.recall(confusion.T)[0] == 0


def test_calibration_error_by_hand():
    # Bins (0, 0.5] and (0.5, 1]: one of two right at 0.4, none of two right at 0.9.
    chances = np.vstack([answers(0, 0, confidence=0.4), answers(0, 0, confidence=0.9)])
    assert evaluate.calibration_error(chances, np.array([0, 1, 2, 3]), bins=2) == pytest.approx(
        0.5 * abs(0.5 - 0.4) + 0.5 * abs(0 - 0.9)
    )


def test_confidence_on_the_border_belongs_to_the_lower_bin():
    chances = np.vstack([answers(0, confidence=0.5), answers(0, 0, confidence=0.4)])
    # All in one bin: one right of three against a confidence of 1.3 in all.
    assert evaluate.calibration_error(chances, np.array([0, 1, 1]), bins=2) == pytest.approx(abs(1 - 1.3) / 3)


@in_its_own_time
@given(answered(), st.integers(1, 30))
def test_calibration_error_is_that_of_brute_force(answered, bins):
    chances, labels = answered
    total = 0.0
    for number in range(bins):
        low, high = np.linspace(0, 1, bins + 1)[number : number + 2]
        inside = [place for place, row in enumerate(chances) if low < row.max() <= high]
        if inside:
            right = np.mean([chances[place].argmax() == labels[place] for place in inside])
            total += len(inside) / len(labels) * abs(right - np.mean([chances[place].max() for place in inside]))
    assert evaluate.calibration_error(chances, labels, bins) == pytest.approx(total)


@in_its_own_time
@given(answered())
def test_confusion_precision_and_recall_are_those_of_brute_force(answered):
    chances, labels = answered
    predicted = chances.argmax(axis=1)
    pairs = list(zip(labels, predicted, strict=True))
    confusion = evaluate.confusion_matrix(chances, labels)
    assert confusion.tolist() == [[pairs.count((row, column)) for column in range(10)] for row in range(10)]
    assert np.trace(confusion) / len(labels) == pytest.approx(evaluate.accuracy(chances, labels))
    for name in range(10):
        hits = pairs.count((name, name))
        assert evaluate.precision(confusion)[name] == pytest.approx(hits / max(1, list(predicted).count(name)))
        assert evaluate.recall(confusion)[name] == pytest.approx(hits / max(1, list(labels).count(name)))


@settings(max_examples=20, deadline=None)
@given(answered())
def test_cross_entropy_is_that_of_keras(answered):
    chances, labels = answered
    expected = keras.losses.sparse_categorical_crossentropy(labels, chances).numpy().mean()
    assert evaluate.cross_entropy(chances, labels) == pytest.approx(expected, rel=1e-5, abs=1e-6)


def test_worst_mistakes_are_the_most_confident_first():
    chances = np.vstack([answers(1, confidence=c) for c in (0.5, 0.9, 0.99, 0.7, 0.9)])
    labels = np.array([0, 0, 1, 0, 2])  # the third is right
    assert evaluate.worst_mistakes(chances, labels, 10).tolist() == [1, 4, 3, 0]
    assert evaluate.worst_mistakes(chances, labels, 2).tolist() == [1, 4]


def test_mistakes_of_equal_confidence_keep_their_order():
    chances = np.vstack([answers(1, 2, 3, confidence=c) for c in [0.5, 0.8] * 50])  # enough for numpy to mix them up
    expected = sorted(range(300), key=lambda place: -chances[place].max())
    assert evaluate.worst_mistakes(chances, np.zeros(300, int), 300).tolist() == expected


@in_its_own_time
@given(answered(), st.integers(1, 50))
def test_worst_mistakes_are_mistakes_and_none_left_out_is_worse(answered, count):
    chances, labels = answered
    chosen = evaluate.worst_mistakes(chances, labels, count)
    wrong = {place for place in range(len(labels)) if chances[place].argmax() != labels[place]}
    assert len(set(chosen)) == len(chosen) == min(count, len(wrong))
    assert set(chosen) <= wrong
    confidence = chances.max(axis=1)
    assert confidence[chosen].tolist() == sorted((confidence[place] for place in wrong), reverse=True)[: len(chosen)]


def test_gallery_without_a_mistake_and_curves_of_one_epoch_are_pictures():
    test = dataset.Split(np.zeros((3, 32, 32, 3), np.uint8), np.arange(3, dtype=np.int32))
    for picture in (
        evaluate.draw_mistakes("quick", test, answers(0, 1, 2, confidence=1.0), 25),
        evaluate.draw_curves("quick", HISTORY[:1]),
    ):
        assert picture.startswith(b"\x89PNG")


def test_pictures_do_not_name_the_software_that_drew_them():
    assert b"Software" not in evaluate.draw_curves("quick", HISTORY)


def test_metrics_come_without_tensorflow():
    code = "import sys, pipeline.evaluate; sys.exit('tensorflow' in sys.modules or 'keras' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


class Stage:
    """A folder with params.yaml, made-up data and the record of a finished training of `custom-0`."""

    def __init__(self, folder, monkeypatch):
        self.folder, self.results, self.mirrored = folder, folder / "results/custom-0", []
        tree = yaml.safe_load((evaluate.Path(evaluate.__file__).parents[1] / "params.yaml").read_text())
        tree["data"] = {"train_images": 100, "val_images": 100, "test_images": 50, "split_seed": 3}
        tree["train"]["device"] = "cpu"
        tree["evaluate"]["mistakes"] = 4  # 25 pictures cost 0.8 s to lay out
        for recipe in tree["recipes"].values():
            recipe["batch_size"] = 10
        (folder / "params.yaml").write_text(yaml.safe_dump(tree))
        (folder / "data/cifar10").mkdir(parents=True)
        pixels = np.random.default_rng(0)
        for name in (*dataset.TRAIN_FILES, *dataset.TEST_FILES):
            records = pixels.integers(0, 256, (100, dataset.RECORD_BYTES), np.uint8)
            records[:, 0] = np.arange(100) % 10
            records.tofile(folder / "data/cifar10" / name)
        self.results.mkdir(parents=True)
        self.write_training(status="finished")
        rows = [",".join(HISTORY[0]), *(",".join(map(str, row.values())) for row in HISTORY)]
        (self.results / "history.csv").write_text("\n".join(rows) + "\n")
        monkeypatch.chdir(folder)
        monkeypatch.setattr(sys, "argv", ["evaluate", "custom-0"])
        monkeypatch.setattr(pipeline, "tracking", SimpleNamespace(mirror=self.mirrored.append), raising=False)
        monkeypatch.setattr(evaluate, "LATENCY_CALLS", 3)
        monkeypatch.setattr(evaluate, "THROUGHPUT_CALLS", 2)

    def write_training(self, status):
        training = {"record_id": "0" * 32, "run": "custom-0", "status": status, "params": {}, "environment": {}}
        training |= {"recipe": "custom", "model": "custom", "seed": 0, "comparable": False}
        training |= {"started_ms": 0, "ended_ms": 9}
        timed = {"ended_ms": 9, "epoch_seconds": 1.0, "images_per_second": 1.0}
        training["epochs"] = [{"epoch": row["epoch"], **timed} for row in HISTORY]
        (self.results / "training.json").write_text(json.dumps(training))

    def save(self, model):
        model.save(self.results / "model.keras")

    def read(self, name):
        return json.loads((self.results / name).read_text())

    def files(self):
        return {path.name: path.read_bytes() for path in self.results.iterdir()}


@pytest.fixture
def stage(tmp_path, monkeypatch):
    return Stage(tmp_path, monkeypatch)


def tiny_model():
    """Linear in the pixels, so that a mirror image is another image to it."""
    pixels = keras.Input((32, 32, 3), dtype="uint8", name="pixels")
    x = keras.layers.Flatten(name="flatten")(keras.layers.Rescaling(1 / 255, name="scaled")(pixels))
    start = keras.initializers.RandomNormal(0.0, 0.05, seed=1)
    classes = keras.layers.Dense(10, activation="softmax", kernel_initializer=start, name="classes")
    return keras.Model(pixels, classes(x), name="tiny")


def test_evaluation_says_what_the_model_does(stage, monkeypatch):
    monkeypatch.setattr(evaluate, "PREDICTION_BATCH", 16)  # 50 images: the last batch is not full
    model = tiny_model()
    stage.save(model)
    evaluate.main()
    test = dataset.read_test("data/cifar10", 50, 3)
    _, val = dataset.read_train_val("data/cifar10", 100, 100, 3)
    plain, mirrored = model(test.images).numpy(), model(test.images[:, :, ::-1]).numpy()
    evaluation = stage.read("evaluation.json")
    assert evaluation["test_accuracy"] == pytest.approx((plain.argmax(1) == test.labels).mean())
    assert evaluation["test_accuracy_flip"] == pytest.approx(((plain + mirrored).argmax(1) == test.labels).mean())
    assert evaluation["val_accuracy"] == pytest.approx((model(val.images).numpy().argmax(1) == val.labels).mean())
    assert evaluation["test_loss"] == pytest.approx(-np.log(plain[range(50), test.labels]).mean(), abs=1e-5)
    assert evaluation["calibration_error"] == pytest.approx(
        evaluate.calibration_error(plain.astype(float), test.labels, 15), abs=1e-5
    )
    classes = stage.read("classes.json")
    assert np.trace(classes["confusion"]) == 50 * evaluation["test_accuracy"]
    assert np.sum(classes["confusion"], axis=1).tolist() == [5] * 10
    assert classes["recall"]["truck"] == classes["confusion"][9][9] / 5
    assert list(classes["precision"]) == list(classes["recall"]) == list(evaluate.CLASS_NAMES)
    assert evaluation["parameters"] == 30_730
    assert evaluation["multiply_adds"] == 30_720
    assert evaluation["model_bytes"] == (stage.results / "model.keras").stat().st_size
    assert evaluation["epochs"] == 2
    assert evaluation["test_images"] == 50


def test_mirror_image_is_left_for_right():
    model = tiny_model()
    kernel = np.zeros((32, 32, 3, 10), np.float32)
    kernel[0, 0, 0, 1], kernel[0, -1, 0, 2] = 3, 9  # lit at the left: perhaps class 1; at the right: surely class 2
    model.layers[-1].set_weights([kernel.reshape(-1, 10), np.zeros(10)])
    images = np.zeros((4, 32, 32, 3), np.uint8)
    images[:, 0, 0] = 255
    split = dataset.Split(images, np.full(4, 2, np.int32))
    figures, *_ = evaluate.evaluate(model, split, split, 15)
    assert (figures["test_accuracy"], figures["test_accuracy_flip"]) == (0, 1)


def test_record_is_complete_and_mirrored_once(stage, capsys):
    stage.save(tiny_model())
    evaluate.main()
    assert set(stage.files()) == {
        *(
            "model.keras",
            "training.json",
            "history.csv",
            "evaluation.json",
            "classes.json",
            "speed.json",
            "geometry.json",
        ),
        *PICTURES,
    }
    assert [row["layer"] for row in stage.read("geometry.json")] == ["flatten", "classes"]
    speed = stage.read("speed.json")
    assert speed["device"] == "CPU"
    assert speed["batch_size"] == 256
    assert min(speed["latency_ms"], speed["throughput"], speed["threads"], speed["evaluated_ms"]) > 0
    (mirrored,) = stage.mirrored
    assert mirrored.evaluation == stage.read("evaluation.json")
    assert record.NOT_COMPARABLE in capsys.readouterr().out


def test_equal_weights_give_equal_bytes_except_for_speed(stage):
    stage.save(tiny_model())
    evaluate.main()
    first = stage.files()
    evaluate.main()
    assert {name for name, content in stage.files().items() if content != first[name]} == {"speed.json"}


def test_test_split_is_read_once(stage, monkeypatch):
    stage.save(tiny_model())
    calls, read_test = [], dataset.read_test
    monkeypatch.setattr(dataset, "read_test", lambda *given: calls.append(given) or read_test(*given))
    evaluate.main()
    assert len(calls) == 1


def assert_refused(stage, *words):
    """Evaluate fails with one line that has these words, and leaves the record as it was."""
    before = stage.files()
    with pytest.raises(PipelineError) as error:
        evaluate.main()
    assert all(word in str(error.value) for word in words), error.value
    assert "\n" not in str(error.value)
    assert stage.files() == before
    assert not stage.mirrored


@pytest.mark.parametrize("argument", ["custom-7", "../custom-0"])
def test_unknown_run_is_refused_before_tensorflow_is_imported(stage, monkeypatch, argument):
    monkeypatch.setattr(sys, "argv", ["evaluate", argument])
    monkeypatch.setattr(command, "import_tensorflow", lambda: pytest.fail("TensorFlow is imported"))
    assert_refused(stage, repr(argument), "custom-0")


@pytest.mark.parametrize("status", ["running", "failed", "killed"])
def test_unfinished_training_is_refused(stage, status):
    stage.save(tiny_model())
    stage.write_training(status)
    assert_refused(stage, status, "dvc repro train@custom-0")


def test_missing_model_is_refused(stage):
    assert_refused(stage, "results/custom-0/model.keras", "not there", "dvc repro train@custom-0")


@pytest.mark.parametrize("damage", ["empty", "text", "truncated", "flipped"])
def test_damaged_model_is_refused(stage, damage):
    stage.save(tiny_model())
    path = stage.results / "model.keras"
    whole = path.read_bytes()
    middle = len(whole) // 2
    path.write_bytes(
        {
            "empty": b"",
            "text": b"not a model",
            "truncated": whole[:middle],
            "flipped": whole[:middle] + bytes([whole[middle] ^ 255]) + whole[middle + 1 :],
        }[damage]
    )
    assert_refused(stage, "results/custom-0/model.keras", "dvc repro train@custom-0")


@pytest.mark.parametrize(("side", "classes"), [(28, 10), (32, 9)])
def test_model_of_other_shapes_is_refused(stage, side, classes):
    images = keras.Input((side, side, 3))
    stage.save(keras.Model(images, keras.layers.Dense(classes)(keras.layers.Flatten()(images))))
    with pytest.raises(PipelineError, match=rf"received the shapes .*{side}.*{classes}.*dvc repro train@custom-0"):
        evaluate.main()


def test_code_in_a_model_is_not_run(stage):
    images = keras.Input((32, 32, 3))
    x = keras.layers.Lambda(lambda x: x + 1)(images)
    stage.save(keras.Model(images, keras.layers.Dense(10)(keras.layers.Flatten()(x))))
    with pytest.raises(PipelineError, match=r"model\.keras cannot be loaded .*dvc repro train@custom-0") as raised:
        evaluate.main()
    assert len(str(raised.value).splitlines()) == 1


def test_model_that_outputs_nan_is_refused(stage):
    model = tiny_model()
    model.layers[-1].bias.assign([np.nan] + [0.0] * 9)
    stage.save(model)
    assert_refused(stage, "NaN", "'tiny'", "50 of 50")


def test_missing_data_is_refused(stage):
    stage.save(tiny_model())
    (stage.folder / "data/cifar10/test_batch.bin").unlink()
    assert_refused(stage, "test_batch.bin", "dvc repro fetch")
