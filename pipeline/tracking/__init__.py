"""MLflow as the mirror of the record. The only importer of mlflow.

`mirror(record)` brings the store in step with what is on disk, as often as it is called. A store that cannot be
reached costs a warning and some seconds, never a training.
"""

import contextlib
import hashlib
import json
import os
import queue
import random
import re
import socket
import sqlite3
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.records import record as records
from pipeline.records.record import Record
from pipeline.system.file_lock import is_locked
from pipeline.system.tensorflow_import import import_tensorflow
from pipeline.training import cifar10

if TYPE_CHECKING:
    from mlflow import MlflowClient

EXPERIMENT = "cifar10"
RECORD_ID = "record_id"  # the tag that a run is found by
PLACE = "place"  # the tag that says where a run goes on
IN_STEP = "record_digest"  # the tag that is set last: the digest of the record that the run mirrors
EXPERIMENT_TAGS = {"mlflow.experimentKind": "custom_model_development"}  # the page for trainings, not for chat bots
LAST_WAIT = 10.0  # seconds, for what is still being logged when a training ends
FIRST_PAUSE, LONGEST_PAUSE = 60.0, 600.0  # seconds
TRAINING_METRICS = ("epoch_seconds", "images_per_second")
# Numbers that describe, not measure; and val_*, which the last epoch has already.
NOT_METRICS = {"evaluated_ms", "epochs", "test_images", "batch_size", "threads", "val_accuracy", "val_loss"}

# A store that is away may cost 10 s, not MLflow's default of minutes. Whoever sets these variables is heard.
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "4")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")  # it would print the password in the address


def root() -> Path:
    """The repository's folder, also from a copy inside it (`dvc exp run --temp`, `.workspaces/`): one store for all."""
    here = Path(__file__).resolve().parents[2]
    return next(
        folder for folder in reversed([here, *here.parents]) if (folder / "pipeline/tracking/__init__.py").exists()
    )


def store_uri() -> str:
    """MLFLOW_TRACKING_URI, or the store that `mlflow ui` opens in the repository's folder when no flag is given."""
    uri = os.environ.get("MLFLOW_TRACKING_URI", "")
    relative = uri.removeprefix("sqlite:///")
    if relative != uri and not relative.startswith("/"):  # `mlflow run .` hands its own on so
        return f"sqlite:///{root() / relative}"
    return uri or f"sqlite:///{root() / 'mlflow.db'}"


def attempt(what: str, action: Callable[[], Any]) -> Any:
    """Does `action`; if the store fails, warns on stderr in one line and returns None.

    After a failure the store is left alone for a while, longer each time: a server that hangs costs a training of hours
    some minutes, not seconds of each epoch.
    """
    if time.monotonic() < _pause.until:
        return None
    try:
        result = action()
        _pause.seconds = FIRST_PAUSE
        return result
    except Exception as error:
        _pause.until, _pause.seconds = time.monotonic() + _pause.seconds, min(2 * _pause.seconds, LONGEST_PAUSE)
        reason = _without_secrets(" ".join(str(error).split()))[:300]
        print(
            f"warning: MLflow could not {what} at {_without_secrets(store_uri())} ({type(error).__name__}: {reason}). "
            "The record on disk is complete; `dvc repro` completes the store later.",
            file=sys.stderr,
        )
        return None


@dataclass
class _Pause:
    seconds: float
    until: float = 0.0


_pause = _Pause(FIRST_PAUSE)


def retry() -> None:
    """Forgets the store's failures and its connection: the next call tries again."""
    _pause.seconds, _pause.until = FIRST_PAUSE, 0.0
    _client.cache_clear()


def mirror(record: Record, live: bool = False) -> str | None:
    """Makes MLflow's run of this record say what the record says. Idempotent.

    Args:
        record: of a training, running or ended.
        live: the training is going on now; otherwise a run that is made here is marked as replayed.

    Returns:
        The MLflow run's id, or None if the store failed.
    """
    return attempt(f"log {record.run}", lambda: _mirror(record, live))


