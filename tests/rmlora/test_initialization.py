"""A starts along the task's gradient: orthogonal, spanning what it should, and without any other effect."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from peft import get_peft_model

from rmlora.callback import RMLoRACallback
from rmlora.config import RMLoRAConfig
from rmlora.errors import TrainingError
from rmlora.factors import find_factors
from rmlora.initialization import align_with_gradient, fresh_factors
from tests.helpers.models import ARCHITECTURES, adapt, build, lora_config, output
from tests.rmlora.test_callback import trainer

NAMES = sorted(ARCHITECTURES)


def fresh(name: str, **changes: object) -> torch.nn.Module:
    torch.manual_seed(0)
    return get_peft_model(build(name), lora_config(name, **changes))


def loss_of(model: torch.nn.Module, name: str) -> torch.Tensor:
    result = model(**ARCHITECTURES[name].inputs())
    value = result.logits if hasattr(result, "logits") else result.last_hidden_state
    return (value - torch.linspace(-1, 1, value.shape[-1])).square().mean()


@pytest.mark.parametrize("name", NAMES)
def test_rows_are_orthogonal_and_the_model_is_still_the_base(name: str) -> None:
    model = fresh(name).eval()
    factors = find_factors(model)
    before = output(model, ARCHITECTURES[name].inputs())
    lengths = [item.matrix_of_A(item.A.detach()).norm(dim=1) for item in factors]
    eligible = len(fresh_factors(factors))
    assert align_with_gradient(model, factors, [lambda: loss_of(model, name)], seed=3) == eligible == len(factors)
    torch.testing.assert_close(output(model, ARCHITECTURES[name].inputs()), before, rtol=0, atol=0)
    for item in factors:
        assert not item.B.any()
        assert item.A.grad is None and item.B.grad is None
    for item, old in zip(factors, lengths, strict=True):
        matrix = item.matrix_of_A(item.A.detach())
        torch.testing.assert_close(matrix @ matrix.T, torch.diag(old.square()), rtol=1e-4, atol=1e-5)


def test_rows_span_the_leading_directions_of_the_gradient() -> None:
    name = "bert"
    model = fresh(name).eval()
    factors = find_factors(model)
    weights = {
        item.module: next(p for n, p in model.named_parameters() if n.endswith(f"{item.module}.base_layer.weight"))
        for item in factors
    }
    for weight in weights.values():
        weight.requires_grad_(True)
    loss_of(model, name).backward()
    gradients = {module: weight.grad.clone() for module, weight in weights.items()}  # type: ignore[union-attr]
    for weight in weights.values():
        weight.requires_grad_(False)
    align_with_gradient(model, factors, [lambda: loss_of(model, name)], seed=3)
    for item in factors:
        gradient = gradients[item.module]
        rows = item.A.detach() / item.A.detach().norm(dim=1, keepdim=True)
        kept = float((gradient @ rows.T).square().sum() / gradient.square().sum())
        values = torch.linalg.svdvals(gradient).square()
        best = float(values[: item.rank].sum() / values.sum())
        assert kept > 0.6 * best, item.module
        assert kept > 1.5 * item.rank / gradient.shape[1], item.module


def test_the_same_seed_gives_the_same_rows_and_leaves_the_random_state() -> None:
    rows = []
    for _ in range(2):
        model = fresh("bert").train()
        state = torch.random.get_rng_state()
        align_with_gradient(model, find_factors(model), [lambda m=model: loss_of(m, "bert")], seed=3)  # type: ignore[misc]
        assert torch.equal(torch.random.get_rng_state(), state)
        assert model.training
        rows.append(torch.cat([item.A.detach().flatten() for item in find_factors(model)]))
    assert torch.equal(*rows)


def test_trained_factors_are_left_alone() -> None:
    model = adapt(build("bert"), lora_config("bert"))
    before = [item.A.detach().clone() for item in find_factors(model)]
    assert align_with_gradient(model, find_factors(model), [], seed=0) == 0
    assert all(torch.equal(item.A, a) for item, a in zip(find_factors(model), before, strict=True))


def test_a_gradient_that_is_not_finite_is_an_error_and_changes_nothing() -> None:
    model = fresh("bert")
    before = [item.A.detach().clone() for item in find_factors(model)]
    with pytest.raises(TrainingError, match="NaN or infinite"):
        align_with_gradient(model, find_factors(model), [lambda: loss_of(model, "bert") * float("nan")], seed=0)
    assert all(torch.equal(item.A, a) for item, a in zip(find_factors(model), before, strict=True))


def test_the_callback_aligns_before_the_first_step_and_not_when_it_continues(tmp_path: Path) -> None:
    def first_rows(init: str, steps: int) -> torch.Tensor:
        model = fresh("bert")
        callback = RMLoRACallback(RMLoRAConfig(rank=4, init=init))  # type: ignore[arg-type]
        run = trainer(tmp_path, [callback], model=model, max_steps=2, learning_rate=1e-12)
        run.state.global_step = steps
        callback.on_train_begin(
            run.args, run.state, run.control, model=model, train_dataloader=run.get_train_dataloader()
        )
        return find_factors(model)[0].A.detach().clone()

    assert not torch.equal(first_rows("gradient", 0), first_rows("peft", 0))
    assert torch.equal(first_rows("gradient", 5), first_rows("peft", 0))


def test_a_model_without_a_loss_is_an_error(tmp_path: Path) -> None:
    model = fresh("bert")
    run = trainer(tmp_path, [RMLoRACallback(RMLoRAConfig(rank=4, init="gradient"))], model=model)
    run.train_dataset = run.train_dataset.remove_columns("labels")
    with pytest.raises(TrainingError, match="gives no loss for a training batch"):
        run.train()
