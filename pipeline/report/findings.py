"""What the comparison says, in sentences: the same in the terminal and in Markdown."""

import math
from collections.abc import Iterable
from typing import Any

from pipeline.records.record import NOT_COMPARABLE
from pipeline.report import champions, tables


def budgets(comparison: dict[str, Any]) -> list[str]:
    """For each budget: the model to take, its accuracy, how far ahead it is and whether that is certain."""
    return [" ".join(_budget(comparison, budget, champion)) for budget, champion in comparison["champions"].items()]


def _budget(comparison: dict[str, Any], budget: str, champion: dict[str, Any]) -> list[str]:
    limits = f"at most {limit_words(comparison['limits'][budget])}"
    name = champion["recipe"]
    if name is None:
        return [f"{budget} ({limits}): {champion['note']}."]
    row = comparison["recipes"][name]
    label = "champion" if champion["status"] == "champion" else "stand-in"
    sentences = [
        f"{budget} ({limits}): take {champion['run']} ({label}).",
        f"Recipe {name}: test accuracy {tables.cell(row, 'test_accuracy')} %, "
        f"validation {tables.cell(row, 'val_accuracy')} %, n = {row['seeds']}.",
    ]
    if row["seeds"] > 1:
        run = run_of(comparison, champion["run"])
        sentences.append(f"{run['run']} itself: test accuracy {tables.cell(run, 'test_accuracy')} %.")
    if rival := best_other(comparison, champion):
        sentences.append(_difference(pair_of(comparison, name, rival), name, comparison["recipes"]))
    for row in comparison["against_published"]:
        if (row["recipe"], row["published"]) == (name, budget):
            sentences.append(f"Against the published result: {_points(row['difference'], row['interval'])}).")
    sentences += teacher_notes(comparison, name)
    if champion["note"]:
        sentences.append(f"{champion['note'][0].upper()}{champion['note'][1:]}.")
    return sentences


def limit_words(limits: dict[str, Any]) -> str:
    """What a budget allows."""
    return f"{limits['max_parameters']:,} parameters and {limits['max_epochs']} epochs"


def budget_words(limits: dict[str, Any]) -> str:
    """What a budget allows, and the accuracy to beat."""
    return f"at most {limit_words(limits)}, test accuracy above {100 * limits['accuracy_to_beat']:.5g} %"


def budget_notes(comparison: dict[str, Any]) -> list[str]:
    """What each budget asks for."""
    return [f"{name}: {budget_words(limits)}" for name, limits in comparison["limits"].items()]


def _difference(pair: dict[str, Any], name: str, recipes: dict[str, Any]) -> str:
    """How far a recipe is from another of its budget, and whether that is certain."""
    sign = 1 if pair["recipes"][0] == name else -1
    rival = pair["recipes"][1 if sign > 0 else 0]
    ours, theirs = (runs[0] for runs in (pair["runs"] if sign > 0 else reversed(pair["runs"])))
    limits = sorted(sign * limit for limit in pair["interval"])
    measured = f"{_points(sign * pair['difference'], limits)}, adjusted p {tables.p(pair['p_adjusted'])})"
    is_told_apart = pair["verdict"] != "not told apart"
    if pair["of"] == "recipes":
        better = f"{name} is {'better' if sign > 0 else 'worse'}, significant at the 5 % level"
        return f"Against {rival}, the best of the others: {measured}. {better if is_told_apart else 'Not told apart'}."
    single = " and ".join(recipe for recipe in pair["recipes"] if recipes[recipe]["seeds"] == 1)
    significant = "significant" if is_told_apart else "not significant"
    return (
        f"{ours} against {theirs}, the best of the others: {measured}. The difference between these two sets of "
        f"weights is {significant}; whether the recipes differ is open, with one seed of {single}."
    )


def _points(difference: float, limits: list[float]) -> str:
    return f"{100 * difference:+.2f} points of test accuracy (95 % interval {tables.interval(limits)}"


