"""A merged checkpoint is PEFT's model, on many architectures: renamed, fused, split, tied, headless ones."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.helpers.merge_cases import CAUSAL, CLASSIFIERS, IMAGES, MLM, SEQ2SEQ, Case, make, merge_error


@pytest.mark.parametrize("case", [*MLM, *CAUSAL, *SEQ2SEQ, *CLASSIFIERS, *IMAGES], ids=lambda case: case.name)
def test_merged_is_peft(case: Case, tmp_path: Path) -> None:
    base, adapter, model_class = make(case, tmp_path)
    got, _ = merge_error(model_class, base, adapter, tmp_path / "merged", **case.load)
    assert got <= 5e-6
