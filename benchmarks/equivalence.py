"""Whether the fast path learns what the stock path learns: `python -m benchmarks.equivalence` writes equivalence.json.

The same recipe on the same real images, several seeds each: ours (fast layers, `precision: auto`, our loop) beside the
published code's way (stock layers, float32, `model.fit`). Seeds are independent draws on both sides, so the results are
compared as two samples: difference of the means, and Welch's 95 % interval of it.
"""

import argparse
import json
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from benchmarks.paths import BY_SGD
from pipeline.config import params
from pipeline.records import record
from pipeline.system.tensorflow_import import import_tensorflow
from pipeline.system.versions import versions

DATA = {"train_images": 6_000, "val_images": 5_000, "split_seed": 0}
QUICK = {"epochs": 4, "batch_size": 48}  # as many steps as batch normalisation needs
LEARNING_RATE = {"baseline": 0.03, "custom": 0.1}


def main() -> None:
    """Trains, prints a line a seed, writes after each."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.equivalence", description=__doc__)
    parser.add_argument("--models", nargs="+", default=["custom", "baseline"])
    parser.add_argument("--seeds", type=int, default=6, help="of each path (default 6)")
    parser.add_argument("--output", type=Path, default=Path("benchmarks/equivalence.json"))
    arguments = parser.parse_args()
    import_tensorflow()
    from pipeline.system import device
    from pipeline.training import dataset

    machine = device.resolve("auto", "auto")
    train, val = dataset.read_train_val(record.DATA, **DATA)
    report: dict[str, Any] = {
        "machine": {"processor": machine.processor, "threads": machine.threads, "versions": versions()},
        "data": DATA,
        "precision": machine.precision,
    }
    for model in arguments.models:
        recipe = (
            params.read().recipes[model].model_copy(update=BY_SGD | QUICK | {"learning_rate": LEARNING_RATE[model]})
        )
        results: dict[str, list[tuple[float, float]]] = {"ours": [], "keras": []}
        report[model] = {"recipe": recipe.model_dump()}
        for seed in range(arguments.seeds):
            results["ours"].append(_ours(recipe, seed, train, val, machine.policy))
            results["keras"].append(_stock(recipe, seed, train, val))
            print(f"{model} seed {seed}: { ({path: measured[-1] for path, measured in results.items()}) }", flush=True)
            if seed:
                for index, name in enumerate(("loss", "val_accuracy")):
                    sides = {path: [pair[index] for pair in measured] for path, measured in results.items()}
                    report[model][name] = sides | _compared(**sides)
                arguments.output.write_text(json.dumps(report, indent=1) + "\n")


def _ours(recipe, seed: int, train, val, policy: str) -> tuple[float, float]:
    """Training loss of the last epoch, validation accuracy after it."""
    from pipeline import models
    from pipeline.training import loop

    model, epochs = models.build(recipe.model, seed), []
    loop.train(model, recipe, seed, train, val, policy=policy, on_epoch=lambda epoch, _: epochs.append(epoch))
    return epochs[-1].loss, epochs[-1].val_accuracy


def _stock(recipe, seed: int, train, val) -> tuple[float, float]:
    import keras

    from pipeline import models
    from pipeline.training import optimizers

    model = models.build(recipe.model, seed)
    schedule = optimizers.Schedule(
        recipe.schedule,
        recipe.learning_rate,
        recipe.epochs * (len(train.labels) // recipe.batch_size),
        recipe.warmup_fraction,
    )
    optimizer = optimizers.make_optimizer(recipe, schedule, "float32", model)
    model.compile(optimizer, "sparse_categorical_crossentropy", metrics=["accuracy"], jit_compile=False)
    full = len(train.labels) // recipe.batch_size * recipe.batch_size  # as ours: no smaller last batch
    for epoch in range(recipe.epochs):
        # `fit` repeats one permutation; our loop draws one an epoch, which is what shuffling usually means.
        keras.utils.set_random_seed(1_000 * (seed + 1) + epoch)
        history = model.fit(train.images[:full], train.labels[:full], recipe.batch_size, verbose=0)
    return history.history["loss"][0], float(model.evaluate(val.images, val.labels, 500, verbose=0)[1])


def _compared(ours: list[float], keras: list[float]) -> dict[str, Any]:
    """Means, standard deviations, difference ours - keras, and Welch's 95 % interval of it."""
    from scipy.stats import ttest_ind

    interval = ttest_ind(ours, keras, equal_var=False).confidence_interval(0.95)
    return {
        "n": len(ours),
        "mean": {"ours": round(mean(ours), 5), "keras": round(mean(keras), 5)},
        "standard_deviation": {"ours": round(stdev(ours), 5), "keras": round(stdev(keras), 5)},
        "difference": round(mean(ours) - mean(keras), 5),
        "interval_95": [round(float(interval.low), 5), round(float(interval.high), 5)],
    }


if __name__ == "__main__":
    main()
