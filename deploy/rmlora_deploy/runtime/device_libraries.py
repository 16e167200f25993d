"""The shared libraries that a device's execution provider needs: CUDA, cuDNN, TensorRT and the driver.

ONNX Runtime loads a provider's own library when the first session asks for it, and leaves the provider out if that fails:
the reason goes to its log alone. Here the same load is tried first, so that the reason can be raised.
"""

from __future__ import annotations

import ctypes
import io
from contextlib import redirect_stdout
from functools import cache
from pathlib import Path

__all__ = ["missing_library", "remedy"]

_REMEDIES = {
    "libcuda.so": "install NVIDIA's driver",
    "libnvinfer": "install TensorRT 10 for the CUDA version of onnxruntime-gpu",
    "libnvonnxparser": "install TensorRT 10 for the CUDA version of onnxruntime-gpu",
    "libcu": "run  pip install 'onnxruntime-gpu[cuda,cudnn]'",
    "libnv": "run  pip install 'onnxruntime-gpu[cuda,cudnn]'",
}
"""How the name of a missing library begins → what to do; the first that fits counts."""


@cache
def missing_library(provider: str) -> str | None:
    """Load what the provider called ``provider`` needs; return the loader's words about what is missing, None if nothing is.

    Libraries that pip installed (``nvidia-*``) are on no search path of the system, so ONNX Runtime loads them from
    ``site-packages`` first.
    """
    import onnxruntime as ort

    libraries = Path(ort.__file__).parent / "capi"
    own = libraries / f"libonnxruntime_providers_{provider}.so"
    if not own.is_file():
        return None  # built into ONNX Runtime itself, or on a system where it loads its libraries in another way
    if hasattr(ort, "preload_dlls"):
        with redirect_stdout(io.StringIO()):  # it prints what it cannot find, of which the load below names the first
            ort.preload_dlls()
    try:
        ctypes.CDLL(str(libraries / "libonnxruntime_providers_shared.so"), mode=ctypes.RTLD_GLOBAL)
        ctypes.CDLL(str(own))
    except OSError as error:
        return str(error)
    return None


def remedy(missing: str) -> str:
    """Return what to do about what :func:`missing_library` returned, as the beginning of a sentence without its capital."""
    return next((todo for start, todo in _REMEDIES.items() if missing.startswith(start)), "install what it lacks")