def mirror_reference(name: str) -> str | None:
    """Makes MLflow hold a published result, with its epochs if they were published. Idempotent."""
    return attempt(f"log {name}", lambda: _mirror_reference(name))


def in_step(wanted: Iterable[str]) -> bool:
    """Whether the embedded store is known to mirror all these digests, and to call nothing RUNNING that is not.

    Asked of SQLite itself: importing MLflow and opening its store costs 2 s of every `dvc repro`.
    """
    database = _database()
    if database is None or not database.exists():
        return False
    try:
        connection = sqlite3.connect(f"{database.as_uri()}?mode=ro", uri=True, timeout=1)
        try:
            rows = connection.execute(
                "SELECT tags.value FROM tags JOIN runs ON runs.run_uuid = tags.run_uuid JOIN experiments "
                "ON experiments.experiment_id = runs.experiment_id WHERE tags.key = ? "
                "AND runs.lifecycle_stage = 'active' AND ? IN (experiments.name, experiments.experiment_id)",
                (IN_STEP, os.environ.get("MLFLOW_EXPERIMENT_ID") or _experiment_name()),
            ).fetchall()
            running = connection.execute(
                "SELECT tags.value FROM tags JOIN runs ON runs.run_uuid = tags.run_uuid "
                "WHERE tags.key = ? AND runs.status = 'RUNNING' AND runs.lifecycle_stage = 'active'",
                (PLACE,),
            ).fetchall()
        finally:
            connection.close()
    except sqlite3.Error:
        return False
    return set(wanted) <= {value for (value,) in rows} and not any(_is_dead(place) for (place,) in running)


class Live:
    """The MLflow run of a training, kept in step by a thread of its own.

    The training never waits for it: a store that is slow, or away, costs an epoch nothing. MLflow's own sampling of
    processor, memory and GPU goes into the same run.
    """

    def __init__(self, record: Record, texts: dict[str, str]):
        """Begins with the record as it is now; `texts`: text files for the run, by name."""
        self._first, self._texts = record, texts
        self._monitor: Any = None
        self._records: queue.SimpleQueue[Record | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._follow, daemon=True)
        self.update(record)
        self._thread.start()

    def update(self, record: Record) -> None:
        """Takes note of what the record says now."""
        self._records.put(record.snapshot())

    def close(self, record: Record) -> None:
        """Logs the record's end; returns after seconds if the store does not answer. The sync stage completes it."""
        self._records.put(None)
        self._thread.join(LAST_WAIT)
        if not self._thread.is_alive():
            mirror(record, live=True)

    def _follow(self) -> None:
        begun = False
        while record := self._latest():
            run_id = mirror(record, live=True)
            if run_id and not begun:
                begun = attempt(f"begin {record.run}", partial(self._begin, run_id)) is not None
        if self._monitor:
            attempt("end system metrics", self._monitor.finish)

    def _begin(self, run_id: str) -> bool:
        _end_dead_runs(self._first)
        for name, text in self._texts.items():
            _client().log_text(run_id, text, name)
        self._monitor = _started_monitor(run_id)
        return True

    def _latest(self) -> Record | None:
        """The newest of what waits; None after `close`."""
        record = self._records.get()
        while record and not self._records.empty():
            newer = self._records.get()
            if newer is None:
                self._records.put(None)
                return record
            record = newer
        return record


def _started_monitor(run_id: str) -> Any:
    import mlflow
    from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

    mlflow.set_tracking_uri(store_uri())
    monitor = SystemMetricsMonitor(run_id, sampling_interval=10, samples_before_logging=1, resume_logging=True)
    monitor.start()
    return monitor


