"""The page `report/index.html`, as a browser shows it: made of made-up records, opened from disk."""

import ast
import base64
import io
import json
import re
import shutil

import numpy as np
import pytest
import yaml
from browser import Visit
from conftest import ROOT
from factories import list_runs, write_run
from PIL import Image

from pipeline import compare, predict
from pipeline.config import params
from pipeline.conversion import exported
from pipeline.conversion import litert as litert_file
from pipeline.evaluation.predictions import Predictions
from pipeline.images import reader
from pipeline.models import pixels
from pipeline.records import exports
from pipeline.records.record import NOT_COMPARABLE
from pipeline.report import findings, tables
from pipeline.report.page import build, content, images, models
from pipeline.system.command import PipelineError
from pipeline.training.dataset import Split

WIDTHS = (360, 1440)
RUNS = {  # test accuracy
    "baseline-0": 0.86,
    "custom-0": 0.85,
    "custom-1": 0.853,
    "custom-2": 0.847,
    "compact-0": 0.91,
    "compact-1": 0.914,
}
EXPORTED = ("baseline-0", "custom-0", "compact-0")  # with the recorded files


class Made(dict):
    """A page that was written to `path`, and the comparison that it shows."""


def make(folder, runs=RUNS, with_images=True, **change):
    """Writes records into the folder, which must be the cwd, and the page beside them."""
    shutil.copytree(ROOT / "reference", folder / "reference", dirs_exist_ok=True)
    list_runs(*runs)
    for seed, (run, accuracy) in enumerate(runs.items()):
        is_compact = run.startswith("compact")
        costs = {"parameters": 1_172_410, "multiply_adds": 55_145_472} if run.startswith("baseline") else {}
        costs |= {"parameters": 90_514, "multiply_adds": 26_428_080} if is_compact else {}
        costs |= {"val_accuracy": 0.71} if is_compact else {}
        write_run(run, accuracy, errors_seed=seed, **costs, **change)
        if run in EXPORTED:
            shutil.copytree(ROOT / "results" / run / "export", folder / "results" / run / "export")
    exported = {run: exports.evaluated(run) for run in EXPORTED if run in runs}
    return write_page(folder, exported, validation_images() if with_images else None)


def write_page(folder, exported, split):
    """The page of the records in the folder."""
    config = params.read()
    records = compare.load(config)
    seen, histories = compare.read_predictions(records), compare.read_histories(records)
    made = Made(compare.compare(config, records, seen, exported))
    made.html = build.page(config, made, histories, seen, records, split)
    made.path = folder / "index.html"
    made.path.write_bytes(made.html)
    return made


def validation_images():
    """The validation images of made-up records: as many, with the same labels."""
    return Split(np.random.default_rng(0).integers(0, 256, (5_000, 32, 32, 3), np.uint8), np.arange(5_000) % 10)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """One page for all tests that only look at it."""
    folder = tmp_path_factory.mktemp("page")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        return make(folder)


@pytest.fixture(params=WIDTHS)
def visit(made, chromium, request):
    """The page at a phone's and at a desktop's width; nothing may be asked for, and no error shown."""
    visit = Visit(chromium, made.path, request.param)
    yield visit
    visit.close()


@pytest.fixture
def desktop(made, chromium):
    visit = Visit(chromium, made.path)
    yield visit
    visit.close()


def column(page, key):
    """The table's numbers of a column, by name, as they are shown."""
    cells = page.eval_on_selector_all(
        f"#recipes td[data-key={key}]",
        "cells => cells.map(cell => [cell.parentNode.dataset.name, cell.firstChild.textContent.trim()])",
    )
    return dict(cells)


def test_numbers_in_the_table_are_those_of_the_comparison(made, visit):
    rows = {row["run"]: row for row in made["published"]} | made["recipes"]
    for key in content.COLUMNS:
        assert column(visit.page, key) == {name: tables.cell(row, key) for name, row in rows.items()}
    assert column(visit.page, "test_accuracy")["custom"] == "85.00"


def test_bars_are_as_wide_as_the_intervals(made, desktop):
    low, high = (
        float(limit) for limit in desktop.page.inner_text("#recipes tr[data-name=compact] .interval").split(" to ")
    )
    assert low < 91.2 < high
    bar, interval = (
        desktop.page.locator(f"#recipes tr[data-name=compact] {it}").bounding_box() for it in (".bar", ".bar i")
    )
    ends = [
        int(end) for end in re.search(r"scale, (\d+) to (\d+) %", desktop.page.inner_text("#table-caption")).groups()
    ]
    assert interval["width"] / bar["width"] == pytest.approx((high - low) / (ends[1] - ends[0]), abs=0.01)
    assert (interval["x"] - bar["x"]) / bar["width"] == pytest.approx((low - ends[0]) / (ends[1] - ends[0]), abs=0.01)


