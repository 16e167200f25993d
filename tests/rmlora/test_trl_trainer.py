"""trl's SFTTrainer with the callback on chats: RM-LoRA's steps, and an adapter that the toolkit reads and merges."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from peft import PeftModel
from transformers import AutoModelForCausalLM

from rmlora.callback import RMLoRACallback
from rmlora.config import RMLoRAConfig
from rmlora.package import load_package
from tests.helpers.chats import MARKED, chat_base, chat_tokenizer, conversations
from tests.helpers.cli import run

CONFIG = RMLoRAConfig(rank=4, active_rank=2, orth_weight=0.1)


def columns(form: str) -> dict[str, list[Any]]:
    chats = [row["messages"] for row in conversations(24)]
    if form == "messages":
        return {"messages": chats}
    return {"prompt": [chat[:1] for chat in chats], "completion": [chat[1:] for chat in chats]}


@pytest.mark.parametrize("form", ["messages", "completion"])
def test_sft_trainer_trains_rm_lora_that_is_merged(form: str, tmp_path: Path) -> None:
    from trl import SFTConfig, SFTTrainer

    base = chat_base(tmp_path / "base", MARKED)
    masks: list[int] = []

    class Watch(RMLoRACallback):
        def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            super().on_pre_optimizer_step(args, state, control, **kwargs)
            masks.extend(int((item.A.grad != 0).any(1).sum()) for item in self._factors if item.A.grad is not None)

    callback = Watch(CONFIG)
    arguments = SFTConfig(
        str(tmp_path / "run"), per_device_train_batch_size=4, num_train_epochs=3, learning_rate=1e-2, report_to=[],
        save_strategy="no", use_cpu=True, disable_tqdm=True, bf16=False, max_length=64, logging_steps=1,
        assistant_only_loss=form == "messages",
    )  # fmt: skip
    trainer = SFTTrainer(
        model=AutoModelForCausalLM.from_pretrained(base),
        args=arguments,
        train_dataset=Dataset.from_dict(columns(form)),
        processing_class=chat_tokenizer(MARKED),
        peft_config=CONFIG.to_peft(task_type="CAUSAL_LM"),
        callbacks=[callback],
    )
    trainer.train()
    assert set(masks[14:]) == {CONFIG.active_rank}  # 14 modules; nothing is masked in the first step
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert losses[-1] < losses[0]
    trainer.save_model(str(tmp_path / "adapter"))
    adapter = load_package(tmp_path / "adapter")
    assert adapter.task == "text-generation" and len(adapter.modules) == 14
    done = run("merge", base, tmp_path / "adapter", "-o", tmp_path / "merged")
    assert done.code == 0, done.stderr
    ids = torch.tensor([[2, 15, 19, 4, 20, 5, 3, 19]])
    merged: Any = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    theirs: Any = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), str(tmp_path / "adapter"))
    torch.testing.assert_close(merged(input_ids=ids).logits, theirs.eval()(input_ids=ids).logits, rtol=1e-4, atol=1e-5)
