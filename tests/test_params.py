"""params.yaml is read as written, and everything wrong with it is said in one line."""

import os
import subprocess
import sys
import time

import pytest
import yaml
from conftest import ROOT
from dvc.utils.serialize import loads_yaml
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from pipeline.config import params
from pipeline.system.command import PipelineError

in_its_own_time = settings(deadline=None)  # a busy machine is no failure
fuzz = settings(max_examples=300, deadline=None)


def put(tree: dict, key: str, value: object) -> dict:
    """Sets the value at a dotted key."""
    *parents, last = key.split(".")
    for parent in parents:
        tree = tree[parent]
    tree[last] = value
    return tree


def test_repository_params_are_valid(tree):
    config = params.check(tree)
    assert config.recipe_of("custom-0").model == "custom"
    assert config.data.comparable


def test_flat_uses_the_names_of_the_file(tree):
    flat = params.check(tree).flat("custom-0")
    assert flat["recipe"] == "custom"
    assert set(tree["recipes"]["custom"]) | set(tree["data"]) | set(tree["train"]) <= set(flat)


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        (
            "recipes.custom.epochs",
            "abc",
            "recipes.custom.epochs: received 'abc'; allowed: a whole number from 1 to 1000",
        ),
        ("recipes.custom.epochs", 0, "recipes.custom.epochs: received 0; allowed: a whole number from 1 to 1000"),
        ("recipes.custom.epochs", 2.5, "recipes.custom.epochs: received 2.5; allowed: a whole number"),
        ("recipes.custom.epochs", True, "recipes.custom.epochs: received True; allowed: a whole number"),
        ("recipes.custom.momentum", 1.0, "recipes.custom.momentum: received 1.0; allowed: a number from 0 to below 1"),
        ("recipes.custom.learning_rate", float("nan"), "recipes.custom.learning_rate: received nan; allowed: a number"),
        ("recipes.custom.flip", "up", "recipes.custom.flip: received 'up'; allowed: one of none, random, alternating"),
        ("recipes.custom.epoch", 3, "unknown key recipes.custom.epoch; allowed here: model, optimizer"),
        ("recipes.custom.epoch", 3, "did you mean epochs?"),
        ("recipes.custom.model", "kustom", "recipes.custom.model: received 'kustom'; "),
        ("recipes.custom.model", "kustom", "allowed: one of baseline, compact, custom"),
        ("recipes.custom", 3, "recipes.custom: received 3; allowed: a mapping with the keys model, optimizer"),
        ("recipes", [], "recipes: received []; allowed: a mapping"),
        ("runs", {}, "runs: received {}; allowed: a mapping with at least one run"),
        ("runs.custom-0.recipe", "x", "runs.custom-0.recipe: received 'x'; allowed: one of baseline, custom"),
        ("runs.custom-0.model", "baseline", "runs.custom-0.model: received 'baseline'; allowed: 'custom'"),
        ("runs", {"lr-0.01": 3}, "runs.lr-0.01: received the name 'lr-0.01'; allowed: a name of 1 to 64"),
        ("recipes", {"lr-0.01": 3}, "no dot, which DVC reads as a path"),
        ("runs.Custom/0", {"recipe": "custom", "model": "custom", "seed": 0}, "received the name 'Custom/0'"),
        (
            "data.train_images",
            45001,
            "data.train_images: received 45001; allowed: a whole number from 10 to 50000, a mul",
        ),
        ("data.train_images", 50000, "received 50000 + 5000; allowed: at most 50000 together"),
        (
            "recipes.custom.augment_strength",
            0.5,
            "augment_strength: received 0.5; allowed: 0, since augment_policy is none",
        ),
        ("recipes.custom.augment_policy", "trivial", "received 0; allowed: above 0, since augment_policy is trivial"),
        ("recipes.custom.augment_policy", "rand", "received 'rand'; allowed: one of none, trivial"),
        ("recipes.custom.teacher_weight", 0.5, "teacher_weight: received 0.5; allowed: 0, since teacher is none"),
        ("recipes.custom.teacher", "baseline-0", "teacher_weight: received 0; allowed: above 0, since teacher is base"),
        ("recipes.custom.temperature", 0.0, "recipes.custom.temperature: received 0.0; allowed: a number from 0.1"),
        ("runs.custom-0.needs", "x", "runs.custom-0.needs: received 'x'; allowed: 'data/cifar10', since"),
        (
            "runs.custom-1",
            {"recipe": "custom", "model": "custom", "seed": 0, "needs": "data/cifar10"},
            "runs.custom-1.seed: received 0, which custom-0 has too; allowed: another seed of custom",
        ),
        ("runs.none", {"recipe": "custom", "model": "custom", "seed": 0, "needs": "data/cifar10"}, "no teacher"),
        ("recipes.custom.batch_size", 9999999, "recipes.custom.batch_size: received 9999999; allowed"),
    ],
)
def test_wrong_value_is_named_with_what_is_allowed(tree, key, value, said):
    put(tree, key, value)
    with pytest.raises(PipelineError) as raised:
        params.check(tree)
    assert said in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("teacher", "needs", "said"),
    [
        ("baseline-0", "data/cifar10", "runs.custom-0.needs: received 'data/cifar10'; allowed: 'results/baseline-0/"),
        (
            "baseline-7",
            "results/baseline-7/model.keras",
            "teacher: received 'baseline-7', which is not in runs; allowed",
        ),
        ("custom-0", "results/custom-0/model.keras", "received a circle, custom-0 -> custom-0; allowed: a run that is"),
    ],
)
def test_teacher_that_cannot_teach_is_named(tree, teacher, needs, said):
    tree["recipes"]["custom"] |= {"teacher": teacher, "teacher_weight": 0.5}
    tree["recipes"]["custom-augmented"]["teacher_weight"] = 0.0
    tree["runs"]["custom-0"]["needs"] = needs
    with pytest.raises(PipelineError) as raised:
        params.check(tree)
    assert said in str(raised.value)


