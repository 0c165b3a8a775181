"""What came of a sweep: its trials, a line each, and Optuna's plots."""

import warnings
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from pipeline.engine.study import Study

SHOWN = 10  # of the finished trials


def table(study: "Study") -> str:
    """The best trials, then those that did not finish, a line each."""
    from optuna.trial import TrialState

    rows = []
    for trial in study.best()[:SHOWN]:
        values = "  ".join(
            f"{key} {value:.4g}" if isinstance(value, float) else f"{key} {value}"
            for key, value in trial.params.items()
        )
        rows.append(f"trial {trial.number:>3}  val_accuracy {trial.value:.4f}  {values}")
    for trial in study.trials(TrialState.PRUNED, TrialState.FAIL):
        rows.append(f"trial {trial.number:>3}  {trial.state.name.lower()}: {trial.user_attrs.get('reason', '')}")
    return "\n".join(rows)


def plots(study: "Study") -> dict[str, "Figure | None"]:
    """Optuna's importances and parallel coordinates, by file name; empty as long as there is nothing to see."""
    if len(study.best()) < 2:
        return {}
    import matplotlib

    matplotlib.use("Agg")
    from optuna.visualization import matplotlib as drawn

    with matplotlib.rc_context(), warnings.catch_warnings():  # Optuna sets a style, for all figures that follow too
        warnings.simplefilter("ignore")  # that these plots are experimental
        axes = {
            "importances.png": drawn.plot_param_importances(study.optuna),
            "parallel_coordinates.png": drawn.plot_parallel_coordinate(study.optuna),
        }
    return {name: it.get_figure(root=True) for name, it in axes.items()}