def _mirror(record: Record, live: bool) -> str:
    from mlflow.entities import Metric, RunTag

    client, training = _client(), record.training
    experiment = _experiment()
    figures = {
        key: float(value)
        for key, value in (record.evaluation | record.speed).items()
        if isinstance(value, int | float) and key not in NOT_METRICS
    }
    run = _find(experiment, record.id)
    if run and any(run.data.metrics.get(key, value) != value for key, value in figures.items()):
        # It was evaluated otherwise: a second value would stand beside the first, and the later one would win.
        client.delete_run(run.info.run_id)
        run = None
    if run is None:
        tags = _tags(record, live) | ({} if live else {"replayed": "true"})
        name = " ".join(filter(None, [record.run, training["environment"].get("dvc_experiment")]))
        run = _make_run(experiment, training["started_ms"], tags, name)
    run_id, digest = run.info.run_id, record.digest()
    if run.data.tags.get(IN_STEP) == digest:
        return run_id
    if live and training["status"] == "running" and run.info.status != "RUNNING":
        client.update_run(run_id, "RUNNING")  # it goes on after it was ended
    if not run.inputs.dataset_inputs:
        _log_inputs(run_id, record)
    if after := training.get("resumed_after_epochs"):
        tags = {"resumed_after_epochs": ", ".join(map(str, after))} | ({PLACE: _place(record.run)} if live else {})
        client.log_batch(run_id, tags=[RunTag(key, value) for key, value in tags.items()])
    at = {row["epoch"]: row for row in training["epochs"]}
    there = {metric.step for metric in client.get_metric_history(run_id, "loss")}
    metrics = [
        Metric(key, value, at[row["epoch"]]["ended_ms"], int(row["epoch"]))
        for row in record.history
        if row["epoch"] not in there and row["epoch"] in at
        for key, value in {**row, **{name: at[row["epoch"]][name] for name in TRAINING_METRICS}}.items()
        if key != "epoch"
    ]
    metrics += [
        Metric(key, value, record.speed["evaluated_ms"], 0)  # without steps: MLflow draws bars
        for key, value in figures.items()
    ]
    most = 1_000 - 1_000 % 7  # one call takes 1,000; never a part of an epoch's seven, of which `loss` speaks for all
    for start in range(0, len(metrics), most):
        client.log_batch(run_id, metrics=metrics[start : start + most])
    if training["status"] == "running":
        return run_id
    for path in record.files():
        client.log_artifact(run_id, str(path))
    if training["status"] == "finished" and record.model_file.exists() and not run.outputs.model_outputs:
        _log_model(experiment, run_id, record)
    client.set_terminated(run_id, training["status"].upper(), training["ended_ms"])
    client.log_batch(run_id, tags=[RunTag(IN_STEP, digest)])
    return run_id


def _mirror_reference(name: str) -> str:
    from mlflow.entities import Metric, Param, RunTag

    client, figures = _client(), records.load_reference(name)
    experiment = _experiment()
    digest = reference_digest(name)
    # Published without times: the day the figures were written down stands in for them.
    started_ms = records.day_ms(figures["transcribed"])
    seconds = figures["training_seconds"] or 0
    tags = {
        RECORD_ID: name,
        "model": figures["model"],
        "published": "true",
        "mlflow.note.content": " ".join([figures["source"], *figures["notes"]]),
    }
    run = _find(experiment, name) or _make_run(experiment, started_ms, tags, name)
    run_id = run.info.run_id
    if run.data.tags.get(IN_STEP) == digest:
        return run_id
    ended_ms = started_ms + int(1_000 * seconds)
    last = figures["epochs"]
    metrics = [
        Metric(key, value, started_ms + int(1_000 * seconds * row["epoch"] / last), int(row["epoch"]))
        for row in figures["history"]
        for key, value in row.items()
        if key != "epoch"
    ]
    totals = {key: figures[key] for key in ("parameters", "multiply_adds")}
    totals["test_accuracy"] = figures["accuracy"]
    metrics += [Metric(key, value, ended_ms, 0) for key, value in totals.items()]
    if not figures["history"]:
        metrics.append(Metric("val_accuracy", figures["accuracy"], ended_ms, last))
    client.log_batch(run_id, metrics=metrics, params=[Param("model", figures["model"]), Param("epochs", str(last))])
    client.set_terminated(run_id, "FINISHED", ended_ms)
    client.log_batch(run_id, tags=[RunTag(IN_STEP, digest)])
    return run_id


