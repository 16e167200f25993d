"""Branches on many architectures: every row of a mixed batch is PEFT's, or the export is refused with the reason."""

from __future__ import annotations

import gc
from collections.abc import Iterable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

from rmlora.errors import AdapterError, RMLoRAError
from rmlora_deploy.exporter import optimize
from tests.helpers.branch_cases import (
    ANSWERERS,
    IMAGE_ENCODERS,
    IMAGES,
    REFUSED,
    TAGGERS,
    TEXTS,
    BranchCase,
    base_error,
    export_case,
    worst_row,
)

_USUAL = {
    *("albert", "deberta-v3", "xlnet", "llama-causal", "swin", "siglip-vectors"),
    *("modernbert-half-a-head", "bert-without-pooler", "longformer"),
}
"""One architecture of each kind; ``make architectures`` runs the others too."""


@pytest.fixture(autouse=True)
def no_garbage_collection() -> Iterator[None]:
    """Collect garbage between the cases only: torch's tracer makes so many objects that collecting takes a third of the time."""
    gc.disable()
    yield
    gc.enable()
    gc.collect()


def _params(cases: Iterable[tuple[Any, ...]]) -> list[Any]:
    return [
        pytest.param(case, *rest, id=case.name, marks=[] if case.name in _USUAL else [pytest.mark.rare])
        for case, *rest in cases
    ]


@pytest.mark.parametrize("case", _params((case,) for case in [*TEXTS, *TAGGERS, *ANSWERERS, *IMAGES, *IMAGE_ENCODERS]))
def test_mixed_rows_are_pefts(case: BranchCase, tmp_path: Path) -> None:
    bundle, base, adapters = export_case(case, tmp_path)
    assert base_error(bundle) <= case.base_error
    with_base = all(head.in_base for head in bundle.lora_inputs().heads)
    assert worst_row(case, bundle, base, adapters, with_base=with_base) <= 1e-5


@pytest.mark.parametrize(("case", "reason"), _params(REFUSED))
def test_refused_with_the_reason(case: BranchCase, reason: str, tmp_path: Path) -> None:
    with pytest.raises(RMLoRAError, match=reason):
        export_case(case, tmp_path)
    assert not (tmp_path / "bundle").exists()


def test_a_weight_that_an_optimizer_computed_with_is_not_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = next(case for case in IMAGES if case.name == "swinv2")
    monkeypatch.setattr(optimize, "_weights_kept", lambda model: nullcontext())
    with pytest.raises(AdapterError, match=r"replaced '\S+continuous_position_bias_mlp.0.weight' by a constant result"):
        export_case(case, tmp_path)
