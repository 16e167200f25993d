"""Branches on many architectures: every row of a mixed batch is PEFT's, or the export is refused with the reason."""

from __future__ import annotations

from pathlib import Path

import pytest

from rmlora.errors import RMLoRAError
from tests.helpers.branch_cases import IMAGES, REFUSED, TEXTS, BranchCase, export_case, worst_row

_ALWAYS = {"deberta-v3", "albert", "llama-causal", "xlnet", "beit"}
"""Cases of faults that were found; the others take minutes together and run with the slow tests."""


def _slow(cases: list[BranchCase]) -> list[object]:
    return [pytest.param(case, id=case.name, marks=[] if case.name in _ALWAYS else [pytest.mark.e2e]) for case in cases]


@pytest.mark.parametrize("case", _slow([*TEXTS, *IMAGES]))
def test_mixed_rows_are_pefts(case: BranchCase, tmp_path: Path) -> None:
    bundle, base, adapters = export_case(case, tmp_path)
    with_base = all(head.in_base for head in bundle.lora_inputs().heads)
    assert worst_row(case, bundle, base, adapters, with_base=with_base) <= 1e-5


@pytest.mark.parametrize(("case", "reason"), [pytest.param(*item, id=item[0].name) for item in REFUSED])
def test_refused_with_the_reason(case: BranchCase, reason: str, tmp_path: Path) -> None:
    with pytest.raises(RMLoRAError, match=reason):
        export_case(case, tmp_path)
    assert not (tmp_path / "bundle").exists()
