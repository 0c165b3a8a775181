"""Brings the MLflow store in step with the records on disk: `python -m pipeline.sync`, the last stage."""

import sys

from pipeline import tracking
from pipeline.config import params
from pipeline.records import exports, record, references
from pipeline.records.record import Record
from pipeline.report import cards, run_tags
from pipeline.report.recorded import COMPARISON, PAGE, from_comparison
from pipeline.system import command, provenance
from pipeline.system.command import PipelineError
from pipeline.tracking import Champion, pending, registered_name


def main() -> None:
    """Syncs the records here, and what `mlflow run` did not finish logging."""
    tracking.check()
    if warning := tracking.file_store_warning():
        print(f"warning: {warning}", file=sys.stderr)
    sync_records()
    pending.complete_all()


def sync_records() -> None:
    """Syncs every run of params.yaml's list, the published results, what the comparison says of each run, its page."""
    loaded = [record.load(run) for run in params.read().runs]
    runs = [run for run in loaded if run.training.status != "running"]  # killed; it will resume, or be made anew
    published = references.names()
    tags = from_comparison(run_tags.by_run) if COMPARISON.exists() else {}
    compared = {run.run: tags[run.run] for run in runs if run.run in tags and not tracking.is_copied(run)}
    digests = [run.digest() for run in runs] + [tracking.reference_digest(name) for name in published]
    digests += [tracking.comparison_digest(run, compared[run.run]) for run in runs if run.run in compared]
    is_page_shown = PAGE.exists() and not command.in_temporary_copy()  # of one try, not of the records
    digests += [tracking.page_digest(PAGE)] if is_page_shown else []
    champions = registered(runs)
    if tracking.in_sync(digests, champions):
        return
    tracking.end_dead_runs()
    for name in published:
        tracking.sync_reference(name)
    for run in runs:
        tracking.sync_run(run)
        if run.run in compared:
            tracking.sync_comparison(run, compared[run.run])
    tracking.end_comparisons([run for run in runs if run.run in compared])
    if is_page_shown:
        tracking.sync_page(PAGE)
    if champions is not None:
        tracking.sync_champions(champions)


def registered(runs: list[Record]) -> list[Champion] | None:
    """The champions, with what the registry is to say of them.

    Args:
        runs: the records of params.yaml's list.

    Returns:
        None where the registry stays as it is: in experiments and workspaces, whose results are not those of a commit,
        with code that is not committed, and for runs on a part of the data.
    """
    if not COMPARISON.exists() or command.in_temporary_copy():
        return None
    by_name, told = {run.run: run for run in runs}, from_comparison(run_tags.by_budget)
    chosen = {budget: by_name[tags["run"]] for budget, (tags, _) in told.items() if tags["run"] in by_name}
    notes = {budget: cards.path(tags["recipe"]) for budget, (tags, _) in told.items()}
    files = [COMPARISON, *notes.values(), *(run.folder for run in chosen.values())]
    if len(chosen) < len(told) or not provenance.is_committed(*files):
        return None
    if any(file.startswith("pipeline/") for file in provenance.read().changed):  # code goes with the model
        return None
    if not all(run.comparable for run in chosen.values()):
        return None
    champions = []
    for budget, run in chosen.items():
        try:
            exports.read(run.run)
            card = notes[budget].read_text(encoding="utf-8")
            for name in told:  # the card is for an experiment with our name
                card = card.replace(
                    f"models:/{cards.REGISTERED.format(budget=name)}@", f"models:/{registered_name(name)}@"
                )
            champions.append(Champion(budget, run, *told[budget], card))
        except PipelineError as error:
            print(f"warning: the champion of {budget} is not registered in MLflow: {error}", file=sys.stderr)
    return champions


if __name__ == "__main__":
    command.run(main)
