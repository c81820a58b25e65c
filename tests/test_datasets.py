"""What users name: files of rows, which become problems and are split, and reward functions; and every way to fail."""

from __future__ import annotations

import csv
import gzip
import json
import sys
from pathlib import Path

import pytest

from logpi.errors import InputError
from logpi.tasks.base import Problem, Reward
from logpi.tasks.dataset import read_rows
from logpi.tasks.problems import columns_of, load_split, problem_from_row, problems_from_rows, prompt_key, split
from logpi.tasks.reward_loading import load_reward

ROWS = [{"prompt": "1+1?", "answer": "2"}, {"prompt": "line\u2028separator é", "answer": "3"}]


def write(path: Path, rows: list[dict]) -> Path:
    """Write rows in the format that the file name says."""
    if ".csv" in path.name:
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, rows[0])
            writer.writeheader()
            writer.writerows(rows)
    elif ".jsonl" in path.name:
        path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    elif ".json" in path.name:
        path.write_text(json.dumps(rows), encoding="utf-8")
    else:
        import pyarrow
        import pyarrow.parquet

        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    if path.suffix == ".gz":
        path.write_bytes(gzip.compress(path.read_bytes()))
    return path


@pytest.mark.parametrize("ending", ["jsonl", "json", "csv", "jsonl.gz", "json.gz", "csv.gz", "parquet", "JSONL"])
def test_each_format_gives_the_same_rows(tmp_path, ending):
    path = write(tmp_path / f"rows.{ending.lower()}", ROWS).rename(tmp_path / f"rows.{ending}")
    assert read_rows(path) == ROWS
    assert read_rows(str(path)) == ROWS


def test_rows_in_memory():
    class HuggingFaceLike:
        column_names = ("prompt", "answer")
        __iter__ = None

        def __len__(self):
            return len(ROWS)

        def __getitem__(self, index):
            return ROWS[index]

    assert read_rows(ROWS) == read_rows(iter(ROWS)) == read_rows(HuggingFaceLike()) == ROWS
    assert read_rows(ROWS)[0] is not ROWS[0]


def test_a_hugging_face_dataset():
    datasets = pytest.importorskip("datasets")
    assert read_rows(datasets.Dataset.from_list(ROWS)) == ROWS
    with pytest.raises(InputError, match=r"a dict \(train\)"):
        read_rows(datasets.DatasetDict(train=datasets.Dataset.from_list(ROWS)))


def test_byte_order_mark_blank_lines_and_windows_line_ends(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"prompt": "a"}\r\n\r\n{"prompt": "b"}')
    assert read_rows(path) == [{"prompt": "a"}, {"prompt": "b"}]


GOOD = b'{"prompt": "a"}\n'
BAD_FILES = {
    "a word": ("d.jsonl", GOOD * 16 + b"nonsense\n", r"d\.jsonl:17: not valid JSON: Expecting value"),
    "half last line": ("d.jsonl", GOOD * 2 + b'{"prompt": "a', r"d\.jsonl:3: not valid JSON: .*cut short"),
    "not UTF-8": ("d.jsonl", GOOD + b'{"prompt": "caf\xe9"}\n', r"d\.jsonl:2: byte 0xe9 is not UTF-8"),
    "a list as row": ("d.jsonl", GOOD + b"\n[1]\n", r"d\.jsonl:3: the row is a list where an object"),
    "null as row": ("d.jsonl", b"null\n", r"d\.jsonl:1: the row is null"),
    "lone surrogate": ("d.jsonl", GOOD + b'{"prompt": ["\\ud83d"]}\n', r"d\.jsonl:2: .*surrogate .*ud83d.*'prompt'"),
    "surrogate key": ("d.jsonl", b'{"\\ud83d": 1}\n', r"d\.jsonl:1: .*lone surrogate"),
    "endless integer": ("d.jsonl", b'{"prompt": ' + b"9" * 5000 + b"}\n", r"d\.jsonl:1: not valid JSON"),
    "deep nesting": ("d.jsonl", GOOD + b"[" * 200_000 + b"\n", r"d\.jsonl:2: not valid JSON"),
    "empty": ("d.jsonl", b"\n\n", r"d\.jsonl: holds no rows"),
    "empty json": ("d.json", b"", r"d\.json: holds no rows"),
    "empty list": ("d.json", b"[]", r"d\.json: holds no rows"),
    "header alone": ("d.csv", b"prompt,answer\n", r"d\.csv: holds no rows"),
    "broken json": ("d.json", b'[{"a": 1},\n{"a": }]', r"d\.json:2: not valid JSON: Expecting value at column 7"),
    "one object": ("d.json", b'{"a": 1}', r"d\.json:1: holds a dict where a list of objects.*\.jsonl"),
    "json lines": ("d.json", GOOD * 2, r"d\.json:2: not valid JSON: Extra data.*\.jsonl"),
    "a number in the list": ("d.json", b'[{"a": 1}, 7]', r"d\.json: row 1 is a int"),
    "too many cells": ("d.csv", b'p,a\n"x\ny",1\nz,1,2\n', r"d\.csv:4: 3 cells where the header has 2 \(p, a\)"),
    "too few cells": ("d.csv", b"p,a\nx\n", r"d\.csv:2: 1 cells"),
    "open quote": ("d.csv", b'p,a\nx,1\n"y,2\n', r"d\.csv:3: not valid CSV"),
    "doubled header": ("d.csv", b"p,p\nx,1\n", r"d\.csv:1: the header names p more than once"),
    "half a gzip file": ("d.jsonl.gz", gzip.compress(GOOD * 99)[:-9], r"d\.jsonl\.gz: not a whole gzip file"),
    "no gzip file": ("d.csv.gz", b"p,a\nx,1\n", r"d\.csv\.gz: not a whole gzip file"),
    "no parquet": ("d.parquet", b"PAR1 but not really", r"d\.parquet: not a readable Parquet file"),
    "extension": ("d.jsnl", GOOD, r'd\.jsnl: unknown extension "\.jsnl"\. Did you mean "\.jsonl"\?'),
    "page": ("d.md.gz", gzip.compress(GOOD), r'd\.md\.gz: unknown extension "\.md"'),
}


