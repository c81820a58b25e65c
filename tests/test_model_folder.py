"""A model's files are looked at before they are loaded: what could run code or lead elsewhere is refused."""

from __future__ import annotations

import json
import os
import pickle
import shutil

import models
import pytest

from logpi.errors import InputError
from logpi.policies import model_folder
from logpi.policies.chat import prompt_tokens
from logpi.policies.loading import load_causal_lm
from logpi.policies.model_folder import find


@pytest.fixture
def folder(tmp_path):
    models.write(tmp_path / "model", "llama")
    return tmp_path / "model"


def edit(file, **changes):
    content = json.loads(file.read_text()) if file.exists() else {}
    file.write_text(json.dumps(content | changes))


def refusal(folder) -> str:
    with pytest.raises(InputError) as found:
        load_causal_lm(str(folder), dtype="float32")
    with pytest.raises(InputError) as before:
        find(str(folder))
    assert str(found.value) == str(before.value)
    return str(found.value)


class Canary:
    """Leaves a file behind when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


def test_a_sound_folder_loads(folder):
    assert find(str(folder)).location == str(folder)
    assert load_causal_lm(str(folder), dtype="float32").eos_token_ids


@pytest.mark.parametrize("file", ["config.json", "tokenizer_config.json", "generation_config.json"])
def test_code_of_the_models_own_is_refused(folder, file):
    (folder / "evil.py").write_text(f"open({str(folder / 'ran')!r}, 'w')")
    edit(folder / file, auto_map={"AutoConfig": "evil.C", "AutoTokenizer": ["evil.T", None]})
    assert f'{file}: "auto_map" names code of the model\'s own, which logpi does not run' in refusal(folder)
    assert not (folder / "ran").exists()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"_attn_implementation_internal": "own/kernel"}, '"_attn_implementation_internal" names an attention'),
        ({"attn_implementation": "own/kernel"}, "\"attn_implementation\" = 'own/kernel' would fetch and run a kernel"),
        ({"_attn_implementation": "paged|own/kernel@v1"}, "would fetch and run a kernel"),
        ({"text_config": {"attn_implementation": "own/kernel"}}, "would fetch and run a kernel"),
        ({"experts_implementation": {"": "own/kernel"}}, "would fetch and run a kernel"),
        ({"quantization_config": {"quant_method": "mxfp4"}}, "take the unquantised model"),
    ],
)
def test_kernels_from_elsewhere_and_quantised_weights_are_refused(folder, settings, message):
    edit(folder / "config.json", **settings)
    assert message in refusal(folder)


def test_pickled_weights_are_never_opened(folder, tmp_path):
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Canary(tmp_path / "ran")))
    (folder / "training_args.bin").write_bytes(pickle.dumps(Canary(tmp_path / "ran")))
    assert load_causal_lm(str(folder), dtype="float32").eos_token_ids  # beside safetensors they are left alone
    for file in folder.glob("*.safetensors"):
        file.unlink()
    assert "weights as pickles only" in refusal(folder)
    assert not (tmp_path / "ran").exists()
    pickle.loads((folder / "pytorch_model.bin").read_bytes())  # what they would have done
    assert (tmp_path / "ran").exists()


def test_links_out_of_the_folder_are_refused(folder, tmp_path):
    (tmp_path / "secret.json").write_text("{}")
    os.symlink(tmp_path / "secret.json", folder / "added_tokens.json")
    assert "added_tokens.json is a link to outside of the model's folder" in refusal(folder)
    (folder / "added_tokens.json").unlink()
    (folder / "weights").mkdir()
    shutil.move(folder / "model.safetensors", folder / "weights" / "real.safetensors")
    os.symlink(folder / "weights" / "real.safetensors", folder / "model.safetensors")
    assert load_causal_lm(str(folder), dtype="float32").eos_token_ids  # a link inside is fine


@pytest.mark.parametrize("header", [2**63, 10**9, 10**6])
def test_a_header_that_cannot_be_is_refused(folder, header):
    file = folder / "model.safetensors"
    file.write_bytes(header.to_bytes(8, "little") + file.read_bytes()[8:])
    assert f"model.safetensors is no sound safetensors file (a header of {header:,} bytes" in refusal(folder)


def test_a_cut_or_huge_or_broken_file_is_refused(folder, monkeypatch):
    (folder / "model.safetensors").write_bytes(b"1234")
    assert "no sound safetensors file" in refusal(folder)
    models.write(folder, "llama")
    monkeypatch.setattr(model_folder, "MAX_JSON_BYTES", 100)
    assert "at most 100 are read" in refusal(folder)
    monkeypatch.undo()
    (folder / "config.json").write_text('{"model_type": ')
    assert "config.json is not valid JSON" in refusal(folder)


@pytest.mark.parametrize(
    "template",
    [
        "{{ messages.__class__.__mro__[1].__subclasses__() }}",
        "{{ cycler.__init__.__globals__.os.popen('touch ran').read() }}",
        "{% set _ = messages.append({'role': 'x'}) %}",
        "{{ raise_exception('no') }}",
        "{{ messages[",
    ],
)
def test_a_chat_template_can_do_nothing_but_render(tmp_path, monkeypatch, template):
    monkeypatch.chdir(tmp_path)
    tokenizer = models.tokenizer()
    tokenizer.chat_template = template
    with pytest.raises(InputError, match="chat template can't be used"):
        prompt_tokens(tokenizer, [{"role": "user", "content": "1+1"}])
    assert not list(tmp_path.iterdir())


# --- the hub, as its cache on this machine ----------------------------------------------------------------------------


@pytest.fixture
def hub(folder, tmp_path, monkeypatch):
    """Lay the folder out as the hub's cache does: a snapshot of links to blobs."""
    import huggingface_hub.constants

    cache = tmp_path / "hub"
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(cache))
    repo = cache / "models--own--tiny"
    (repo / "refs").mkdir(parents=True)
    (repo / "blobs").mkdir()
    snapshot = repo / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    (repo / "refs" / "main").write_text("0" * 40)
    for number, file in enumerate(folder.iterdir()):
        shutil.copy(file, repo / "blobs" / str(number))
        os.symlink(f"../../blobs/{number}", snapshot / file.name)
    return snapshot


def test_a_model_of_the_hub_is_scanned_like_any_other(hub, tmp_path):
    assert find("own/tiny").location == str(hub)
    assert load_causal_lm("own/tiny", dtype="float32").eos_token_ids
    edit(hub / "config.json", auto_map={"AutoConfig": "evil.C"})
    with pytest.raises(InputError, match='"auto_map" names code'):
        find("own/tiny")


def test_a_model_that_cannot_be_fetched_is_said(hub):
    with pytest.raises(InputError, match='model "own/other" could not be fetched from the hub'):
        find("own/other")
