"""The comparison as a Markdown page, `report/README.md`."""

from typing import Any

from pipeline.report import findings, tables

HOW = """\
- Accuracy is that of the final weights: no epoch was chosen. The n runs of a recipe differ in their seed, and in
  precision or machine where the table below says so: machines round differently.
- The validation images are held out of the training images, equally many of each class; choices are made on them. The
  test images are read only after training, by `evaluate` and `export`; no model is selected by them. The published work
  used them as its validation split, so its choices may have been influenced by them.
- Flip-averaged: the mean of the probabilities of a test image and of its mirror image. Budgets are checked without it.
- Parameters include the moving statistics of batch normalization; multiply-adds are those of convolutions and dense
  layers, for one image.
- Training minutes: the number of epochs times the median epoch, which discounts hours in which the machine was busy.
  Images/s: the median over the epochs, in training. Means over the runs that one kind of machine trained. The
  numbers after a processor's name are its family and model, where recorded.
- Which run classifies which image correctly is in `results/<run>/probabilities.npz`; the formulas and their sources are
  in `pipeline/report/statistics.py`, and how often its intervals cover the truth in `benchmarks/coverage.json`."""


def page(comparison: dict[str, Any]) -> str:
    """The whole page; the plots lie beside it."""
    blocks = [
        f"# {tables.title(tables.TITLE, comparison)}",
        "\n".join(f"- {_escaped(text)}" for text in findings.budgets(comparison)),
        table(tables.accuracy(comparison)),
        lines(findings.accuracy_notes(comparison)),
        table(tables.cost(comparison)),
        lines(findings.cost_notes(comparison)),
        "![Validation accuracy by epoch](curves.png)",
        "![Test accuracy by number of parameters](accuracy_vs_parameters.png)",
        f"## {tables.title('Verdicts', comparison)}",
        table(tables.pairs(comparison)),
        lines(findings.pair_notes(comparison)),
        f"## {tables.title('Budgets', comparison)}",
        table(tables.budgets(comparison)),
        lines(findings.budget_notes(comparison)),
        *_exports(comparison),
        f"## {tables.title('The model to take', comparison)}",
        lines(findings.rule(comparison)),
        table(findings.others(comparison)),
        f"## {tables.title('Means over seeds', comparison)}",
        table(tables.means(comparison)),
        f"The interval is Student's t, over seeds: it covers the mean of further seeds, for these "
        f"{comparison['test_images']:,} test images and these validation images. With one seed there is none.",
        f"## {tables.title('Compared with the published results', comparison)}",
        table(tables.against_published(comparison)),
        lines(findings.published_notes()),
        "\n".join(f"- {row['run']}: {' '.join([row['source'], *row['notes']])}" for row in comparison["published"]),
        f"## {tables.title('Calibration error and recall of each class', comparison)}",
        table(tables.descriptions(comparison)),
        "On the test images: means over seeds, with 95 % intervals over images and, with two seeds or more, seeds. "
        "Differences are not tested for significance.",
        "## How it was measured",
        HOW,
        table(tables.runs(comparison)),
    ]
    return "\n\n".join(block for block in blocks if block) + "\n"


def _exports(comparison: dict[str, Any]) -> list[str]:
    if not comparison["exports"]:
        return []
    sources = {row["name"]: [row["source"], *row["notes"]] for row in comparison["published_exports"]}
    return [
        f"## {tables.title('Exported files', comparison)}",
        table(tables.exports(comparison)),
        lines(findings.export_notes(comparison)),
        "\n".join(f"- {name}: {' '.join(texts)}" for name, texts in sources.items()),
    ]


def table(rows: tables.Rows) -> str:
    """Rows as a Markdown table, numbers aligned right; nothing if there is only a header."""
    if not rows[1:]:
        return ""
    header = [name.replace("-\n", "-").replace("\n", " ").strip() for name in rows[0]]
    rule = ["---:" if number else "---" for number in tables.are_numbers(rows)]
    cells = [[_escaped(cell.replace("|", "\\|")) for cell in row] for row in rows[1:]]
    return "\n".join(f"| {' | '.join(row)} |" for row in [header, rule, *cells])


def lines(sentences: list[str]) -> str:
    """Sentences, one a line."""
    return "\\\n".join(map(_escaped, sentences))


def _escaped(text: str) -> str:
    return text.replace("*", "\\*").replace("<", "&lt;")