@pytest.mark.parametrize("case", BAD_FILES)
def test_a_bad_file_is_refused_with_its_place(tmp_path, case):
    name, content, message = BAD_FILES[case]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=message):
        read_rows(tmp_path / name)


def test_a_missing_file_suggests_its_neighbour(tmp_path):
    write(tmp_path / "train.jsonl", ROWS)
    with pytest.raises(InputError, match=r'trian\.jsonl: no such file\. Did you mean ".*/train\.jsonl"\?'):
        read_rows(tmp_path / "trian.jsonl")
    with pytest.raises(InputError, match="no such file, and no folder"):
        read_rows(tmp_path / "nowhere" / "train.jsonl")
    with pytest.raises(InputError, match="a folder, not a file"):
        read_rows(tmp_path)


def test_parquet_without_pyarrow_names_the_extra(tmp_path, monkeypatch):
    path = write(tmp_path / "rows.parquet", ROWS)
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(InputError, match=r'"pyarrow": pip install "logpi\[data\]"'):
        read_rows(path)


@pytest.mark.parametrize(
    "source, message", [([], "holds no rows"), ([{}, [1]], "dataset: row 1 is a list"), (7, "from a int")]
)
def test_bad_rows_in_memory(source, message):
    with pytest.raises(InputError, match=message):
        read_rows(source)


def test_problems_keep_the_other_columns_and_the_row_index():
    chat = [{"role": "user", "content": "2+2?"}]
    first, second = problems_from_rows([ROWS[0], {"prompt": chat, "level": 3}])
    assert first == Problem(0, "1+1?", {"answer": "2"})
    assert second == Problem(1, chat, {"level": 3})
    assert columns_of([first, second]) == {"answer": ["2", None], "level": [None, 3]}


def test_a_missing_prompt_column_names_row_columns_and_remedy():
    with pytest.raises(InputError, match=r'd\.csv: row 1 has no column "prompt" \(it has: promt, x\).* mean "promt"\?'):
        problems_from_rows([ROWS[0], {"promt": "a", "x": 1}], source_name="d.csv")


BAD_PROMPTS = [7, None, "", "  \n", [], {"role": "user", "content": "x"}, ["x"], [{"role": "user"}],
               [{"role": "user", "content": None}], [{"role": "user", "content": " "}]]  # fmt: skip


@pytest.mark.parametrize("prompt", BAD_PROMPTS, ids=repr)
def test_a_bad_prompt_names_its_row(prompt):
    with pytest.raises(InputError, match='d: row 1: "prompt"'):
        problems_from_rows([ROWS[0], {"prompt": prompt}], source_name="d")


def numbered(count: int) -> list[Problem]:
    return problems_from_rows([{"prompt": f"p{index // 2}"} for index in range(count)])  # each prompt twice