def test_budgets_and_champions_are_marked(made, desktop):
    page = desktop.page
    marks = page.locator("#recipes .mark").all_inner_texts()
    assert marks == ["champion: published-base", "champion: published-custom"]
    assert page.locator("#recipes tr[data-name=custom] .mark").count() == 2  # the one recipe with three seeds
    assert "1,172,410 parameters exceed 92,027" in page.inner_text("#recipes tr[data-name=baseline] td.fail")
    assert page.locator("#recipes tr[data-name=compact] td.pass").count() == 2


@pytest.mark.parametrize("by", ["mouse", "keyboard"])
def test_table_is_sorted_by_a_columns_name_and_unknown_values_stay_last(desktop, by):
    page = desktop.page

    def press(name):
        button = page.locator("#recipes").get_by_role("columnheader", name=name).get_by_role("button")
        button.click() if by == "mouse" else button.press("Enter")

    def names():
        return page.eval_on_selector_all("#recipes tbody tr", "rows => rows.map(row => row.dataset.name)")

    press("test %")
    assert names() == ["compact", "baseline", "custom", "published-custom", "published-base"]
    assert (
        page.locator("#recipes").get_by_role("columnheader", name="test %").get_attribute("aria-sort") == "descending"
    )
    press("test %")
    assert names() == ["published-base", "published-custom", "custom", "baseline", "compact"]
    press("val. %")
    assert names()[0] == "compact"
    assert names()[-2:] == ["published-base", "published-custom"]
    press("val. %")
    assert set(names()[-2:]) == {"published-base", "published-custom"}
    press("recipe")
    assert names() == sorted(names())


def test_answer_is_of_the_smallest_budget_first_and_says_whether_it_is_certain(made, visit):
    said = visit.page.locator("#answer > p:is(.answer, .certain, .further)").all_inner_texts()
    first, certain, further = said
    small, large = (findings.answer(made, budget) for budget in ("published-custom", "published-base"))
    assert (first, certain) == (small[0], " ".join(small[1:]))
    assert further == f"{large[0]} The same holds for this range."  # the rest is that of the first
    low, high = (f"{100 * limit:.1f}" for limit in findings.pair_of(made, "compact", "custom")["interval"])
    assert first.startswith(
        "Within 92,027 parameters and 50 epochs, take custom, with 85.00 % test accuracy: it is "
        f"{low} to {high} points worse than compact, the best of the others; "
        "it beats the published network by at least "
    )
    assert certain.startswith("The range is a 95 % interval over seeds and images; the difference is significant.")
    assert certain.endswith("The choice is by validation accuracy and number of seeds, as always.")


def points(page):
    return [button.get_attribute("aria-label") for button in page.locator("#scatter .point").all()]


def test_scatter_shows_each_recipe_and_published_network_at_the_chosen_cost(made, visit):
    page = visit.page
    low, high = column_interval(page, "compact")
    assert f"compact: 91.20 % ({low} to {high}), 90,514 parameters, 2 epochs; on the Pareto front" in points(page)
    assert {text.partition(":")[0] for text in points(page)} == {
        *made["recipes"],
        *(f"{row['run']}*" for row in made["published"]),
        *(f"{row['name']}*" for row in made["published_exports"]),
    }
    page.select_option("#cost-axis", label="training minutes")
    assert f"compact: 91.20 % ({low} to {high}), 2 minutes, 2 epochs; on the Pareto front" in points(page)
    assert not any(text.startswith("published-base") for text in points(page))  # its time is not known


def column_interval(page, name):
    return page.text_content(f"#recipes tr[data-name={name}] .interval").split(" to ")


def test_point_is_where_its_numbers_are_and_says_them_on_hover_and_focus(desktop):
    page = desktop.page
    names = ("compact:", "custom:", "baseline:")
    box = {name: page.locator(f"#scatter .point[aria-label^='{name}']").bounding_box() for name in names}
    assert box["compact:"]["y"] < box["baseline:"]["y"] < box["custom:"]["y"]
    assert box["compact:"]["x"] < box["custom:"]["x"] < box["baseline:"]["x"]
    tip = page.locator("#scatter .tip")
    page.hover("#scatter .point[aria-label^='custom:']")
    assert tip.inner_text().startswith("custom: 85.00 % (")
    page.focus("#scatter .point[aria-label^='baseline:']")
    assert tip.inner_text().startswith("baseline: 86.00 % (")


def test_pareto_front_leaves_out_what_is_dearer_and_no_better():
    costs = {"a": (1, 0.8), "b": (2, 0.8), "c": (2, 0.9), "d": (3, 0.85), "e": (4, 0.95)}
    found = content._axis(
        "x",
        "",
        "",
        "cost",
        {name: ("recipe", {"cost": cost, "test_accuracy": accuracy}) for name, (cost, accuracy) in costs.items()},
        one_device=False,
    )
    assert found["front"] == ["a", "c", "e"]
    minutes = {
        name: (kind, {"training_minutes": cost, "test_accuracy": 0.8})
        for name, kind, cost in (("theirs", "published", 1), ("ours", "recipe", 2))
    }
    for one_device, front in ((True, ["ours"]), (False, [])):  # theirs was on another device in any case
        assert content._axis("x", "", "", "training_minutes", minutes, one_device)["front"] == front


