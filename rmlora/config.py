"""The settings of an RM-LoRA adapter, validated once.

Symbols of the paper (Mao et al., arXiv 2407.12074) and PEFT's names::

    W = W0 + s·B A      A [rank, in]   B [out, rank]   s = alpha / rank   (rslora: alpha / √rank)
    loss = task + orth_weight · mean over all A, B of ‖A Aᵀ − I‖_F and ‖Bᵀ B − I‖_F
    each optimizer step updates active_rank of the rank directions of every layer and masks the others

The defaults were chosen on data kept apart for it (docs/method.md); docs/evidence.md is the study that tests them. The
paper's settings are ``RMLoRAConfig(**PRESETS["paper"])``.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, get_args

from rmlora.errors import ConfigError, require

if TYPE_CHECKING:
    from peft import LoraConfig

__all__ = ["PRESETS", "Init", "MaskMode", "MaskSharing", "RMLoRAConfig"]

MaskSharing = Literal["shared", "independent"]
MaskMode = Literal["gradient", "update"]
Init = Literal["gradient", "peft"]


@dataclass(frozen=True)
class RMLoRAConfig:
    """Settings of the method, independent of task, data and trainer.

        >>> config = RMLoRAConfig(rank=8, target_modules=("query", "value"))
        >>> model = get_peft_model(model, config.to_peft(task_type="SEQ_CLS"))          # doctest: +SKIP
        >>> Trainer(model=model, callbacks=[RMLoRACallback(config)], ...).train()       # doctest: +SKIP

    ``RMLoRAConfig(**PRESETS["lora"])`` is plain LoRA.

    Raises:
        ConfigError: a value is invalid; the message names the setting and its flag.
    """

    rank: int = 8
    """Directions r of each update."""
    active_rank: int = 0
    """Directions k updated in one optimizer step; k/r is the paper's parameter budget. The other r − k are masked. 0 stands
    for all of them, and is replaced by ``rank``: nothing is masked."""
    alpha: float = 16.0
    """Numerator of the scale s. The paper's penalty pulls the singular values of B A towards 1, so with it ``alpha / rank``
    is the actual magnitude of the update, not just a learning-rate factor."""
    init: Init = "peft"
    """How A starts, with B = 0: ``peft`` keeps PEFT's random values; ``gradient`` sets its rows to an orthogonal basis of the
    leading directions of the task's gradient, from one pass over 64 examples before the first step."""
    decorrelation: float = 10.0
    """Strength of the scale-free regularizer: after each step, the directions of A and of B turn away from each other by
    this times the learning rate, and keep their lengths. 0 turns it off."""
    orth_weight: float = 0.0
    """Weight of the paper's orthogonality penalty; published values lie in (0, 0.1]. 0 turns it off."""
    squared: bool = False
    """Penalize squared Frobenius norms; the paper uses the norms themselves."""
    mask_sharing: MaskSharing = "shared"
    """``shared``: A and B of a layer have the same mask (the authors' v1); ``independent``: one each (v2)."""
    mask_interval: int = 1
    """Optimizer steps for which a mask is kept; the paper draws a new one for every step."""
    compensate: bool = False
    """Lengthen the steps of the factors to make up for the mask: under Adam, a direction whose gradient is zero in half of
    the steps moves about 0.7 times as far. Factor √(r/k), with ``mask_mode="update"`` r/k."""
    mask_mode: MaskMode = "gradient"
    """``gradient`` only zeroes gradients, as in the paper: Adam's momentum still moves masked directions. ``update`` also
    restores the masked directions after the step."""
    target_modules: str | tuple[str, ...] = "all-linear"
    """Module name endings, one regular expression, or ``all-linear``, as in PEFT."""
    exclude_modules: tuple[str, ...] = ()
    """Module name endings to leave out of ``target_modules``."""
    modules_to_save: tuple[str, ...] = ()
    """Modules trained and saved in full, such as a new head; never masked or regularized."""
    dropout: float = 0.0
    """Dropout probability on the input of A."""
    rslora: bool = False
    """Scale by alpha / √rank instead of alpha / rank."""
    rank_pattern: Mapping[str, int] = field(default_factory=dict)
    """Module name ending or regular expression → rank, for modules with another rank; their active rank scales with it."""
    alpha_pattern: Mapping[str, float] = field(default_factory=dict)
    """Module name ending or regular expression → alpha, for modules with another alpha."""
    fan_in_fan_out: bool = False
    """True if the base stores weights as ``[in, out]`` (GPT-2's Conv1D)."""
    seed: int = 42
    """Seed of the masks. Seed, step and module name determine which directions are masked."""

    def __post_init__(self) -> None:
        for name in ("exclude_modules", "modules_to_save"):
            object.__setattr__(self, name, _strings(name, getattr(self, name)))
        if not isinstance(self.target_modules, str):
            object.__setattr__(self, "target_modules", _strings("target_modules", self.target_modules))
        if self.active_rank == 0 and not isinstance(self.active_rank, bool):
            object.__setattr__(self, "active_rank", self.rank)
        object.__setattr__(self, "rank_pattern", dict(self.rank_pattern))
        object.__setattr__(self, "alpha_pattern", dict(self.alpha_pattern))
        self._check()

    def _check(self) -> None:
        _check_whole("rank", self.rank, minimum=1)
        _check_whole("active_rank", self.active_rank, minimum=0)
        _check_whole("mask_interval", self.mask_interval, minimum=1)
        _check_whole("seed", self.seed, minimum=0)
        if self.active_rank > self.rank:
            raise ConfigError(
                f"active_rank {self.active_rank} is larger than rank {self.rank}: lower --active-rank or raise --rank."
            )
        _check_alpha("alpha", self.alpha, "--alpha")
        for name in ("orth_weight", "decorrelation"):
            if not 0 <= getattr(self, name) < float("inf"):
                flag = "--" + name.replace("_", "-")
                raise ConfigError(f"{name} must be 0 or more, not {getattr(self, name)}: change {flag}.")
        if not 0 <= self.dropout < 1:
            raise ConfigError(f"dropout must lie in [0, 1), not {self.dropout}: change --dropout.")
        if self.mask_sharing not in get_args(MaskSharing):
            raise ConfigError(f"mask_sharing must be shared or independent, not '{self.mask_sharing}'.")
        if self.mask_mode not in get_args(MaskMode):
            raise ConfigError(f"mask_mode must be gradient or update, not '{self.mask_mode}'.")
        if self.init not in get_args(Init):
            raise ConfigError(f"init must be gradient or peft, not '{self.init}'.")
        if not self.target_modules:
            raise ConfigError("target_modules is empty: name at least one module ending, or all-linear.")
        for pattern, rank in self.rank_pattern.items():
            _check_whole(f"rank_pattern['{pattern}']", rank, minimum=1)
        for pattern, alpha in self.alpha_pattern.items():
            _check_alpha(f"alpha_pattern['{pattern}']", alpha, "--alpha-pattern")

    @property
    def masks(self) -> bool:
        """True if any direction is ever masked."""
        return self.active_rank < self.rank

    def active_rank_of(self, rank: int) -> int:
        """Return the active directions of a module with ``rank`` directions: the same share as overall, at least one."""
        if rank == self.rank:
            return self.active_rank
        return max(1, round(rank * self.active_rank / self.rank))

    def step_factor_of(self, rank: int) -> float:
        """Return what ``compensate`` multiplies the steps of a module with ``rank`` directions by; 1 if none is masked."""
        share = rank / self.active_rank_of(rank)
        return float(share if self.mask_mode == "update" else share**0.5)

    def to_peft(self, *, task_type: str | None = None) -> LoraConfig:
        """Return the PEFT configuration of this adapter.

        Args:
            task_type: PEFT's task type (``SEQ_CLS``, ``CAUSAL_LM``, …); None for a model without one.

        Raises:
            DependencyError: peft is not installed.
        """
        require("peft", "train")
        from peft import LoraConfig

        target = self.target_modules if isinstance(self.target_modules, str) else list(self.target_modules)
        return LoraConfig(
            task_type=task_type,
            r=self.rank,
            lora_alpha=self.alpha,  # type: ignore[arg-type]  # PEFT annotates int but accepts any number
            lora_dropout=self.dropout,
            use_rslora=self.rslora,
            target_modules=target,
            exclude_modules=list(self.exclude_modules) or None,
            modules_to_save=list(self.modules_to_save) or None,
            rank_pattern=dict(self.rank_pattern),
            alpha_pattern=dict(self.alpha_pattern),
            fan_in_fan_out=self.fan_in_fan_out,
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the settings as JSON-ready values; :meth:`from_dict` reads them back."""
        values = dataclasses.asdict(self)
        return {key: list(value) if isinstance(value, tuple) else value for key, value in values.items()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> RMLoRAConfig:
        """Build a config from the output of :meth:`to_dict`.

        Raises:
            ConfigError: a key is unknown or a value is invalid.
        """
        known = {item.name for item in dataclasses.fields(cls)}
        unknown = sorted(set(values) - known)
        if unknown:
            raise ConfigError(
                f"Unknown RM-LoRA setting {', '.join(unknown)}: the known ones are {', '.join(sorted(known))}."
            )
        return cls(**values)


PRESETS: Mapping[str, Mapping[str, Any]] = {
    "default": {},
    "paper": {"active_rank": 4, "orth_weight": 0.1, "decorrelation": 0.0},
    "lora": {"init": "peft", "orth_weight": 0.0, "decorrelation": 0.0, "compensate": False},
}
"""Name → settings that differ from the defaults. ``paper`` is Mao et al.'s method as their scripts have it (rank 8 with 4
active directions, or 4 with 2; alpha 16 or 32; learning rate 1e-3); ``lora`` is plain LoRA."""


def _strings(name: str, value: Any) -> tuple[str, ...]:
    if isinstance(value, str) or not all(isinstance(item, str) for item in value):
        raise ConfigError(f"{name} must be a list of module names, not {value!r}.")
    return tuple(value)


def _check_alpha(name: str, value: float, flag: str) -> None:
    if not value > 0:
        raise ConfigError(f"{name} must be positive, not {value}: change {flag}.")
    if value == float("inf"):
        raise ConfigError(f"{name} must be finite, not {value}: change {flag}.")


def _check_whole(name: str, value: Any, *, minimum: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < minimum:
        flag = "--" + name.replace("_", "-") if name.isidentifier() else name
        raise ConfigError(f"{name} must be a whole number of at least {minimum}, not {value!r}: change {flag}.")
