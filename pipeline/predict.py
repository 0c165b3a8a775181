"""Says what images show: `python -m pipeline.predict IMAGE…`. Needs no TensorFlow."""

import argparse
import json
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from pipeline.config import params
from pipeline.conversion import exported
from pipeline.images import reader, sheet, sources
from pipeline.images.reader import ImageError
from pipeline.records import files
from pipeline.report.default_run import default_run
from pipeline.system import command
from pipeline.training.cifar10 import CLASS_NAMES

BAR_FROM = 20  # images
Top = list[tuple[str, float]]  # classes and their probabilities, the most probable first


def main() -> None:
    """Classifies the images; exits with 1 if one of them cannot be read."""
    parser = argparse.ArgumentParser(
        prog="python -m pipeline.predict",
        description="Says which of CIFAR-10's ten classes images show, by a run's exported model.",
    )
    parser.add_argument("images", nargs="+", metavar="IMAGE", help="a file, a folder, a glob, or - for standard input")
    parser.add_argument("--run", help="whose model; default: the champion of the smallest budget")
    parser.add_argument("--top", type=int, default=3, metavar="N", help="classes to show, 1 to 10; default: 3")
    parser.add_argument(
        "--fit", choices=("crop", "pad"), default="crop", help="crop to the middle square (default), or pad"
    )
    parser.add_argument("--json", action="store_true", help="one object a line: file, class, probability, top")
    parser.add_argument("--picture", type=Path, metavar="FILE.png", help="draw the images, their pixels and classes")
    arguments = parser.parse_intermixed_args()  # so that - may follow an option
    if not 1 <= arguments.top <= len(CLASS_NAMES):
        parser.error(f"--top: received {arguments.top}; allowed: 1 to {len(CLASS_NAMES)}")
    if arguments.picture and arguments.picture.suffix.lower() != ".png":
        parser.error(f"--picture: received {arguments.picture}; allowed: a name that ends in .png")
    warnings.simplefilter("ignore")  # Pillow's, of damage that it can repair
    config = params.read()
    if arguments.run:
        run, why = config.check_run(arguments.run), ""
    else:
        run, why = default_run(config)
    model = exported.load(run)
    found = sources.expand(arguments.images)
    failed = 0
    results: list[tuple[str, Top]] = []
    rows: list[sheet.Row] = []
    for source in progress(found):
        try:
            photo = reader.open_photo(source.read())
        except ImageError as error:
            print(f"error: {plain(source.name)}: {error}", file=sys.stderr)
            failed += 1
            continue
        pixels = reader.pixels(photo, arguments.fit)
        top = most_probable(model(pixels), arguments.top)
        if arguments.json:
            print(as_json(source.name, top))
        else:
            results.append((plain(source.name), top))
        if arguments.picture and len(rows) < sheet.MAX_ROWS:
            rows.append(sheet.row(plain(source.name), photo, pixels, top))
    if results:
        show(f"model: {run}{why and f', {why}'}", results)
    if rows:
        files.write(arguments.picture, sheet.draw(f"{run}: photo, what the model sees, most probable classes", rows))
        if len(found) - failed > len(rows):
            print(f"{arguments.picture} shows the first {len(rows)} images", file=sys.stderr)
    sys.exit(1 if failed else 0)


def most_probable(probabilities: np.ndarray, count: int) -> Top:
    """The classes of the highest probabilities, float [10], the highest first."""
    order = np.argsort(-probabilities, kind="stable")[:count]
    return [(CLASS_NAMES[index], float(probabilities[index])) for index in order]


def as_json(name: str, top: Top) -> str:
    """One image as a line of JSON, in ASCII."""
    classes = [{"class": label, "probability": round(probability, 6)} for label, probability in top]
    return json.dumps({"file": name, **classes[0], "top": classes})


def plain(name: str) -> str:
    """A file's name, which may hold anything, as one line that can be shown."""
    return "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in name)


def progress(found: list[sources.Source]) -> Iterator[sources.Source]:
    """The images, with a bar on stderr where there are many and a person looks on."""
    from rich.console import Console
    from rich.progress import Progress

    is_hidden = len(found) < BAR_FROM or not sys.stderr.isatty()
    # By default whatever is printed to stdout meanwhile would go to the bar's console too.
    with Progress(console=Console(stderr=True), transient=True, redirect_stdout=False, disable=is_hidden) as bar:
        yield from bar.track(found, description="images")


def show(title: str, results: list[tuple[str, Top]]) -> None:
    """Prints a row an image."""
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(highlight=False, markup=False, emoji=False)
    if not console.is_terminal:
        console.width = 10_000  # a name is not broken
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, padding=(0, 2, 0, 0))
    table.add_column("file", overflow="fold")
    table.add_column("class", no_wrap=True)
    table.add_column("probability", justify="right", no_wrap=True)
    table.add_column("runners-up")
    for name, ((label, probability), *others) in results:
        runners_up = ", ".join(f"{other} {100 * value:.1f} %" for other, value in others)
        table.add_row(Text(name), Text(label, "bold"), f"{100 * probability:.1f} %", runners_up)
    console.print(table)
    console.print(Text(title, "dim"))


if __name__ == "__main__":
    command.run(main)
