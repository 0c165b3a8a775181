"""Which commit a training run comes from, and what differs from it."""

import subprocess
from dataclasses import dataclass
from pathlib import Path

from pipeline.config import params
from pipeline.system.command import PipelineError

OUTPUTS = ("results", "report", "dvc.lock")  # written by the pipeline itself
UNTRACKED = "pipeline"  # where files count that git does not have: a model's file is found by its name alone


@dataclass(frozen=True)
class Provenance:
    """A commit and the files that differ from it. `none` outside of git."""

    commit: str
    changed: tuple[str, ...]
    in_copy: bool  # such as `.workspaces/quick`, whose records are never committed

    def as_tags(self) -> dict[str, str | bool]:
        """What the record keeps."""
        return {"commit": self.commit, "dirty": self.commit == "none" or bool(self.changed)}

    def warning(self) -> str | None:
        """What is wrong with a record from here that is to be committed; None if nothing is."""
        if self.in_copy:
            return None
        if self.commit == "none":
            return "not in a git repository: the record will name no commit"
        if not self.changed:
            return None
        more = f" and {len(self.changed) - 3} more" if len(self.changed) > 3 else ""
        return (
            f"uncommitted changes in {', '.join(self.changed[:3])}{more}: the record will be marked dirty; "
            "commit them first if it is to be kept"
        )


def read() -> Provenance:
    """The commit that is checked out, and the files that differ from it.

    Untracked files count under `pipeline/`, changes to tracked files everywhere but in what the pipeline writes.
    """
    try:
        folder = Path(_git("rev-parse", "--show-toplevel").removesuffix("\n"))
        outside = [f":(top,exclude){name}" for name in OUTPUTS]
        lines = [
            *_git("status", "--porcelain", "--untracked-files=no", "--", ":/", *outside).splitlines(),
            *_git("status", "--porcelain", "--untracked-files=all", "--", f":/{UNTRACKED}").splitlines(),
        ]
        changed = [line[3:] for line in lines]
        # A copy of the working files has params of its own, which git does not see.
        if params.parse_text(_git("show", "HEAD:params.yaml"), "params.yaml of HEAD") != params.parse("params.yaml"):
            changed.append("params.yaml")
        in_copy = folder.resolve() != Path.cwd().resolve()
        return Provenance(_git("rev-parse", "HEAD").strip(), tuple(dict.fromkeys(changed)), in_copy)
    except (OSError, subprocess.CalledProcessError, PipelineError):
        return Provenance("none", (), in_copy=False)


def is_untracked(file: Path) -> bool:
    """Whether git does not have a file that it could have."""
    try:
        return _git("-C", str(file.parent), "status", "--porcelain", "--", file.name).startswith("??")
    except (OSError, subprocess.CalledProcessError):
        return False


def is_committed(*paths: Path) -> bool:
    """Whether git has these files, and these folders' files, as they are here."""
    names = [str(path) for path in paths]
    try:
        _git("ls-files", "--error-unmatch", "--", *names)
        return not _git("status", "--porcelain", "--untracked-files=all", "--", *names)
    except (OSError, subprocess.CalledProcessError):
        return False


def _git(*arguments: str) -> str:
    command = ["git", "-c", "core.quotepath=off", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout
