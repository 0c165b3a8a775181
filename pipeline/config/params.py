"""Reads and checks params.yaml: `python -m pipeline.config.params`. Its only reader; imports no TensorFlow."""

import difflib
import typing
import warnings
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.constructor import ConstructorError, SafeConstructor
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.scanner import Scanner, ScannerError

from pipeline import models
from pipeline.records import files
from pipeline.system import command
from pipeline.system.command import PipelineError, plain, shown
from pipeline.training.cifar10 import TEST_IMAGES, TRAIN_IMAGES

MOST_BYTES = 1_000_000  # of a params file: thousands of runs
MOST_MERGED_KEYS = 100  # that `<<` adds to a mapping: a recipe has some twenty


def _whole(low: int, high: int, **more: Any) -> Any:
    multiple = f", a multiple of {more['multiple_of']}" if more else ""
    return Field(ge=low, le=high, description=f"a whole number from {low} to {high}{multiple}", **more)


def _number(low: float, high: float, *, below: bool = False) -> Any:
    bound: dict[str, Any] = {"lt": high} if below else {"le": high}
    words = f"a number from {low:g} to {'below ' if below else ''}{high:g}"
    return Field(ge=low, allow_inf_nan=False, description=words, **bound)


def _choice(*values: str) -> Any:
    return Field(description=f"one of {', '.join(values)}")


Name = Annotated[
    str,
    Field(
        pattern=r"^[a-z0-9][a-z0-9_-]{0,63}$",
        description="a name of 1 to 64 lower-case letters, digits, '_' and '-', the first a letter or a digit; "
        "no dot, which DVC reads as a path",
    ),
]


NONE = "none"  # as a recipe's teacher


def needs(teacher: str) -> str:
    """What a run must wait for, as its key `needs` names it: its teacher's model, or else the data."""
    return "data/cifar10" if teacher == NONE else f"results/{teacher}/model.keras"


class Section(BaseModel):
    """A mapping in params.yaml: exactly these keys, exactly these types, nothing converted."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, hide_input_in_errors=True)


class Data(Section):
    """How many images each split has, and how the validation split is drawn."""

    train_images: int = _whole(10, TRAIN_IMAGES, multiple_of=10)
    val_images: int = _whole(10, TRAIN_IMAGES, multiple_of=10)
    test_images: int = _whole(10, TEST_IMAGES, multiple_of=10)
    split_seed: int = _whole(0, 2**31 - 1)

    @property
    def comparable(self) -> bool:
        """Whether all images are used, so that results are comparable with the published ones."""
        return self.train_images + self.val_images == TRAIN_IMAGES and self.test_images == TEST_IMAGES


class Train(Section):
    """What every training run shares."""

    device: Literal["auto", "cpu", "gpu"] = _choice("auto", "cpu", "gpu")
    xla: Literal["auto", "on", "off"] = _choice("auto", "on", "off")


class Recipe(Section):
    """A model's name and how it is trained. Units and meanings: the comments in params.yaml."""

    model: Name
    optimizer: Literal["sgd", "adamw", "muon"] = _choice("sgd", "adamw", "muon")
    learning_rate: float = _number(1e-8, 100)
    momentum: float = _number(0, 1, below=True)
    schedule: Literal["constant", "linear", "cosine"] = _choice("constant", "linear", "cosine")
    warmup_fraction: float = _number(0, 1, below=True)
    weight_decay: float = _number(0, 10)
    batch_size: int = _whole(1, 10_000)
    epochs: int = _whole(1, 1_000)
    flip: Literal["none", "random", "alternating"] = _choice("none", "random", "alternating")
    crop_pixels: int = _whole(0, 16)
    augment_policy: Literal["none", "trivial"] = _choice("none", "trivial")
    augment_strength: float = _number(0, 1)
    label_smoothing: float = _number(0, 1, below=True)
    ema_decay: float = _number(0, 1, below=True)
    norm_statistics: Literal["moving", "precise"] = _choice("moving", "precise")
    teacher: Name
    teacher_weight: float = _number(0, 1)
    temperature: float = _number(0.1, 100)
    precision: Literal["auto", "float32", "bfloat16", "float16"] = _choice("auto", "float32", "bfloat16", "float16")


class Run(Section):
    """One training run: a recipe and a seed. `model` and `needs` follow from the recipe; dvc.yaml reads them here."""

    recipe: Name
    model: Name
    seed: int = _whole(0, 2**31 - 1)
    needs: str = Field(description="results/TEACHER/model.keras if the recipe has a teacher, else data/cifar10")