def answer(comparison: dict[str, Any], budget: str) -> list[str]:
    """The model to take within a budget, how much better it is than the best other recipe, and whether that is certain.

    The first sentence says what, the others how certain. Compared are test accuracies, by the pair's own verdict; the
    model was chosen by validation accuracy.
    """
    champion = comparison["champions"][budget]
    limits = limit_words(comparison["limits"][budget])
    name = champion["recipe"]
    if name is None:
        return [f"Within {limits}: {champion['note']}."]
    published = {row["recipe"]: row for row in comparison["against_published"] if row["published"] == budget}
    rival = best_other(comparison, champion)
    ahead = f"; it {beats(published[name]['interval'])}" if name in published else ""
    learned = teacher_notes(comparison, name)
    if rival is None:
        return [f"Within {limits}, take {champion['run']}: its recipe is the only one there{ahead}.", *learned]
    pair = pair_of(comparison, name, rival)
    ours, theirs = sides(pair, name)
    taken = name if pair["of"] == "recipes" else champion["run"]
    measured = {run["run"]: run for run in comparison["runs"]} | comparison["recipes"]
    clause = verdict(pair, "it" if ours == taken else ours, f"{theirs}, the best of the others,", first=name)
    sentences = [
        f"Within {limits}, take {taken}, with {tables.cell(measured[taken], 'test_accuracy')} % test accuracy: "
        f"{clause.rstrip(',')}{ahead}.",
        certainty(comparison, pair),
        *learned,
    ]
    if " worse " in clause:
        sentences.append("The choice is by validation accuracy and number of seeds, as always.")
    return sentences


def best_other(comparison: dict[str, Any], champion: dict[str, Any]) -> str | None:
    """Of the other recipes within the limits, the one with the best test accuracy."""
    recipes = comparison["recipes"]
    others = [name for name in recipes if name in champion["within_limits"] and name != champion["recipe"]]
    return max(others, key=lambda name: recipes[name]["test_accuracy"], default=None)


def run_of(comparison: dict[str, Any], name: str) -> dict[str, Any]:
    """The run of this name."""
    return next(run for run in comparison["runs"] if run["run"] == name)


def pair_of(comparison: dict[str, Any], *recipes: str) -> dict[str, Any]:
    """The pair of two recipes, in whichever order it stands."""
    (found,) = (pair for pair in comparison["pairs"] if set(pair["recipes"]) == set(recipes))
    return found


def sides(pair: dict[str, Any], first: str) -> list[str]:
    """What a pair compares, recipes or runs; that of the recipe `first` comes first."""
    names = pair["recipes"] if pair["of"] == "recipes" else [runs[0] for runs in pair["runs"]]
    return names if first == pair["recipes"][0] else names[::-1]


def verdict(pair: dict[str, Any], ours: str, theirs: str, first: str) -> str:
    """A pair's verdict as a clause, with the interval of the difference.

    Args:
        pair: of the comparison.
        ours: how the clause names the side of the recipe `first`.
        theirs: how it names the other side.
        first: the recipe that the clause is about.
    """
    sign = 1 if first == pair["recipes"][0] else -1
    low, high = sorted(100 * sign * limit for limit in pair["interval"])
    if pair["verdict"] == "not told apart":
        return f"{ours} and {theirs} are not told apart ({low:+.1f} to {high:+.1f} points)"
    nearest, farthest = sorted((abs(low), abs(high)))
    return f"{ours} is {nearest:.1f} to {farthest:.1f} points {'better' if sign > 0 else 'worse'} than {theirs}"


def certainty(comparison: dict[str, Any], pair: dict[str, Any]) -> str:
    """Whether a pair's difference is significant, and of what."""
    significant = "significant" if pair["verdict"] != "not told apart" else "not significant"
    precisions = {run["run"]: run["precision"] for run in comparison["runs"]}
    ours, theirs = ({precisions[run] for run in runs} for runs in pair["runs"])
    includes = "" if ours == theirs else " Part of the difference may come from their different precisions."
    if pair["of"] == "recipes":
        return f"The range is a 95 % interval over seeds and images; the difference is {significant}.{includes}"
    return (
        "The range is a 95 % interval over images; the difference between these two trained networks is "
        f"{significant}. Whether their recipes differ is open: a recipe with one seed may do better or worse with "
        f"another.{includes}"
    )


def beats(limits: list[float]) -> str:
    """How far a recipe is ahead of a published result, at the least, by the interval of the difference."""
    low = math.floor(1000 * limits[0] + 1e-9) / 10  # rounded down: at least so much
    if low > 0:
        return f"beats the published network by at least {low:.1f} points"
    return f"is {'worse than' if limits[1] < 0 else 'not certain to beat'} the published network"


def accuracy_notes(comparison: dict[str, Any]) -> list[str]:
    """What the table of accuracies needs said."""
    measured_on = dict.fromkeys(row["accuracy_measured_on"] for row in comparison["published"])
    return [
        "Means over n seeds. flip: test accuracy of the probabilities averaged over an image and its mirror image.",
        "std: sample standard deviation of the test accuracy over seeds, in percentage points.",
        *(f"* published, not measured here; accuracy on {images}." for images in measured_on),
        *_precision_notes(comparison),
        *([] if comparison["comparable"] else [f"{NOT_COMPARABLE}."]),
    ]


