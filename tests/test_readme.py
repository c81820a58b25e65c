"""Every command and snippet in README.md and docs/ runs, on a tiny model; nothing in them is left untested."""

from __future__ import annotations

import ast
import importlib
import json
import re
import runpy
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import data_files
import models
import pytest
from pydantic import BaseModel

import logpi
from logpi import api, cli
from logpi.algorithms import ALGORITHMS
from logpi.config import Config, make_config, merge
from logpi.tasks import TASKS, python_tests

emails = importlib.import_module("logpi.tasks.emails")  # the package calls its function by this name

ROOT = Path(__file__).parent.parent
PAGES = ["README.md", "CONTRIBUTING.md", "ARCHITECTURE.md", "CHANGELOG.md", "LOG.md"]
PAGES += sorted(str(path.relative_to(ROOT)) for path in (ROOT / "docs").rglob("*.md"))
LANGUAGES = {"bash", "console", "python", "jsonl", "toml", "text"}
TINY_STEPS = {
    "max_steps": 2,
    "rollout": {"num_prompts": 2, "num_generations": 2, "max_completion_length": 4},
    "evaluation": {"full_report": False},
}


def read(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


def blocks(page: str) -> list[tuple[str, str]]:
    """Return (language, content) of the page's fenced blocks."""
    found = re.findall(r"^```(\w*)\n(.*?)^```$", read(page), re.DOTALL | re.MULTILINE)
    assert len(found) * 2 == read(page).count("```"), f"{page}: a fence that is not closed, or not on its own line"
    return found


def of_language(language: str) -> list:
    """Return a test parameter (page, content) for each block of a language."""
    return [
        pytest.param(page, content, id=f"{page}-{number}")
        for page in PAGES
        for number, (found, content) in enumerate(blocks(page))
        if found == language
    ]


def commands(content: str) -> Iterator[list[str]]:
    """Yield the words of each command of a block; comments and blank lines are none."""
    for line in content.replace("\\\n", " ").splitlines():
        if words := shlex.split(line, comments=True):
            yield words


# --- running them at tiny size ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return models.write(tmp_path_factory.mktemp("model") / "tiny", "llama", context=1024)


@pytest.fixture
def workplace(tmp_path, monkeypatch):
    """Stand in a folder as a reader does after cloning: examples, a data file of one's own, and nothing else."""
    shutil.copytree(ROOT / "examples", tmp_path / "examples", ignore=shutil.ignore_patterns("__pycache__"))
    data_files.write(tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run_cli(words: list[str], tiny: str) -> int:
    """Run `logpi ...` with the tiny model in place of the real one, two tiny steps in place of the run."""
    words = [tiny if word == "smollm2-q4" else word for word in words]
    words += ["--kills", "1"] if words[0] == "prove" else []
    if words[0] in ("train", "sft", "pretrain"):
        words += ["--threads", "1"] if "--threads" not in words else []
        own = words[0] == "pretrain" or words[1].startswith("--") or has_its_own(api.resolve(words[1]))
        words += [] if own or "--model" in words else ["--model", tiny]
        if not {"--dry-run", "--smoke"} & set(words):
            words += ["--smoke"]
        if "--max-steps" in words:  # it would win over --smoke
            words[words.index("--max-steps") + 1] = "2"
    with pytest.raises(SystemExit) as exit:
        cli.main(words)
    return exit.value.code


def has_its_own(config: Config) -> bool:
    """Whether a recipe's policy is new, or what an earlier command of the page has left."""
    return config.environment is not None or config.begins_anew or str(config.policy.model).startswith("runs/")


def run_python(run, tiny: str, monkeypatch) -> list[dict]:
    """Call `run` while logpi.train means two tiny steps of the tiny model; return the summaries."""
    summaries, train = [], api.train

    def small(recipe=None, **options):
        options = merge(options, TINY_STEPS)
        summaries.append(train(recipe, **options | ({"model": tiny} if options.get("model") else {})))
        return summaries[-1]

    monkeypatch.setattr(logpi, "train", small, raising=False)
    run()
    return summaries


def extras_and_package(words: list[str]) -> None:
    """Check an installation without doing it: the packages are ours or known, the extras exist."""
    project = tomllib.loads(read("pyproject.toml"))["project"]
    pinned = {line.partition("==")[0] for line in read("constraints.txt").splitlines()}
    assert words[:2] == ["pip", "install"]
    for word in [w for w in words[2:] if not w.startswith(("--", "http"))]:
        name, _, extras = word.rstrip("]").partition("[")
        assert name in {".", *pinned}, f"{word}: neither this package nor one of constraints.txt"
        assert set(filter(None, extras.split(","))) <= set(project["optional-dependencies"]), word


def dry_make(words: list[str]) -> None:
    found = subprocess.run([words[0], "-n", *words[1:]], cwd=ROOT, capture_output=True, text=True, timeout=30)
    assert found.returncode == 0, found.stderr


@pytest.mark.parametrize(("page", "content"), of_language("bash"))
def test_every_command_runs(page, content, workplace, tiny, monkeypatch, capsys):
    for words in commands(content):
        if words[0] == "logpi":
            assert run_cli(words[1:], tiny) == 0, (words, capsys.readouterr().err)
        elif words[0] == "python":
            monkeypatch.setattr(sys, "argv", words[1:])
            assert run_python(lambda words=words: runpy.run_path(words[1], run_name="__main__"), tiny, monkeypatch)
        elif words[0] == "make":
            dry_make(words)
        elif words[0] == "pip":
            extras_and_package(words)
        else:
            pytest.fail(f"{page}: nothing tests the command {shlex.join(words)}")


@pytest.mark.parametrize(("page", "content"), of_language("python"))
def test_every_snippet_runs(page, content, workplace, tiny, monkeypatch, capsys):
    names = {"__name__": "snippet"}
    summaries = run_python(lambda: exec(compile(content, page, "exec"), names), tiny, monkeypatch)
    assert len(summaries) == content.count("logpi.train(")
    for summary in summaries:
        assert summary["steps"] == 2 and Path(summary["final"], "model.safetensors").is_file()
    if not summaries:  # a reward on its own: it scores completions of both forms
        *_, reward = (value for name, value in names.items() if callable(value) and not name.startswith("_"))
        if isinstance(reward, type):  # an environment: it replies until it ends the episode
            environment = reward()
            assert isinstance(environment.reset(7), str) and environment.step("6").text == "higher"
            assert environment.step("7").text is None and environment.scores() == {"tries": 2.0}
            return
        for right in ("17", [{"role": "assistant", "content": "17"}]):
            assert reward(prompts=["?"], completions=[right], answer=["17"]) == [1.0]


@pytest.mark.parametrize(("page", "content"), of_language("console"))
def test_what_a_session_shows_is_what_comes(page, content, workplace, capsys):
    for part in content.split("$ ")[1:]:
        command, *expected = part.splitlines()
        with pytest.raises(SystemExit) as exit:
            cli.main(shlex.split(command)[1:])
        out, err = capsys.readouterr()
        assert command.startswith("logpi ") and (out + err).splitlines() == expected
        assert exit.value.code == (2 if err.startswith("error") else 0)


@pytest.mark.parametrize(("page", "content"), of_language("toml"))
def test_every_configuration_is_one_and_can_be_built(page, content, workplace, tiny):
    if "reasoning_gym" in content:
        pytest.importorskip("reasoning_gym", reason='not installed: pip install "logpi[tasks]"')
    config = make_config(tomllib.loads(content))
    if config.task is not None:
        config = make_config(merge(tomllib.loads(content), {"policy": {"model": tiny}}))
    assert api.dry_run(config)["objective"]


@pytest.mark.parametrize(("page", "content"), of_language("jsonl"))
def test_shown_data_is_that_of_the_example(page, content):
    shown = [json.loads(line) for line in content.splitlines()]
    if "facts" in shown[0]:
        assert shown == [emails.SHOWN]
        return
    if "tests" in shown[0]:
        assert [len(python_tests.parsed(row["tests"], 0)) for row in shown] == [2, 1]
        return
    if "completion" in shown[0]:
        rows = [json.loads(line) for line in read("examples/demonstrations.jsonl").splitlines()]
        assert all(row in rows for row in shown)
        return
    rows = [json.loads(line) for line in read("examples/questions.jsonl").splitlines()]
    assert all(row in rows and row["answer"] for row in shown)


def test_no_block_is_left_untested():
    for page in PAGES:
        assert {language for language, _ in blocks(page)} <= LANGUAGES, page
    plain = [content for page in PAGES for language, content in blocks(page) if language == "text"]
    assert not re.search(r"^\s*(\$|logpi|make|pip) ", "\n".join(plain), re.MULTILINE)
    for page in PAGES:  # commands inside sentences
        prose = re.sub(r"^```.*?^```$", "", read(page), flags=re.DOTALL | re.MULTILINE)
        for command in re.findall(r"`((?:logpi|make|pip) [^`]*)`", prose):
            check_inline(shlex.split(command))


def check_inline(words: list[str]) -> None:
    if words[0] == "make":
        dry_make(words)
    elif words[0] == "pip":
        extras_and_package(words)
    else:
        cli.app[words[1].rstrip(",")]  # raises KeyError for a command that is none


# --- what they say is so ----------------------------------------------------------------------------------------


def test_make_has_the_targets():
    for target in ("demo", "test", "test-slow", "judges", "check", "clean"):
        dry_make(["make", target])
    assert "make test" in read(".ci/run").splitlines()


def test_the_tree_names_every_file_and_no_other():
    tree = next(c for language, c in blocks("README.md") if language == "text" and c.startswith("src/logpi/"))
    named, folder = set(), ""
    for line in tree.splitlines()[1:]:
        path, comment = re.fullmatch(r"( *\S+)(?:\s{2,}(\S.*))?", line).groups()
        if path.endswith("/") and line.startswith(" "):
            folder = path.strip()
            continue
        assert comment, f"{path}: no comment"
        if line.startswith(" "):
            named.add(f"src/logpi/{folder if line.startswith('    ') else ''}{path.strip()}")
        else:
            assert (ROOT / path).exists(), path
    files = [p for pattern in ("*.py", "*.toml") for p in (ROOT / "src" / "logpi").rglob(pattern)]
    actual = {str(p.relative_to(ROOT)) for p in files if not p.name.startswith("__")}
    assert named == actual, f"missing: {sorted(actual - named)}; gone: {sorted(named - actual)}"
    columns = {m.end() for m in (re.match(r" +\S+\s{2,}(?=\S)", line) for line in tree.splitlines()) if m}
    assert len(columns) == 1, "the comments are not aligned"


def test_tables_name_what_there_is(workplace, tiny):
    readme = read("README.md")
    rows = re.findall(r"^\| `(\w+)` \|.*\|$", readme.partition("## Algorithms")[2].partition("\n## ")[0], re.MULTILINE)
    assert rows == list(ALGORITHMS)
    codes = re.findall(r"^\| (\d+) \|", readme, re.MULTILINE)
    assert codes == ["0", "1", "2", "3", "4", "5", "130", "143"]
    recipes = read("docs/recipes.md")
    listed = recipes.partition("\n## ")[0]
    assert re.findall(r"^\| `([\w-]+)` \|", listed, re.MULTILINE) == api.recipe_names()
    assert "Tasks: " + ", ".join(f"`{name}`" for name in sorted(TASKS)) in recipes
    sections = {name for name, field in Config.model_fields.items() if _is_section(field.annotation)} | {"task"}
    listed = recipes.partition("## Sections")[2].partition("\n## ")[0]
    assert set(re.findall(r"^\| `(\w+)` \|", listed, re.MULTILINE)) == sections
    assert run_cli(["train", "smollm2-addition", "--run", "a-run"], tiny) == 0
    left = {path.name + "/" * path.is_dir() for path in Path("a-run").iterdir()}
    table = readme.partition("## What a run leaves behind")[2].partition("\n## ")[0]
    assert set(re.findall(r"^\| `([\w./]+)` \|", table, re.MULTILINE)) == left


def test_the_mistakes_that_tests_are_tried_with_are_listed():
    listed = re.findall(
        r"^\| ([^|`]+) \| `([\w/.]+)` \| `(test_\w+\.py)` \|$", read("docs/algorithms.md"), re.MULTILINE
    )
    made = tomllib.loads(read("tests/mutations/mutations.toml"))["mutation"]
    assert listed == [(m["name"], m["file"], m["tests"][0]) for m in made]


@pytest.mark.slow
def test_the_table_of_gradients_is_the_commands(capsys):
    with pytest.raises(SystemExit):
        cli.main(["prove"])
    shown = next(c for language, c in blocks("docs/algorithms.md") if language == "text")
    numbers = re.compile(r" +\d\.\de-1[4-9]")  # rounding
    assert numbers.sub("", capsys.readouterr().out) == numbers.sub("", shown)


def _is_section(annotation) -> bool:
    kinds = get_args(annotation) or (annotation,)  # a section, or one that may be left out
    return any(isinstance(kind, type) and issubclass(kind, BaseModel) for kind in kinds)


def test_every_fault_has_a_test_or_a_reason():
    rows = re.findall(r"^\| (\d+) \| (.+) \| (.+) \| (.+) \|$", read("docs/reliability.md"), re.MULTILINE)
    assert [int(row[0]) for row in rows] == list(range(1, 80))
    tests = "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "tests").rglob("test_*.py"))
    for number, _, what, where in rows:
        names = re.findall(r"`(test_\w+)`", where)
        assert all(re.search(rf"^def {name}\(", tests, re.MULTILINE) for name in names), (number, names)
        files = re.findall(r"`(test_\w+\.py)`", where)
        assert all((ROOT / "tests" / file).is_file() for file in files), (number, files)
        assert names or files or "[C]" in where or where == "the same" or ("none" in what and where == "–"), number


def test_every_metric_is_explained(workplace, tiny):
    page = read("docs/metrics.md")
    known = set(re.findall(r"`([^`\n]+)`", "".join(line for line in page.splitlines(True) if line.startswith("| `"))))
    source = ast.parse(Path(logpi.__file__).with_name("metrics.py").read_text(encoding="utf-8"))
    step_metrics = next(n for n in source.body if isinstance(n, ast.FunctionDef) and n.name == "step_metrics")
    names = {k.value for n in ast.walk(step_metrics) if isinstance(n, ast.Dict) for k in n.keys}
    for node in ast.walk(step_metrics):
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Subscript):
            names.add(re.sub(r"^f?'|'$", "", ast.unparse(node.targets[0].slice)))
    assert len(names) > 15 and names <= known, f"not in docs/metrics.md: {sorted(names - known)}"
    for recipe, folder in (("cartpole", "control"), ("smollm2-addition", "language")):
        assert run_cli(["train", recipe, "--run", folder], tiny) == 0
        for file in ("metrics.jsonl", "timing.jsonl"):
            rows = [json.loads(line) for line in Path(folder, file).read_text().splitlines()]
            written = {re.sub(r"^rewards/.*/mean$", "rewards/{name}/mean", key) for row in rows for key in row}
            assert written <= known, f"{file}: not in docs/metrics.md: {sorted(written - known)}"


def test_links_lead_somewhere():
    for page in PAGES:
        for target in re.findall(r"\]\((?!https?://)([^)#]+)", read(page)):
            assert (ROOT / page).parent.joinpath(target).exists(), f"{page}: {target}"
