"""The runs of params.yaml beside the published results: `report/`, and tables on the terminal.

`report/comparison.json` holds all that the tables say; `--show` prints them again from it.
"""

import argparse
import csv
import io
import json
from typing import Any

import numpy as np

from pipeline.config import params
from pipeline.evaluation import predictions
from pipeline.evaluation.predictions import Predictions
from pipeline.records import exports, record, references
from pipeline.records.record import Record
from pipeline.report import cards, comparison_plots, markdown, recorded, terminal
from pipeline.report.comparison import OVER_SEEDS, compare
from pipeline.report.comparison_plots import History
from pipeline.report.page import build, images
from pipeline.system import command
from pipeline.system.command import PipelineError


def main() -> None:
    """Compares, writes the report and prints its tables; with --show it only prints."""
    parser = argparse.ArgumentParser(prog="python -m pipeline.compare", description=__doc__.partition("\n")[0])
    parser.add_argument("--show", action="store_true", help="print the recorded tables, compute nothing")
    if not parser.parse_args().show:
        config = params.read()
        records = load(config)
        exported = {run: exports.evaluated(run) for run in config.export.runs}
        seen, histories = read_predictions(records), read_histories(records)
        comparison = compare(config, records, seen, exported)
        page = build.page(config, comparison, histories, seen, records, images.read_validation(config))
        write_report(comparison, histories, page)
    if recorded.COMPARISON.exists():
        recorded.from_comparison(terminal.show_comparison)
    else:
        print("nothing is recorded yet: `dvc repro` trains, evaluates and compares the runs of params.yaml")


def load(config: params.Params) -> dict[str, Record]:
    """The records of the runs that params.yaml lists; whatever else lies in `results/` is ignored.

    Raises:
        PipelineError: a run of the list is not trained or not evaluated.
    """
    records = {}
    for run, listed in config.runs.items():
        problem = None
        if not (record.RESULTS / run / "training.json").exists():
            problem = "has no record"
        else:
            records[run] = loaded = record.load(run)
            recipe, seed, status = (getattr(loaded.training, key) for key in ("recipe", "seed", "status"))
            if status != "finished":
                problem = f"has the status {status!r}"
            elif (recipe, seed) != (listed.recipe, listed.seed):
                problem = f"was trained as recipe {recipe!r} with seed {seed}, not as params.yaml lists it"
            elif other := _other_param(loaded, config.flat(run)):
                problem = f"was trained with {other}"
            elif not loaded.evaluation:
                problem = "is not evaluated"
            elif missing := _missing(loaded):
                problem = f"lacks {', '.join(missing)}"
        if problem:
            raise PipelineError(f"run {run!r} {problem}: make it with `dvc repro evaluate@{run}`")
    return records


def _other_param(loaded: Record, ours: dict[str, Any]) -> str | None:
    """What a run was trained with that params.yaml says otherwise."""
    key, theirs = next(iter(loaded.other_params(ours).items()), (None, None))
    return f"{key} {theirs!r}, and params.yaml has {ours.get(key)!r}" if key else None


def _missing(loaded: Record) -> list[str]:
    """What a valid record may lack, but a comparison needs."""
    metrics = (*OVER_SEEDS, "test_accuracy_flip", "calibration_error", "parameters", "multiply_adds", "epochs")
    environment = ("commit", "device", "threads", "processor", "precision", "tensorflow", "keras")
    return [
        *(key for key in metrics if key not in loaded.evaluation),
        *(key for key in environment if key not in loaded.training.environment),
        *(key for key in record.SPLITS if not isinstance(loaded.training.params.get(key), int)),
    ]


def read_predictions(records: dict[str, Record]) -> dict[str, Predictions]:
    """The probabilities of the runs.

    Raises:
        PipelineError: a file is missing or damaged, or two runs were evaluated on different images.
    """
    found = {run: predictions.read(loaded.folder, loaded.evaluation) for run, loaded in records.items()}
    first = next(iter(found))
    for run, other in found.items():
        for split in ("test", "val"):
            if not np.array_equal(getattr(found[first], f"{split}_labels"), getattr(other, f"{split}_labels")):
                raise PipelineError(
                    f"runs {first!r} and {run!r} were evaluated on different {split} images: "
                    f"make them with `dvc repro evaluate@{first} evaluate@{run}`"
                )
    return found


def read_histories(records: dict[str, Record]) -> dict[str, History]:
    """The epochs of the published results that have them, then those of the runs."""
    published = {name: references.load_reference(name)["history"] for name in references.names()}
    return {name: rows for name, rows in published.items() if rows} | {
        run: loaded.history for run, loaded in records.items()
    }


def write_report(comparison: dict[str, Any], histories: dict[str, History], page: bytes) -> None:
    """Writes `report/`. Equal input gives equal bytes."""
    files = {
        "curves.csv": _curves_csv(histories).encode(),
        "curves.png": comparison_plots.validation_curves(comparison, histories),
        "accuracy_vs_parameters.png": comparison_plots.accuracy_vs_parameters(comparison),
        recorded.PAGE.name: page,
        "README.md": markdown.page(comparison).encode(),
        "champions.json": _json(comparison["champions"]),
        "comparison.json": _json(comparison),
        "metrics.json": _json({recipe: _few(row) for recipe, row in comparison["recipes"].items()}),
    }
    texts = {cards.path(recipe): cards.card(comparison, recipe) for recipe in comparison["recipes"]}
    files |= {str(path.relative_to(recorded.REPORT)): text.encode() for path, text in texts.items()}
    recorded.write(files)
    for path in cards.FOLDER.glob("*.md"):
        if path not in texts:  # of a recipe that is gone
            path.unlink()


def _json(content: Any) -> bytes:
    return (json.dumps(content, indent=1) + "\n").encode()


def _few(row: dict[str, Any]) -> dict[str, float]:
    """What `dvc metrics` and `dvc exp show` show of a recipe: few numbers, since every one is a column there."""
    few = {key: row[key] for key in ("test_accuracy", "test_accuracy_std", "val_accuracy", "seeds")}
    few["test_accuracy_low"], few["test_accuracy_high"] = row["test_accuracy_interval"] or (None, None)
    return {key: value for key, value in few.items() if value is not None}


def _curves_csv(histories: dict[str, History]) -> str:
    text = io.StringIO()
    columns = ["run", "epoch", "val_accuracy", "val_loss", "accuracy", "loss"]
    writer = csv.DictWriter(text, columns, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows({"run": name, **row} for name, rows in histories.items() for row in rows)
    return text.getvalue()


if __name__ == "__main__":
    command.run(main)