def line_values(page):
    texts = page.locator("#curve-lines label").all_inner_texts()
    return dict(text.rsplit(maxsplit=1) for text in texts)


def test_curves_say_the_numbers_of_the_epoch_under_the_mouse_or_the_keyboard(desktop):
    page = desktop.page
    assert line_values(page) == {
        "baseline": "70.00",
        "custom": "70.00",
        "compact": "70.00",
        "published-custom*": "82.39",
    }
    page.hover("#curve-chart .u-over", position={"x": 2, "y": 50})
    assert page.inner_text("#curve-lines .epoch") == "epoch 1"
    assert line_values(page) == {
        "baseline": "50.00",
        "custom": "50.00",
        "compact": "50.00",
        "published-custom*": "25.35",
    }
    page.mouse.move(0, 0)
    page.focus("#curve-chart")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    assert page.inner_text("#curve-lines .epoch") == "epoch 2"
    assert "epoch 2: baseline 70.00" in page.text_content("#curve-spoken")
    page.select_option("#curve-metric", label="training loss")
    assert line_values(page)["custom"] == "1.100"


def test_curve_is_the_mean_over_the_seeds_with_their_range_as_a_band():
    histories = {f"a-{seed}": [{"epoch": 1, "val_accuracy": 0.5 + seed / 10}] for seed in range(2)}
    runs = [{"run": run, "recipe": "a", "seed": seed} for seed, run in enumerate(histories)]
    found = content.curves(
        {"recipes": {"a": {}}, "recipe_params": {"a": {"teacher": "none"}}, "runs": runs, "published": []}, histories
    )
    assert found["lines"] == [
        {"name": "a", "kind": "recipe", "runs": ["a-0", "a-1"], "values": {"val_accuracy": [[0.5], [0.6]]}}
    ]


def test_curves_can_be_zoomed_and_lines_hidden(desktop):
    page = desktop.page

    def ticks():
        """What the chart looks like: its axes and lines are drawn, not elements."""
        return page.evaluate("document.querySelector('#curve-chart canvas').toDataURL()")

    whole = ticks()
    page.hover("#curve-chart .u-over", position={"x": 100, "y": 40})
    box = page.locator("#curve-chart .u-over").bounding_box()
    page.mouse.down()
    page.mouse.move(box["x"] + 400, box["y"] + 200, steps=5)
    page.mouse.up()
    assert ticks() != whole
    page.mouse.move(0, 0)
    page.click("#curve-reset")
    assert ticks() == whole
    page.uncheck("#curve-lines label:has-text('baseline') input")
    assert ticks() != whole
    page.check("#curve-lines label:has-text('baseline') input")
    assert ticks() == whole


def test_zooming_by_keyboard_keeps_the_epoch_and_all_epochs_come_back(desktop):
    page = desktop.page
    assert page.is_disabled("#curve-reset")
    page.focus("#curve-chart")
    for key in ("ArrowRight", "ArrowRight", "+"):
        page.keyboard.press(key)
    page.wait_for_selector("#curve-reset:enabled")
    assert page.inner_text("#curve-lines .epoch") == "epoch 2"
    page.uncheck("#curve-lines label:has-text('baseline') input")  # drawn anew, still zoomed
    page.check("#curve-lines label:has-text('baseline') input")
    assert page.is_enabled("#curve-reset")
    page.focus("#curve-chart")
    page.keyboard.press("Escape")
    page.wait_for_selector("#curve-reset:disabled")


def test_metric_with_fewer_epochs_is_shown_whole(desktop):
    page = desktop.page
    page.evaluate("PAGE.curves.lines.forEach(line => delete line.values.val_loss)")
    page.evaluate("PAGE.curves.lines[0].values.val_loss = [[1, 0.5]]")
    page.select_option("#curve-metric", "val_loss")
    page.hover("#curve-chart .u-over", position={"x": 2, "y": 40})
    left = page.inner_text("#curve-lines .epoch")
    box = page.locator("#curve-chart .u-over").bounding_box()
    page.hover("#curve-chart .u-over", position={"x": box["width"] - 2, "y": 40})
    assert (left, page.inner_text("#curve-lines .epoch")) == ("epoch 1", "epoch 2")
    assert page.is_disabled("#curve-reset")


def test_stepping_out_of_the_zoom_shows_the_epoch_that_is_spoken(desktop):
    page = desktop.page
    page.focus("#curve-chart")
    for key in ("ArrowRight", "+", "+"):
        page.keyboard.press(key)
    page.wait_for_selector("#curve-reset:enabled")
    last = int(page.evaluate("PAGE.curves.lines[0].values.val_accuracy[0].length"))
    for epoch in range(2, last + 1):
        page.keyboard.press("ArrowRight")
        page.wait_for_function(
            "said => document.querySelector('#curve-lines .epoch').innerText === said", arg=f"epoch {epoch}"
        )
        assert page.inner_text("#curve-spoken").startswith(f"epoch {epoch}:")
    page.keyboard.press("Control+ArrowLeft")  # the browser's
    assert page.inner_text("#curve-spoken").startswith(f"epoch {last}:")


