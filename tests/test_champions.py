import pytest

from pipeline.config.params import Budget, Champion, Compare
from pipeline.report import champions

CONFIG = Compare(
    champion=Champion(min_seeds=3, margin=0.002),
    budgets={"small": Budget(max_parameters=100, max_epochs=50, accuracy_to_beat=0.9)},
)


def recipe(val_accuracy, seeds=3, multiply_adds: int | None = 10_000_000, parameters=100, epochs=50, test_accuracy=0.5):
    return {
        "val_accuracy": val_accuracy,
        "test_accuracy": test_accuracy,
        "seeds": seeds,
        "multiply_adds": multiply_adds,
        "parameters": parameters,
        "epochs": epochs,
    }


def chosen(**recipes):
    """The champion of the budget; a recipe's runs differ by 0.01 in validation accuracy, the best one the last."""
    runs = {
        name: [
            {"run": f"{name}-{seed}", "seed": seed, "val_accuracy": row["val_accuracy"] + 0.01 * seed}
            for seed in range(row["seeds"])
        ]
        for name, row in recipes.items()
    }
    return champions.choose(CONFIG, runs, recipes)["small"]


def test_best_mean_validation_accuracy_wins_and_its_lowest_seed_is_the_model():
    found = chosen(a=recipe(0.85, test_accuracy=0.99), b=recipe(0.86), c=recipe(0.99, seeds=2))
    assert (found["status"], found["recipe"], found["run"], found["note"]) == ("champion", "b", "b-0", "")
    assert found["others"] == {
        "a": "its mean validation accuracy is 1.00 points lower than that of b",
        "c": "it has 2 seeds; the rule asks for 3",
    }


@pytest.mark.parametrize(
    ("behind", "multiply_adds", "winner"),
    [
        (0.002, 9_000_000, "b"),  # 0.86 - 0.858 is 0.0020000000000000018 in floats
        (0.0021, 9_000_000, "a"),
        (0.001, 10_000_000, "a"),
        (0.001, 11_000_000, "a"),
        (0.001, None, "a"),
    ],
)
def test_cheaper_recipe_within_the_margin_takes_the_place(behind, multiply_adds, winner):
    found = chosen(a=recipe(0.86), b=recipe(round(0.86 - behind, 6), multiply_adds=multiply_adds))
    assert found["recipe"] == winner


def test_recipe_that_a_cheaper_one_replaced_says_so():
    found = chosen(a=recipe(0.86), b=recipe(0.859, multiply_adds=8_000_000))
    assert found["others"] == {
        "a": "b is within 0.2 points of the best mean and cheaper: 8.0 M multiply-adds, not 10.0 M"
    }


def test_nothing_is_cheaper_than_an_unknown_cost():
    assert chosen(a=recipe(0.86, multiply_adds=None), b=recipe(0.859, multiply_adds=1))["recipe"] == "a"


def test_cheapest_of_several_within_the_margin_wins_then_the_higher_mean_then_the_name():
    cheaper = {"multiply_adds": 8_000_000}
    assert (
        chosen(a=recipe(0.86), b=recipe(0.8595, multiply_adds=9_000_000), c=recipe(0.859, **cheaper))["recipe"] == "c"
    )
    assert chosen(a=recipe(0.86), b=recipe(0.8585, **cheaper), c=recipe(0.859, **cheaper))["recipe"] == "c"
    assert chosen(a=recipe(0.86), c=recipe(0.859, **cheaper), b=recipe(0.859, **cheaper))["recipe"] == "b"
    tied = chosen(z=recipe(0.86), a=recipe(0.86))
    assert (tied["recipe"], tied["others"]) == ("a", {"z": "it ties with a, whose name comes first"})


def test_recipe_of_unknown_cost_that_a_cheaper_one_overtook_with_the_leader_says_so():
    found = chosen(a=recipe(0.86), b=recipe(0.8595, multiply_adds=None), c=recipe(0.859, multiply_adds=8_000_000))
    assert found["recipe"] == "c"
    assert found["others"]["b"] == (
        "c is within 0.2 points of the best mean and cheaper, as far as is known: its own multiply-adds are not"
    )


def test_limits_are_kept_and_test_accuracy_is_no_limit():
    found = chosen(big=recipe(0.99, parameters=101), long=recipe(0.99, epochs=51), fits=recipe(0.8, test_accuracy=0.1))
    assert found["recipe"] == "fits"
    assert found["others"] == {"big": "101 parameters exceed 100", "long": "51 epochs exceed 50"}
    assert found["within_limits"] == ["fits"]


def test_lowest_seed_of_the_best_recipe_stands_in_while_none_has_enough_seeds():
    found = chosen(a=recipe(0.85, seeds=2), b=recipe(0.845, seeds=1), big=recipe(0.99, parameters=101))
    assert (found["status"], found["recipe"], found["run"]) == ("stand-in", "a", "a-0")
    assert "no recipe within these limits has 3 seeds yet" in found["note"]
    assert found["others"] == {
        "b": "its mean validation accuracy is 0.50 points lower than that of a",
        "big": "101 parameters exceed 100",
    }


def test_budget_that_nothing_keeps_has_no_model():
    found = chosen(big=recipe(0.99, parameters=101))
    assert (found["status"], found["recipe"], found["run"]) == ("none", None, None)
    assert found["note"] == "no recipe is within the limits"


def test_rule_is_told_with_its_values():
    words = champions.rule(chosen(a=recipe(0.85)))
    assert "at least 3 seeds" in words
    assert "within 0.2 points" in words
