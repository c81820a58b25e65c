"""Random configurations, options, data files, reward returns and damaged run folders: an answer or our own error, never
a traceback, and nothing on disk is changed by what is refused. Long: `make test-slow`."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from kinds import arguments, prepare

from logpi import checkpoint, cli
from logpi.config import Config, make_config
from logpi.errors import InputError, LogpiError
from logpi.session import fork
from logpi.tasks.base import Reward
from logpi.tasks.dataset import READERS, read_rows
from logpi.tasks.problems import problems_from_rows
from logpi.tasks.rewarding import score

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3000)]
QUIET = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.filter_too_much]
MANY = settings(max_examples=1500, deadline=None, suppress_health_check=QUIET, derandomize=True)
SOME = settings(max_examples=150, deadline=None, suppress_health_check=QUIET, derandomize=True)

SCALARS = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=20),
    st.sampled_from([0, -1, 1e-5, "auto", "cartpole", "", "CartPole-v1", "rloo", "causal_lm", "mlp", "smollm2-q4"]),
)  # fmt: skip
VALUES = st.recursive(
    SCALARS, lambda x: st.one_of(st.lists(x, max_size=3), st.dictionaries(st.text(max_size=8), x, max_size=3))
)


def keys(section: Any) -> st.SearchStrategy[str]:
    known = list(section.model_fields)
    typos = st.builds(lambda key, i: key[:i] + key[i + 1 :], st.sampled_from(known), st.integers(0, 5))
    return st.one_of(st.sampled_from(known), st.sampled_from(known), typos, st.text(max_size=6))


def section(model: Any) -> st.SearchStrategy[dict]:
    return st.dictionaries(keys(model), VALUES, max_size=4)


SECTIONS = {
    name: field.annotation
    for name, field in Config.model_fields.items()
    if isinstance(field.annotation, type) and hasattr(field.annotation, "model_fields")
}
CONFIGURATIONS = st.builds(
    lambda top, parts, base: {**base, **top, **parts},
    st.dictionaries(keys(Config), VALUES, max_size=3),
    st.fixed_dictionaries({}, optional={name: section(model) for name, model in SECTIONS.items()}),
    st.sampled_from([{}, {"environment": "CartPole-v1", "policy": {"kind": "mlp"}},
                     {"task": {"name": "addition"}, "policy": {"model": "smollm2-q4"}}]),
)  # fmt: skip


@MANY
@given(CONFIGURATIONS)
def test_any_configuration_is_one_or_is_explained(values):
    try:
        config = make_config(values)
    except InputError as error:
        assert str(error).startswith("configuration: ")
    else:
        assert make_config(json.loads(json.dumps(config.plain()))).fingerprint() == config.fingerprint()


WORDS = st.lists(
    st.one_of(
        st.sampled_from(["--seed", "3", "--max-steps", "--json", "--run", "x", "--device", "cpu", "--threads", "1"]),
        st.builds(
            lambda s, k, v: f"--{s}.{k}={v}",
            st.sampled_from([*SECTIONS, "task", "nothing"]),
            st.text("abcdefghijklmnopqrstuvwxyz_-.", max_size=12),
            st.text(max_size=8),
        ),
        st.sampled_from(["--rollout.num-generations", "--learner.learning-rate", "--algorithm.name", "-1", "nan", "["]),
        st.text(max_size=10),
    ),
    max_size=5,
)  # fmt: skip


@MANY
@given(st.sampled_from(["train", "evaluate", "sample", "recipes", "prove", "trian", ""]), WORDS)
def test_any_command_line_gets_an_answer_or_an_error(tmp_path, capsys, monkeypatch, command, words):
    """Dry where it would train; what is left of a command that names nothing can only be refused."""
    monkeypatch.chdir(tmp_path)
    dry = ["cartpole", "--dry-run"] if command == "train" else []
    words = [command, *dry, *(word for word in words if word != "--resume" and "--debug" not in word)]
    code = cli._run(words)
    err = capsys.readouterr().err
    assert code in (0, 2), (words, code, err)
    assert "Traceback" not in err and "run with --debug" not in err, (words, err)
    assert not list(tmp_path.iterdir())


CELLS = st.one_of(SCALARS, st.lists(st.text(max_size=5), max_size=2))
FILES = st.one_of(
    st.binary(max_size=200),
    st.text(max_size=200).map(lambda t: t.encode("utf-8", "surrogatepass")),
    st.lists(st.dictionaries(st.text(max_size=6), CELLS, max_size=3), max_size=4).map(
        lambda rows: "\n".join(map(json.dumps, rows)).encode()
    ),
    st.lists(st.dictionaries(st.sampled_from(["prompt", "answer"]), VALUES, max_size=2), max_size=4).map(
        lambda rows: json.dumps(rows).encode()
    ),
    st.lists(st.lists(st.text(max_size=5), max_size=3), max_size=4).map(
        lambda rows: "\n".join(",".join(row) for row in rows).encode("utf-8", "replace")
    ),
)


@MANY
@given(FILES, st.sampled_from([*READERS, *(f"{e}.gz" for e in READERS), ".parquet", ".txt", ""]))
def test_any_file_gives_problems_or_an_error_with_its_name(tmp_path, content, ending):
    file = tmp_path / f"data{ending}"
    file.write_bytes(content)
    try:
        rows = read_rows(file)
        problems_from_rows(rows, source_name=str(file))
    except InputError as error:
        assert str(file) in str(error)
    assert file.read_bytes() == content and len(list(tmp_path.iterdir())) == 1
    file.unlink()


class Odd:
    def __len__(self):
        return 2

    def __getitem__(self, index):
        raise ValueError("odd")


RETURNS = st.one_of(
    VALUES, st.lists(st.one_of(st.floats(), st.none(), st.booleans(), st.integers()), min_size=2, max_size=2),
    st.lists(VALUES, min_size=2, max_size=2), st.tuples(st.floats(), st.complex_numbers()), st.binary(max_size=2),
    st.builds(Odd), st.builds(object), st.iterables(st.floats(), max_size=2), st.sets(st.integers(), min_size=2),
)  # fmt: skip


@MANY
@given(RETURNS, st.sampled_from(["error", "exclude"]))
def test_any_return_of_a_reward_is_numbers_or_an_error_that_names_it(value, on_failure):
    reward = Reward("fuzzed", lambda completions: value)
    try:
        scores = score([reward], ["p", "q"], ["a", "b"], [[1], [1]], {}, on_failure=on_failure)
    except LogpiError as error:
        assert 'reward "fuzzed"' in str(error) or "every completion" in str(error)
    else:
        assert all(total is None or math.isfinite(total) for total in scores.total)
        assert any(total is not None for total in scores.total)


# --- run folders ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    root = tmp_path_factory.mktemp("fuzz")
    prepare(root)
    assert cli._run(arguments(root, "cartpole", root / "run")) == 0
    return root


def contents(folder: Path) -> dict[str, bytes]:
    skipped = ("lock", "timing.jsonl", "sessions.jsonl", "config.json")
    files = [p for p in folder.rglob("*") if p.is_file() and p.name not in skipped]
    return {str(p.relative_to(folder)): p.read_bytes() for p in files}


def damage(draw: Any, folder: Path) -> str:
    """Change one file of the folder; return which."""
    files = sorted(p for p in folder.rglob("*") if p.is_file() and p.name != "lock")
    file = draw(st.sampled_from(files))
    content = bytearray(file.read_bytes())
    how = draw(st.sampled_from(["flip", "cut", "empty", "remove", "grow", "nonsense"]))
    if how == "flip" and content:
        content[draw(st.integers(0, len(content) - 1))] ^= 1 << draw(st.integers(0, 7))
    elif how == "cut":
        del content[draw(st.integers(0, len(content))) :]
    elif how == "grow":
        content += draw(st.binary(min_size=1, max_size=40))
    elif how == "nonsense":
        content = bytearray(draw(st.sampled_from([b"[]", b"null", b'{"a": 1}', b"\xff\xfe", b'{"step": "x"}\n'])))
    if how == "remove":
        file.unlink()
    else:
        file.write_bytes(b"" if how == "empty" else bytes(content))
    return f"{how} {file.relative_to(folder)}"


@SOME
@given(st.data())
def test_a_damaged_run_folder_is_mended_or_refused_and_never_a_traceback(finished, tmp_path, capsys, data):
    run = tmp_path / "run"
    shutil.rmtree(run, ignore_errors=True)
    shutil.copytree(finished / "run", run)
    (run / "summary.json").unlink()  # as if killed at the very end
    what = damage(data.draw, run)
    before = contents(run)
    code = cli._run(arguments(finished, "cartpole", run))
    err = capsys.readouterr().err
    assert code in (0, 2), (what, code, err)
    assert "Traceback" not in err and "run with --debug" not in err, (what, err)
    if code == 2:
        assert contents(run) == before, what


@MANY
@given(st.data())
def test_a_damaged_checkpoint_is_never_loaded_as_something_else(finished, tmp_path, data):
    folder = tmp_path / "checkpoints"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(finished / "run" / "checkpoints" / "step-00000003", folder / "step-00000003")
    whole = checkpoint.load(folder / "step-00000003")
    damage(data.draw, folder)
    try:
        found = checkpoint.load(folder / "step-00000003")
    except InputError as error:
        assert "checkpoint step-00000003 is damaged" in str(error)
    else:
        assert found.numbers == whole.numbers and found.tensors.keys() == whole.tensors.keys()
        assert all(found.tensors[name].equal(tensor) for name, tensor in whole.tensors.items())


def test_the_fork_of_a_damaged_run_is_refused(finished, tmp_path):
    shutil.copytree(finished / "run", tmp_path / "run")
    (tmp_path / "run" / "checkpoints" / "step-00000003" / "state.json").write_text("{}")
    config = make_config(json.loads((tmp_path / "run" / "config.json").read_text()))
    with pytest.raises(InputError, match="is damaged"):
        fork(tmp_path / "run", 3, config)
    assert {p.name for p in tmp_path.iterdir()} == {"run"}
