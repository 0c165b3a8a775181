"""What is printed of an epoch: one line in a log; on a narrow terminal no number is broken."""

import pytest
from rich.console import Console

from pipeline.system import progress

ROW = {"loss": 2.3, "accuracy": 0.1, "val_loss": 2.25, "val_accuracy": 0.125, "learning_rate": 0.02}


def printed(monkeypatch, capsys, width, terminal):
    monkeypatch.setattr(
        progress, "Console", lambda **options: Console(**options, force_terminal=terminal, width=width, no_color=True)
    )
    with progress.TrainingProgress("custom-0: 92,027 parameters, 50 epochs of 45,000 images", 50) as shown:
        shown.steps(3, 1, 2, 2.3456)
        shown.epoch({"epoch": 3} | ROW, 61.2, 1234.5)
    return capsys.readouterr().out


def test_log_has_one_line_an_epoch_however_narrow(monkeypatch, capsys):
    assert printed(monkeypatch, capsys, 40, terminal=False).splitlines() == [
        "custom-0: 92,027 parameters, 50 epochs of 45,000 images",
        "epoch  3/50  loss 2.3000  accuracy 0.1000  val_loss 2.2500  val_accuracy 0.1250  lr 0.0200  61.2 s  "
        "1,234 images/s",
    ]


@pytest.mark.parametrize("width", [40, 60, 80])
def test_narrow_terminal_breaks_between_fields(monkeypatch, capsys, width):
    monkeypatch.setattr(progress.Progress, "start", lambda self: None)  # the moving line
    lines = printed(monkeypatch, capsys, width, terminal=True).splitlines()
    assert max(map(len, lines)) <= width
    fields = [field for line in lines for field in line.removeprefix("    ").split("  ")]
    assert fields[-4:] == ["val_accuracy 0.1250", "lr 0.0200", "61.2 s", "1,234 images/s"]


def test_lines_of_runs_that_have_ended_make_room(monkeypatch, capsys):
    monkeypatch.setattr(
        progress, "Console", lambda **options: Console(**options, force_terminal=True, width=120, height=5)
    )
    with progress.RunsProgress() as shown:
        for number in range(20):
            with shown.row(f"custom-{number}", 2, "title", "here", 0) as row:
                row.epoch({"epoch": 2} | ROW, 61.2, 1234.5)
        shown.row("last-0", 2, "title", "here", 0)
        capsys.readouterr()
        shown._bars.refresh()
        assert "last-0" in capsys.readouterr().out
    with progress.RunsProgress() as shown, shown.row("custom-0", 2, "title", "here", 0) as row:
        row.epoch({"epoch": 2} | ROW, 61.2, 1234.5)
    assert "custom-0: finished after epoch 2/2  val_accuracy 0.1250" in capsys.readouterr().out