def test_page_says_what_each_recipe_and_network_is(made, desktop):
    said = " ".join(desktop.page.text_content("#answer").split())
    for model in ("baseline", "custom", "compact"):
        docstring = ast.get_docstring(ast.parse((ROOT / "pipeline/models" / f"{model}.py").read_text()))
        assert " ".join(docstring.split()).replace("`", "") in said
    row = desktop.page.locator("[aria-label=Recipes] tr", has_text="compact").last.text_content().split()
    assert " ".join(row).startswith("compact compact muon, learning rate 0.02, linear schedule, warm-up 0.2")
    assert "alternating flip, shift by up to 4 pixels" in " ".join(row)


@pytest.mark.parametrize("source", [b"x = 1", b"def build(:", b"\xff", b"\0", None])
def test_network_whose_file_says_nothing_is_left_out(source, tmp_path, monkeypatch):
    (tmp_path / "custom.py").write_text('"""Of\nthe course."""')
    if source is not None:
        (tmp_path / "own.py").write_bytes(source)
    monkeypatch.setattr(content, "MODELS", tmp_path)
    assert content.networks({"recipe_params": {"a": {"model": "own"}, "b": {"model": "custom"}}}) == {
        "custom": "Of the course."
    }


def choose(page, first, second):
    page.select_option("#pair-a", first)
    page.select_option("#pair-b", second)


def test_two_recipes_are_told_apart_in_the_words_of_the_verdict(made, visit):
    page = visit.page
    assert [page.input_value(f"#pair-{side}") for side in "ab"] == ["custom", "compact"]  # the smallest budget's
    choose(page, "baseline", "compact")
    (pair,) = (pair for pair in made["pairs"] if set(pair["recipes"]) == {"compact", "baseline"})
    low, high = (f"{100 * limit:.1f}" for limit in pair["interval"])
    assert pair["of"] == "weights"
    words = page.inner_text("#pair-verdict")
    assert words.startswith(f"compact-0 is {low} to {high} points better than baseline-0. The range is a 95 % ")
    assert "Whether their recipes differ is open" in words
    choose(page, "baseline", "baseline")
    assert page.inner_text("#pair-verdict") == "Choose two different recipes."
    assert not page.is_visible("#pair-view")


def test_classes_and_confusions_of_two_recipes_are_those_of_the_records(made, desktop):
    page = desktop.page
    choose(page, "compact", "baseline")
    described = made["descriptions"]
    for row in page.locator("#pair-classes tbody tr").all():
        name, compact, baseline, difference = row.locator("th, td").all_inner_texts()
        assert compact.split() == [f"{100 * described['compact'][name][0]:.1f}", *limits(described["compact"][name])]
        assert baseline.split()[0] == f"{100 * described['baseline'][name][0]:.1f}"
        apart = 100 * (described["compact"][name][0] - described["baseline"][name][0])
        assert float(difference) == pytest.approx(apart, abs=0.06)
    cells = page.locator("#pair-confusion-b tbody tr").nth(3).locator("td").all_inner_texts()
    cat = round(1_000 * described["baseline"]["cat"][0])
    assert {index: int(images) for index, images in enumerate(cells) if images} == {3: cat, 4: 1_000 - cat}


def limits(description):
    return f"{100 * description[1]:.1f} to {100 * description[2]:.1f}".split()


def test_images_are_those_that_one_recipe_gets_right_and_the_other_wrong(made, desktop):
    page = desktop.page
    choose(page, "compact", "baseline")
    right = page.locator("#pair-images-a li .thumb")
    assert right.count() > 20
    for words in [thumb.get_attribute("aria-label") for thumb in right.all()]:
        label, ours, theirs = words.split("; ")
        assert ours == f"compact: {label}, 90 %"
        assert re.fullmatch(r"baseline: \w+, 90 %", theirs)
        assert not theirs.startswith(f"baseline: {label},")
    assert re.match(r"[\d,]+ of 5,000 validation images", page.inner_text("#pair-images-a .note"))


def predicted(labels, classes, confidence):
    """Validation predictions of these classes, and no test images."""
    probabilities = (np.eye(10)[classes] * confidence[:, None] + (1 - confidence[:, None]) / 10).astype(np.float16)
    return Predictions(probabilities, labels, probabilities, labels)


