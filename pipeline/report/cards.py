"""A card for each recipe's model, `report/models/<recipe>.md`: what it is, what it is worth, and how it is used.

MLflow shows the champions' cards beside their registered models.
"""

from pathlib import Path
from typing import Any

from pipeline.report import findings, markdown, tables
from pipeline.report.recorded import REPORT

FOLDER = REPORT / "models"
REGISTERED = "cifar10-{budget}"  # a champion's registered model

# MLflow shows the end of a line as one: a paragraph is one line.
DATA = (
    "CIFAR-10: photos of 32x32 pixels, each of one of ten classes. Trained on {} images, validated on {} held out of "
    "the training images, equally many of each class. Choices are made on these. The {} test images are read only "
    "after training and all choices."
)
LIMITS = (
    "- It always answers one of its ten classes, whatever the image shows, maybe a wrong one with a high probability.\n"
    "- It sees 32x32 pixels. A larger photo is cropped to its middle square and scaled down: small objects are lost.\n"
    "- Accuracy and calibration are those of CIFAR-10's test images; other photos differ from them. It was not tested "
    "for use where an error does harm."
)
LICENCE = (
    "Code and weights are under the MIT licence. The data: Alex Krizhevsky, *Learning Multiple Layers of Features from "
    "Tiny Images*, 2009; its page asks for that citation and states no licence."
)
KERAS = """\
import keras
import numpy as np

model = keras.saving.load_model("results/{run}/model.keras")
pixels = np.zeros((1, 32, 32, 3), np.uint8)  # RGB
probabilities = model.predict(pixels)[0]"""
LITERT = """\
from ai_edge_litert.interpreter import Interpreter

interpreter = Interpreter("results/{run}/export/model.tflite")
predict = interpreter.get_signature_runner()
probabilities = next(iter(predict(pixels=pixels).values()))[0]"""
COMMAND = "python -m pipeline.predict photo.jpg --run {run}"
MLFLOW = """\
import base64, mlflow, pandas

model = mlflow.pyfunc.load_model("models:/{name}@champion")
image = base64.b64encode(open("photo.jpg", "rb").read()).decode()
print(model.predict(pandas.DataFrame({{"image": [image]}})))"""
CURL = """\
mlflow models serve -m models:/{name}@champion --env-manager local -p 5001
# in another terminal:
(printf '{{"dataframe_records": [{{"image": "'; base64 < photo.jpg; printf '"}}]}}') |
  curl -s localhost:5001/invocations -H 'Content-Type: application/json' -d @-"""


def path(recipe: str) -> Path:
    """Where a recipe's card lies."""
    return FOLDER / f"{recipe}.md"


def card(comparison: dict[str, Any], recipe: str) -> str:
    """The card of a recipe, and of its run with the lowest seed, whose model is the one to take, if any is."""
    row, recipe_params = comparison["recipes"][recipe], comparison["recipe_params"][recipe]
    budgets = {name: of for name, of in comparison["champions"].items() if of["recipe"] == recipe}
    runs = {run["run"]: run for run in comparison["runs"] if run["recipe"] == recipe}
    name = min(runs, key=lambda run: runs[run]["seed"])
    run, exports = runs[name], {of: row for of, row in comparison["exports"].items() if of == recipe}
    column = 1 + list(comparison["descriptions"]).index(recipe)
    _, calibration, *recall = ([cells[0], cells[column]] for cells in tables.descriptions(comparison))
    means = [cells[1:] for cells in tables.means(comparison) if cells[0] in ("recipe", recipe)]
    settings = [f"{key} {value}" for key, value in tables.used(recipe_params).items()]
    blocks = [
        f"# {tables.title(f'{recipe}: a CIFAR-10 classifier', comparison)}",
        f"{row['parameters']:,} parameters, {tables.cell(row, 'multiply_adds')} M multiply-adds for one image. "
        f"{_weights(run, row['seeds'], budgets)}",
        " ".join([f"Trained with {', '.join(settings)}.", *findings.teacher_notes(comparison, recipe)]),
        "## Data",
        DATA.format(*run["origin"][3].split("/")),
        "## Metrics",
        markdown.table(means),
        f"Means over seeds; the interval covers further seeds. Test accuracy averaged with the flipped images: "
        f"{tables.cell(row, 'test_accuracy_flip')} %. Calibration error: {calibration[1]} %.",
        markdown.table([["class", "recall, % (95 % interval)"], *recall]),
        f"Most often confused: {_confusions(comparison['confusions'][recipe])}.",
        *_files(comparison, exports),
        "## Use",
        *(f"```{language}\n{text}\n```" for language, text in _forms(name, bool(exports), list(budgets))),
        "## Limits",
        LIMITS,
        "## Licence and origin",
        LICENCE,
        f"Trained on {run['origin'][0]} from commit `{run['commit']}`, by {run['origin'][2]}, on {run['origin'][1]}."
        + (f" SHA-256 of `model.keras`: `{run['model_sha256']}`." if run["model_sha256"] else ""),
    ]
    return "\n\n".join(block for block in blocks if block) + "\n"


def _weights(run: dict[str, Any], seeds: int, budgets: dict[str, Any]) -> str:
    taken = ", ".join(f"{name} ({of['status']})" for name, of in budgets.items())
    of_seeds = f"one of {seeds} seeds" if seeds > 1 else "the only seed so far"
    accuracy = f"{tables.cell(run, 'test_accuracy')} % test accuracy"
    return f"The weights are those of {run['run']}, {of_seeds}: {accuracy}. " + (
        f"It is the model to take for: {taken}." if taken else "It is no budget's model to take."
    )


def _confusions(confusions: list[dict[str, Any]]) -> str:
    return ", ".join(f"{it['true']} as {it['predicted']} ({100 * it['fraction']:.1f} %)" for it in confusions) or "none"


def _files(comparison: dict[str, Any], exports: dict[str, Any]) -> list[str]:
    if not exports:
        return []
    rows = tables.exports(comparison | {"exports": exports, "published_exports": []})
    return ["## Exported files", markdown.table(rows), markdown.lines(findings.file_notes(exports))]


def _forms(run: str, is_exported: bool, budgets: list[str]) -> list[tuple[str, str]]:
    """How the model is loaded: language and text."""
    forms = [("python", KERAS)]
    if is_exported:
        forms += [("python", LITERT), ("sh", COMMAND)]
    if is_exported and budgets:
        forms += [("python", MLFLOW), ("sh", CURL)]
    name = REGISTERED.format(budget=budgets[-1]) if budgets else ""
    return [(language, text.format(run=run, name=name)) for language, text in forms]
