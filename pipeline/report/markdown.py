"""The comparison as a Markdown page, `report/README.md`."""

from typing import Any

from pipeline.report import tables

HOW = """\
- Accuracy is that of the final weights: no epoch was chosen. The n runs of a recipe differ only in their seed;
  test, validation and flip-averaged accuracy are means over them.
- The validation images are held out of the training images, equally many of each class. The test images are read once,
  by `evaluate`. In the published text they were the validation split, which one watches while making choices.
- Flip-averaged: the mean of the probabilities of a test image and of its mirror image. No budget counts it.
- Parameters include the moving statistics of batch normalisation; multiply-adds are those of convolutions and dense
  layers, for one image.
- Training minutes: the sum over the epochs. Images/s: the median over the epochs, in training. Means over the n runs,
  on the devices below."""


def page(comparison: dict[str, Any]) -> str:
    """The whole page; the plots lie beside it."""
    blocks = [
        f"# {tables.title(tables.TITLE, comparison)}",
        table(tables.metrics(comparison)),
        "\\\n".join(tables.footnotes(comparison)).replace("* ", "\\* "),
        "![Validation accuracy by epoch](curves.png)",
        "![Test accuracy by number of parameters](accuracy_vs_parameters.png)",
        f"## {tables.title('Budgets', comparison)}",
        table(tables.budgets(comparison)),
        "\\\n".join(comparison["limits"]),
        "## How it was measured",
        HOW,
        table(tables.runs(comparison)),
        "## What is published",
        "\n".join(f"- {row['run']}: {' '.join([row['source'], *row['notes']])}" for row in comparison["published"]),
    ]
    return "\n\n".join(block for block in blocks if block) + "\n"


def table(rows: tables.Rows) -> str:
    """Rows as a Markdown table, numbers aligned right."""
    header = [name.replace("-\n", "-").replace("\n", " ").strip() for name in rows[0]]
    rule = ["---:" if number else "---" for number in tables.are_numbers(rows)]
    cells = [[cell.replace("|", "\\|").replace("*", "\\*") for cell in row] for row in rows[1:]]
    return "\n".join(f"| {' | '.join(row)} |" for row in [header, rule, *cells])