def test_disagreements_are_counted_and_the_most_confident_chosen_for_each_pair():
    random = np.random.default_rng(0)
    labels = (np.arange(5_000) % 10).astype(np.uint8)
    recipes = {}
    for name, wrong in (("a", 0.1), ("b", 0.3), ("c", 0.5)):
        classes = np.where(random.random(5_000) < wrong, (labels + 1) % 10, labels)
        recipes[name] = predicted(labels, classes, random.uniform(0.3, 0.99, 5_000))
    found = images.disagreements(recipes)
    right = {name: seen.val_probabilities.argmax(axis=1) == labels for name, seen in recipes.items()}
    assert found["counts"]["a"]["b"] == (right["a"] & ~right["b"]).sum()
    assert found["counts"]["b"]["a"] == (right["b"] & ~right["a"]).sum()
    assert len(found["thumbnails"]) == images.MAX_THUMBNAILS
    chosen = {thumbnail["index"]: thumbnail for thumbnail in found["thumbnails"]}
    for ours in recipes:
        for theirs in set(recipes) - {ours}:
            both = [index for index in chosen if right[ours][index] and not right[theirs][index]]
            assert len(both) >= images.MAX_THUMBNAILS / 6
            sure = recipes[ours].val_probabilities[np.arange(5_000), labels].astype(float)
            unsure = recipes[theirs].val_probabilities[np.arange(5_000), labels].astype(float)
            gap = np.where(right[ours] & ~right[theirs], sure - unsure, -1)
            assert int(gap.argmax()) in chosen


def test_sprite_shows_each_image_in_its_place():
    plain = np.repeat(np.arange(0, 250, 10, dtype=np.uint8), 32 * 32 * 3).reshape(25, 32, 32, 3)
    sheet = Image.open(io.BytesIO(base64.b64decode(images.sprite(plain, [24, *range(24)]).partition(",")[2])))
    assert sheet.size == (640, 64)
    pixels = np.asarray(sheet).astype(int)
    assert abs(pixels[:32, :32] - 240).max() <= 2
    assert abs(pixels[32:, 32:64] - 200).max() <= 2  # the 22nd in rows of 20


def test_other_validation_images_than_those_of_the_records_are_refused(made):
    split = Split(np.zeros((5_000, 32, 32, 3), np.uint8), np.zeros(5_000, np.int32))
    labels = np.arange(5_000, dtype=np.uint8) % 10
    seen = {"custom-0": predicted(labels, labels, np.full(5_000, 0.9))}
    with pytest.raises(PipelineError, match=r"'custom-0' was evaluated on other validation images"):
        images.check(split, seen)


def test_without_data_the_page_says_that_images_are_left_out(tmp_path, monkeypatch, chromium):
    monkeypatch.chdir(tmp_path)
    made = make(tmp_path, {"baseline-0": 0.86, "custom-0": 0.85}, with_images=False)
    visit = Visit(chromium, made.path)
    assert "data/cifar10 was not there" in visit.page.inner_text("#pair-view")
    assert visit.page.locator(".thumb").count() == 0
    visit.close()


def photo(width, height, seed=0):
    """A made-up photo: soft spots and noise."""
    random = np.random.default_rng([seed, width, height])
    spots = Image.fromarray(random.integers(0, 256, (5, 5, 3), np.uint8)).resize(
        (width, height), Image.Resampling.BICUBIC
    )
    noisy = np.asarray(spots).astype(int) + random.integers(-40, 40, (height, width, 3))
    return Image.fromarray(noisy.clip(0, 255).astype(np.uint8))


def encoded(image, kind="PNG", **options):
    content = io.BytesIO()
    image.save(content, kind, **options)
    return content.getvalue()


def give(page, content, how="drop", name="photo.png"):
    """Hands a file to the page in one of three ways, and waits for its answer."""
    if how == "choose":
        page.set_input_files("#try-file", {"name": name, "mimeType": "", "buffer": content})
    else:
        make = """encoded => {
            const transfer = new DataTransfer();
            const bytes = Uint8Array.from(atob(encoded), letter => letter.charCodeAt(0));
            transfer.items.add(new File([bytes], "photo.png", { type: "image/png" }));
            return transfer;
        }"""
        transfer = page.evaluate_handle(make, base64.b64encode(content).decode())
        if how == "drop":
            page.dispatch_event("#try-zone", "drop", {"dataTransfer": transfer})
        else:
            paste = "it => document.body.dispatchEvent(new ClipboardEvent('paste', {clipboardData: it, bubbles: true}))"
            page.evaluate(paste, transfer)
    page.wait_for_selector("#try-answer[aria-busy=false]", state="attached")


def seen_pixels(page):
    """What the page shows as the models' pixels, uint8 [32, 32, 3]."""
    read = "canvas => [...canvas.getContext('2d').getImageData(0, 0, 32, 32).data]"
    return np.array(page.eval_on_selector("#try-pixels", read), np.uint8).reshape(32, 32, 4)[..., :3]


def answers(page):
    """The most probable class and its percentage, by recipe."""
    shown = {}
    for article in page.locator("#try-results article").all():
        label, percentage, _ = article.locator("li").first.locator("span").all_inner_texts()
        shown[article.get_attribute("data-recipe")] = (label, float(percentage.removesuffix(" %")))
    return shown


