"""The callback in the trainers of transformers and trl: accumulation, loss scaling, sharding, and no effect at all."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from datasets import Dataset
from transformers import Trainer, TrainingArguments

from rmlora.callback import RMLoRACallback, _unscale
from rmlora.config import PRESETS, RMLoRAConfig
from rmlora.errors import TrainingError
from tests.helpers.models import ARCHITECTURES, LABELS, adapt, build, lora_config

CONFIG = RMLoRAConfig(rank=4, active_rank=2, orth_weight=0.1)


def dataset(rows: int = 16) -> Dataset:
    inputs = ARCHITECTURES["bert"].inputs(batch=rows, seed=3)
    labels = torch.arange(rows) % LABELS
    return Dataset.from_dict({**{key: value.tolist() for key, value in inputs.items()}, "labels": labels.tolist()})


def trainer(directory: Path, callbacks: list[Any], model: Any = None, **settings: Any) -> Trainer:
    defaults: dict[str, Any] = {
        "per_device_train_batch_size": 4,
        "num_train_epochs": 2,
        "learning_rate": 1e-2,
        "report_to": [],
        "save_strategy": "no",
        "logging_steps": 1,
        "disable_tqdm": True,
        "use_cpu": True,
    }
    model = model if model is not None else adapt(build("bert"), lora_config("bert"))
    arguments = TrainingArguments(str(directory), **{**defaults, **settings})
    return Trainer(
        model=model,
        args=arguments,
        train_dataset=dataset(),
        eval_dataset=dataset(),
        callbacks=callbacks,
        compute_loss_func=cross_entropy,
    )


def cross_entropy(outputs: Any, labels: torch.Tensor, num_items_in_batch: torch.Tensor | None = None) -> torch.Tensor:
    """Divide by the items of the whole accumulated batch; the classifiers' own loss divides by those of one forward pass."""
    total = torch.nn.functional.cross_entropy(outputs.logits, labels, reduction="sum")
    return total / (num_items_in_batch if num_items_in_batch is not None else len(labels))


def tensors(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}


def test_trains_factors_and_head_and_logs_the_penalty(tmp_path: Path) -> None:
    callback = RMLoRACallback(CONFIG)
    run = trainer(tmp_path, [callback])
    before = tensors(run.model)
    run.train()
    assert all(not torch.equal(value, before[name]) for name, value in tensors(run.model).items())
    assert callback.last_penalty is not None and callback.last_penalty > 0
    logged = [entry for entry in run.state.log_history if "loss" in entry]
    assert len(logged) == 8 and all("orth_penalty" in entry for entry in logged)


def test_evaluation_loss_has_no_penalty(tmp_path: Path) -> None:
    run = trainer(tmp_path, [RMLoRACallback(RMLoRAConfig(rank=4, active_rank=2, orth_weight=100.0))], learning_rate=0.0)
    run.train()
    run.model.eval()
    data = dataset()
    with torch.inference_mode():
        logits = run.model(torch.tensor(data["input_ids"]), torch.tensor(data["attention_mask"])).logits
    expected = torch.nn.functional.cross_entropy(logits, torch.tensor(data["labels"]))
    assert run.evaluate()["eval_loss"] == pytest.approx(float(expected), rel=1e-5)


def test_gradient_accumulation_gives_the_same_run(tmp_path: Path) -> None:
    results = []
    for batch, steps in ((8, 1), (4, 2), (2, 4)):
        model = adapt(build("bert"), lora_config("bert"))
        for module in model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
        run = trainer(
            tmp_path,
            [RMLoRACallback(CONFIG)],
            model=model,
            per_device_train_batch_size=batch,
            gradient_accumulation_steps=steps,
            optim="sgd",
            max_grad_norm=0.0,
        )
        run.train()
        results.append(tensors(run.model))
    for other in results[1:]:
        for name, value in results[0].items():
            torch.testing.assert_close(other[name], value, rtol=1e-4, atol=1e-6)