def test_circle_of_teachers_is_named(tree):
    for recipe, teacher in (("custom", "compact-0"), ("compact", "custom-0")):
        tree["recipes"][recipe] |= {"teacher": teacher, "teacher_weight": 0.5}
        tree["runs"][f"{recipe}-0"]["needs"] = f"results/{teacher}/model.keras"
    with pytest.raises(PipelineError, match="a circle, custom-0 -> compact-0 -> custom-0"):
        params.check(tree)


def test_run_with_a_teacher_is_valid(tree):
    tree["recipes"]["compact"] |= {"teacher": "baseline-0", "teacher_weight": 0.5, "temperature": 4.0}
    tree["runs"]["compact-0"]["needs"] = "results/baseline-0/model.keras"
    config = params.check(tree)
    assert config.teacher_of("compact-0") == "baseline-0"
    assert config.teacher_of("custom-0") is None
    assert config.flat("compact-0")["teacher"] == "baseline-0"


def test_missing_key_is_named(tree):
    del tree["recipes"]["custom"]["epochs"]
    with pytest.raises(PipelineError, match=r"recipes\.custom\.epochs is missing; add it: a whole number from 1 to"):
        params.check(tree)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: 1\na: 2\n", "the key 'a' is given twice"),
        ("a: [", "not valid YAML"),
        ("!!python/object/apply:os.system [true]", "not valid YAML"),
        ("", "allowed: a mapping with the keys data"),
        ("[" * 5000, "not valid YAML"),
    ],
)
def test_unreadable_file_is_one_line(tmp_path, text, said):
    (tmp_path / "params.yaml").write_text(text)
    with pytest.raises(PipelineError, match=said) as raised:
        params.read(tmp_path / "params.yaml")
    assert "\n" not in str(raised.value)


def test_absent_file_is_said(tmp_path):
    with pytest.raises(PipelineError, match="is not here"):
        params.read(tmp_path / "params.yaml")


def test_numbers_mean_what_they_mean_to_dvc():
    assert params.parse_text("[5e-4, 1e3, .5, 007, off, 'x', ~]", "text") == [5e-4, 1e3, 0.5, 7, "off", "x", None]


def test_recipe_takes_over_another_and_changes_a_value(tree):
    text = TEXT.replace("  custom:  ", "  custom: ").replace("\n  custom:\n", "\n  custom: &custom\n", 1)
    text = text.replace("\nruns:", "\n  smoothed: {<<: *custom, label_smoothing: 0.1}\n\nruns:", 1)
    recipes = params.check(params.parse_text(text, "text")).recipes
    assert recipes["smoothed"].model_dump() == recipes["custom"].model_dump() | {"label_smoothing": 0.1}


@pytest.mark.parametrize("text", ["a: 1\nb: [1", "a: 1\nb: *c", "a: 1\na: 2", "a: 1\nb: !x 2"])
def test_line_of_the_fault_is_named(text):
    with pytest.raises(PipelineError, match=r"^text is not valid YAML: line 2: "):
        params.parse_text(text, "text")


