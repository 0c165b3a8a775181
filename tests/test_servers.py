"""The same pipeline against real servers on this machine: MLflow on PostgreSQL and S3, and a DVC remote in S3."""

import io
import json
import os
import pwd
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import textwrap
import time
import urllib.request
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from conftest import sh, small_clone

from pipeline.config import params
from pipeline.records import record
from pipeline.tracking import comparison, summary

boto3 = pytest.importorskip("boto3", reason="boto3 is not installed: `make setup`")
moto_server = pytest.importorskip("moto.server", reason="moto is not installed: `make setup`")
psycopg = pytest.importorskip("psycopg", reason="psycopg is not installed: `make setup`")

pytestmark = [pytest.mark.servers, pytest.mark.slow]

BUCKET = "cifar10"
PATIENCE = 90.0  # seconds, for a server to answer
EPOCHS = 8  # of the training that the server dies in


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def wait(what: str, ready) -> None:
    """Returns once `ready()` is true and raises nothing."""
    end = time.monotonic() + PATIENCE
    while True:
        try:
            if ready():
                return
            problem = "it is not so"
        except Exception as error:
            problem = str(error)
        assert time.monotonic() < end, f"{what}: {problem}"
        time.sleep(0.1)


@pytest.fixture(scope="module")
def hidden() -> dict[str, str]:
    """Everything that nobody may read afterwards."""
    return {
        name: f"hidden-{name}-{secrets.token_hex(8)}" for name in ("database", "s3", "user", "other", "token", "git")
    }


@pytest.fixture(scope="module")
def database(hidden) -> Iterator[str]:
    """The address of an empty PostgreSQL database; its server refuses to run as root."""
    folders = [*sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True), *map(Path, os.get_exec_path())]
    binaries = next((folder for folder in folders if (folder / "initdb").exists()), None)
    if binaries is None:
        pytest.skip("PostgreSQL is not installed; on Debian and Ubuntu: apt-get install postgresql")
    nobody = pwd.getpwnam("nobody")
    user = {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []} if os.geteuid() == 0 else {}
    folder, port = Path(tempfile.mkdtemp(prefix="postgres-")), free_port()
    (folder / "password").write_text(hidden["database"])
    if user:
        for path in (folder, folder / "password"):
            shutil.chown(path, user["user"])
    made = [binaries / "initdb", "-D", "data", "-U", "mlflow", "-A", "scram-sha-256", "--pwfile=password", "--no-sync"]
    subprocess.run(made, cwd=folder, check=True, stdout=subprocess.DEVNULL, **user)
    options = ["listen_addresses=127.0.0.1", "unix_socket_directories=", "fsync=off"]
    with (folder.parent / f"{folder.name}.log").open("w") as log:
        server = subprocess.Popen(
            [binaries / "postgres", "-D", "data", "-p", str(port), *(part for it in options for part in ("-c", it))],
            cwd=folder,
            stdout=log,
            stderr=log,
            **user,
        )
    try:
        address = f"postgresql://mlflow:{hidden['database']}@127.0.0.1:{port}/postgres"
        wait("PostgreSQL", lambda: psycopg.connect(address).close() is None)
        yield address
    finally:
        server.send_signal(signal.SIGINT)
        server.wait(20)
        shutil.rmtree(folder)
        Path(log.name).unlink()


@pytest.fixture(scope="module")
def s3() -> Iterator[str]:
    """The address of an S3."""
    server = moto_server.ThreadedMotoServer("127.0.0.1", free_port(), verbose=False)
    server.start()
    yield "http://{}:{}".format(*server.get_host_and_port())
    server.stop()


