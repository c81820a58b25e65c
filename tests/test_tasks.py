"""The built-in tasks, on the real data: what is right scores 1, what is nearly right scores 0."""

from __future__ import annotations

import json
import random
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from logpi import api
from logpi.errors import InputError
from logpi.tasks import TASKS, make_task
from logpi.tasks.answers import last_number_in, number_in
from logpi.tasks.base import Problem, Reward, Task
from logpi.tasks.countdown import evaluate, expression_in
from logpi.tasks.dataset import read_rows
from logpi.tasks.problems import columns_of, prompt_key
from logpi.tasks.rewarding import as_completions, score


@pytest.fixture
def data() -> Path:
    folder = Path(__file__).resolve().parents[2] / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"the development data is not at {folder}")
    return folder


def scores(rewards: list[Reward], problems: list[Problem], texts: list[str]) -> dict[str, list[float | None]]:
    prompts = [problem.prompt for problem in problems]
    completions = as_completions(prompts, texts)
    return score(rewards, prompts, completions, [[0]] * len(texts), columns_of(problems)).by_name


def metrics_of(task: Task, problem: Problem, text: str) -> tuple[float | None, ...]:
    """Return the reward of one completion, then its metrics."""
    names = {**scores(list(task.rewards), [problem], [text])}
    return (*(value[0] for value in names.values()),
            *(value[0] for value in scores(list(task.metrics), [problem], [text]).values()))  # fmt: skip


def operands(problem: Problem) -> tuple[int, int]:
    return problem.columns["a"], problem.columns["b"]


@pytest.mark.parametrize("options", [{}, {"seed": 1}, {"max_operand": 9, "num_heldout": 20}, {"num_heldout": 0}])
def test_addition_holds_out_unordered_pairs(options):
    task = make_task("addition", **options)
    top, wanted = options.get("max_operand", 20), options.get("num_heldout", 120)
    sides = [{operands(problem) for problem in side} for side in (task.train, task.heldout)]
    assert sides[0] | sides[1] == {(a, b) for a in range(top + 1) for b in range(top + 1)}
    assert len(task.train) + len(task.heldout) == (top + 1) ** 2
    assert wanted <= len(task.heldout) <= wanted + 1
    for a, b in sides[1]:
        assert (b, a) in sides[1] and (a, b) not in sides[0] and (b, a) not in sides[0]
    problems = [*task.train, *task.heldout, *task.probes["beyond_range"]]
    assert len({problem.uid for problem in problems}) == len({prompt_key(problem) for problem in problems})
    assert len({problem.uid for problem in problems}) == len(problems)


def test_addition_asks_what_it_scores():
    task = make_task("addition")
    for problem in [*task.train, *task.heldout, *task.probes["beyond_range"]]:
        a, b = operands(problem)
        assert problem.prompt == [{"role": "user", "content": f"What is {a}+{b}?"}]
        assert metrics_of(task, problem, f" {a + b}\n") == (1, 1, 1)
        assert metrics_of(task, problem, str(a + b + 1)) == (0, 0, 0)
    trained = {problem.prompt[0]["content"]: problem.columns["answer"] for problem in task.train}
    assert task.examples and all(trained[prompt] == answer for prompt, answer in task.examples)
    beyond = task.probes["beyond_range"]
    assert len(beyond) == 100 and all(20 < max(operands(problem)) <= 50 for problem in beyond)
    assert [metric.name for metric in task.metrics] == ["strict", "last_integer"]


SUM_OF_8 = {  # completion: strict, last_integer, graded
    "8": (1, 1, 1), "8\n": (1, 1, 1), "8.": (1, 1, 1), "3+5=8": (1, 1, 1), "3 + 5 = 8.": (1, 1, 1),
    "5+3=8": (0, 1, 0.2), "4+4=8": (0, 1, 0.2), "3+5=8 = 8": (0, 1, 0.2), "3 +5=9": (0, 0, 0), "= 8": (0, 1, 0.2),
    "It is 8, surely": (0, 1, 0.2),
    "08": (0, 1, 0.2), "8 8": (0, 1, 0.2), "8 9": (0, 0, 0), "-8": (0, 0, 0), "8.5": (0, 0, 0), "18": (0, 0, 0),
    "1,008": (0, 0, 0), "": (0, 0, 0), "eight": (0, 0, 0), "٨": (0, 0, 0), "9" * 5000: (0, 0, 0),
}  # fmt: skip


