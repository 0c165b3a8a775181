"""The experiment that runs go into: found or made, described, and laid out for MLflow's pages."""

import json
import os
import re
import subprocess
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from pipeline.tracking import address, embedded, runs, store

if TYPE_CHECKING:
    from mlflow.entities import Experiment

EXPERIMENT = "cifar10"
VIEW = "table"  # the name of the layout below in MLflow's addresses
# No attributes: they would stand before these, and out of sight.
COLUMNS = [f"metrics.`{it}`" for it in ("test_accuracy", "val_accuracy", "parameters")] + ["params.`epochs`"]
TAGS = {
    "mlflow.experimentKind": "custom_model_development",  # the pages for training runs, not for chat bots
    f"mlflow.sharedViewState.{VIEW}": json.dumps({"selectedColumns": COLUMNS}),
}
DESCRIPTION = """\
Small classifiers for CIFAR-10, and the published results that they started from (`published-…`).

Each run is one training run; a step is an epoch. See the curves of all runs over each other under *Runs*, in the chart
view: `val_accuracy` and `val_loss` are of validation images, held out of the training images. `test_accuracy` is read
once, when training has ended. `compare.…` tags say how a run compares. A run tagged `comparable: false` used a part of
the data; one that ended early says why in `end_reason`.

The whole comparison, with intervals and budgets, is in {report}.
"""
LINK_TEXT = "[The page with table, charts and models to try]"


def name() -> str:
    """MLFLOW_EXPERIMENT_NAME, or ours."""
    return os.environ.get("MLFLOW_EXPERIMENT_NAME") or EXPERIMENT


def current_id() -> str:
    """The experiment that MLflow's own variables name (`mlflow run` sets one), else ours; made if absent."""
    client = store.client()
    if given := os.environ.get("MLFLOW_EXPERIMENT_ID"):
        return _described(client.get_experiment(given))
    experiment = client.get_experiment_by_name(name())
    if experiment is None:
        # Beside the embedded store, as `mlflow ui` there would; where a server keeps files is its business.
        database = address.database()
        location = (embedded.artifacts(database) / name()).as_uri() if database else None
        client.create_experiment(name(), artifact_location=location, tags=TAGS)
        experiment = client.get_experiment_by_name(name())
    return _described(experiment)


def link_page(experiment_id: str, run_id: str, page: str) -> None:
    """Links the summary run's page in the description, in its first line: MLflow folds the rest.

    The experiment Default is everybody's: it stays as it is.
    """
    if experiment_id == "0":
        return
    client = store.client()
    note = client.get_experiment(experiment_id).tags.get(runs.NOTE, "")
    rest = re.sub(rf"{re.escape(LINK_TEXT)}\(.*?\)\.", "", note).strip()
    link = f"{LINK_TEXT}(#/experiments/{experiment_id}/runs/{run_id}/artifacts/{page})."
    client.set_experiment_tag(experiment_id, runs.NOTE, f"{link}\n\n{rest}".strip())


def pages(base: str) -> dict[str, tuple[str, str]]:
    """Per experiment with runs, by name: the addresses of its curves and of its table, on a server at `base`."""
    client = store.client()
    addresses = {}
    for experiment in client.search_experiments():
        if client.search_runs([experiment.experiment_id], max_results=1):
            page = f"{base}/#/experiments/{experiment.experiment_id}/runs?workflowType=machine_learning"
            layout = f"&viewStateShareKey={VIEW}" if f"mlflow.sharedViewState.{VIEW}" in experiment.tags else ""
            addresses[experiment.name] = (f"{page}&compareRunsMode=CHART", f"{page}&compareRunsMode=TABLE{layout}")
    return addresses


def _described(found: "Experiment") -> str:
    """The experiment's id, after it got what it lacks of our tags. Default is everybody's: it stays as it is."""
    from mlflow.exceptions import MlflowException

    identity, tags = found.experiment_id, found.tags
    if found.lifecycle_stage == "deleted":
        raise MlflowException(
            f"the experiment {found.name!r} is deleted: restore it with `mlflow experiments restore -x {identity}`, or "
            "name another one in MLFLOW_EXPERIMENT_NAME"
        )
    missing = {key: value for key, value in TAGS.items() if key not in tags}
    if runs.NOTE not in tags:
        missing[runs.NOTE] = DESCRIPTION.format(report=_report())
    for key, value in missing.items() if identity != "0" else ():
        store.client().set_experiment_tag(identity, key, value)
    return identity


def _report() -> str:
    """The report, as a link if the repository has an address in the web."""
    asked = ["git", "-C", str(address.root()), "remote", "get-url", "origin"]
    try:
        origin = urlsplit(subprocess.run(asked, capture_output=True, text=True, check=True).stdout.strip())
    except (OSError, subprocess.CalledProcessError, ValueError):
        return "`report/README.md`"
    if origin.scheme not in ("http", "https") or not origin.hostname:
        return "`report/README.md`"
    port = f":{origin.port}" if origin.port else ""
    path = origin.path.removesuffix("/").removesuffix(".git")
    return f"[report/README.md]({origin.scheme}://{origin.hostname}{port}{path}/blob/HEAD/report/README.md)"