@pytest.fixture(scope="module")
def litert():
    """The recorded models, as `predict` runs them, by recipe."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        return {run[:-2]: exported.load(run) for run in ("custom-0", "compact-0")}


def predicted_by(litert, pixels):
    tops = {recipe: predict.most_probable(model(pixels), 1)[0] for recipe, model in litert.items()}
    return {
        recipe: (label, pytest.approx(100 * probability, abs=0.06)) for recipe, (label, probability) in tops.items()
    }


@pytest.mark.parametrize("how", ["drop", "choose", "paste"])
def test_photo_gets_the_pixels_and_the_answer_that_predict_gives(made, visit, litert, how):
    content = encoded(photo(300, 200))
    give(visit.page, content, how)
    pixels = reader.pixels(reader.open_photo(content))
    assert abs(seen_pixels(visit.page).astype(int) - pixels).max() <= 1
    assert answers(visit.page) == predicted_by(litert, seen_pixels(visit.page))
    assert re.search(r"custom-0, \d+ ms", visit.page.inner_text("#try-results"))
    assert "compact: " in visit.page.inner_text("#try-status")


def test_photos_of_any_size_give_the_pixels_that_predict_sees(desktop, litert):
    for width, height in ((32, 32), (1, 1), (7, 5), (33, 47), (31, 200), (640, 481)):
        content = encoded(photo(width, height))
        give(desktop.page, content)
        pixels = reader.pixels(reader.open_photo(content))
        assert abs(seen_pixels(desktop.page).astype(int) - pixels).max() <= 1, (width, height)
        assert answers(desktop.page) == predicted_by(litert, seen_pixels(desktop.page)), (width, height)


@pytest.mark.parametrize("late", [encoded(Image.new("RGB", (64, 64), "red")), b"no image"], ids=["image", "none"])
def test_image_that_is_read_late_does_not_take_the_place_of_a_newer_one(desktop, late):
    page = desktop.page
    delay = """() => {
        const read = createImageBitmap;
        window.createImageBitmap = async (blob, as) => {
            window.createImageBitmap = read;
            await new Promise(resolve => (window.goOn = resolve));
            return read(blob, as).finally(() => setTimeout(() => (window.wasRead = true), 100));
        };
    }"""
    page.evaluate(delay)
    page.set_input_files("#try-file", {"name": "late.png", "mimeType": "", "buffer": late})
    page.wait_for_function("() => window.goOn")
    give(page, encoded(Image.new("RGB", (64, 64), "blue")))
    said = page.inner_text("#try-status")
    page.evaluate("goOn()")
    page.wait_for_function("() => window.wasRead")
    square = "canvas => [...canvas.getContext('2d').getImageData(20, 160, 1, 1).data]"
    assert page.eval_on_selector("#try-square", square) == [0, 0, 255, 255]
    assert page.inner_text("#try-status") == said


def test_photo_is_turned_upright_and_its_transparent_parts_are_white(desktop):
    halves = Image.new("RGB", (64, 64), "red")
    halves.paste("blue", (0, 32, 64, 64))
    rotated = Image.Exif()
    rotated[0x0112] = 6  # the camera lay on its side
    content = encoded(halves, "JPEG", quality=95, exif=rotated)
    give(desktop.page, content)
    expected = reader.pixels(reader.open_photo(content)).astype(int)
    assert expected[16, 2, 2] > 200  # blue lies on the left
    square = "canvas => [...canvas.getContext('2d').getImageData(20, 160, 1, 1).data]"
    assert desktop.page.eval_on_selector("#try-square", square)[2] > 200
    assert abs(seen_pixels(desktop.page)[:, :14].astype(int) - expected[:, :14]).max() <= 3
    give(desktop.page, encoded(Image.new("RGBA", (40, 40), (10, 20, 30, 0))))
    assert seen_pixels(desktop.page).min() == 255


def test_models_in_the_page_agree_with_litert(desktop, litert):
    run = """([recipe, images]) => {
        const { id } = PAGE.models.find(it => it.recipe === recipe);
        const bytes = Uint8Array.from(atob(byId(id).textContent.trim()), letter => letter.charCodeAt(0));
        const model = readModel(bytes);
        return images.map(image => [...model(Uint8Array.from(image))]);
    }"""
    random = np.random.default_rng(0)
    images = [np.asarray(photo(32, 32, seed)) for seed in range(12)]
    images += list(random.integers(0, 256, (4, 32, 32, 3), np.uint8))
    for recipe, model in litert.items():
        found = np.array(desktop.page.evaluate(run, [recipe, [image.ravel().tolist() for image in images]]))
        expected = model.predict(np.stack(images))
        assert (found.argmax(axis=1) == expected.argmax(axis=1)).all()
        np.testing.assert_allclose(found, expected, atol=1e-5)


def test_common_layers_of_other_models_run_in_the_page_too(desktop, tensorflow):
    run = """([file, image]) => {
        const bytes = Uint8Array.from(atob(file), letter => letter.charCodeAt(0));
        return [...readModel(bytes)(Uint8Array.from(image))];
    }"""
    content = litert_file.float32(model_of_many_layers())
    image = np.asarray(photo(32, 32, 5))
    expected = litert_file.load(content, 1).predict(image[None])[0]
    found = desktop.page.evaluate(run, [base64.b64encode(content).decode(), image.ravel().tolist()])
    np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize(
    ("kind", "given", "said"),
    [
        ("Conv2D", {"filters": 4, "kernel_size": 3, "groups": 2}, "a grouped convolution"),
        ("Softmax", {}, "a softmax of several rows"),
    ],
    ids=["grouped", "softmax"],
)
def test_layer_that_would_be_computed_wrongly_is_refused(desktop, tensorflow, kind, given, said):
    from keras import Model, layers

    inputs, x = pixels()
    x = getattr(layers, kind)(**given)(layers.Conv2D(4, 8, strides=8)(x))
    content = litert_file.float32(Model(inputs, layers.Dense(10, "softmax")(layers.Flatten()(x))))
    run = """file => {
        const bytes = Uint8Array.from(atob(file), letter => letter.charCodeAt(0));
        try { readModel(bytes)(new Uint8Array(32 * 32 * 3)); } catch (error) { return error.message; }
    }"""
    assert desktop.page.evaluate(run, base64.b64encode(content).decode()) == f"{said} is not known here"


def model_of_many_layers():
    """Untrained, with what convolutional networks of others have: gates, activations, padding, concatenation."""
    from keras import Model, layers, ops

    inputs, x = pixels()
    x = layers.Conv2D(8, 3, strides=2)(layers.ZeroPadding2D(((1, 0), (2, 1)))(x))
    x = layers.DepthwiseConv2D(3, depth_multiplier=2, padding="same")(x)
    kinds = ("silu", "hard_silu", "gelu", "tanh", "elu", "relu6", "leaky_relu", "sigmoid")
    branches = [layers.Activation(kind)(layers.Conv2D(3, 1)(x)) for kind in kinds]
    branches.append(ops.gelu(layers.Conv2D(3, 1)(x), approximate=True))
    x = layers.Concatenate()(branches)
    gate = layers.Reshape((-1, 1))(layers.GlobalAveragePooling2D()(x))  # efficient channel attention
    gate = layers.Activation("sigmoid")(layers.Conv1D(1, 3, padding="same", use_bias=False)(gate))
    x = layers.Multiply()([x, layers.Reshape((1, 1, -1))(gate)])
    gate = layers.Conv2D(x.shape[-1], 1, activation="hard_sigmoid")(layers.GlobalAveragePooling2D(keepdims=True)(x))
    x = layers.Dense(6)(layers.MaxPooling2D(2)(x * gate))
    return Model(inputs, layers.Dense(10, "softmax")(layers.Flatten()(x)))


def test_images_of_the_validation_split_are_one_click_away(made, desktop, litert):
    page = desktop.page
    assert page.locator("#try-examples button").count() == 10
    page.get_by_role("button", name="cat, an image of the validation split").click()
    page.wait_for_selector("#try-answer[aria-busy=false]", state="attached")
    pixels = validation_images().images[3]
    assert (seen_pixels(page) == pixels).all()
    assert answers(page) == predicted_by(litert, pixels)


def test_what_is_no_image_and_what_cannot_run_is_said(made, desktop):
    page = desktop.page
    give(page, b"no image", name="note.txt", how="choose")
    assert "your browser cannot open this file as an image" in page.inner_text("#try-status")
    page.evaluate("() => { delete OPERATIONS[4]; }")
    give(page, encoded(photo(40, 40)))
    assert "custom cannot run in this page (operation 4 is not known here)" in page.inner_text("#try-status")
    assert answers(page) == {}


def test_large_models_are_left_out_and_named(made, desktop, monkeypatch):
    note = desktop.page.inner_text("#try > p.note")
    assert "Left out: baseline (4,697,736 bytes; limit 500,000 per file)" in note
    small = {"custom": made["exports"]["custom"], "compact": made["exports"]["compact"]}
    monkeypatch.chdir(made.path.parent)
    monkeypatch.setattr(models, "MAX_TOTAL", 700_000)
    embedded, left_out = models.embedded(made | {"exports": small})
    assert [model.recipe for model in embedded] == ["compact"]  # the better one in validation
    assert left_out == ["custom (limit 700,000 bytes in all)", "baseline (not exported)"]


def test_damaged_model_is_refused_with_its_command(made, tmp_path, monkeypatch):
    shutil.copytree(made.path.parent / "results", tmp_path / "results")
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "results/custom-0/export/model.tflite"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(PipelineError, match=r"custom-0/export/model\.tflite .*`python -m pipeline\.export custom-0`"):
        models.embedded(made)


def test_how_it_was_measured_names_machines_versions_digests_and_how_to_check(made, desktop):
    said = desktop.page.inner_text("#how")
    for text in (
        "no epoch was chosen",
        "Made-up | 9000",
        "TensorFlow 2.21.0",
        "python -m pipeline.verify RUN",
        "LOG.md",
    ):
        assert text in said
    assert "evaluate" in desktop.page.locator("#how li code").all_inner_texts()
    assert "6 training runs are recorded; seeds of each recipe: baseline 1, custom 3, compact 2." in said
    assert f"custom-0\t{16 * '0'}\t{16 * '1'}\t–\t{made['exports']['custom']['float32']['sha256'][:16]}" in said  # noqa: RUF001
    licence = (build.FOLDER / "vendor/uPlot.LICENSE").read_text().strip()
    assert desktop.page.text_content("#how pre").strip() == licence


def test_page_is_small_enough_to_send_and_names_no_registry(made):
    assert len(made.html) < 4_000_000
    # Addresses in the page: the licence's and the sources' words alone.
    assert not re.findall(rb"(?:src|href|action)=[\"'](?!#|data:)", made.html)


def test_finger_on_the_curves_says_the_numbers_too(made, chromium):
    visit = Visit(chromium, made.path, 360, has_touch=True, is_mobile=True)
    visit.page.tap("#curve-chart .u-over", position={"x": 1, "y": 60})
    assert visit.page.inner_text("#curve-lines .epoch") == "epoch 1"
    assert visit.page.is_visible("label[for=try-camera]")
    visit.close()


def test_charts_follow_the_theme(desktop):
    page = desktop.page
    light = page.evaluate("document.querySelector('#curve-chart canvas').toDataURL()")
    page.emulate_media(color_scheme="dark")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(21, 23, 26)"
    page.evaluate("() => new Promise(resolve => requestAnimationFrame(() => setTimeout(resolve)))")  # the next frame
    assert page.evaluate("document.querySelector('#curve-chart canvas').toDataURL()") != light


def test_one_recipe_with_nothing_to_hold_against_is_a_page_too(tmp_path, monkeypatch, chromium):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "reference").mkdir()
    list_runs("custom-1")
    tree = params.parse("params.yaml")
    tree["compare"]["budgets"] = {}
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(tree))
    write_run("custom-1", 0.85, multiply_adds=None)
    visit = Visit(chromium, write_page(tmp_path, {}, None).path)
    assert column(visit.page, "multiply_adds") == {"custom": "–"}  # noqa: RUF001
    assert [text.partition(":")[0] for text in points(visit.page)] == ["custom"]
    assert "No model is in this page: custom (not exported)." in visit.page.inner_text("#try")
    visit.close()


@pytest.mark.parametrize(
    ("interval", "said"),
    [
        ([0.0329, 0.05], "beats the published network by at least 3.2 points"),
        ([-0.01, 0.04], "is not certain to beat the published network"),
        ([0.0004, 0.05], "is not certain to beat the published network"),  # by less than a tenth of a point
        ([-0.03, -0.01], "is worse than the published network"),
    ],
)
def test_lead_on_the_published_network_is_never_overstated(interval, said):
    assert findings.beats(interval) == said


@pytest.mark.parametrize(
    ("verdict", "of", "first", "said"),
    [
        ("better", "recipes", "a", "it is 1.0 to 3.0 points better than b"),
        ("better", "recipes", "b", "it is 1.0 to 3.0 points worse than a"),
        ("better weights", "weights", "a", "it is 1.0 to 3.0 points better than b-0"),
        ("not told apart", "recipes", "a", "it and b are not told apart (+1.0 to +3.0 points)"),
        ("not told apart", "recipes", "b", "it and a are not told apart (-3.0 to -1.0 points)"),
    ],
)
def test_verdict_in_words_is_the_pairs_own(verdict, of, first, said):
    pair = {"recipes": ["a", "b"], "runs": [["a-0"], ["b-0"]], "of": of, "verdict": verdict, "interval": [0.01, 0.03]}
    assert findings.verdict(pair, "it", findings.sides(pair, first)[1], first) == said
    runs = [{"run": run, "precision": "float32"} for run in ("a-0", "b-0")]
    certain = findings.certainty({"runs": runs}, pair)
    assert ("not significant" in certain) == (verdict == "not told apart")
    assert ("Whether their recipes differ is open" in certain) == (of == "weights")


def test_page_fits_a_phone_and_each_width_between(made, chromium):
    for width in (360, 768, 1440):
        visit = Visit(chromium, made.path, width)
        assert visit.page.evaluate("document.documentElement.scrollWidth") <= width
        visit.close()


def test_nothing_is_said_to_hold_again_that_was_not_said(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    html = make(tmp_path, {"custom-0": 0.85}).html
    assert html.count(b"its recipe is the only one there") == 2  # no pair, so no range
    assert b"The same holds for this range." not in html


def test_quick_results_are_labelled(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert NOT_COMPARABLE.encode() not in make(tmp_path, {"custom-0": 0.85}).html
    write_run("custom-0", 0.85, comparable=False)
    html = write_page(tmp_path, {}, None).html
    assert NOT_COMPARABLE in re.search(r"<title>(.*)</title>", html.decode())[1]


def test_equal_records_give_equal_bytes(made, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert make(tmp_path).html == made.html


def test_names_end_no_script():
    assert build._json({"a": "</script><b>"}) == '{"a":"\\u003c/script>\\u003cb>"}'
    assert json.loads(build._json({"a": "</script>"})) == {"a": "</script>"}
