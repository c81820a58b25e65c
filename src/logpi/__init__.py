"""logpi: policy gradients for language models, from CartPole to a Hugging Face causal LM, with one loop."""

from __future__ import annotations

from typing import Any

__version__ = "0.1.0"
__all__ = ["InputError", "LogpiError", "RewardError", "__version__", "train"]


def __getattr__(name: str) -> Any:
    """Import what is asked for when it is asked for: `import logpi` alone stays light."""
    if name == "train":
        from logpi.api import train

        return train
    if name in __all__:
        from logpi import errors

        return getattr(errors, name)
    raise AttributeError(f"module 'logpi' has no attribute {name!r}")
