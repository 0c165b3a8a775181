"""The page as one file: `report/index.html`. Equal input gives equal bytes."""

import json
import re
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup, escape

from pipeline.config import params
from pipeline.evaluation.predictions import Predictions
from pipeline.records.record import Record
from pipeline.report import findings, markdown, tables
from pipeline.report.page import content, images, models
from pipeline.report.page.content import Comparison, Histories
from pipeline.training.cifar10 import CLASS_NAMES
from pipeline.training.dataset import Split

FOLDER = Path(__file__).parent
# Each script uses what stands before it.
SCRIPTS = ("page", "sorting", "charts", "scatter", "curves", "pairs", "resampling", "tflite", "try")


def page(
    config: params.Params,
    comparison: Comparison,
    histories: Histories,
    predictions: dict[str, Predictions],
    records: dict[str, Record],
    split: Split | None,
) -> bytes:
    """The page.

    Args:
        config: its budgets.
        comparison: what comparison.json holds.
        histories: the epochs of published results and of runs, by name.
        predictions: by run.
        records: by run.
        split: the validation split; without it the page has no images, and says so.

    Raises:
        PipelineError: the images are not those of the predictions, or an exported file is damaged.
    """
    if split:
        images.check(split, predictions)
    intervals = content.accuracy_intervals(comparison, predictions)
    budgets = sorted(config.compare.budgets, key=lambda name: config.compare.budgets[name].max_parameters)
    pairs = content.pairs(comparison, predictions, next(iter(budgets), None))
    indices = [thumbnail.pop("index") for thumbnail in pairs["thumbnails"]]
    if split is None:
        pairs["thumbnails"] = []
    embedded, left_out = models.embedded(comparison)
    shown = {
        "classes": CLASS_NAMES,
        "recipes": list(comparison["recipes"]),
        "scatter": content.scatter(comparison, intervals),
        "curves": content.curves(comparison, histories),
        "pairs": pairs,
        "models": [{"id": f"model-{model.run}", "recipe": model.recipe, "run": model.run} for model in embedded],
    }
    template = _environment().get_template("template.html")
    return template.render(
        title=tables.title("Which small CIFAR-10 network is best?", comparison),
        comparison=comparison,
        answers=[findings.answer(comparison, budget) for budget in budgets],
        details=findings.budgets(comparison),
        columns=content.COLUMNS,
        recipes=content.recipes(comparison),
        networks=content.networks(comparison),
        rows=content.rows(comparison, intervals),
        bar_limits=content.bar_limits(comparison, intervals),
        exports=tables.exports(comparison),
        export_notes=findings.export_notes(comparison),
        are_numbers=tables.are_numbers,
        notes=findings.accuracy_notes(comparison) + findings.cost_notes(comparison),
        budget_notes=findings.status_notes(comparison) + [f"{note}." for note in findings.budget_notes(comparison)],
        pair_notes=findings.pair_notes(comparison),
        has_bands=any(row["seeds"] > 1 for row in comparison["recipes"].values()),
        examples=images.examples(split) if split else [],
        models=embedded,
        left_out=left_out,
        how=[_with_code(point) for point in markdown.HOW.removeprefix("- ").split("\n- ")],
        runs=tables.runs(comparison),
        digests=content.digests(comparison, records),
        tried=content.tried(comparison),
        published_notes=findings.published_notes(),
        sprite=split and Markup(images.sprite(split.images, indices)),
        content=_json(shown),
        script=_script,
        scripts=SCRIPTS,
        text=_text,
        with_code=_with_code,
    ).encode()


def _environment() -> jinja2.Environment:
    return jinja2.Environment(
        loader=jinja2.FileSystemLoader(FOLDER),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )


def _with_code(text: str) -> Markup:
    """Text of Markdown that has no markup but `code`."""
    return Markup(re.sub("`(.*?)`", r"<code>\1</code>", str(escape(" ".join(text.split())))))


def _text(name: str) -> Markup:
    """A file of this folder as it is."""
    return Markup((FOLDER / name).read_text(encoding="utf-8"))


def _script(name: str) -> Markup:
    return _text(f"scripts/{name}.js")


def _json(value: Any) -> Markup:
    """JSON that ends no script element."""
    return Markup(json.dumps(value, separators=(",", ":")).replace("<", "\\u003c"))
