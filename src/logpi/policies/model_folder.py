"""From a model's name to a folder of files that are safe to load: a local folder, a hub id, or one of the names below.

Nothing of a model is run. Its files are scanned before transformers sees them: no code of its own, no kernels from
elsewhere, no pickles, no links out of the folder. From the hub only the files that a model needs are taken.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from logpi.errors import InputError, did_you_mean

HUB_NAMES = {"smollm2": "HuggingFaceTB/SmolLM2-135M-Instruct"}
EMBEDDED = "smollm2-q4"
TINY, TINY_ENCODER = "tiny", "tiny-encoder"  # networks that know nothing, for --smoke
FILES = ["*.json", "*.jinja", "*.txt", "*.model"]  # configuration, tokenizer, chat template
WEIGHTS = ["*.safetensors"]
PICKLES = {".bin", ".pt", ".pth", ".pkl", ".ckpt", ".msgpack", ".h5"}
MAX_JSON_BYTES = 200 * 2**20
MAX_HEADER_BYTES = 100 * 2**20  # safetensors' own limit
# What would fetch and run code in a configuration, and what to do about it.
FORBIDDEN = {
    "auto_map": "names code of the model's own, which logpi does not run; where transformers knows the model type, "
    "remove the key",
    "_attn_implementation_internal": "names an attention; remove the key",
    "_experts_implementation_internal": "names an implementation of experts; remove the key",
    "quantization_config": "says that the weights are quantised, which can't be trained; take the unquantised model",
}
IMPLEMENTATIONS = ("attn_implementation", "_attn_implementation", "experts_implementation", "_experts_implementation")


@dataclass(frozen=True)
class Source:
    """A model's name, and the folder with its files."""

    name: str
    location: str


def find(model: str, *, weights: bool = False) -> Source:
    """Return where `model` lies, its files scanned. A hub id is fetched into the Hugging Face cache, `weights` only if
    asked for. Raises InputError for what can't be a model, can't be fetched, or is not safe to load."""
    source = Source(model, str(_folder(model, weights)))
    scan(source)
    return source


def _folder(model: str, weights: bool) -> Path:
    if model == EMBEDDED:
        from logpi.policies.embedded import embedded_folder

        return embedded_folder()
    if model == TINY:
        from logpi.policies.untrained import tiny_folder

        return tiny_folder()
    if model == TINY_ENCODER:
        from logpi.policies.untrained_encoder import tiny_encoder_folder

        return tiny_encoder_folder()
    folder = Path(model).expanduser()
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise InputError(f'model folder "{model}" holds no config.json; give a folder written by save_pretrained')
        return folder
    parts = HUB_NAMES.get(model, model).split("/")
    if len(parts) != 2 or not all(parts) or model.startswith(("/", ".")):
        raise InputError(
            f'unknown model "{model}": not a folder, not a hub id (owner/name).'
            + did_you_mean(model, [EMBEDDED, *HUB_NAMES])
        )
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download("/".join(parts), allow_patterns=FILES + WEIGHTS * weights))
    except (OSError, HfHubHTTPError, HFValidationError, LocalEntryNotFoundError) as error:
        what = str(error).strip().splitlines()
        raise InputError(
            f'model "{model}" could not be fetched from the hub ({what[0] if what else type(error).__name__}); '
            "check name, network and login, or name a local folder"
        ) from error


def scan(source: Source) -> None:
    """Raise InputError for a file that is not safe to load, naming it and what to do."""
    folder = Path(source.location)
    home = folder.parents[1] if folder.parent.name == "snapshots" else folder  # the hub's cache links to its blobs
    for path in sorted(folder.rglob("*")):
        place = f'model "{source.name}": {path.relative_to(folder)}'
        if not path.resolve().is_relative_to(home.resolve()):
            raise InputError(f"{place} is a link to outside of the model's folder; put the file itself there")
        if path.is_file() and path.suffix == ".safetensors":
            _check_header(path, place)
        elif path.is_file() and path.suffix == ".json":
            _check_json(path, place)
    names = {path.suffix for path in folder.iterdir()}
    if names & PICKLES and ".safetensors" not in names:
        raise InputError(
            f'model "{source.name}" has its weights as pickles only, which could run code; convert them to safetensors '
            "(huggingface.co/spaces/safetensors/convert, or save_pretrained where you trust them)"
        )


def _check_header(path: Path, place: str) -> None:
    """Raise unless the file can be what its first bytes say: a header of sane size inside the file."""
    size = path.stat().st_size
    with path.open("rb") as file:
        header = int.from_bytes(file.read(8), "little")
    if size < 8 or header > min(MAX_HEADER_BYTES, size - 8):
        raise InputError(
            f"{place} is no sound safetensors file (a header of {header:,} bytes in {size:,}); get it again"
        )


def _check_json(path: Path, place: str) -> None:
    if path.stat().st_size > MAX_JSON_BYTES:
        raise InputError(f"{place} has {path.stat().st_size:,} bytes; at most {MAX_JSON_BYTES:,} are read")
    if not path.name.endswith("config.json"):
        return
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise InputError(f"{place} is not valid JSON: {error}") from error
    for key, value in _settings(content):
        if key in FORBIDDEN and value:
            raise InputError(f'{place}: "{key}" {FORBIDDEN[key]}')
        if key in IMPLEMENTATIONS and "/" in str(value):
            raise InputError(f'{place}: "{key}" = {value!r:.80} would fetch and run a kernel; remove the key')


def _settings(content: Any) -> Iterator[tuple[str, Any]]:
    """Yield every key with its value, at any depth."""
    if isinstance(content, dict):
        for key, value in content.items():
            yield key, value
            yield from _settings(value)
    elif isinstance(content, list):
        for value in content:
            yield from _settings(value)