class Evaluate(Section):
    """What evaluate reports."""

    calibration_bins: int = _whole(1, 1_000)
    most_confident_errors: int = _whole(1, 100)


class ExportedRun(Section):
    """A run whose files are recorded, and what limits them."""

    max_bytes: int = _whole(1, 10**12)


class Export(Section):
    """What export converts, and how much the int8 file may lose."""

    calibration_images: int = _whole(1, TRAIN_IMAGES)
    max_int8_loss: float = _number(0, 1)
    runs: dict[Name, ExportedRun]


class Budget(Section):
    """Limits to keep to and an accuracy to beat."""

    max_parameters: int = _whole(1, 10**12)
    max_epochs: int = _whole(1, 10**6)
    accuracy_to_beat: float = _number(0, 1)


class Champion(Section):
    """When a recipe may be a budget's champion, and how much accuracy a cheaper one may cost."""

    min_seeds: int = _whole(1, 1_000)
    margin: float = _number(0, 1)


class Compare(Section):
    """What the runs are held against, and which model is the one to take."""

    champion: Champion
    budgets: dict[Name, Budget]


class Dimension(Section):
    """Values of one key of a recipe: a range, with its ends, or choices."""

    low: Any = Field(default=None, description="the lowest value, with high")
    high: Any = Field(default=None, description="the highest value, with low")
    log: bool = Field(default=False, description="true or false: whether orders of magnitude are equally likely")
    choices: Any = Field(default=None, description="a list of values, instead of low and high")


class Sweep(Section):
    """A search for better values of a recipe's keys, on the validation split."""

    recipe: Name
    trials: int = _whole(1, 10_000)
    epochs: int | None = Field(default=None, ge=1, le=1_000, description="a whole number from 1 to 1000")
    sampler: Literal["tpe", "random", "grid"] = _choice("tpe", "random", "grid")
    pruner: Literal["none", "median", "hyperband"] = _choice("none", "median", "hyperband")
    space: dict[str, Dimension] = Field(min_length=1, description="a mapping with at least one key of a recipe")


class Params(Section):
    """The whole of params.yaml."""

    data: Data
    train: Train
    recipes: dict[Name, Recipe]
    runs: dict[Name, Run] = Field(min_length=1, description="a mapping with at least one run")
    evaluate: Evaluate
    export: Export
    compare: Compare
    sweeps: dict[Name, Sweep] = {}

    def recipe_of(self, run: str) -> Recipe:
        """The recipe of a run in the list."""
        return self.recipes[self.runs[run].recipe]

    def teacher_of(self, run: str) -> str | None:
        """The run whose model this run learns from too, or None."""
        teacher = self.recipe_of(run).teacher
        return None if teacher == NONE else teacher

    def flat(self, run: str) -> dict[str, Any]:
        """What makes this training what it is, by the names that params.yaml uses: MLflow's params."""
        return {
            "recipe": self.runs[run].recipe,
            "seed": self.runs[run].seed,
            **self.recipe_of(run).model_dump(),
            **self.data.model_dump(),
            **self.train.model_dump(),
        }

    def weight_params(self, run: str) -> dict[str, Any]:
        """Of `flat`, what the weights depend on: nothing learns from the test images."""
        return {key: value for key, value in self.flat(run).items() if key != "test_images"}

    def check_run(self, run: str) -> str:
        """Returns `run` if it is in the list of runs, else raises PipelineError."""
        if run not in self.runs:
            raise PipelineError(f"unknown run {run!r}; params.yaml lists: {', '.join(self.runs)}")
        return run


def read(path: str | Path = "params.yaml") -> Params:
    """Reads and checks the file.

    Raises:
        PipelineError: one line with the key, the value received and what is allowed.
    """
    return check(parse(path), str(path))


def parse(path: str | Path) -> Any:
    """The file's values, unchecked. Raises PipelineError if it cannot be read or is not YAML."""
    try:
        text = files.read(Path(path), MOST_BYTES).decode("utf-8")
    except FileNotFoundError:
        fix = f"; {command.where_to_run()}" if str(path) == "params.yaml" else ""
        raise PipelineError(f"{path} is not here{fix}") from None
    except OSError as error:
        raise PipelineError(f"{path} cannot be read: {error}") from None
    except UnicodeDecodeError as error:
        raise PipelineError(f"{path} cannot be read: {error}; save it as UTF-8") from None
    return parse_text(text, str(path))