def test_full_rank_without_regularizer_is_plain_lora(tmp_path: Path) -> None:
    plain = trainer(tmp_path, [])
    plain.train()
    none = trainer(tmp_path, [RMLoRACallback(RMLoRAConfig(rank=4, active_rank=4, **PRESETS["lora"]))])
    none.train()
    for name, value in tensors(plain.model).items():
        assert torch.equal(tensors(none.model)[name], value)


def test_a_model_without_lora_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="no trainable LoRA factors"):
        trainer(tmp_path, [RMLoRACallback(CONFIG)], model=build("bert")).train()


def test_a_trainer_that_never_calls_it_is_an_error() -> None:
    callback = RMLoRACallback(CONFIG)
    arguments, state = SimpleNamespace(deepspeed=None, fsdp=None), SimpleNamespace(global_step=0)
    model = adapt(build("bert"), lora_config("bert"))
    callback.on_train_begin(arguments, state, None, model=model)  # type: ignore[arg-type]
    state.global_step = 7
    with pytest.raises(
        TrainingError, match="7 optimizer steps ran without RM-LoRA: .* never calls on_pre_optimizer_step"
    ):
        callback.on_train_end(arguments, state, None)  # type: ignore[arg-type]
    callback.on_pre_optimizer_step(arguments, state, None)  # type: ignore[arg-type]
    with pytest.raises(TrainingError, match="never calls on_optimizer_step"):
        callback.on_train_end(arguments, state, None)  # type: ignore[arg-type]


def test_deepspeed_is_refused_with_the_reason() -> None:
    arguments = SimpleNamespace(deepspeed="zero2.json", fsdp=None)
    with pytest.raises(TrainingError, match="takes its optimizer step inside the backward pass"):
        RMLoRACallback(CONFIG).on_train_begin(arguments, SimpleNamespace(global_step=0), None)  # type: ignore[arg-type]


@pytest.mark.parametrize("clipped_before", [False, True])
def test_scaled_gradients_are_unscaled_exactly_once(clipped_before: bool) -> None:
    parameter = torch.nn.Parameter(torch.ones(3))
    inner = torch.optim.SGD([parameter], lr=0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    scaler.scale((parameter * 2).sum()).backward()
    if clipped_before:
        scaler.unscale_(inner)
    _unscale(SimpleNamespace(scaler=scaler, optimizer=inner))
    torch.testing.assert_close(parameter.grad, torch.full((3,), 2.0))


def test_trl_trainer_trains_rm_lora(tmp_path: Path) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
    from trl import SFTConfig, SFTTrainer

    tokenizer = word_tokenizer()
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=16,
            intermediate_size=24,
            num_hidden_layers=1,
            num_attention_heads=2,
            max_position_embeddings=32,
            pad_token_id=0,
        )
    )
    assert isinstance(tokenizer, PreTrainedTokenizerFast)
    callback = RMLoRACallback(CONFIG)
    config = SFTConfig(
        str(tmp_path),
        per_device_train_batch_size=2,
        num_train_epochs=1,
        report_to=[],
        save_strategy="no",
        use_cpu=True,
        disable_tqdm=True,
        bf16=False,
        max_length=16,
    )
    run = SFTTrainer(
        model=model,
        args=config,
        train_dataset=Dataset.from_dict({"text": ["a b c d", "d c b a", "b b a c", "c a d b"]}),
        processing_class=tokenizer,
        peft_config=lora_config("llama", task_type="CAUSAL_LM", modules_to_save=None),
        callbacks=[callback],
    )
    run.train()
    assert callback.last_penalty is not None and math.isfinite(callback.last_penalty)


def word_tokenizer() -> Any:
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(WordLevel({w: i for i, w in enumerate(["<pad>", "<eos>", "<unk>", *"abcd"])}, unk_token="<unk>"))
    words.pre_tokenizer = Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>")


def test_an_optimizer_without_the_factors_is_an_error(tmp_path: Path) -> None:
    head = torch.nn.Parameter(torch.zeros(1))
    run = trainer(tmp_path, [RMLoRACallback(RMLoRAConfig(rank=4, active_rank=2))])
    run.optimizer = torch.optim.SGD([head], lr=0.1)
    with pytest.raises(TrainingError, match="does not hold the LoRA factors"):
        run.train()