@in_its_own_time
@given(
    st.recursive(st.none() | st.booleans() | st.floats() | st.text(), lambda inner: st.dictionaries(st.text(), inner))
)
def test_any_other_tree_is_refused_in_one_line(value):
    with pytest.raises(PipelineError) as raised:
        params.check(value)
    assert "\n" not in str(raised.value)


@in_its_own_time
@given(key=st.sampled_from(["epochs", "batch_size", "learning_rate", "flip", "model", "ema_decay"]), data=st.data())
def test_any_other_value_is_refused_in_one_line(key, data):
    tree = yaml.safe_load((ROOT / "params.yaml").read_text())
    tree["recipes"]["custom"][key] = data.draw(
        st.none()
        | st.booleans()
        | st.text().filter(lambda t: t not in ("none", "random", "custom"))
        | st.lists(st.integers())
    )
    with pytest.raises(PipelineError, match=rf"recipes\.custom\.{key}: received") as raised:
        params.check(tree)
    assert "\n" not in str(raised.value)


@in_its_own_time
@given(st.floats(1e-8, 100), st.integers(1, 1000))
def test_values_in_range_come_back_unchanged(rate, epochs):
    tree = yaml.safe_load((ROOT / "params.yaml").read_text())
    tree["recipes"]["custom"] |= {"learning_rate": rate, "epochs": epochs}
    recipe = params.check(tree).recipes["custom"]
    assert (recipe.learning_rate, recipe.epochs) == (rate, epochs)


@pytest.mark.parametrize("verb", ["train", "evaluate"])
def test_errors_come_before_tensorflow(verb, tmp_path, tree):
    put(tree, "recipes.custom.epochs", -1)
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(tree))
    code = f"import sys, pipeline.{verb} as v; sys.argv = ['x', 'custom-0']\n"
    code += "try: v.main()\nexcept Exception as e: print(e)\n"
    code += "assert 'tensorflow' not in sys.modules"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env={"PYTHONPATH": str(ROOT)}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "recipes.custom.epochs: received -1" in done.stdout


def test_a_wrong_value_ends_with_one_line_and_a_failing_status(tmp_path, tree):
    put(tree, "data.val_images", -1)
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(tree))
    done = subprocess.run(
        [sys.executable, "-m", "pipeline.config.params"],
        cwd=tmp_path,
        env={"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert done.stderr == (
        "error: params.yaml: data.val_images: received -1; allowed: a whole number from 10 to 50000, a multiple of 10\n"
    )


TEXT = (ROOT / "params.yaml").read_text()
HOSTILE = {
    "aliases that double 60 times": "a0: &a0 [x, x]\n"
    + "".join(f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]\n" for i in range(1, 60))
    + "data: *a59",
    "a list that holds itself": "data: &a [*a]",
    "a mapping that holds itself": "&a\ndata: *a",
    "recipes that hold themselves": "recipes: &a {b: *a}",
    "merges that double": "a: &a {b: 1}\n" * 20 + "data: {!!merge x: [*a, *a]}",
    "merges that double 60 times": "a0: &a0 {x: 1}\n"
    + "".join(f"a{i}: &a{i} {{<<: [*a{i - 1}, *a{i - 1}]}}\n" for i in range(1, 60)),
    "merges that grow": "a0: &a0 {x: 1}\n" + "".join(f"a{i}: &a{i} {{<<: *a{i - 1}, x: 1}}\n" for i in range(1, 5_000)),
    "a key given twice, its value an alias that doubles": "a0: &a0 [x, x]\n"
    + "".join(f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]\n" for i in range(1, 60))
    + "a59: *a59",
    "a Python object": "!!python/object/apply:os.system ['touch evil']",
    "a tag of a date": "!!timestamp never",
    "a tag of a number": "!!int ''",
    "a tag of a set": "!!set [a]",
    "a tag of a huge number": "data: {train_images: !!int 0b" + "1" * 100_000 + "}",
    "an own tag": "%TAG ! tag:x,1:\n---\n!x a",
    "another version": "%YAML 9.9\n---\na: 1",
    "two documents": "a: 1\n---\nb: 1",
    "a key that is a list": "? [a]\n: 1",
    "a key with a line break": TEXT + '"a\\nb": 1\n',
    "a key with a terminal's escape": TEXT + '"a\\e[31m": 1\n',
    "a key that is half a character": TEXT + '"\\ud800": 1\n',
    "a long key": TEXT + "k" * 500 + ": 1\n",
    "a long alias": "a: *" + "b" * 5000,
    "NUL": "a: \0",
    "a number of 100,000 digits": "data: " + "1" * 100_000,
    "100,000 digits and a letter": "data: " + "1" * 100_000 + "x",
    "20,000 keys": "".join(f"k{i}: 1\n" for i in range(20_000)),
    "deep lists": "[" * 300 + "]" * 300,
    "deeper mappings": "{a: " * 5000,
}


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)
def test_hostile_text_is_refused_in_one_short_line_and_soon(tmp_path, monkeypatch, text):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "params.yaml").write_text(text)
    began = time.process_time()  # a busy machine is no failure
    with pytest.raises(PipelineError, match=r"^params\.yaml") as raised:
        params.read()
    assert time.process_time() - began < 5
    assert is_one_line(raised.value)
    assert len(str(raised.value)) < 600
    assert [path.name for path in tmp_path.iterdir()] == ["params.yaml"]


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda path: path.mkdir(), "no regular file"),
        (os.mkfifo, "no regular file"),
        (lambda path: path.symlink_to("/dev/zero"), "no regular file"),
        (lambda path: path.symlink_to(path), "cannot be read"),
        (lambda path: path.symlink_to("/no/such/file"), "is not here"),
        (lambda path: path.write_bytes(TEXT.encode("utf-16")), "save it as UTF-8"),
        (lambda path: path.write_bytes(b"a: \xff"), "save it as UTF-8"),
        (lambda path: path.write_bytes(b" " * (params.MOST_BYTES + 1)), "has 1,000,001 bytes; allowed: at most 1,000"),
        (lambda path: os.truncate(os.open(path, os.O_CREAT | os.O_WRONLY), 1 << 40), "1,099,511,627,776 bytes"),
    ],
    ids=["folder", "pipe", "endless", "circle", "nowhere", "UTF-16", "bytes", "too long", "1 TiB"],
)
def test_what_is_no_text_file_is_refused_in_one_line(tmp_path, make, said):
    make(tmp_path / "params.yaml")
    with pytest.raises(PipelineError, match=said) as raised:
        params.read(tmp_path / "params.yaml")
    assert "\n" not in str(raised.value)