@pytest.mark.parametrize("heldout, num_held", [(0, 0), (1, 2), (10, 10), (0.25, 50), (0.0, 0), (0.001, 2), (198, 198)])
def test_split_is_disjoint_complete_ordered_and_sized(heldout, num_held):
    problems = numbered(200)
    train, held = split(problems, heldout, seed=3)
    assert len(held) == num_held
    assert not {prompt_key(problem) for problem in train} & {prompt_key(problem) for problem in held}
    assert sorted(train + held, key=lambda problem: problem.uid) == problems
    assert all([p.uid for p in side] == sorted(p.uid for p in side) for side in (train, held))
    assert (train, held) == split(problems, heldout, seed=3)


def test_split_is_keyed_by_seed_and_content_and_never_changes():
    held = {seed: [problem.uid for problem in split(numbered(40), 6, seed)[1]] for seed in (0, 1)}
    assert held[0] != held[1]
    assert held[0] == [6, 7, 16, 17, 32, 33], "a changed split puts trained problems into the held-out set of old runs"
    reordered = split(list(reversed(numbered(40))), 6, 0)[1]
    assert sorted(problem.uid for problem in reordered) == held[0]


@pytest.mark.parametrize("heldout", [-1, -0.5, 1.0, 1.5, float("nan"), float("inf"), True, "9", None, 199, 200, 1000])
def test_split_refuses_what_leaves_nothing_to_train_or_means_nothing(heldout):
    with pytest.raises(InputError, match="heldout="):
        split(numbered(200), heldout, seed=0)


def to_problem(index, row, name):
    return problem_from_row(index, row, "prompt", name)


def test_a_heldout_file_counts_on_and_shares_no_prompt(tmp_path):
    train_path = write(tmp_path / "train.jsonl", ROWS)
    other = write(tmp_path / "test.jsonl", [{"prompt": "new", "answer": "1"}])
    train, held = load_split(train_path, other, 0, to_problem)
    assert [problem.uid for problem in train + held] == [0, 1, 2]
    leak = write(tmp_path / "leak.jsonl", [{"prompt": "new"}, {"prompt": ROWS[1]["prompt"]}])
    with pytest.raises(InputError, match=r"leak\.jsonl: row 1 has the prompt of row 1 of .*train\.jsonl \(1 such"):
        load_split(train_path, leak, 0, to_problem)


def test_a_reward_is_found_in_a_file_and_in_a_module(tmp_path):
    (tmp_path / "helper_of_rewards.py").write_text("UNIT = 2.0\n")
    path = tmp_path / "my_rewards.py"
    path.write_text("from helper_of_rewards import UNIT\ndef brevity(completions):\n    return [UNIT]\n")
    reward = load_reward(f"{path}:brevity", weight=0.5)
    assert (reward.name, reward.weight) == ("brevity", 0.5) and reward.function(["a"]) == [2.0]
    assert load_reward("json:dumps") == Reward("dumps", json.dumps, 1.0)


BAD_LOCATIONS = {
    "file.py": 'write "path/to/file.py:function", "module:function", or "python_tests"',
    "file.py:": 'write "path/to/file.py:function"',
    ":f": 'write "path/to/file.py:function"',
    "{folder}/god.py:f": 'god.py: no such file. Did you mean "{folder}/good.py"?',
    "{folder}/good.py:brevty": 'has no function "brevty". Did you mean "brevity"?',
    "{folder}/good.py:LIMIT": '"LIMIT" is a int, not a function',
    "{folder}/bad.py:f": "bad.py: importing it raised ZeroDivisionError: division by zero",
    "{folder}/syntax.py:f": "syntax.py: importing it raised SyntaxError",
    "{folder}/exits.py:f": "exits.py: importing it raised SystemExit",
    "no_such_module_x:f": "no_such_module_x: importing it raised ModuleNotFoundError",
    "good:f": "importing it raised ModuleNotFoundError: No module named 'good'; there is a file: write \"good.py:f\"",
    "json:dumpss": 'json has no function "dumpss". Did you mean "dumps"?',
}


@pytest.mark.parametrize("location", BAD_LOCATIONS)
def test_a_reward_that_cannot_be_loaded_says_why(tmp_path, monkeypatch, location):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "good.py").write_text("LIMIT = 3\ndef brevity(completions):\n    return []\n")
    (tmp_path / "bad.py").write_text("1 / 0\n")
    (tmp_path / "syntax.py").write_text("def f(:\n")
    (tmp_path / "exits.py").write_text("import sys\nsys.exit(3)\n")
    with pytest.raises(InputError) as caught:
        load_reward(location.format(folder=tmp_path))
    assert BAD_LOCATIONS[location].format(folder=tmp_path) in str(caught.value)
