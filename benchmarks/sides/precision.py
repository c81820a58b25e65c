"""The dtype in which every side computes its products, so that none is set back by it."""

from __future__ import annotations

import torch


def native() -> torch.dtype:
    """Return bf16 where this processor multiplies it natively, else float32; in any side's interpreter."""
    fast = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return torch.bfloat16 if fast else torch.float32