def _precision_notes(comparison: dict[str, Any]) -> list[str]:
    """Which runs were trained in which precision, unless it was one."""
    runs = _grouped((run["precision"], run["run"]) for run in comparison["runs"])
    if len(runs) == 1:
        return []
    trained = "; ".join(f"{precision}: {', '.join(of_precision)}" for precision, of_precision in runs.items())
    of_recipes = _grouped((run["recipe"], run["precision"]) for run in comparison["runs"])
    several = any(len(precisions) > 1 for precisions in of_recipes.values())
    std = " Where a recipe has runs of several precisions, its std includes their effect." if several else ""
    return [f"Precision of training: {trained}.{std}"]


def status_notes(comparison: dict[str, Any]) -> list[str]:
    """What champion and stand-in mean, where there is one."""
    statuses = {champion["status"]: champion for champion in comparison["champions"].values()}
    notes = {
        "champion": "champion: the model to take within that budget, chosen by validation accuracy.",
        "stand-in": "stand-in: chosen in the same way from all recipes within that budget, until one has {min_seeds} "
        "seeds.",
    }
    return [text.format_map(statuses[status]) for status, text in notes.items() if status in statuses]


def _grouped(named: Iterable[tuple[str, str]]) -> dict[str, list[str]]:
    names: dict[str, list[str]] = {}
    for key, name in dict.fromkeys(named):
        names.setdefault(key, []).append(name)
    return names


def cost_notes(comparison: dict[str, Any]) -> list[str]:
    """What keeps the times of recipes from being compared; which recipes had a teacher, and what it cost."""
    trained = [(run["origin"][1], run["recipe"]) for run in comparison["runs"]]
    timed = _grouped(
        (row["timed_on"], f"{recipe} ({trained.count((row['timed_on'], recipe))} of {row['seeds']} runs)")
        for recipe, row in comparison["recipes"].items()
    )
    where = "; ".join(f"{machine}: {', '.join(recipes)}" for machine, recipes in timed.items())
    times = (
        "minutes and images/s, of training: means over those runs of a recipe that one kind of machine trained. Of the "
        "recipe's kinds it is the one that trained most runs in this comparison. Times of different kinds cannot be "
        f"compared. {where}."
    )
    teachers = [
        f"{sentence} All seeds have this one teacher, so the variation between them does not show what another would "
        "change."
        for recipe in comparison["recipes"]
        for sentence in teacher_notes(comparison, recipe)
    ]
    several = len({machine for machine, _ in trained}) > 1
    return ([times] if several else []) + teachers


def teacher_notes(comparison: dict[str, Any], recipe: str) -> list[str]:
    """Which teacher a recipe had and what it cost; nothing if it had none."""
    name = comparison["recipe_params"][recipe]["teacher"]
    return [
        f"{recipe} learned from {name} ({run['parameters']:,} parameters, {run['training_minutes']:.1f} minutes of "
        "training), which counts in no limit."
        for run in comparison["runs"]
        if run["run"] == name
    ]


def pair_notes(comparison: dict[str, Any]) -> list[str]:
    """What the table of pairs needs said."""
    kinds = {pair["of"] for pair in comparison["pairs"]}
    notes = []
    if "recipes" in kinds:
        notes.append(
            "Recipes: differences of means over seeds; the interval covers further seeds and further images (Welch)."
        )
    if "weights" in kinds:
        notes.append(
            "Where a recipe has one seed, single runs are compared (those of the lowest seeds), by an exact McNemar "
            "test. It compares two sets of weights, not two recipes: another seed may reverse it. The interval covers "
            "further images only."
        )
    if len({run["precision"] for run in comparison["runs"]}) > 1:
        notes.append(
            "Where the two sides were trained in different precisions, the difference includes what that changes."
        )
    if kinds:
        notes.append(
            f'p is adjusted over all {len(comparison["pairs"])} pairs (Holm). The verdict is "not told apart" '
            "unless p is below 0.05."
        )
    for pair in comparison["pairs"]:
        if pair["note"]:
            notes.append(f"{' - '.join(sides(pair, first=pair['recipes'][0]))}: {pair['note']}.")
    return [*notes, seeds_needed(comparison["seeds_needed"])]


