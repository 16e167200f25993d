"""Whether the processor adds 8-bit products exactly.

x86 processors with VNNI, and others such as ARM's, add products of 8-bit inputs and weights in 32 bits. x86 processors without
VNNI add pairs of them in 16 bits, which overflow if a weight uses all 8 bits: a tiny ViT was right on one machine and far off
on another. ONNX Runtime can replace such weights when it opens a graph (:data:`EXACT_PRODUCTS`); the products are then exact,
and slower.
"""

from __future__ import annotations

import platform
import re
from pathlib import Path

__all__ = ["EXACT_PRODUCTS", "products_overflow"]

EXACT_PRODUCTS = ("session.x64quantprecision", "1")
"""Option of an ONNX Runtime session that replaces int8 weights of more than 7 bits by uint8 ones."""
_X86 = {"x86_64", "amd64", "i386", "i686", "x86"}
_CPUINFO = Path("/proc/cpuinfo")
_VNNI = {"avx512_vnni", "avx_vnni", "avx512vnni", "avxvnni"}


def products_overflow() -> bool:
    """Return True if products of int8 weights may overflow here: on x86 without VNNI, or where Linux does not tell."""
    if platform.machine().lower() not in _X86:
        return False
    try:
        text = _CPUINFO.read_text(errors="replace")
    except OSError:  # another system than Linux
        return True
    flags = re.search(r"^flags\s*:(.*)$", text, re.MULTILINE)
    return flags is None or not _VNNI & set(flags[1].split())