def reference_digest(name: str) -> str:
    """Changes whenever the published result's files do."""
    figures = json.dumps(records.load_reference(name), sort_keys=True)
    return hashlib.sha256(figures.encode()).hexdigest()[:32]


@cache
def _client() -> "MlflowClient":
    import logging

    from mlflow import MlflowClient

    for noisy in ("mlflow", "alembic"):
        logging.getLogger(noisy).setLevel(logging.CRITICAL)  # it would print stack traces of what we warn of
    database = _database()
    if database and not database.exists():
        _make_store(database)
    client = MlflowClient(store_uri())
    client.search_experiments(max_results=1)
    return client


def _make_store(database: Path) -> None:
    """Makes an embedded store whole or not at all: MLflow cannot open one that was killed while it made its tables."""
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    with tempfile.TemporaryDirectory(prefix=f"{database.name}.new-", dir=database.parent) as folder:
        new = Path(folder) / database.name
        SqlAlchemyStore(f"sqlite:///{new}", str(database.parent / "mlruns")).engine.dispose()
        with contextlib.suppress(FileExistsError):  # another was faster
            os.link(new, database)


def _experiment_name() -> str:
    return os.environ.get("MLFLOW_EXPERIMENT_NAME") or EXPERIMENT


def _experiment() -> str:
    """The experiment's id: what MLflow's own variables name (`mlflow run` sets one), else ours; made if absent."""
    from mlflow.exceptions import MlflowException

    client = _client()
    if given := os.environ.get("MLFLOW_EXPERIMENT_ID"):
        return given
    name = _experiment_name()
    experiment = client.get_experiment_by_name(name)
    if experiment is None:
        # Beside the embedded store, as `mlflow ui` there would; where a server keeps files is its business.
        database = _database()
        place = (database.parent / "mlruns" / name).as_uri() if database else None
        try:
            return client.create_experiment(name, artifact_location=place, tags=EXPERIMENT_TAGS)
        except MlflowException:  # another run beside this one was faster
            experiment = client.get_experiment_by_name(name)
            if experiment is None:
                raise
    return experiment.experiment_id


def _find(experiment: str, record_id: str) -> Any:
    return next(iter(_of_record(experiment, record_id)), None)


def _of_record(experiment: str, record_id: str) -> list:
    return _client().search_runs([experiment], f"tags.{RECORD_ID} = '{record_id}'", max_results=2)


def _make_run(experiment: str, started_ms: int, tags: dict[str, str], name: str) -> Any:
    """Makes a record's run; one only, however many processes make it at the same time.

    Who sees another's beside its own takes its own back and, some time later, what is there. Of two that were made, the
    later one's maker sees both: so two never stay.
    """
    while True:
        made = _client().create_run(experiment, started_ms, tags, name).info.run_id
        found = _of_record(experiment, tags[RECORD_ID])
        if [run.info.run_id for run in found] == [made]:
            return found[0]
        _client().delete_run(made)
        time.sleep(random.uniform(0.1, 1))
        if run := _find(experiment, tags[RECORD_ID]):
            return run


def end_dead_runs() -> None:
    """Ends as killed what says RUNNING in the store, but is not, of this machine's trainings."""
    attempt("end dead runs", _end_dead_runs)


def _end_dead_runs(training: Record | None = None) -> None:
    """`training`: of this process, which holds the lock of its folder: what else says that it runs there does not."""
    client = _client()
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    for run in client.search_runs(experiments, "attributes.status = 'RUNNING'"):
        place = run.data.tags.get(PLACE, "")
        if training and run.data.tags.get(RECORD_ID) == training.id:
            continue
        if _is_dead(place) or (training and place == _place(training.run)):
            client.set_terminated(run.info.run_id, "KILLED")


def _place(run: str) -> str:
    """Where a training goes on: a machine and the folder that it locks. In the store only, not in the record."""
    return f"{socket.gethostname()}:{Path.cwd() / records.CHECKPOINTS / run}"


def _is_dead(place: str) -> bool:
    host, _, folder = place.partition(":")
    return host == socket.gethostname() and not is_locked(Path(folder))