def seeds_needed(needed: dict[str, Any]) -> str:
    """How many seeds show a small difference."""
    low, high = (f"{100 * limit:.2f}" for limit in needed["std"])
    source = (
        "assumed, since no recipe has two seeds yet"
        if needed["assumed"]
        else "its 95 % interval, pooled over the recipes"
    )
    further = f", {_range(needed['further_images'])} for further images" if "further_images" in needed else ""
    return (
        f"Detecting a difference of {100 * needed['difference']:g} points with 80 % power takes "
        f"{_range(needed['these_images'])} seeds of each recipe on these test images{further}, if the standard "
        f"deviation over seeds is {low} to {high} points ({source})."
    )


def _range(seeds: list[int | None]) -> str:
    low, high = ("more than 100" if number is None else str(number) for number in seeds)
    return low if low == high else f"{low} to {high}"


def published_notes() -> list[str]:
    """What a comparison with published results can and cannot say."""
    return [
        "The published accuracy is taken as exact. The interval covers further images and, with two seeds or more, "
        "further seeds of ours. It cannot say what another seed of the published training run would have given, nor "
        "use that both were tested on the same images: which of them were classified correctly was not published."
    ]


def export_notes(comparison: dict[str, Any]) -> list[str]:
    """What the table of exported files needs said, and whose int8 files reach what is asked of the published one."""
    exports = comparison["exports"]
    notes = []
    for published in comparison["published_exports"] if exports else ():
        asked = published["int8_accuracy_to_reach"]
        notes.append(
            f"* published, trained for {published['epochs']} epochs: {published['parameters']:,} parameters, "
            f"{published['multiply_adds'] / 1e6:.1f} M multiply-adds. Its benchmark requires an int8 file to reach "
            f"{100 * asked:g} % test accuracy. {_reach(exports, asked) if comparison['comparable'] else ''}".strip()
        )
    return file_notes(exports) + notes


def file_notes(exports: dict[str, Any]) -> list[str]:
    """How exported files were measured; which one is missing, and which limits are not kept."""
    if not exports:
        return []
    without = {row["run"]: row["without_int8"] for row in exports.values() if not row["int8"]}
    violations = [f"{row['run']}: {words}." for row in exports.values() for words in row["violations"]]
    return [
        "Each file is evaluated itself, by LiteRT. same class: test images to which it gives the Keras model's class.",
        f"ms: median for one image, {_machines(exports)}. arena: memory that TFLite Micro needs beside the file.",
        *_slower(exports),
        *(f"{run} has no int8 file: {why}." for run, why in without.items()),
        *(
            violations
            or ["Every int8 file is within params.yaml's limits on its size and its loss of validation accuracy."]
        ),
    ]


def _slower(exports: dict[str, Any]) -> list[str]:
    """Which int8 files take longer than the float32 ones."""
    slower = [
        f"{row['run']} ({tables.cell(row['int8'], 'latency_ms')} and {tables.cell(row['float32'], 'latency_ms')} ms)"
        for row in exports.values()
        if row["int8"] and row["int8"]["latency_ms"] > row["float32"]["latency_ms"]
    ]
    return (
        [f"On the processor it was measured on, int8 is slower than float32 for {', '.join(slower)}."] if slower else []
    )


def _machines(exports: dict[str, Any]) -> str:
    measured = ((f"{row['threads']} threads of {row['processor']}", row["run"]) for row in exports.values())
    machines = _grouped(measured)
    if len(machines) == 1:
        return next(iter(machines))
    where = "; ".join(f"{', '.join(runs)} on {machine}" for machine, runs in machines.items())
    return f"{where} (not comparable between processors)"


def _reach(exports: dict[str, Any], asked: float) -> str:
    """Whose int8 files reach an accuracy on the test images, and whose do not."""
    reached = {row["run"]: row["int8"]["test_accuracy"] >= asked for row in exports.values() if row["int8"]}
    words = {True: "Reached by {}.", False: "Not reached by {}."}
    names = {value: [run for run, reaches in reached.items() if reaches == value] for value in words}
    return " ".join(text.format(", ".join(names[value])) for value, text in words.items() if names[value])


def rule(comparison: dict[str, Any]) -> list[str]:
    """The champions' rule, once."""
    return [champions.rule(champion) for champion in list(comparison["champions"].values())[:1]]


def others(comparison: dict[str, Any]) -> tables.Rows:
    """Why each other recipe is not the champion, as rows."""
    return [["budget", "model", "recipe not taken", "why"]] + [
        [budget, f"{champion['run'] or tables.UNKNOWN} ({champion['status']})", recipe, why]
        for budget, champion in comparison["champions"].items()
        for recipe, why in champion["others"].items()
    ]