@pytest.mark.parametrize("text", SUM_OF_8)
def test_rewards_of_addition(text):
    for name, expected in zip(("strict", "last_integer", "graded"), SUM_OF_8[text]):
        task = make_task("addition", reward=name)
        problem = next(p for p in [*task.train, *task.heldout] if operands(p) == (3, 5))
        assert metrics_of(task, problem, text) == (expected, *SUM_OF_8[text][:2])


NUMBERS = {"1,234": 1234, "-7": -7, "so −7": -7, "10-3": 3, "(4)-3": 3, "x = -3": -3, "$1,000,000.50": 1000000.5,
           "3,5": 5, "1,2345": 2345, "#### 72.": 72, "is .5": 0.5, "5 - 3": 3, "1. two": 1, "none": None}  # fmt: skip


@pytest.mark.parametrize("text", NUMBERS)
def test_the_last_number_in_a_text(text):
    assert last_number_in(text) == NUMBERS[text]


def test_every_countdown_solution_scores_one_and_its_neighbours_zero(data):
    path = data / "countdown" / "train.jsonl.gz"
    task = make_task("countdown", data=path, heldout=0)
    problems, rows = list(task.train[:2000]), read_rows(path)[:2000]
    solutions = [row["solution"] for row in rows]
    forms = [
        "{}",
        " {} ",
        "Let me see: 3*3.\n\n{}\n",
        "<answer>1+1</answer> no, <answer>\n{}\n</answer> done",
        "{} = {t}",
    ]
    for form in forms:
        texts = [form.format(solution, t=row["target"]) for solution, row in zip(solutions, rows)]
        assert scores(list(task.metrics), problems, texts) == {"solved": [1.0] * 2000, "well_formed": [1.0] * 2000}
    spoils = ["{}+1", "{}+0", "({}", "{}=1000", "{0}\n{1}", "{}**1", "{}//1", "{}.0", "int({})", "<answer></answer>{}"]
    for wrong in spoils:
        texts = [wrong.format(solution, row["target"]) for solution, row in zip(solutions, rows)]
        assert scores(list(task.metrics), problems, texts) == {"solved": [0.0] * 2000, "well_formed": [0.0] * 2000}, (
            wrong
        )
    texts = ["+".join(map(str, row["numbers"])) for row in rows]
    solved = [float(sum(row["numbers"]) == row["target"]) for row in rows]
    assert scores(list(task.metrics), problems, texts) == {"solved": solved, "well_formed": [1.0] * 2000}
    texts = ["+".join(map(str, row["numbers"][1:])) for row in rows]
    assert not any(scores(list(task.metrics), problems, texts)["well_formed"])


def test_tries_compute_and_only_the_last_comes_to_the_target():
    fraction = {"numbers": [24, 22, 36], "target": 33, "solution": "36/(24/22)"}  # there is no way in integers
    draws, rows = random.Random(0), [fraction]
    while len(rows) < 200:
        a, b, c, d = (draws.randint(1, 50) for _ in range(4))
        goals = {f"{a}+{b}-{c}": a + b - c, f"{a}+{b}+{c}": a + b + c, f"{a}*({b}-{c})+{d}": a * (b - c) + d}
        rows += [
            {"numbers": [a, b, c, d] if "*" in text else [a, b, c], "target": goal, "solution": text}
            for text, goal in goals.items()
            if 10 <= goal <= 100
        ]
    plain, tried = (make_task("countdown", data=rows, heldout=50, **o) for o in ({}, {"tries": 6, "puzzles": 3}))
    assert tried.draws and not plain.draws
    assert list(tried.heldout) == list(plain.heldout) and len({p.uid for p in tried.train}) == len(tried.train)
    own, made_up = tried.train[: len(plain.train)], tried.train[len(plain.train) :]
    assert [(p.uid, p.prompt) for p in own] == [(p.uid, p.prompt) for p in plain.train]
    of = {p.uid: Counter(p.columns["numbers"]) for p in plain.train}
    assert all(Counter(p.columns["numbers"]) == of[p.uid % len(rows)] for p in made_up)
    asked, kept_out = ({_puzzle(p) for p in some} for some in (made_up, tried.heldout))
    assert len(asked) > len(plain.train) and not asked & kept_out
    targets = [p.columns["target"] for p in plain.train]
    assert all(min(targets) <= p.columns["target"] <= max(targets) for p in made_up)
    for problem in tried.train:
        *tries, answer = problem.columns["solution"].splitlines()
        target = problem.columns["target"]
        if not tries:
            assert (answer, rows[problem.uid]) == (fraction["solution"], fraction)
            continue
        assert len(tries) <= 6 and len(set(tries)) == len(tries)
        assert all(line.endswith(f" {target}?") for line in tries)
        left = [_left_over(line.rpartition(" ")[0], problem.columns["numbers"]) for line in tries]
        assert left.index(target) == len(tries) - 1
        assert scores(list(plain.metrics), [problem], ["\n".join([*tries, answer])])["solved"] == [1.0]
    again = make_task("countdown", data=rows, heldout=50, tries=6, puzzles=3)
    assert again.train == tried.train


