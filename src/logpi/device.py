"""Where and in what precision products are computed: the only module that names a device."""

from __future__ import annotations

import torch

from logpi.errors import InputError

DEVICE = "cpu"


def resolve_dtype(dtype: str) -> torch.dtype:
    """Return the dtype of matrix products. "auto": bf16 where this processor multiplies it natively, else fp32."""
    native = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    if dtype == "bfloat16" and not native:
        raise InputError('dtype "bfloat16": this processor does not compute it natively; use "float32"')
    if dtype == "auto":
        return torch.bfloat16 if native else torch.float32
    return {"float32": torch.float32, "float64": torch.float64, "bfloat16": torch.bfloat16}[dtype]


def products_in(dtype: torch.dtype) -> torch.autocast:
    """Return a context in which matrix products run in `dtype`; only bf16 differs from the operands' own."""
    return torch.autocast(DEVICE, torch.bfloat16, enabled=dtype == torch.bfloat16)


def product_dtype(default: torch.dtype) -> torch.dtype:
    """Return the dtype that products run in here: the surrounding context's, else `default`."""
    return torch.get_autocast_dtype(DEVICE) if torch.is_autocast_enabled(DEVICE) else default


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an allocation failed: Python's own error, or torch's, which on a CPU is a plain RuntimeError."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and "can't allocate memory" in str(error)