def parse_text(text: str, source: str) -> Any:
    """The values of YAML text as DVC reads it; `source` is named in errors. Raises PipelineError if it is not YAML."""
    parser = YAML(typ="safe", pure=True)
    parser.Scanner, parser.Constructor = _Scanner, _Constructor
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # an anchor of a name given before
            return parser.load(text)
    except MarkedYAMLError as error:
        line = f"line {error.problem_mark.line + 1}: " if error.problem_mark else ""
        raise PipelineError(f"{source} is not valid YAML: {line}{' '.join(str(error.problem).split()):.300}") from None
    except (YAMLError, ValueError, RecursionError) as error:
        raise PipelineError(f"{source} is not valid YAML: {' '.join(str(error).split()):.300}") from None


def check(tree: Any, source: str = "params.yaml") -> Params:
    """Checks a parsed tree; `source` is named in errors. Raises as `read`."""
    params = check_values(tree, source)
    problem = _contradiction(params)
    if problem:
        raise PipelineError(f"{source}: {problem}")
    check_sweeps(params, source)
    return params


def check_values(tree: Any, source: str) -> Params:
    """Checks each value by itself, not what they say together. Raises as `read`."""
    try:
        return Params.model_validate(tree)
    except ValidationError as error:
        raise PipelineError(f"{source}: {_one_line(error, tree)}") from None
    except RecursionError:
        raise PipelineError(f"{source}: the values are nested too deeply; params.yaml has three levels") from None


def _contradiction(params: Params) -> str | None:
    data = params.data
    if data.train_images + data.val_images > TRAIN_IMAGES:
        return (
            f"data.train_images + data.val_images: received {data.train_images} + {data.val_images}; "
            f"allowed: at most {TRAIN_IMAGES} together"
        )
    for name, recipe in params.recipes.items():
        if recipe.model not in models.names():
            advice = "; `git add` it, for DVC copies only what git tracks" if command.in_temporary_copy() else ""
            return (
                f"recipes.{name}.model: received {recipe.model!r}; allowed: one of {', '.join(models.names())} "
                f"(a new model is a file pipeline/models/{recipe.model}.py{advice})"
            )
        if recipe.batch_size > data.train_images:
            return (
                f"recipes.{name}.batch_size: received {recipe.batch_size}; "
                f"allowed: at most data.train_images, {data.train_images}"
            )
        for switch, off, key in (("teacher", NONE, "teacher_weight"), ("augment_policy", NONE, "augment_strength")):
            value, chosen = getattr(recipe, key), getattr(recipe, switch)
            if (chosen == off) != (value == 0):
                allowed = f"0, since {switch} is {off}" if chosen == off else f"above 0, since {switch} is {chosen}"
                return f"recipes.{name}.{key}: received {value:g}; allowed: {allowed}"
    seeds: dict[tuple[str, int], str] = {}
    for name, run in params.runs.items():
        if name == NONE:
            return (
                f"runs.{name}: received the name {NONE!r}; allowed: any other, since `teacher: {NONE}` means no teacher"
            )
        if name.startswith("published-"):
            return f"runs.{name}: received a name that begins with published-; allowed: any other, those are references"
        if (twin := seeds.setdefault((run.recipe, run.seed), name)) != name:
            return f"runs.{name}.seed: received {run.seed}, which {twin} has too; allowed: another seed of {run.recipe}"
        if run.recipe not in params.recipes:
            return f"runs.{name}.recipe: received {run.recipe!r}; allowed: one of {', '.join(params.recipes)}"
        if run.model != params.recipes[run.recipe].model:
            return (
                f"runs.{name}.model: received {run.model!r}; "
                f"allowed: {params.recipes[run.recipe].model!r}, the model of recipes.{run.recipe}"
            )
        teachers = _teachers(params, name)
        if teachers[-1] not in params.runs:
            return (
                f"recipes.{run.recipe}.teacher: received {teachers[-1]!r}, which is not in runs; "
                f"allowed: one of {', '.join(params.runs)}"
            )
        if teachers[-1] in teachers[:-1]:
            circle = " -> ".join(teachers)
            return f"recipes.{run.recipe}.teacher: received a circle, {circle}; allowed: a run that is trained before"
        if run.needs != needs(params.recipe_of(name).teacher):
            return (
                f"runs.{name}.needs: received {run.needs!r}; allowed: {needs(params.recipe_of(name).teacher)!r}, since "
                f"recipes.{run.recipe}.teacher is {params.recipe_of(name).teacher}"
            )
    for name in params.export.runs:
        if name not in params.runs:
            return f"export.runs.{name}: received a run that is not in runs; allowed: {', '.join(params.runs)}"
        same = [other for other, run in params.runs.items() if run.recipe == params.runs[name].recipe]
        lowest = min(same, key=lambda other: params.runs[other].seed)
        if name != lowest:
            return f"export.runs.{name}: received another run than the recipe's lowest seed; allowed: {lowest}"
    return None