class Server:
    """An `mlflow server` that can be killed and started again."""

    def __init__(self, folder: Path, environment: dict, database: str):
        self.port, self._log = free_port(), folder / "server.log"
        self._environment = environment | {"MLFLOW_BACKEND_STORE_URI": database}
        self._environment.pop("MLFLOW_TRACKING_URI")
        self.start()

    def start(self) -> None:
        with self._log.open("a") as log:
            self._process = subprocess.Popen(
                f"exec mlflow server --port {self.port} --workers 1 --artifacts-destination s3://{BUCKET}/mlflow",
                shell=True,
                env=self._environment,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def wait(self) -> None:
        address = f"http://127.0.0.1:{self.port}/health"
        wait(f"MLflow, see {self._log}", lambda: urllib.request.urlopen(address, timeout=5).status == 200)

    def kill(self) -> None:
        os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()


@pytest.fixture(scope="module")
def servers(tmp_path_factory, environment, database, s3, hidden) -> Iterator["Servers"]:
    servers = Servers(tmp_path_factory.mktemp("servers"), environment, database, s3, hidden)
    yield servers
    servers.mlflow.kill()


class Servers:
    """All three of them, what a shell needs to know of them, and all that our commands have printed."""

    def __init__(self, folder: Path, environment: dict, database: str, s3: str, hidden: dict):
        self.database, self.said = database, []
        self.environment = environment | {
            "AWS_ACCESS_KEY_ID": "somebody",
            "AWS_SECRET_ACCESS_KEY": hidden["s3"],
            "AWS_DEFAULT_REGION": "us-east-1",
            "MLFLOW_S3_ENDPOINT_URL": s3,
            "MLFLOW_TRACKING_URI": "",
        }
        self.s3 = boto3.resource(
            "s3",
            endpoint_url=s3,
            aws_access_key_id="somebody",
            aws_secret_access_key=hidden["s3"],
            region_name="us-east-1",
        )
        self.s3.create_bucket(Bucket=BUCKET)
        self.mlflow = Server(folder, self.environment, database)
        self.environment |= {
            "MLFLOW_TRACKING_URI": f"http://user:{hidden['user']}@127.0.0.1:{self.mlflow.port}",
            "MLFLOW_TRACKING_USERNAME": "user",
            "MLFLOW_TRACKING_PASSWORD": hidden["other"],
            "MLFLOW_TRACKING_TOKEN": hidden["token"],
            "MLFLOW_HTTP_REQUEST_TIMEOUT": "60",  # by default 4 seconds, which a server on a busy machine may need
        }

    def sh(self, command: str, folder: Path, **environment: str) -> str:
        """As `conftest.sh`, remembered."""
        self.said.append(sh(command, folder, self.environment | environment))
        return self.said[-1]

    def client(self):
        from mlflow import MlflowClient

        return MlflowClient(f"http://127.0.0.1:{self.mlflow.port}")

    def runs(self) -> list:
        """Of all experiments."""
        client = self.client()
        return client.search_runs([experiment.experiment_id for experiment in client.search_experiments()])

    def state(self) -> dict[str, dict]:
        """What the store says, by record; and that it says nothing twice. Not the page: it is of who came last."""
        client, runs = self.client(), [run for run in self.runs() if run.data.tags["record_id"] != summary.RUN]
        state = {run.data.tags["record_id"]: self.told(client, run) for run in runs}
        assert len(state) == len(runs), "two runs of one record"
        return state

    @staticmethod
    def told(client, run) -> dict:
        history = {key: client.get_metric_history(run.info.run_id, key) for key in run.data.metrics}
        return {
            "run": run.info.run_id,
            "name": run.info.run_name,
            "status": run.info.status,
            "times": (run.info.start_time, run.info.end_time),
            "params": run.data.params,
            "tags": run.data.tags,
            "metrics": {key: [(m.step, m.value, m.timestamp) for m in those] for key, those in history.items()},
            "models": [output.model_id for output in run.outputs.model_outputs] if run.outputs else [],
            "files": {file.path: file.file_size for file in client.list_artifacts(run.info.run_id)},
        }


def check(told: dict, folder: Path) -> None:
    """The store tells of the folder's run what its record says, each epoch once."""
    history = record.read_history(folder / "results/custom-0/history.csv")
    assert (told["name"], told["status"]) == ("custom-0", "FINISHED")
    for key in set(history[0]) - {"epoch"}:
        assert [step for step, *_ in told["metrics"][key]] == [row["epoch"] for row in history], key
        assert [value for _, value, _ in told["metrics"][key]] == pytest.approx([row[key] for row in history], rel=1e-5)
    evaluation = json.loads((folder / "results/custom-0/evaluation.json").read_text())
    assert [value for _, value, _ in told["metrics"]["test_accuracy"]] == [evaluation["test_accuracy"]]
    assert told["params"]["epochs"] == str(len(history))
    assert len(told["models"]) == 1
    for name in ("training.json", "history.csv", "evaluation.json", "curves.png"):
        assert told["files"][name] == (folder / "results/custom-0" / name).stat().st_size


def record_id(folder: Path) -> str:
    return json.loads((folder / "results/custom-0/training.json").read_text())["record_id"]


@pytest.fixture(scope="module")
def pair(tmp_path_factory, servers, hidden) -> tuple[Path, Path]:
    """Two clones, in which `dvc repro` ran at the same time against the same servers; the first one is committed."""
    folder = tmp_path_factory.mktemp("pair")
    first = small_clone(folder / "first", servers.environment)
    sh(
        f"git clone -q first second && git -C first remote add origin https://user:{hidden['git']}@example.org/x.git",
        folder,
        servers.environment,
    )
    tree = params.parse(folder / "second/params.yaml")
    tree["export"]["runs"] = {}  # the first one's are enough
    (folder / "second/params.yaml").write_text(yaml.safe_dump(tree, sort_keys=False))
    sh("git -C second -c user.name=t -c user.email=t@example.org commit -qam 'no exports'", folder, servers.environment)
    servers.mlflow.wait()
    said = servers.sh(
        "(cd second && exec dvc repro) & (cd first && exec dvc repro); there=$?; wait $! && exit $there", folder
    )
    assert "warning" not in said
    sh("git add -A && git commit -qm results", first, servers.environment)
    return first, folder / "second"


def test_two_pipelines_side_by_side_are_in_the_store_each_once(servers, pair):
    state = servers.state()
    assert set(state) == {*map(record_id, pair), "published-base", "published-custom"}
    for folder in pair:
        told = state[record_id(folder)]
        check(told, folder)
        assert "replayed" not in told["tags"]
    assert [step for step, *_ in state["published-custom"]["metrics"]["val_accuracy"]] == list(range(1, 51))


def test_repro_again_changes_nothing(servers, pair):
    before = servers.state()
    said = servers.sh("dvc repro", pair[0])
    assert "Running stage 'sync'" in said
    assert said.count("Running stage") == 1
    assert servers.state() == before


def test_model_comes_from_the_bucket_and_is_the_one_trained(servers, pair, tmp_path):
    told = servers.state()[record_id(pair[0])]
    assert any(
        file.key.endswith("/data/model.keras") for file in servers.s3.Bucket(BUCKET).objects.filter(Prefix="mlflow/")
    )
    code = f"""
        import numpy, keras, mlflow
        folder = mlflow.artifacts.download_artifacts("models:/{told["models"][0]}")
        images = numpy.random.default_rng(0).integers(0, 256, (4, 32, 32, 3), numpy.uint8)
        there, here = (
            keras.saving.load_model(file).predict(images, verbose=0)
            for file in (folder + "/data/model.keras", "{pair[0]}/results/custom-0/model.keras")
        )
        numpy.testing.assert_array_equal(there, here)
    """
    servers.sh(f"python -c '{textwrap.dedent(code)}'", tmp_path)


def test_champion_is_registered_once_and_its_model_comes_from_the_bucket(servers, pair, tmp_path):
    register = """
        from pipeline.records import record
        from pipeline.tracking import Champion, sync_champions
        note = "a line of fifty characters, as in a model card \\n" * 120
        champion = Champion("small", record.load("custom-0"), {"status": "stand-in"}, "the only one", note)
        sync_champions([champion])
    """
    for _ in range(2):
        assert "warning" not in servers.sh(f"python -c '{textwrap.dedent(register)}'", pair[0])
    ask = """
        import mlflow, pandas
        (model,) = mlflow.MlflowClient().search_registered_models()
        (version,) = mlflow.MlflowClient().search_model_versions()
        loaded = mlflow.pyfunc.load_model("models:/cifar10-small@champion")
        print("REGISTERED", model.name, dict(model.aliases), version.tags["record_id"])
        try:
            loaded.predict(pandas.DataFrame({"image": ["bm9uZQ=="]}))
        except Exception as error:
            print("REFUSED", error)
    """
    said = servers.sh(f"python -c '{textwrap.dedent(ask)}'", tmp_path).splitlines()
    assert f"REGISTERED cifar10-small {{'champion': '1'}} {record_id(pair[0])}" in said
    assert "REFUSED image 1: it is no image that Pillow opens: save it as PNG or JPEG" in said


def test_data_comes_from_the_remote_in_another_clone(servers, pair, tmp_path):
    before = servers.state()
    remote = f"dvc remote add --local --default s3 s3://{BUCKET}/dvc"
    endpoint = f"dvc remote modify --local s3 endpointurl {servers.environment['MLFLOW_S3_ENDPOINT_URL']}"
    servers.sh(f"{remote} && {endpoint} && dvc push", pair[0])
    sh(f"git clone -q {pair[0]} clone", tmp_path, servers.environment)
    nowhere = {"CIFAR10_SOURCE": str(tmp_path / "nowhere")}
    said = servers.sh(f"{remote} && {endpoint} && dvc pull && dvc repro", tmp_path / "clone", **nowhere)
    assert said.count("Running stage") == said.count("Running stage 'sync'") == 1
    assert sh("git status --porcelain", tmp_path / "clone", servers.environment) == ""
    assert servers.state() == before


def test_server_that_dies_in_a_training_is_completed_later(servers, pair):
    folder, before = pair[1], servers.state()
    replaced = before[record_id(folder)]["tags"]
    tree = params.parse(folder / "params.yaml")
    tree["recipes"]["custom"]["epochs"] = EPOCHS
    (folder / "params.yaml").write_text(yaml.safe_dump(tree, sort_keys=False))
    going = subprocess.Popen(
        ["dvc", "repro"],
        cwd=folder,
        env=servers.environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )

    def of_it() -> list:
        return [run for run in servers.runs() if run.data.params.get("epochs") == str(EPOCHS)]

    wait(
        "no epoch is in the store", lambda: len(servers.client().get_metric_history(of_it()[0].info.run_id, "loss")) > 1
    )
    servers.mlflow.kill()
    said, _ = going.communicate(timeout=600)
    servers.said.append(said)
    assert going.returncode == 0, said
    assert "warning: MLflow could not" in said
    assert "Traceback" not in said
    assert record_id(folder) not in before

    servers.mlflow.start()
    servers.mlflow.wait()
    (broken,) = of_it()
    told = servers.told(servers.client(), broken)
    assert told["status"] == "RUNNING"
    assert 1 < len(told["metrics"]["loss"]) < EPOCHS
    said = servers.sh("dvc repro", folder)
    assert said.count("Running stage") == said.count("Running stage 'sync'") == 1
    after = servers.state()
    compared = {name for name in replaced if name.startswith(comparison.PREFIX)}
    assert compared, "nothing was said of the record that was replaced"
    for name in compared | {comparison.FOLDER, comparison.DIGEST}:  # taken back with it; all else stays
        del replaced[name]
    assert {key: value for key, value in after.items() if key in before} == before
    assert set(after) - set(before) == {record_id(folder)}
    check(after[record_id(folder)], folder)
    assert after[record_id(folder)]["run"] == told["run"]


def test_experiment_of_its_own_bucket_gets_files_without_the_server(servers, pair):
    before = servers.state()
    direct = servers.client().create_experiment("direct", artifact_location=f"s3://{BUCKET}/direct")
    assert servers.sh("python -m pipeline.sync", pair[0], MLFLOW_EXPERIMENT_NAME="direct") == ""
    client = servers.client()
    (run,) = client.search_runs([direct], f"tags.record_id = '{record_id(pair[0])}'")
    model = servers.s3.Object(
        BUCKET, f"direct/models/{run.outputs.model_outputs[0].model_id}/artifacts/data/model.keras"
    )
    assert zipfile.is_zipfile(io.BytesIO(model.get()["Body"].read()))
    for run in client.search_runs([direct]):
        client.delete_run(run.info.run_id)
    assert servers.state() == before


def test_no_secret_is_left_anywhere(servers, pair, hidden):
    """Not in the database, the bucket, the folders or what was said, also when servers refuse or are not there."""
    nowhere = f"127.0.0.1:{free_port()}"
    for address in (
        f"http://user:{hidden['user']}@{nowhere}",
        f"http://user:a/b@{hidden['user']}@{nowhere}",  # a password that should have been quoted
        f"nonsense://user:{hidden['user']}@{nowhere}",
    ):
        said = servers.sh("python -m pipeline.sync", pair[0], MLFLOW_TRACKING_URI=address)
        assert "warning: MLflow could not" in said
        assert "Traceback" not in said
    places = {"what was said": "\n".join(servers.said).encode()}
    for folder in pair:
        files = [path for path in folder.rglob("*") if path.is_file() and not path.is_symlink()]
        made = [path for path in files if not {".git", "data"} & set(path.parts[len(folder.parts) :])]
        places |= {str(path): path.read_bytes() for path in made if ".dvc/cache" not in str(path)}
    for file in servers.s3.Bucket(BUCKET).objects.all():
        if not file.key.startswith("dvc/"):  # the images
            places[f"s3 {file.key}"] = file.get()["Body"].read()
    with psycopg.connect(servers.database) as connection:
        tables = connection.execute("SELECT tablename FROM pg_tables WHERE schemaname = 'public'").fetchall()
        for (table,) in tables:
            rows = connection.execute(f'SELECT "{table}"::text FROM "{table}"').fetchall()
            places[f"table {table}"] = "\n".join(text for (text,) in rows).encode()
    for name, content in list(places.items()):
        if zipfile.is_zipfile(io.BytesIO(content)):
            with zipfile.ZipFile(io.BytesIO(content)) as file:
                places |= {f"{name}: {part}": file.read(part) for part in file.namelist()}
    found = [
        f"{name}: {content[max(0, at - 200) : at + 50]!r}"
        for name, content in places.items()
        for secret in hidden.values()
        if (at := content.find(secret.encode())) >= 0
    ]
    assert not found
    for name in ("table tags", "table params", "table metrics", "what was said", f"{pair[0]}/dvc.lock"):
        assert b"custom" in places[name] or b"loss" in places[name], name
    assert any(name.startswith("s3 mlflow/") and b"custom-0" in content for name, content in places.items())
