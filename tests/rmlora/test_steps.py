"""Gradients before an optimizer step, on every architecture: the penalty's equals autograd's, masks hit factors only."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from peft import LoraConfig, get_peft_model

from rmlora.config import RMLoRAConfig
from rmlora.errors import TrainingError
from rmlora.factors import find_factors
from rmlora.mask import masked_directions
from rmlora.regularizer import penalty
from rmlora.steps import finish_step, mask_gradients, regularize_gradients
from tests.helpers.models import ARCHITECTURES, adapt, build, lora_config, output

NAMES = sorted(ARCHITECTURES)


def task_loss(model: torch.nn.Module, name: str) -> torch.Tensor:
    with torch.enable_grad():
        result = model(**ARCHITECTURES[name].inputs())
    value = result.logits if hasattr(result, "logits") else result.last_hidden_state
    return value.square().mean()


def gradients(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.requires_grad and p.grad is not None}


@pytest.mark.parametrize("squared", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_gradient_is_autograd_of_the_objective(name: str, squared: bool) -> None:
    config = RMLoRAConfig(rank=4, active_rank=4, orth_weight=0.3, squared=squared)
    model = adapt(build(name), lora_config(name, rank_pattern={ARCHITECTURES[name].targets[0]: 2}))
    factors = find_factors(model)
    matrices = [m for f in factors for m in (f.matrix_of_A(f.A), f.matrix_of_B(f.B))]
    (task_loss(model, name) + 0.3 * penalty(matrices, squared=squared)).backward()
    expected = gradients(model)

    model.zero_grad()
    task_loss(model, name).backward()
    value = regularize_gradients(factors, config)
    assert value is not None
    torch.testing.assert_close(value, penalty(matrices, squared=squared).detach())
    for parameter, gradient in gradients(model).items():
        torch.testing.assert_close(gradient, expected[parameter], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("sharing", ["shared", "independent"])
@pytest.mark.parametrize("name", NAMES)
def test_only_masked_directions_of_factors_lose_their_gradient(name: str, sharing: str) -> None:
    config = RMLoRAConfig(rank=4, active_rank=2, mask_sharing=sharing, seed=5)
    model = adapt(build(name), lora_config(name))
    task_loss(model, name).backward()
    before = gradients(model)
    factors = find_factors(model)
    mask_gradients(factors, config, step=3)
    touched = set()
    for item in factors:
        sides = ("AB", "AB") if sharing == "shared" else ("A", "B")
        for parameter, axis, side in ((item.A, 0, sides[0]), (item.B, 1, sides[1])):
            masked = masked_directions(seed=5, step=3, module=item.module, side=side, rank=4, active_rank=2)
            moved = [d for d in range(4) if d not in masked]
            key = next(n for n, p in model.named_parameters() if p is parameter)
            assert (parameter.grad.index_select(axis, torch.tensor(masked)) == 0).all()
            torch.testing.assert_close(
                parameter.grad.index_select(axis, torch.tensor(moved)),
                before[key].index_select(axis, torch.tensor(moved)),
            )
            touched.add(key)
    untouched = {key: value for key, value in gradients(model).items() if key not in touched}
    assert bool(untouched) == (ARCHITECTURES[name].head is not None)
    for key, value in untouched.items():
        assert (value != 0).any() and torch.equal(value, before[key])


def test_infinite_gradients_are_zeroed_not_multiplied() -> None:
    model = adapt(build("bert"), lora_config("bert"))
    factors = find_factors(model)
    for item in factors:
        item.A.grad, item.B.grad = torch.full_like(item.A, float("inf")), torch.full_like(item.B, float("inf"))
    mask_gradients(factors, RMLoRAConfig(rank=4, active_rank=1), step=1)
    for item in factors:
        assert int((item.A.grad == 0).all(dim=1).sum()) == 3
        assert not item.A.grad.isnan().any() and not item.B.grad.isnan().any()


@pytest.mark.parametrize("mode", ["gradient", "update"])
def test_adam_moves_masked_directions_unless_the_mode_restores_them(mode: str) -> None:
    config = RMLoRAConfig(rank=4, active_rank=2, mask_mode=mode)
    model = adapt(build("bert"), lora_config("bert"))
    factors = find_factors(model)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2, weight_decay=0.1)
    for step in range(6):
        optimizer.zero_grad()
        task_loss(model, "bert").backward()
        before = {item.module: (item.A.detach().clone(), item.B.detach().clone()) for item in factors}
        masked = mask_gradients(factors, config, step)
        optimizer.step()
        finish_step(factors, config, masked, 1e-2)
    directions = {
        item.module: masked_directions(seed=42, step=5, module=item.module, side="AB", rank=4, active_rank=2)
        for item in factors
    }
    still_a = [torch.equal(i.A[directions[i.module]], before[i.module][0][directions[i.module]]) for i in factors]
    still_b = [torch.equal(i.B[:, directions[i.module]], before[i.module][1][:, directions[i.module]]) for i in factors]
    assert all(still_a + still_b) if mode == "update" else not any(still_a)


def test_penalty_does_not_depend_on_how_a_batch_is_accumulated() -> None:
    config = RMLoRAConfig(rank=4, active_rank=2, orth_weight=0.1)
    inputs = ARCHITECTURES["bert"].inputs(batch=4)
    results = []
    for parts in (1, 2, 4):
        model = adapt(build("bert"), lora_config("bert"))
        factors = find_factors(model)
        for part in range(parts):
            rows = slice(part * 4 // parts, (part + 1) * 4 // parts)
            loss = model(**{key: value[rows] for key, value in inputs.items()}).logits.square().mean() / parts
            loss.backward()
        regularize_gradients(factors, config)
        mask_gradients(factors, config, step=2)
        results.append(gradients(model))
    for other in results[1:]:
        for key, value in results[0].items():
            torch.testing.assert_close(other[key], value, rtol=1e-4, atol=1e-7)


def test_embeddings_and_convolutions_are_masked_along_their_rank() -> None:
    model = adapt(build("bert"), lora_config("bert", target_modules=["word_embeddings", "query"]))
    factors = find_factors(model)
    assert {item.rank for item in factors} == {4}
    output(model, ARCHITECTURES["bert"].inputs())
    task_loss(model, "bert").backward()
    mask_gradients(factors, RMLoRAConfig(rank=4, active_rank=1), step=1)
    embedding = next(item for item in factors if "word_embeddings" in item.module)
    assert embedding.A.shape == (4, 97) and int((embedding.B.grad == 0).all(dim=0).sum()) == 3
    patches = adapt(build("vit"), lora_config("vit", target_modules=["projection"]))
    (convolution,) = find_factors(patches)
    task_loss(patches, "vit").backward()
    regularize_gradients([convolution], RMLoRAConfig(rank=4))
    mask_gradients([convolution], RMLoRAConfig(rank=4, active_rank=1), step=1)
    assert convolution.A.dim() == 4
    assert int((convolution.A.grad.flatten(1) == 0).all(dim=1).sum()) == 3


def test_convolutions_in_another_order_in_memory_are_regularized_alike() -> None:
    """``torch.channels_last`` is usual for convolutions: their factors flatten to copies, to which nothing must be added."""
    config = RMLoRAConfig(rank=4, active_rank=2, orth_weight=0.1)
    moved = []
    for order in (torch.contiguous_format, torch.channels_last):
        model = adapt(build("vit"), lora_config("vit", target_modules=["projection"])).to(memory_format=order)
        (factors,) = find_factors(model)
        task_loss(model, "vit").backward()
        regularize_gradients([factors], config)
        gradient = factors.A.grad.clone()
        finish_step([factors], config, mask_gradients([factors], config, step=1), learning_rate=0.01)
        moved.append((gradient, factors.A.detach().clone(), factors.B.detach().clone()))
    for usual, other in zip(*moved, strict=True):
        torch.testing.assert_close(other, usual)


def test_a_convolution_with_groups_is_refused() -> None:
    model = torch.nn.Sequential(torch.nn.Conv2d(8, 8, 3, groups=4))
    adapted = get_peft_model(model, LoraConfig(r=8, target_modules=["0"]))
    with pytest.raises(TrainingError, match="is a convolution with 4 groups: .* leave it out of target_modules"):
        find_factors(adapted)


def test_a_model_without_factors_is_refused() -> None:
    with pytest.raises(TrainingError, match=r"no trainable LoRA factors: wrap it with peft\.get_peft_model"):
        find_factors(build("bert"))


@pytest.mark.parametrize(("mode", "factor"), [("gradient", 2**0.5), ("update", 2.0)])
def test_steps_are_lengthened_to_make_up_for_the_mask(mode: str, factor: float) -> None:
    config = RMLoRAConfig(rank=4, active_rank=2, mask_mode=mode, decorrelation=0, compensate=True)
    moved = []
    for one in (config, dataclasses.replace(config, compensate=False)):
        model = adapt(build("bert"), lora_config("bert"))
        factors = find_factors(model)
        optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3)
        task_loss(model, "bert").backward()
        before = [p.detach().clone() for f in factors for p in (f.A, f.B)]
        masked = mask_gradients(factors, one, step=1)
        optimizer.step()
        finish_step(factors, one, masked, 1e-3)
        moved.append(
            [p.detach() - old for p, old in zip((p for f in factors for p in (f.A, f.B)), before, strict=True)]
        )
    for longer, plain in zip(*moved, strict=True):
        torch.testing.assert_close(longer, factor * plain, rtol=1e-3, atol=1e-7)


def test_the_first_step_has_no_mask_and_its_own_length() -> None:
    config = RMLoRAConfig(rank=4, active_rank=2, decorrelation=0, compensate=True)
    model = adapt(build("bert"), lora_config("bert"))
    factors = find_factors(model)
    masked = mask_gradients(factors, config, step=0)
    with torch.no_grad():
        for item in factors:
            item.A.add_(1)
    after = [item.A.detach().clone() for item in factors]
    finish_step(factors, config, masked, 1e-3)
    assert all(torch.equal(item.A, value) for item, value in zip(factors, after, strict=True))


def test_a_mask_is_kept_for_its_interval() -> None:
    config = RMLoRAConfig(rank=4, active_rank=2, mask_interval=3)
    seen = []
    for step in range(9):
        model = adapt(build("bert"), lora_config("bert"))
        task_loss(model, "bert").backward()
        factors = find_factors(model)
        mask_gradients(factors, config, step)
        seen.append([tuple((f.A.grad == 0).all(dim=1).tolist()) for f in factors])  # type: ignore[union-attr]
    assert seen[3] == seen[4] == seen[5] != seen[6] == seen[7] == seen[8]
    assert not any(any(row) for row in seen[0] + seen[2])


def test_steps_are_lengthened_by_the_share_of_their_own_rank() -> None:
    config = RMLoRAConfig(rank=4, active_rank=2, decorrelation=0, compensate=True)
    targets = ARCHITECTURES["bert"].targets
    model = adapt(build("bert"), lora_config("bert", rank_pattern={targets[0]: 3, targets[1]: 1}))
    factors = find_factors(model)
    masked = mask_gradients(factors, config, step=1)
    before = [item.A.detach().clone() for item in factors]
    with torch.no_grad():
        for item in factors:
            item.A.add_(1)
    finish_step(factors, config, masked, 1e-3)
    expected = {4: 2**0.5, 3: 1.5**0.5, 1: 1.0}  # 2 of 4, 2 of 3 and 1 of 1 directions are active
    assert {item.rank for item in factors} == set(expected)
    for item, old in zip(factors, before, strict=True):
        torch.testing.assert_close(item.A - old, torch.full_like(old, expected[item.rank]))
