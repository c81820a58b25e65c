"""logpi: policy gradients for language models, from CartPole to a Hugging Face causal LM, with one loop."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from logpi.errors import InputError, LogpiError, RewardError

if TYPE_CHECKING:
    from logpi.api import train
    from logpi.tasks.isolation import untrusted

__version__ = "0.1.0"
__all__ = ["InputError", "LogpiError", "RewardError", "__version__", "train", "untrusted"]


def __getattr__(name: str) -> Any:
    """Import what is asked for: `import logpi` alone stays light."""
    if name == "train":
        from logpi.api import train

        return train
    if name == "untrusted":
        from logpi.tasks.isolation import untrusted

        return untrusted
    raise AttributeError(f"module 'logpi' has no attribute {name!r}")
