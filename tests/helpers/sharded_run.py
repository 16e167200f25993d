"""A short training run of two processes under FSDP2, started by torchrun as ``tests.helpers.sharded_run OUT``, or of one without.

Two processes take half of every batch each. The first writes the factors at the end to ``OUT``, of one run with the functions of
:mod:`rmlora.steps` and of one with the callback's.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel, get_peft_model
from safetensors.torch import save_file
from torch import distributed
from torch.utils.data import DataLoader
from transformers import TrainerControl, TrainerState, TrainingArguments

from rmlora.callback import RMLoRACallback
from rmlora.config import RMLoRAConfig
from rmlora.factors import find_factors
from rmlora.sharding import is_sharded, local_part, whole
from rmlora.steps import finish_step, mask_gradients, regularize_gradients
from tests.helpers.chats import tiny_llama

ROWS, TOKENS, STEPS, RATE = 8, 6, 6, 1e-2
PAPER = RMLoRAConfig(rank=4, active_rank=2, orth_weight=0.05, compensate=True, init="peft")
DEFAULT = RMLoRAConfig(rank=4, active_rank=2, decorrelation=0.3, mask_mode="update", init="gradient")


def adapted(config: RMLoRAConfig) -> PeftModel:
    """Return a tiny model with factors of ranks 4 and 3; three directions cannot be halved. Under torchrun it is sharded."""
    torch.manual_seed(0)
    settings = config.to_peft(task_type="CAUSAL_LM")
    settings.rank_pattern = {"q_proj": 3}
    model: Any = get_peft_model(tiny_llama(tied=False), settings)
    if distributed.is_initialized():
        from torch.distributed.fsdp import fully_shard

        for layer in model.base_model.model.model.layers:
            fully_shard(layer)
        fully_shard(model)
        halves = [p for p in model.parameters() if is_sharded(p) and local_part(p).numel() < p.numel()]
        assert len(halves) == len(list(model.parameters()))
    sharded: PeftModel = model
    return sharded


def batches() -> list[torch.Tensor]:
    """Return tokens ``[rows, tokens]`` for every step."""
    return list(torch.randint(0, 20, (STEPS, ROWS, TOKENS), generator=torch.Generator().manual_seed(1)))


def own_part(tokens: torch.Tensor) -> torch.Tensor:
    """Return the rows that this process computes."""
    if not distributed.is_initialized():
        return tokens
    return tokens.chunk(distributed.get_world_size())[distributed.get_rank()]


def backward(model: Any, tokens: torch.Tensor) -> None:
    """Compute the clipped gradient of a batch."""
    part = own_part(tokens)
    model(input_ids=part, labels=part).loss.backward()
    torch.nn.utils.clip_grad_norm_([p for p in model.parameters() if p.requires_grad], 1.0)


def optimizer_of(model: Any) -> torch.optim.Optimizer:
    return torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=RATE, weight_decay=0.0)


def with_steps() -> dict[str, torch.Tensor]:
    """Train with a loop of our own."""
    model = adapted(PAPER)
    factors, optimizer = find_factors(model), optimizer_of(model)
    for step, tokens in enumerate(batches()):
        backward(model, tokens)
        regularize_gradients(factors, PAPER)
        masked = mask_gradients(factors, PAPER, step)
        optimizer.step()
        finish_step(factors, PAPER, masked, RATE)
        optimizer.zero_grad()
    return state_of(model, "steps")


def with_callback(directory: Path) -> dict[str, torch.Tensor]:
    """Train with the callback, called as transformers' trainer calls it."""
    model, callback = adapted(DEFAULT), RMLoRACallback(DEFAULT)
    optimizer, state, control = optimizer_of(model), TrainerState(), TrainerControl()
    arguments = TrainingArguments(str(directory), per_device_train_batch_size=ROWS, use_cpu=True, report_to=[])
    rows = [{"input_ids": row, "labels": row} for row in torch.cat(batches())]
    given = {"model": model, "optimizer": optimizer, "train_dataloader": DataLoader(rows, batch_size=ROWS)}  # type: ignore[arg-type]
    callback.on_train_begin(arguments, state, control, **given)
    for tokens in batches():
        backward(model, tokens)
        callback.on_pre_optimizer_step(arguments, state, control, **given)
        optimizer.step()
        callback.on_optimizer_step(arguments, state, control, **given)
        optimizer.zero_grad()
        state.global_step += 1
    callback.on_train_end(arguments, state, control, **given)
    return state_of(model, "callback")


def state_of(model: Any, name: str) -> dict[str, torch.Tensor]:
    """Return all of every factor."""
    return {f"{name} {path}": whole(p).clone().contiguous() for path, p in model.named_parameters() if p.requires_grad}


def trained(directory: Path) -> dict[str, torch.Tensor]:
    """Return the factors at the end of both runs; ``directory`` is for the trainer."""
    return {**with_steps(), **with_callback(directory)}


if __name__ == "__main__":
    distributed.init_process_group("gloo")
    found = trained(Path(sys.argv[1]).parent / "run")
    if os.environ["RANK"] == "0":
        save_file(found, sys.argv[1])
    distributed.destroy_process_group()
