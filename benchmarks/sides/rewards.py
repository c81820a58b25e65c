"""A reward that tells all completions apart: every group has a gradient."""

from __future__ import annotations

import zlib
from typing import Any


def checksum(completions: list[Any], **columns: Any) -> list[float]:
    """Return a number in [0, 1) for each completion, the same for the same text."""
    texts = [c if isinstance(c, str) else c[0]["content"] for c in completions]
    return [zlib.crc32(text.encode()) / 2**32 for text in texts]