def test_byte_order_mark_changes_nothing(tmp_path):
    (tmp_path / "params.yaml").write_text(TEXT, encoding="utf-8-sig")
    assert params.read(tmp_path / "params.yaml") == params.read(ROOT / "params.yaml")


def is_one_line(error):
    """Also for a terminal."""
    return len(str(error).splitlines()) == 1 and "\x1b" not in str(error)


def accepted_or_refused_in_one_line(text):
    try:
        params.check(params.parse_text(text, "text"), "text")
    except PipelineError as error:
        assert is_one_line(error)
        assert len(str(error)) < 1000


@fuzz
@given(st.text(st.sampled_from("abz019.,:-?!&*#|>%@`'\"{}[]<=~\\/ \n\t\r\ufeff\u2028é\x85")) | st.text())
def test_any_text_is_refused_in_one_line(text):
    accepted_or_refused_in_one_line(text)


@fuzz
@given(st.integers(0, len(TEXT)), st.integers(0, 9), st.text("a1.:-?!&*#|>'\"{}[]\\ \n\té\ud800"))
def test_any_damage_of_the_file_is_refused_in_one_line_or_harmless(place, cut, put_in):
    accepted_or_refused_in_one_line(TEXT[:place] + put_in + TEXT[place + cut :])


@fuzz
@given(
    st.sampled_from(["", "data", "train", "recipes", "recipes.custom", "runs", "runs.custom-0", "compare.budgets"]),
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    st.none() | st.integers() | st.text() | st.dictionaries(st.text(), st.integers()),
)
def test_any_other_key_is_refused_in_one_line(section, key, value):
    tree = yaml.safe_load(TEXT)
    inner = tree
    for part in filter(None, section.split(".")):
        inner = inner[part]
    assume(key not in inner)
    inner[key] = value
    with pytest.raises(PipelineError) as raised:
        params.check(tree)
    assert is_one_line(raised.value)


@fuzz
@given(st.from_regex(r"[-+.]?[0-9]{1,4}[0-9.eE+_x-]{0,4}", fullmatch=True))
def test_what_is_a_number_to_us_is_the_same_number_to_dvc(text):
    ours = params.parse_text(f"a: {text}", "text")["a"]
    if not isinstance(ours, str):
        theirs = loads_yaml(f"a: {text}")["a"]
        assert (ours, type(ours)) == (theirs, type(theirs))
