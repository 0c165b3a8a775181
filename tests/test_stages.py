"""dvc.yaml: what makes a training stale is what changes its weights, no more and no less."""

import ast
from pathlib import Path

import pytest
import yaml
from conftest import ROOT

from pipeline import models
from pipeline.config import params
from pipeline.records import fingerprint

STAGES = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
# Imported by a model's file, yet without influence on weights: how errors are shown.
WITHOUT_INFLUENCE = {"pipeline/__init__.py", "pipeline/system/__init__.py", "pipeline/system/command.py"}
# Imported by evaluate and compare, yet without influence on what they write: which values are refused, how a command
# starts, how files are read and written, what is logged and what the terminal shows; and where custom layers are found.
WITHOUT_RESULTS = (
    "pipeline/config/",
    "pipeline/models/",
    "pipeline/records/",
    "pipeline/system/",
    "pipeline/tracking/",
    "pipeline/report/recorded.py",
    "pipeline/report/terminal.py",
)


def test_student_waits_for_its_teacher_and_is_stale_with_it():
    assert "${item.needs}" in STAGES["train"]["do"]["deps"]
    assert params.needs("teacher-0") == next(iter(STAGES["train"]["do"]["outs"][0])).replace("${key}", "teacher-0")
    assert params.needs("none") in STAGES["train"]["do"]["deps"]


def listed_files(stage: str, model: str = "custom") -> set[str]:
    """The Python files among the deps of a stage, those of listed folders included, as paths from the root."""
    listed = STAGES[stage].get("do", STAGES[stage])["deps"]
    deps = [ROOT / dep.replace("${item.model}", model) for dep in listed if "pipeline/" in dep]
    files = {file for dep in deps for file in ([dep] if dep.is_file() else dep.rglob("*.py"))}
    return {str(file.relative_to(ROOT)) for file in files}


def imported(path: Path, except_for: tuple[str, ...] = ()) -> set[str]:
    """Files of this project that a file imports when it runs, as paths from the root; transitively."""
    found, waiting = set(), [path]
    while waiting:
        tree = ast.parse(waiting.pop().read_text())
        typing_only = {
            id(inner)
            for node in ast.walk(tree)
            if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)
            for inner in ast.walk(node)
        }
        for node in ast.walk(tree):
            if (
                isinstance(node, ast.ImportFrom)
                and (node.module or "").startswith("pipeline")
                and id(node) not in typing_only
            ):
                for name in [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]:
                    base = ROOT / name.replace(".", "/")
                    for file in (base.with_suffix(".py"), base / "__init__.py"):
                        if (
                            file.exists()
                            and (relative := str(file.relative_to(ROOT))) not in found
                            and not relative.startswith(except_for)
                        ):
                            found.add(relative)
                            waiting.append(file)
    return found


@pytest.mark.parametrize("model", models.names())
def test_training_depends_on_what_changes_weights(model):
    listed = listed_files("train", model)
    needed = {"pipeline/training/loop.py", f"pipeline/models/{model}.py"}
    for file in list(needed):
        needed |= imported(ROOT / file)
    assert listed == needed - WITHOUT_INFLUENCE


def test_checkpoint_is_of_the_code_that_a_training_depends_on():
    assert {key.replace("code ", "pipeline/") for key in fingerprint.code_hashes("custom")} == listed_files(
        "train", "custom"
    )


@pytest.mark.parametrize("stage", ["evaluate", "export", "compare"])
def test_stage_depends_on_what_changes_its_results(stage):
    path = f"pipeline/{stage}.py"
    packages = {file for file in listed_files(stage) if file.endswith("__init__.py")}  # of listed folders, docstrings
    needed = {path} | imported(ROOT / path, except_for=WITHOUT_RESULTS)
    if stage == "compare":  # the page shows their docstrings
        needed |= {f"pipeline/models/{model}.py" for model in models.names()}
    assert listed_files(stage) - packages == {file for file in needed if not file.endswith("__init__.py")}


def test_only_cheap_stages_read_what_never_repeats():
    for stage in ("train", "evaluate", "export"):
        assert not any("training.json" in dep or "speed.json" in dep for dep in STAGES[stage]["do"]["deps"])


def code() -> dict[str, list[ast.AST]]:
    """The nodes of every file of the pipeline, by its path from the root."""
    files = sorted((ROOT / "pipeline").rglob("*.py"))
    return {str(file.relative_to(ROOT)): list(ast.walk(ast.parse(file.read_text()))) for file in files}


def test_only_evaluate_and_export_read_the_test_split():
    def names_it(node: ast.AST) -> bool:
        names = [getattr(node, field, None) for field in ("attr", "id", "name", "value")]
        return bool({"read_test", "test_batch.bin", "TEST_FILES"} & {name for name in names if isinstance(name, str)})

    readers = {file for file, nodes in code().items() if any(map(names_it, nodes))}
    # cifar10.py names the file, dataset.py and splits.py read it for those who ask; sources.py fetches it, by its MD5.
    declare = {
        "pipeline/training/cifar10.py",
        "pipeline/training/dataset.py",
        "pipeline/splits.py",
        "pipeline/sources.py",
    }
    assert readers - declare == {"pipeline/evaluate.py", "pipeline/export.py"}


def test_export_reads_the_test_split_after_all_choices():
    module = ast.parse((ROOT / "pipeline/export.py").read_text())
    exports = [node for node in module.body if isinstance(node, ast.FunctionDef) and node.name.startswith("export_")]
    for function in exports:
        calls = [node for node in ast.walk(function) if isinstance(node, ast.Call)]
        names = {call.lineno: name for call in calls if (name := ast.unparse(call.func))}
        (read,) = (line for line, name in names.items() if name == "read_test")
        choices = [
            line for line, name in names.items() if name.endswith((".float32", ".int8", "violations", ".convert"))
        ]
        assert choices
        assert max(choices) < read
    assert len(exports) == 2


def test_only_tracking_imports_mlflow():
    def modules(node: ast.AST) -> list[str]:
        if isinstance(node, ast.Import):
            return [alias.name for alias in node.names]
        return [node.module or ""] if isinstance(node, ast.ImportFrom) else []

    importers = {
        file
        for file, nodes in code().items()
        if any(module.split(".")[0] == "mlflow" for node in nodes for module in modules(node))
    }
    assert importers
    assert all(file.startswith("pipeline/tracking/") for file in importers), importers


def test_every_result_is_kept_in_git_or_fetched():
    for name, stage in STAGES.items():
        for out in [
            *(body := stage.get("do", stage)).get("outs", []),
            *body.get("metrics", []),
            *body.get("plots", []),
        ]:
            assert name == "fetch" or next(iter(out.values()))["cache"] is False
