"""Every cell of docs/models.md: what each architecture can be used for, tried step by step on tiny models.

``make models`` writes docs/reference/models.json anew, from which the page is made.
"""

from __future__ import annotations

import gc
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.helpers.branch_cases import MATRIX, BranchCase
from tests.helpers.cli import ROOT, environment
from tests.helpers.model_matrix import STEPS, YES, try_steps

RECORD = ROOT / "docs" / "reference" / "models.json"


@pytest.fixture(autouse=True)
def no_garbage_collection() -> Iterator[None]:
    """Collect garbage between the cases only, as tracing makes a lot of it."""
    gc.disable()
    yield
    gc.enable()
    gc.collect()


@pytest.mark.rare
@pytest.mark.parametrize("case", MATRIX, ids=[case.name for case in MATRIX])
def test_every_step_works_or_is_refused_as_the_page_says(
    case: BranchCase, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    found = try_steps(case, tmp_path)
    if request.config.getoption("write_models"):
        recorded = json.loads(RECORD.read_text()) if RECORD.exists() else {}
        recorded[case.name] = {"task": case.task, "steps": found}
        order = {each.name: number for number, each in enumerate(MATRIX)}
        kept = dict(sorted(((n, r) for n, r in recorded.items() if n in order), key=lambda item: order[item[0]]))
        RECORD.write_text(json.dumps(kept, indent=2) + "\n")
    assert found == json.loads(RECORD.read_text())[case.name]["steps"]


def test_the_page_has_every_architecture() -> None:
    recorded = json.loads(RECORD.read_text())
    assert list(recorded) == [case.name for case in MATRIX]
    assert all(tuple(row["steps"]) == STEPS for row in recorded.values())
    assert sum(row["steps"]["branches"] == YES for row in recorded.values()) > 25


def test_the_page_is_current() -> None:
    done = subprocess.run(
        [sys.executable, ROOT / "docs" / "reference" / "generate_models.py", "--check"],
        capture_output=True, text=True, env=environment(), check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
