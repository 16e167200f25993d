"""Operators of PyTorch that torch's ONNX exporter cannot translate itself."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from rmlora.errors import require

__all__ = ["translations"]


def translations() -> dict[Callable[..., Any], Callable[..., Any]]:
    """Return operator of PyTorch → function that makes ONNX nodes for it, for ``custom_translation_table``."""
    require("onnxscript", "export")
    import onnx_ir as ir
    import torch
    from onnxscript import opset18

    op: Any = opset18  # its signatures admit no Python numbers

    def rsub(self: Any, other: float, alpha: float = 1) -> Any:
        """Return ``other - alpha * self``, as float32 if ``self`` are integers: XLNet has ``1.0 - mask``."""
        if isinstance(other, float) and not self.dtype.is_floating_point():
            self = op.Cast(self, to=int(ir.DataType.FLOAT))
        scaled = self if alpha == 1 else op.Mul(self, op.CastLike(alpha, self))
        return op.Sub(op.CastLike(other, self), scaled)

    return {torch.ops.aten.rsub.Scalar: rsub}
