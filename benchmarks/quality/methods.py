"""The contestants: how each builds its PEFT model, and what it adds to a plain Trainer (torch, peft).

All are LoRA of rank 8 on the same projections, and all train a new head in full. ``LoRA r4`` moves as many parameters in a
step as RM-LoRA of rank 8 with 4 active directions.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from rmlora.config import PRESETS, RMLoRAConfig

if TYPE_CHECKING:
    from peft import PeftModel
    from torch.optim import Optimizer
    from transformers import TrainerCallback

__all__ = ["ABLATIONS", "HEADLINE", "MASKED", "METHODS", "PEERS", "Method"]

_RANK = 8
_ACTIVE = 4


@dataclass(frozen=True)
class PeerConfig(RMLoRAConfig):
    """Plain LoRA's settings with PEFT options of a peer added to them."""

    decorrelation: float = 0.0
    peft_options: Mapping[str, Any] = field(default_factory=dict)
    """Fields of PEFT's LoraConfig."""

    def to_peft(self, *, task_type: str | None = None) -> Any:
        """Return PEFT's configuration with the peer's options."""
        return dataclasses.replace(super().to_peft(task_type=task_type), **self.peft_options)


@dataclass(frozen=True)
class AdaLoRAConfig(PeerConfig):
    """AdaLoRA (Zhang et al., 2023): 12 directions, pruned to 8 on average by their importance."""

    steps: int = 0
    """Steps of the whole run; the budget falls between a tenth and seven tenths of it."""

    def to_peft(self, *, task_type: str | None = None) -> Any:
        """Return PEFT's AdaLoraConfig."""
        from peft import AdaLoraConfig

        lora = super().to_peft(task_type=task_type)
        return AdaLoraConfig(
            task_type=task_type,
            init_r=12,
            target_r=_RANK,
            lora_alpha=lora.lora_alpha * 12 // _RANK,
            target_modules=lora.target_modules,
            exclude_modules=lora.exclude_modules,
            modules_to_save=lora.modules_to_save,
            total_step=self.steps,
            tinit=self.steps // 10,
            tfinal=self.steps * 3 // 10,
            deltaT=max(1, self.steps // 50),
        )


@dataclass(frozen=True)
class Method:
    """One contestant. This class is plain LoRA; peers that do more than change PEFT's configuration override a method."""

    title: str
    config: RMLoRAConfig = field(default_factory=PeerConfig)
    measures_spectrum: bool = True
    """False if the trained update is not ``s · B A``."""

    def configure(self, steps: int) -> RMLoRAConfig:
        """Return the configuration for a run of ``steps`` optimizer steps."""
        return self.config

    def callbacks(self, model: PeftModel, config: RMLoRAConfig, learning_rate: float) -> Sequence[TrainerCallback]:
        """Return what joins the Trainer."""
        return ()

    def optimizer(self, model: PeftModel, learning_rate: float) -> Optimizer | None:
        """Return the method's own optimizer; None leaves the Trainer's AdamW."""
        return None

    def finish(self, model: PeftModel) -> None:
        """Turn the trained layers back into plain LoRA layers."""


@dataclass(frozen=True)
class RMLoRA(Method):
    """RM-LoRA with the settings in ``config``; those that are not given are the toolkit's defaults."""

    config: RMLoRAConfig = field(default_factory=RMLoRAConfig)

    def configure(self, steps: int) -> RMLoRAConfig:
        """Return the configuration."""
        return self.config

    def callbacks(self, model: PeftModel, config: RMLoRAConfig, learning_rate: float) -> Sequence[TrainerCallback]:
        """Return the callback that masks and regularizes."""
        from rmlora.callback import RMLoRACallback

        return [RMLoRACallback(config)]


@dataclass(frozen=True)
class LoRAPlus(Method):
    """LoRA+ (Hayou et al., 2024): the learning rate of B is 16 times that of A."""

    def optimizer(self, model: PeftModel, learning_rate: float) -> Optimizer | None:
        """Return PEFT's optimizer for it."""
        from peft.optimizers import create_loraplus_optimizer
        from torch.optim import AdamW

        # A and the head's weights get a quarter of the grid's rate, B four times it: the grid lies between the two.
        optimizer: Optimizer = create_loraplus_optimizer(
            model=model,
            optimizer_cls=AdamW,
            lr=learning_rate / 4,
            loraplus_lr_ratio=16,
            loraplus_weight_decay=0.0,
            weight_decay=0.0,
        )
        return optimizer


@dataclass(frozen=True)
class AdaLoRA(Method):
    """AdaLoRA, with PEFT's own allocator."""

    measures_spectrum: bool = False

    def configure(self, steps: int) -> RMLoRAConfig:
        """Return the configuration, which depends on the length of the run."""
        return AdaLoRAConfig(steps=steps)

    def callbacks(self, model: PeftModel, config: RMLoRAConfig, learning_rate: float) -> Sequence[TrainerCallback]:
        """Return the callback that prunes the budget after each step."""
        from benchmarks.quality.peer_callbacks import AllocateBudget

        return [AllocateBudget(model)]


@dataclass(frozen=True)
class SparseLoRA(Method):
    """SoRA (Ding et al., 2023): a gate for each direction, driven to zero by a proximal step."""

    def callbacks(self, model: PeftModel, config: RMLoRAConfig, learning_rate: float) -> Sequence[TrainerCallback]:
        """Return the callback that shrinks the gates."""
        from benchmarks.quality.peer_callbacks import SparseGates

        return [SparseGates(model)]

    def finish(self, model: PeftModel) -> None:
        """Multiply the gates into A."""
        from benchmarks.quality.peer_callbacks import fold_gates

        fold_gates(model)


HEADLINE: Mapping[str, Method] = {
    "lora": Method("LoRA"),
    "rmlora": RMLoRA("RM-LoRA"),
}
"""What the first table compares: equal rank, and equally many parameters that move in a step."""

MASKED: Mapping[str, Method] = {
    "lora-r4": Method("LoRA r4", PeerConfig(rank=4, alpha=8)),
    "rmlora-k4": RMLoRA("RM-LoRA, 4 of 8 active", RMLoRAConfig(active_rank=_ACTIVE)),
}
"""RM-LoRA with a mask, and plain LoRA that moves as many parameters in a step."""

ABLATIONS: Mapping[str, Method] = {
    "rmlora-paper": RMLoRA("RM-LoRA, preset paper", RMLoRAConfig(**PRESETS["paper"])),
    "mask-only": RMLoRA("RM-LoRA, mask only", RMLoRAConfig(active_rank=_ACTIVE, decorrelation=0)),
    "independent": RMLoRA("RM-LoRA, independent masks", RMLoRAConfig(active_rank=_ACTIVE, mask_sharing="independent")),
    "update": RMLoRA("RM-LoRA, mask_mode update", RMLoRAConfig(active_rank=_ACTIVE, mask_mode="update")),
    "aligned": RMLoRA("RM-LoRA, A along the gradient", RMLoRAConfig(init="gradient")),
}
"""RM-LoRA with parts of it changed or left out."""

PEERS: Mapping[str, Method] = {
    "rslora": Method("rsLoRA", PeerConfig(rslora=True)),
    "dora": Method("DoRA", PeerConfig(peft_options={"use_dora": True}), measures_spectrum=False),
    "pissa": Method("PiSSA", PeerConfig(peft_options={"init_lora_weights": "pissa_niter_4"}), measures_spectrum=False),
    "adalora": AdaLoRA("AdaLoRA"),
    "loraplus": LoRAPlus("LoRA+"),
    "sora": SparseLoRA("SoRA"),
}
"""Other ways to train a low-rank update, at their published settings."""

METHODS: Mapping[str, Method] = {**HEADLINE, **MASKED, **ABLATIONS, **PEERS}
"""Name → contestant."""
