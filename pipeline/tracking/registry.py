"""MLflow's registry: a registered model for each budget, whose alias `champion` is the model to take.

Made from what git holds, like all else in the store. A version belongs to the MLflow run of its record.
"""

import hashlib
import importlib.metadata
import json
import re
import sqlite3
import tempfile
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.records import exports
from pipeline.records.record import Record
from pipeline.system.command import REPOSITORY
from pipeline.tracking import address, experiment, runs, store

ALIAS = "champion"
DIGEST = "champion_digest"  # the version's tag that is set last
MODEL_DIGEST = "model_digest"  # of the version's content: another one makes another version
EXPERIMENT = "experiment"  # the registered model's tag that says whose champions these are
MOST_CHARACTERS = 5_000  # of a description, in MLflow's tables
CLASSIFIER = Path(__file__).with_name("photo_classifier.py")
CODE = (  # what the classifier imports: it goes with the model
    "pipeline/__init__.py",
    "pipeline/conversion/__init__.py",
    "pipeline/conversion/interpreter.py",
    "pipeline/images/__init__.py",
    "pipeline/images/reader.py",
    "pipeline/system/__init__.py",
    "pipeline/system/stderr.py",
    "pipeline/training/__init__.py",
    "pipeline/training/cifar10.py",
)
REQUIREMENTS = ("mlflow", "ai-edge-litert", "numpy", "pillow")


@dataclass(frozen=True)
class Champion:
    """The model to take for a budget: its record, what decided, in short and in a sentence, and what is known of it."""

    budget: str
    record: Record
    tags: dict[str, str]
    why: str
    note: str

    @property
    def name(self) -> str:
        """The registered model's."""
        return registered_name(self.budget)

    @property
    def model_digest(self) -> str:
        """Changes whenever the files of the registered model do."""
        sha = hashlib.sha256(self.record.id.encode())
        for path in (_litert_file(self.record), CLASSIFIER, *(REPOSITORY / file for file in CODE)):
            sha.update(path.read_bytes())
        return sha.hexdigest()[:32]

    @property
    def digest(self) -> str:
        """Changes whenever the version or what is said of it does."""
        content = [self.name, self.record.id, self.model_digest, self.tags, self.why, self.note]
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:32]


def registered_name(budget: str) -> str:
    """After the experiment's name, less what addresses and MLflow's filters cannot hold."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", f"{experiment.name()}-{budget}")


def sync_champions(champions: list[Champion]) -> None:
    """Makes the registry hold these champions, and no other of this experiment. Idempotent."""
    store.attempt("register the champions", lambda: _sync(champions))


def digests(connection: sqlite3.Connection) -> set[str]:
    """The digests of the champions that an embedded store holds of this experiment."""
    found = connection.execute(
        "SELECT version_tags.value FROM registered_model_aliases AS aliases "
        "JOIN registered_model_tags AS model_tags USING (workspace, name) "
        "LEFT JOIN model_version_tags AS version_tags ON version_tags.workspace = aliases.workspace "
        "AND version_tags.name = aliases.name AND version_tags.version = aliases.version AND version_tags.key = ? "
        "WHERE aliases.alias = ? AND model_tags.key = ? AND model_tags.value = ?",
        (DIGEST, ALIAS, EXPERIMENT, experiment.name()),
    )
    return {value for (value,) in found}


def _sync(champions: list[Champion]) -> None:
    import mlflow

    mlflow.set_tracking_uri(address.store_uri())  # where MLflow looks up `models:/…` while it makes a version
    for champion in champions:
        _sync_champion(champion)
    client, names = store.client(), {champion.name for champion in champions}
    for model in store.pages(client.search_registered_models):
        is_ours = model.tags.get(EXPERIMENT) == experiment.name()
        if is_ours and model.name not in names and ALIAS in model.aliases:
            client.delete_registered_model_alias(model.name, ALIAS)


def _sync_champion(champion: Champion) -> None:
    client, name, record = store.client(), champion.name, champion.record
    run = runs.find(experiment.current_id(), record.id)
    if run is None:  # it was deleted at this moment; the next sync makes it anew
        return
    model = next(iter(client.search_registered_models(f"name = '{name}'")), None)
    if model is None:
        model = client.create_registered_model(name, {EXPERIMENT: experiment.name(), "budget": champion.budget})
    content = {MODEL_DIGEST: champion.model_digest, runs.RECORD_ID: record.id}
    version = next(
        (
            version
            for version in client.search_model_versions(f"name = '{name}'")
            if version.run_id == run.info.run_id and content.items() <= version.tags.items()
        ),
        None,
    )
    if version is None:
        model_id = _logged_model(run, champion)
        source = f"models:/{model_id}"
        version = client.create_model_version(name, source, run.info.run_id, content, model_id=model_id)
    if version.tags.get(DIGEST) == champion.digest and model.aliases.get(ALIAS) == version.version:
        return
    for key, value in champion.tags.items():
        client.set_model_version_tag(name, version.version, key, value)
    client.update_model_version(name, version.version, _shortened(champion.why))
    client.update_registered_model(name, _shortened(champion.note))
    client.set_registered_model_alias(name, ALIAS, version.version)
    client.set_model_version_tag(name, version.version, DIGEST, champion.digest)


def _logged_model(run: Any, champion: Champion) -> str:
    """The id of the run's model for photos, logged unless another budget's version has it already."""
    import mlflow.pyfunc
    from mlflow.entities import LoggedModelStatus
    from mlflow.models import Model, ModelSignature
    from mlflow.types import ColSpec, DataType, Schema
    from mlflow.types.schema import Map

    client, experiment_id, run_id = store.client(), run.info.experiment_id, run.info.run_id
    for logged in client.search_logged_models([experiment_id], f"source_run_id = '{run_id}'"):
        if logged.tags.get(MODEL_DIGEST) == champion.model_digest and logged.status == LoggedModelStatus.READY:
            return logged.model_id
    tags = {MODEL_DIGEST: champion.model_digest}
    logged = client.create_logged_model(experiment_id, f"{champion.record.run}-litert", run_id, tags)
    outputs = [("class", DataType.string), ("probability", DataType.double), ("probabilities", Map(DataType.double))]
    signature = ModelSignature(
        Schema([ColSpec(DataType.string, "image")]), Schema([ColSpec(kind, name) for name, kind in outputs])
    )
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it wants an example of the input
        for file in CODE:
            (copy := Path(folder) / file).parent.mkdir(parents=True, exist_ok=True)
            copy.write_bytes((REPOSITORY / file).read_bytes())
        mlflow.pyfunc.save_model(
            f"{folder}/model",
            python_model=str(CLASSIFIER),
            code_paths=[f"{folder}/pipeline"],
            artifacts={"litert": str(_litert_file(champion.record))},
            mlflow_model=Model(logged.artifact_location, run_id, model_uuid=logged.model_id, model_id=logged.model_id),
            signature=signature,
            pip_requirements=[f"{name}=={importlib.metadata.version(name)}" for name in REQUIREMENTS],
        )
        client.log_model_artifacts(logged.model_id, f"{folder}/model")
    client.finalize_logged_model(logged.model_id, LoggedModelStatus.READY)
    return logged.model_id


def _litert_file(record: Record) -> Path:
    return record.folder / "export" / exports.FILES["float32"]


def _shortened(note: str) -> str:
    """The note, cut at the end of a line if it is longer than MLflow keeps."""
    if len(note) <= MOST_CHARACTERS:
        return note
    return note[: note.rfind("\n", 0, MOST_CHARACTERS - 2)] + "\n…"
