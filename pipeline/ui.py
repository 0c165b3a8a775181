"""Opens MLflow's pages on the store: `python -m pipeline.ui`. Prints the addresses of curves, tables and models."""

import argparse
import os
import sys

from pipeline.system import command
from pipeline.tracking import address, experiment, store


def main() -> None:
    """Prints the addresses and becomes `mlflow ui`; of a server it prints them only."""
    parser = argparse.ArgumentParser(prog="python -m pipeline.ui", description=__doc__)
    parser.add_argument("--port", type=int, default=5000, help="default: 5000")
    port = parser.parse_args().port
    address.check()
    local, server = f"http://127.0.0.1:{port}", address.server()
    pages = store.attempt("list its experiments", lambda: experiment.pages(server or local))
    if pages is None:
        sys.exit(1)
    if not pages:
        print("no runs yet: `make run` trains some in minutes, `dvc repro` shows the recorded ones", flush=True)
    for name, (curves, table) in pages.items():
        print(f"experiment {name}\n  curves of all runs: {curves}\n  table of all runs:  {table}", flush=True)
    if store.attempt("list its models", lambda: store.client().search_registered_models(max_results=1)):
        print(f"models to take:       {server or local}/#/models", flush=True)
    if not server:
        database = address.database()
        os.chdir(database.parent if database else address.root())
        os.environ["MLFLOW_BACKEND_STORE_URI"] = address.store_uri()  # not an argument: it may hold a password
        os.execv(sys.executable, [sys.executable, "-m", "mlflow", "ui", "--port", str(port)])


if __name__ == "__main__":
    command.run(main)