def test_a_file_is_evaluated_without_what_is_made_up_of_it(tmp_path):
    rows = [{"numbers": [3, 4, 5], "target": 12}, {"numbers": [7, 2], "target": 14}]
    (tmp_path / "puzzles.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = api.evaluate_run("tiny", recipe="countdown-tries", data=str(tmp_path / "puzzles.jsonl"))
    assert found["n"] == 2


def _puzzle(problem):
    return tuple(sorted(problem.columns["numbers"])), problem.columns["target"]


def _left_over(line, numbers):
    """Take the steps of a try one by one, each of which must use what is there; return the one number that is left."""
    there = Counter(numbers)
    for step in line.split(" "):
        a, sign, b, result = re.fullmatch(r"(\d+)([-+*/])(\d+)=(\d+)", step).groups()
        used = Counter([int(a), int(b)])
        assert used <= there and evaluate(f"{a}{sign}{b}")[0] == int(result) <= 200
        there = there - used + Counter([int(result)])
    (left,) = there.elements()
    return left


def test_expressions_are_evaluated_exactly_and_only_if_arithmetic():
    assert evaluate("1/3*3")[0] == 1 and evaluate("8/(3-8/3)")[0] == 24 and evaluate("-(2-5)")[0] == 3
    refused = ["1/0", "1/(2-2)", "2**9", "7//2", "7%2", "1_0", "0x1", "1.5", "012", "abs(1)", "()", "", "1 2", "(1,2)",
               "1)", "__import__('os')", "1<2", "~1", "+1", "(" * 199 + "1", "-" * 199 + "1+" * 9, "1+" * 100 + "1",
               "1\n+1", "9(9)"]  # fmt: skip
    assert {text: evaluate(text) for text in refused} == dict.fromkeys(refused)
    assert expression_in("") == "" and expression_in("a\n b \n\n") == "b"


def test_every_gsm8k_answer_parses_and_scores_one(data):
    task = make_task("gsm8k", data=data / "gsm8k" / "train.jsonl.gz", heldout=data / "gsm8k" / "test.jsonl")
    assert (len(task.train), len(task.heldout)) == (7473, 1319)
    problems = [*task.train, *task.heldout]
    golds = [number_in(problem.columns["answer"]) for problem in problems]
    assert all(gold is not None and gold.denominator == 1 for gold in golds)
    assert sum(map(int, golds)) == 412124061
    solutions = [problem.columns["solution"] for problem in problems]
    assert scores(list(task.metrics), problems, solutions) == {"last_number": [1] * 8792, "marked_number": [1] * 8792}
    for form in ("{}", "The answer is ${:,}.00."):
        plain = [form.format(int(gold)) for gold in golds]
        assert scores(list(task.metrics), problems, plain) == {"last_number": [1] * 8792, "marked_number": [0] * 8792}
    wrong = [f"#### {gold + 1}" for gold in map(int, golds)]
    assert scores(list(task.metrics), problems, wrong) == {"last_number": [0] * 8792, "marked_number": [0] * 8792}
    assert len(task.examples) == 8 and not any("<<" in solution for _, solution in task.examples)


BUSES = {
    "5": 1,
    "so 12 - 7 = 5": 1,
    "19": 0.2,
    "84": 0.2,
    "-5": 0.2,
    "12": 0,
    "7": 0,
    "6": 0,
    "none": 0,
    "12/7 = 1.71": 0,
}


@pytest.mark.parametrize("text", BUSES)
def test_a_graded_reward_of_svamp_knows_what_one_operation_can_give(text):
    row = {"Body": "A bus has 12 seats, 7 of them taken", "Question": "How many are free?", "Answer": 5}
    other = {"Body": "Ann has 2 nuts", "Question": "How many?", "Answer": 2}
    task = make_task("svamp", data=[row, other], heldout=1, reward="graded")
    problem = next(p for p in [*task.train, *task.heldout] if p.columns["answer"] == "5")
    assert metrics_of(task, problem, text)[0] == BUSES[text]


def test_a_graded_reward_of_svamp_does_not_divide_by_nothing():
    row = {"Body": "Bo has 0 cars and 3 bikes", "Question": "How many wheels?", "Answer": 6}
    task = make_task("svamp", data=[row, row | {"Body": "Bo has 3 cars and 0 bikes"}], heldout=1, reward="graded")
    assert metrics_of(task, task.train[0], "0")[0] == 0.2  # 0 · 3, 0 / 3
    row = {"Body": "A hall has 12 seats in 4 rows", "Question": "How many are free?", "Answer": 9}
    task = make_task("svamp", data=[row, row | {"Body": "5 seats"}], heldout=1, reward="graded")
    problem = next(p for p in [*task.train, *task.heldout] if p.columns["numbers"] == ["12", "4"])
    assert [metrics_of(task, problem, text)[0] for text in ("3", "4", "9")] == [0.2, 0, 1]  # 12 / 4


def test_svamp_rows_become_tidy_prompts_with_numeric_answers(data):
    path = data / "svamp" / "SVAMP.json"
    task = make_task("svamp", data=path)
    assert (len(task.train), len(task.heldout)) == (800, 200)
    problems = sorted([*task.train, *task.heldout], key=lambda problem: problem.uid)
    rows = read_rows(path)
    for problem, row in zip(problems, rows, strict=True):
        text = problem.prompt[0]["content"]
        assert text.startswith(row["Body"].strip().rstrip(".")) and row["Question"].strip() in text
        assert re.search(r"[.?!] Answer with the number only\.$", text) and not re.search(r"[.?!] *\.", text)
    assert problems[0].prompt[0]["content"] == (
        "Each pack of dvds costs 76 dollars. If there is a discount of 25 dollars on each pack. "
        "How much do you have to pay to buy each pack? Answer with the number only.")  # fmt: skip
    for form, expected in {"{}": (1, 1), " {}.0 ": (1, 1), "It is {}.": (1, 0), "{}.01": (0, 0), "1{}": (0, 0)}.items():
        texts = [form.format(int(row["Answer"])) for row in rows]
        names = scores(list(task.metrics), problems, texts)
        assert names == {"last_number": [expected[0]] * 1000, "strict": [expected[1]] * 1000}, form


def test_a_custom_task_from_files(tmp_path):
    path = tmp_path / "rewards.py"
    path.write_text("def exact(completions, answer):\n    return [c == a for c, a in zip(completions, answer)]\n")
    rows = [{"question": f"{n}+1?", "answer": str(n + 1)} for n in range(10)]

    def brevity(completions):
        return [-len(text) for text in completions]

    options = {"data": rows, "rewards": [f"{path}:exact", brevity], "reward_weights": [2.0, 0.1]}
    task = make_task("custom", **options, prompt_column="question", heldout=3, metrics=f"{path}:exact")
    assert (len(task.train), len(task.heldout)) == (7, 3)
    assert [(reward.name, reward.weight) for reward in task.rewards] == [("exact", 2.0), ("brevity", 0.1)]
    assert [metric.name for metric in task.metrics] == ["exact"]
    assert scores(list(task.rewards), [task.train[0]], [task.train[0].columns["answer"]])["exact"] == [1.0]
    with pytest.raises(InputError, match="reward_weights: 2 weights for 1 rewards"):
        make_task("custom", **{**options, "rewards": brevity}, prompt_column="question")
    with pytest.raises(InputError, match='no column "prompt"'):
        make_task("custom", data=rows, rewards=brevity)


BAD_TASKS = [
    ("adition", {}, 'unknown task "adition". Did you mean "addition"?'),
    ("addition", {"max_operant": 9}, 'task "addition" has no option "max_operant". Did you mean "max_operand"?'),
    ("gsm8k", {}, 'task "gsm8k" needs the option "data"'),
    ("addition", {"reward": "strickt"}, 'no such reward of addition. Did you mean "strict"?'),
    ("addition", {"max_operand": 0}, "max_operand=0: must be an integer from 1"),
    ("addition", {"num_heldout": 441}, "heldout=441: leaves nothing to train"),
    ("addition", {"num_heldout": 0.5}, "num_heldout=0.5: must be an integer"),
    ("addition", {"template": "{a}+{c}"}, "its fields are {a} and {b}"),
    ("addition", {"template": "{a}"}, "has no {b}"),
    ("addition", {"template": "{a} {b} {"}, "template"),
    ("countdown", {"data": [{"numbers": [1, "2"], "target": 3}]}, "dataset: row 0: \"numbers\" is [1, '2']"),
    ("countdown", {"data": [{"numbers": [1], "target": 3.5}]}, 'row 0: "target" is 3.5, a float; it must be int'),
    ("countdown", {"data": [{"number": [1], "target": 3}]}, 'no column "numbers" (it has: number, target).'),
    ("countdown", {"data": [{"numbers": [1], "target": 1}], "tries": -1}, "tries=-1: must be an integer from 0"),
    ("countdown", {"data": [{"numbers": [1] * 6, "target": 6}], "tries": 2}, "row 0: tries are for up to 5 numbers"),
    ("countdown", {"data": [{"numbers": [1], "target": 1}], "puzzles": 2}, "puzzles=2: only tries can be made up"),
    ("gsm8k", {"data": [{"question": "?", "answer": "72"}]}, 'row 0: "answer" must end with "#### number", not \'72\''),
    ("gsm8k", {"data": [{"question": "?", "answer": "#### many"}]}, "not ' many'"),
    ("svamp", {"data": [{"Body": "a", "Question": "b", "Answer": "3"}]}, "\"Answer\" is '3', a str"),
    ("svamp", {"data": [{"Body": "a", "Question": "b", "Answer": float("inf")}]}, "must be a finite number"),
    ("custom", {"data": [{"prompt": "a"}], "rewards": []}, "needs at least one reward function"),
]


@pytest.mark.parametrize(
    "name, options, message", BAD_TASKS, ids=[f"{name}-{i}" for i, (name, *_) in enumerate(BAD_TASKS)]
)
def test_a_bad_task_says_what_to_write_instead(name, options, message):
    with pytest.raises(InputError) as caught:
        make_task(name, **options)
    assert message in str(caught.value)


PLACES = [
    (
        "gsm8k",
        "a.jsonl",
        '{"question": "?", "answer": "#### 3"}\n\n{"question": "?", "answer": "3"}\n',
        "a.jsonl:3: row 1:",
    ),
    ("gsm8k", "a.csv", 'question,answer\n"two\nlines",#### 3\nb,four\n', 'a.csv:4: row 1: "answer" must end with'),
    ("gsm8k", "a.jsonl", '\n{"question": "?", "anser": "#### 3"}\n', 'a.jsonl:2: row 0 has no column "answer"'),
    ("countdown", "a.jsonl", '{"numbers": [1, 2], "target": "3"}', 'a.jsonl:1: row 0: "target" is'),
    ("countdown", "a.jsonl", '{"numbers": [], "target": 3}', 'a.jsonl:1: row 0: "numbers" is []'),
    ("svamp", "a.json", '[{"Body": "a", "Question": "b", "Answer": "3"}]', 'a.json: row 0: "Answer" is'),
]


@pytest.mark.parametrize("name, file, content, message", PLACES)
def test_a_bad_row_is_named_with_its_line(tmp_path, name, file, content, message):
    (tmp_path / file).write_text(content)
    with pytest.raises(InputError) as caught:
        make_task(name, data=tmp_path / file)
    assert f"{tmp_path}/{message}" in str(caught.value)


def test_tasks_import_neither_torch_nor_transformers():
    code = (
        "import sys, logpi.tasks; sys.exit(bool({'torch', 'transformers', 'pyarrow', 'datasets'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
    assert list(TASKS) == sorted(TASKS)


def test_the_real_files_are_read_whole(data):
    sizes = {"svamp/SVAMP.json": 1000, "gsm8k/train.jsonl.gz": 7473, "gsm8k/test.jsonl": 1319,
             "countdown/train.jsonl.gz": 2500, "text_sonnets/sonnets.jsonl.gz": 154}  # fmt: skip
    assert {name: len(read_rows(data / name)) for name in sizes} == sizes