def _tags(record: Record, live: bool) -> dict[str, str]:
    training, environment = record.training, record.training["environment"]
    tags = {RECORD_ID: record.id, "run": record.run}
    tags |= {key: str(training[key]) for key in ("recipe", "model", "seed")}
    tags |= {key: str(value).lower() if isinstance(value, bool) else str(value) for key, value in environment.items()}
    tags |= {"mlflow.source.git.commit": environment["commit"], "mlflow.source.name": f"train@{record.run}"}
    tags |= {"mlflow.source.type": "LOCAL"}
    if not training["comparable"]:
        tags |= {"comparable": "false", "mlflow.note.content": records.NOT_COMPARABLE}
    if live:
        tags[PLACE] = _place(record.run)
    parent = os.environ.get("MLFLOW_RUN_ID")  # we are inside `mlflow run`
    if live and parent:
        tags["mlflow.parentRunId"] = parent
    return tags


def _params(record: Record) -> dict[str, str]:
    return {key: str(value) for key, value in record.training["params"].items()}


def _log_inputs(run_id: str, record: Record) -> None:
    from mlflow.entities import Dataset, DatasetInput, InputTag, Param
    from mlflow.exceptions import MlflowException

    from pipeline.sources import ARCHIVE_URL

    training = record.training
    _client().log_batch(run_id, params=[Param(key, value) for key, value in _params(record).items()])
    sizes = {key: training["params"][key] for key in ("train_images", "val_images")}
    data = Dataset(
        name="cifar10",
        digest=training["environment"]["data_hash"],
        source_type="http",
        source=json.dumps({"url": ARCHIVE_URL}),
        profile=json.dumps(sizes),
    )
    inputs = [DatasetInput(data, [InputTag("mlflow.data.context", "training")])]
    try:
        _client().log_inputs(run_id, inputs)
    except MlflowException:  # another run beside this one was faster to make the data set that they share
        _client().log_inputs(run_id, inputs)


def _log_model(experiment: str, run_id: str, record: Record) -> None:
    """The trained model, whole or not at all: the run gets it last, and what broke off earlier goes."""
    import_tensorflow()
    import keras
    import mlflow.tensorflow
    import numpy as np
    from mlflow.entities import LoggedModelOutput, LoggedModelStatus
    from mlflow.models import Model
    from mlflow.models.signature import infer_signature

    client, environment = _client(), record.training["environment"]
    for broken in client.search_logged_models([experiment], f"source_run_id = '{run_id}'"):
        client.delete_logged_model(broken.model_id)
    logged = client.create_logged_model(experiment, "model", run_id, params=_params(record))
    example = np.zeros((1, *cifar10.IMAGE_SHAPE), np.uint8)
    mlflow.set_tracking_uri(store_uri())
    keras.utils.disable_interactive_logging()  # MLflow tries the example out, with a progress bar
    with tempfile.TemporaryDirectory() as folder:
        mlflow.tensorflow.save_model(
            keras.saving.load_model(record.model_file, compile=False),
            f"{folder}/model",
            mlflow_model=Model(logged.artifact_location, run_id, model_uuid=logged.model_id, model_id=logged.model_id),
            signature=infer_signature(example, np.zeros((1, cifar10.NUM_CLASSES), np.float32)),
            input_example=example,
            pip_requirements=[f"{name}=={environment[name]}" for name in ("tensorflow", "keras", "mlflow")],
        )
        client.log_model_artifacts(logged.model_id, f"{folder}/model")
    client.finalize_logged_model(logged.model_id, LoggedModelStatus.READY)
    client.log_outputs(run_id, [LoggedModelOutput(logged.model_id, 0)])


def _database() -> Path | None:
    """The file of an embedded store; None if the store is a server or another database."""
    uri = store_uri()
    return Path(uri.removeprefix("sqlite:///")) if uri.startswith("sqlite:///") else None


def _without_secrets(text: str) -> str:
    """The text without the user names and passwords of the addresses in it, even of ones that are not quoted."""
    return re.sub(r"://\S*@", "://", re.sub(r"(?<=://)(\S*)\?\S*", r"\1", text))