def check_sweeps(params: Params, source: str = "params.yaml") -> None:
    """Raises PipelineError if a sweep names no recipe, or would try a value that a recipe may not have."""
    from pipeline.config import sweeps

    for name, sweep in params.sweeps.items():
        if problem := sweeps.problem(params, name, sweep):
            raise PipelineError(f"{source}: sweeps.{name}{problem}")


def _teachers(params: Params, run: str) -> list[str]:
    """A run, its teacher, the teacher's teacher, … up to one without, one that is not listed, or one seen before."""
    chain = [run]
    while run in params.runs and params.runs[run].recipe in params.recipes and (teacher := params.teacher_of(run)):
        chain.append(teacher)
        if teacher in chain[:-1]:
            break
        run = teacher
    return chain


def _one_line(error: ValidationError, tree: Any) -> str:
    """The first problem that pydantic found: key, value received, what is allowed."""
    first, *others = error.errors(include_url=False)
    location = [str(part) for part in first["loc"] if part != "[key]"]
    key = ".".join(plain(part) for part in location) or "the file"
    more = f" (and {len(others)} more)" if others else ""
    section, field = _declared(location)
    if first["type"] == "extra_forbidden":
        known = list(section.model_fields) if section else []
        close = difflib.get_close_matches(location[-1], known, n=1)
        hint = f"; did you mean {close[0]}?" if close else ""
        return f"unknown key {key}; allowed here: {', '.join(known)}{hint}{more}"
    if first["type"] == "missing":
        return f"{key} is missing; add it: {field}{more}"
    if first["loc"][-1:] == ("[key]",):
        return f"{key}: received the name {shown(location[-1])}; allowed: {_describe(Name)}{more}"
    value: Any = tree
    for part in first["loc"]:
        if not isinstance(value, dict) or part not in value:  # a key that is no text: pydantic spells it in its own way
            return f"{key}: received a key that is no text; allowed: {field}{more}"
        value = value[part]
    return f"{key}: received {shown(value)}; allowed: {field}{more}"


def _declared(location: list[str]) -> tuple[type[Section] | None, str]:
    """The section that a location lies in, and in words what is allowed at the location."""
    section: type[Section] | None = None
    kind: Any = Params
    words = "a mapping"
    for part in location:
        if typing.get_origin(kind) is dict:
            section, kind, words = None, typing.get_args(kind)[1], "a mapping"
        elif part in kind.model_fields:
            field = kind.model_fields[part]
            section, kind = kind, field.annotation
            words = field.description or "a mapping"
        else:
            section = kind
    if isinstance(kind, type) and issubclass(kind, Section):
        words = f"a mapping with the keys {', '.join(kind.model_fields)}"
    return section, words


def _describe(annotated: Any) -> str:
    return typing.get_args(annotated)[1].description


class _Scanner(Scanner):
    """Refuses tags: they make other types of values than the ones above, and fail in ways of their own."""

    def scan_tag(self) -> Any:
        raise ScannerError(None, None, "a tag, which begins with '!', is not allowed", self.reader.get_mark())


class _Constructor(SafeConstructor):
    """Names a key given twice without its value, and bounds `<<`: either may hold aliases that double many times."""

    def check_mapping_key(self, node: Any, key_node: Any, mapping: Any, key: Any, value: Any) -> bool:
        if key in mapping:
            raise ConstructorError(None, None, f"the key {shown(key)} is given twice", key_node.start_mark)
        return True

    def flatten_mapping(self, node: Any) -> Any:
        written = len(node.value)
        super().flatten_mapping(node)
        if len(node.value) > written + MOST_MERGED_KEYS:
            problem = f"'<<' adds more than {MOST_MERGED_KEYS} keys"
            raise ConstructorError(None, None, problem, node.start_mark)


def main() -> None:
    """Checks params.yaml and says how many runs it lists."""
    print(f"params.yaml is valid; runs: {', '.join(read().runs)}")


if __name__ == "__main__":
    command.run(main)
