"""Output that never fails, progress in files, Ctrl-C at any moment, suggestions for typos, numbers with their nouns."""

from __future__ import annotations

import io
import json
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image
from rich.console import Console

from rmlora.plots import add_notes, save_figure
from rmlora.progress_display import ProgressDisplay
from rmlora.wording import counted, duration, numbers
from tests.helpers.cli import environment, fails, run, text_base, text_data
from tests.helpers.rarely import rarely


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("work")
    text_base(folder / "base")
    text_data(folder / "train.jsonl")
    return folder


def words(work: Path, output: Path, *more: str) -> list[str]:
    return ["train", "--base", str(work / "base"), "--train", str(work / "train.jsonl"), "-o", str(output), *more]


def started(arguments: list[str], **variables: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "rmlora_deploy", *arguments],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment(**variables), errors="replace",
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's background job would ignore it
    )  # fmt: skip


@pytest.mark.parametrize(
    ("variables", "more"),
    [
        ({"PYTHONIOENCODING": "ascii"}, []),
        rarely({"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}, ["--json"]),
    ],
)
def test_output_without_unicode_never_fails(
    work: Path, tmp_path: Path, variables: dict[str, str], more: list[str]
) -> None:
    data = tmp_path / "data.jsonl"
    rows = [{"text": f"w{n}", "label": ("日本", "grün")[n % 2]} for n in range(20)]
    data.write_text("\n".join(json.dumps(row) for row in rows))
    arguments = ["train", "--base", str(work / "base"), "--train", str(data), "--epochs", "1", "--overwrite"]
    done = started([*arguments, "-o", str(tmp_path / "adapter"), *more], **variables)
    out, err = done.communicate(timeout=120)
    assert done.returncode == 0, err
    assert "Traceback" not in err
    if more:
        assert set(json.loads(out)["details"]["validation"]["per_class"]) == {"日本", "grün"}
    else:
        assert "\\u65e5\\u672c" in out
    inspected = started(["inspect", str(tmp_path / "adapter"), "--all"], **variables)
    out, err = inspected.communicate(timeout=60)
    assert inspected.returncode == 0, err


def test_a_slow_step_prints_a_line_now_and_then_in_a_file() -> None:
    file, now = io.StringIO(), [0.0]
    with ProgressDisplay(Console(file=file, width=110), "training", interval=0.05, clock=lambda: now[0]) as display:
        display.start_at(10)
        display.update(10, total=50)
        now[0] = 20.0
        display.update(20, detail="loss 0.5")
        assert display.line() == "training: 20 of 50 steps (40%), loss 0.5, about 1 min 0 s left"
        time.sleep(0.3)
    lines = file.getvalue().splitlines()
    assert 1 <= len(lines) <= 6
    assert set(lines) == {"  training: 20 of 50 steps (40%), loss 0.5, about 1 min 0 s left"}
    with ProgressDisplay(Console(file=io.StringIO()), "verifying", clock=lambda: now[0]) as display:
        now[0] += 95
        assert display.line() == "verifying, 1 min 35 s so far"
    quick = io.StringIO()
    with ProgressDisplay(Console(file=quick), "training") as display:
        display.update(1, total=1)
    assert quick.getvalue() == ""


_PYTHON_STARTS = "Fatal Python error: init_import_site"
"""What Python says if it is interrupted before it runs anything."""


@pytest.mark.parametrize("delay", [0.08, 0.2, 0.5, 1.0, 2.0, 3.0])
def test_ctrl_c_at_any_moment_is_one_line(work: Path, tmp_path: Path, delay: float) -> None:
    err = _PYTHON_STARTS
    while _PYTHON_STARTS in err:  # on a busy machine; no program can catch a signal then
        process = started(words(work, tmp_path / "adapter", "--epochs", "500"))
        time.sleep(delay)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
        delay *= 1.5
    # Python ends itself with the signal if it came in compiled source; a shell shows 130 for both
    assert process.returncode in (130, -signal.SIGINT), err
    assert "Traceback" not in err
    assert [line[:18] for line in err.splitlines() if line] == ["Error: Interrupted"]


def test_ctrl_c_says_how_a_training_continues(work: Path, tmp_path: Path) -> None:
    process = started(words(work, tmp_path / "adapter", "--epochs", "500"))
    deadline = time.monotonic() + 60
    while not list((tmp_path / "adapter.run").glob("checkpoint-*/trainer_state.json")) and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    said = re.search(r"give the same command again to continue at step (\d+), or with --no-resume to start over", err)
    assert said is not None, err
    assert (tmp_path / "adapter.run" / f"checkpoint-{said[1]}").is_dir()


def test_typos_are_answered_with_what_was_meant() -> None:
    for typo, meant in (("trian", "train"), ("exprot", "export"), ("inspct", "inspect")):
        fails(2, f"No such command '{typo}'. Did you mean '{meant}'?", typo)
    fails(2, "The commands are train, merge", "qqqq")
    fails(2, "Did you mean '--learning-rate'?", "train", "--lerning-rate", "1")
    done = run("adapter", "ad")
    assert done.code == 2 and "'add'" in done.stderr


def test_numbers_come_with_their_nouns() -> None:
    assert [counted(n, "row") for n in (0, 1, 2, 1024)] == ["0 rows", "1 row", "2 rows", "1,024 rows"]
    assert counted(1, "entry", "entries") == "1 entry" and counted(3, "entry", "entries") == "3 entries"
    assert [duration(s) for s in (0.4, 59.6, 61, 3600, 7 * 3600 + 59)] == [
        "0 s",
        "1 min 0 s",
        "1 min 1 s",
        "1 h 0 min",
        "7 h 1 min",
    ]
    assert [numbers(v) for v in ([4], [4, 9], [4, 9, 17])] == ["4", "4 and 9", "4, 9 and 17"]
    assert numbers(list(range(10)), most=3) == "0, 1, 2 and 7 more"


def test_no_picture_is_cut_off(tmp_path: Path) -> None:
    figure = Figure(figsize=(4, 3), layout="constrained")
    axes = figure.subplots()
    axes.set_title("A title that is far longer than its axes are wide, twice over", loc="left", fontweight="bold")
    figure.suptitle("Another title that is far longer than the whole figure could ever be at this size")
    add_notes(figure, ["Warning: " + "a note of many words " * 20])
    save_figure(figure, tmp_path / "wide.png")
    pixels = np.asarray(Image.open(tmp_path / "wide.png").convert("L"))
    for edge in (pixels[:8], pixels[-8:], pixels[:, :8], pixels[:, -8:]):
        assert (edge == 255).all()
    assert pixels.shape[1] > 4 * 150 and pixels.shape[0] > 3 * 150
