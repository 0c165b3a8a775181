import sys

import keras
import numpy as np
import pytest
from factories import HISTORY, EvaluateStage, tiny_model

from pipeline import evaluate
from pipeline.evaluation import inference, metrics, predictions
from pipeline.records import record
from pipeline.report import run_plots
from pipeline.system.command import PipelineError
from pipeline.training import cifar10, dataset

PLOTS = ("curves.png", "confusion_matrix.png", "most_confident_errors.png")


def test_gallery_without_an_error_and_curves_of_one_epoch_are_drawn():
    test = dataset.Split(np.zeros((3, 32, 32, 3), np.uint8), np.arange(3, dtype=np.int32))
    for plot in (
        run_plots.most_confident_errors("quick", *test, np.eye(10)[:3], 25),
        run_plots.learning_curves("quick", HISTORY[:1]),
    ):
        assert plot.startswith(b"\x89PNG")


def test_plots_do_not_name_the_software_that_drew_them():
    assert b"Software" not in run_plots.learning_curves("quick", HISTORY)


@pytest.fixture
def stage(tmp_path, monkeypatch):
    return EvaluateStage(tmp_path, monkeypatch)


def test_evaluation_says_what_the_model_does(stage, monkeypatch):
    monkeypatch.setattr(inference, "PREDICTION_BATCH_SIZE", 16)  # 50 images: the last batch is not full
    model = tiny_model()
    stage.save(model)
    evaluate.main()
    test = dataset.read_test("data/cifar10", 50, 3)
    _, val = dataset.read_train_val("data/cifar10", 100, 100, 3)
    plain, flipped = model(test.images).numpy(), model(test.images[:, :, ::-1]).numpy()
    evaluation = stage.read("evaluation.json")
    assert evaluation["test_accuracy"] == pytest.approx((plain.argmax(1) == test.labels).mean())
    assert evaluation["test_accuracy_flip"] == pytest.approx(((plain + flipped).argmax(1) == test.labels).mean())
    assert evaluation["val_accuracy"] == pytest.approx((model(val.images).numpy().argmax(1) == val.labels).mean())
    assert evaluation["test_loss"] == pytest.approx(-np.log(plain[range(50), test.labels]).mean(), abs=1e-5)
    assert evaluation["calibration_error"] == pytest.approx(
        metrics.calibration_error(plain.astype(float), test.labels, 15), abs=1e-5
    )
    classes = stage.read("classes.json")
    assert np.trace(classes["confusion"]) == 50 * evaluation["test_accuracy"]
    assert np.sum(classes["confusion"], axis=1).tolist() == [5] * 10
    assert classes["recall"]["truck"] == classes["confusion"][9][9] / 5
    assert list(classes["precision"]) == list(classes["recall"]) == list(cifar10.CLASS_NAMES)
    assert evaluation["parameters"] == 30_730
    assert evaluation["multiply_adds"] == 30_720
    assert evaluation["model_bytes"] == (stage.results / "model.keras").stat().st_size
    assert evaluation["epochs"] == 2
    assert evaluation["test_images"] == 50


def test_flipped_image_is_left_for_right():
    model = tiny_model()
    kernel = np.zeros((32, 32, 3, 10), np.float32)
    kernel[0, 0, 0, 1], kernel[0, -1, 0, 2] = 3, 9  # lit at the left: perhaps class 1; at the right: surely class 2
    model.layers[-1].set_weights([kernel.reshape(-1, 10), np.zeros(10)])
    images = np.zeros((4, 32, 32, 3), np.uint8)
    images[:, 0, 0] = 255
    split = dataset.Split(images, np.full(4, 2, np.int32))
    plain, flipped = (inference.predict(model, pixels) for pixels in (images, images[:, :, ::-1]))
    measured = evaluate.measure(split, plain, flipped, split, plain, 15)
    assert (measured["test_accuracy"], measured["test_accuracy_flip"]) == (0, 1)


def test_record_is_complete_and_logged_once(stage, capsys):
    stage.save(tiny_model())
    evaluate.main()
    assert set(stage.files()) == {
        *(
            "model.keras",
            "training.json",
            "history.csv",
            "evaluation.json",
            "classes.json",
            "probabilities.npz",
            "speed.json",
            "geometry.json",
        ),
        *PLOTS,
    }
    assert [row["layer"] for row in stage.read("geometry.json")] == ["flatten", "classes"]
    speed = stage.read("speed.json")
    assert speed["device"] == "CPU"
    assert speed["batch_size"] == 256
    assert min(speed["latency_ms"], speed["throughput"], speed["threads"], speed["evaluated_ms"]) > 0
    (logged,) = stage.logged
    assert logged.evaluation == stage.read("evaluation.json")
    assert record.NOT_COMPARABLE in capsys.readouterr().out


def test_equal_weights_give_equal_bytes_except_for_speed(stage):
    stage.save(tiny_model())
    evaluate.main()
    first = stage.files()
    evaluate.main()
    assert {name for name, content in stage.files().items() if content != first[name]} == {"speed.json"}


def test_probabilities_are_kept_and_tell_the_accuracies_exactly(stage):
    model = tiny_model()
    stage.save(model)
    evaluate.main()
    kept = predictions.read(stage.results, stage.read("evaluation.json"))
    test = dataset.read_test("data/cifar10", 50, 3)
    assert (kept.test_labels == test.labels).all()
    assert np.abs(kept.test_probabilities - model(test.images).numpy()).max() < 2**-11


def test_probabilities_that_tell_another_accuracy_fail_the_stage(stage, monkeypatch):
    stage.save(tiny_model())
    monkeypatch.setattr(predictions, "to_float16", lambda probabilities: probabilities[:, ::-1].astype(np.float16))
    assert_refused(stage, "probabilities.npz", "test accuracy is", "evaluation.json")


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
    assert not stage.logged


@pytest.mark.parametrize("argument", ["custom-7", "../custom-0"])
def test_unknown_run_is_refused_before_tensorflow_is_imported(stage, monkeypatch, argument):
    monkeypatch.setattr(sys, "argv", ["evaluate", argument])
    monkeypatch.setattr(evaluate, "import_tensorflow", lambda: pytest.fail("TensorFlow is imported"))
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
