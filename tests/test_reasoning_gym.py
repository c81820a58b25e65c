"""reasoning-gym's generators: by name, the same each time, scored by themselves, and never a way to run code."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys

import pytest

from logpi import api
from logpi.config import make_config
from logpi.console import make_observer
from logpi.errors import InputError
from logpi.tasks import make_task
from logpi.tasks.reasoning_gym import answer_in, is_harmless

installed = importlib.util.find_spec("reasoning_gym") is not None
needs = pytest.mark.skipif(not installed, reason='reasoning-gym is not installed: pip install "logpi[tasks]"')
SLOW_TO_MAKE = "knight_swap"  # half a minute a problem
HOSTILE = [
    "__import__('os').system('QZQ')",
    "[c for c in ().__class__.__base__.__subclasses__()]",
    "'__import__\\x28\"os\"\\x29'",
    "'__import__%cQZQ' % 40",
    'f"QZQ{40:c}"',
    "'eval(1)'",
    "(lambda: QZQ)()",
    "[eval][0]('QZQ')",
    "x + open('QZQ')",
    "S('QZQ')",
    "sin(x=eval('QZQ'))",
    "exp(b'QZQ(1)')",
    "(x!)",
    "(" * 500,
]


def test_the_missing_package_is_named_with_its_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "reasoning_gym", None)
    monkeypatch.delitem(sys.modules, "logpi.tasks.generators", raising=False)
    for name in [name for name in sys.modules if name.startswith("reasoning_gym.")]:
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(InputError, match=r'needs the package "reasoning-gym": pip install "logpi\[tasks\]"'):
        make_task("reasoning_gym", dataset="chain_sum")


def test_the_answer_is_in_its_tags_or_the_whole_text():
    assert answer_in("no <answer>1</answer>, <answer> 2\n</answer> then") == "2"
    assert answer_in(" 17\n") == "17" and answer_in("<answer>3") == "<answer>3"


@pytest.mark.parametrize("text", HOSTILE)
def test_what_could_call_a_function_is_never_evaluated(text):
    assert not is_harmless(text)


@pytest.mark.parametrize(
    "text",
    ["17", "2*x**2 + C", "(26 + 4) * 2", "-(x**3)/3 + log(2*x) - sqrt(Abs(x))", "[[0, 1], [1, 0]]", "['A', 'B C']",
     "Q _ _\n_ Q _", "x^2!", "nothing, really", "x if y else z", ""],
)  # fmt: skip
def test_what_can_be_an_answer_is_let_through(text):
    assert is_harmless(text)


@needs
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dataset": "chain_sun"}, 'reasoning_gym has no dataset "chain_sun". Did you mean "chain_sum"?'),
        ({"dataset": "gcd", "parameters": {"max_nums": 3}}, 'dataset "gcd" has no parameter "max_nums". Did you mean'),
        ({"dataset": "gcd", "parameters": {"seed": 3}}, 'dataset "gcd" has no parameter "seed"'),
        ({"dataset": "chain_sum", "parameters": {"max_terms": -3}}, "max_terms must be >= min_terms"),
        ({"dataset": "composite"}, 'dataset "composite" does not take parameters={}'),
        ({"dataset": "gcd", "size": 0}, "size=0: must be a count"),
        ({"dataset": "gcd", "template": "{q}"}, "its fields are {question}"),
        ({"dataset": "gcd", "heldout": 500}, "heldout"),
    ],
)
def test_an_unusable_option_is_named(options, message):
    with pytest.raises(InputError) as error:
        make_task("reasoning_gym", **options)
    assert message in str(error.value)


@needs
@pytest.mark.parametrize("dataset", ["list_functions", "isomorphic_strings"])
def test_problems_are_a_function_of_the_seed(dataset):
    """Of these two the first draws from Python's global generator, the second goes through sets."""
    first, again, other = (make_task("reasoning_gym", dataset=dataset, size=6, seed=seed) for seed in (3, 3, 4))
    assert first.train == again.train and first.heldout == again.heldout
    questions = [{problem.columns["question"] for problem in task.train} for task in (first, other)]
    assert not questions[0] & questions[1]  # the package's own seeds 3 and 4 share all problems but one


@needs
def test_each_generator_scores_its_own_answers():
    from logpi.tasks.generators import score

    parts = {"datasets": [{"name": "countdown"}, {"name": "gcd"}]}
    for dataset, parameters in (("chain_sum", {"max_terms": 2}), ("rearc", None), ("composite", parts)):
        task = make_task("reasoning_gym", dataset=dataset, parameters=parameters, size=5, heldout=0)
        for columns in (problem.columns for problem in task.train):
            problem = (columns["dataset"], columns["parameters"], columns["entry"])
            assert score(columns["answer"], *problem) == 1.0
            assert max(score(text, *problem) for text in ["", "x", "1/0", *HOSTILE]) < 0.5  # theirs pays for a part


@needs
@pytest.mark.timeout(300)
def test_it_trains_on_scores_from_children(tmp_path):
    values = {
        "recipe": "gym",
        "task": {"name": "reasoning_gym", "dataset": "countdown", "size": 8, "heldout": 2},
        "policy": {"model": "tiny"},
        "max_steps": 1,
        "threads": 1,
        "rollout": {"num_prompts": 2, "num_generations": 2, "max_completion_length": 8},
        "evaluation": {"full_report": False},
    }
    summary = api.run(make_config(values), folder=tmp_path / "run", observer=make_observer(json=True))
    assert summary["status"] == "finished" and summary["evaluation"]["after"]["metrics"].keys() == {"score_answer"}


EVERY = """
import ast, json, sys
from logpi.tasks.generators import DATASETS, EVALUATING, create_dataset, entries_of, score
hostile, slow = json.loads(sys.stdin.read())
seen, now = set(), [None]

def watch(event, arguments):
    compiled = event == "compile" and arguments[1] != "<unknown>" and "QZQ" in str(arguments[0])  # that is ast.parse
    if compiled or event in ("os.system", "subprocess.Popen"):
        seen.add(now[0])

wrong = []
names = sorted(set(DATASETS) - {"composite", slow})
made = {name: entries_of(name, {"seed": 5, "size": 1})[0] for name in names}
sys.addaudithook(watch)
for name in names:
    entry, answer = made[name]["entry"], made[name]["answer"]
    if answer is not None and score(answer, name, {}, entry) != 1.0:
        wrong.append(name)
    now[0] = name, "through logpi"
    for text in hostile:
        score(text, name, {}, entry) if name in EVALUATING else None
    now[0] = name, "directly"
    for text in ("QZQ", "[QZQ]", "1+QZQ", "x**QZQ", "QZQ*2"):
        try:
            create_dataset(name, seed=5, size=1).score_answer(text, ast.literal_eval(entry))
        except Exception:
            pass
    now[0] = None
seen = sorted(map(list, filter(None, seen)))
print()  # some of them print, without an end of line
print(json.dumps({"num": len(names), "wrong": wrong, "seen": seen, "evaluating": sorted(EVALUATING)}))
"""


@needs
@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_every_generator_works_and_the_list_of_those_that_evaluate_is_whole():
    """In a process of its own, whose audit hook sees what is compiled and what is started."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    given = json.dumps([HOSTILE, SLOW_TO_MAKE])
    found = subprocess.run([sys.executable, "-c", EVERY], input=given, capture_output=True, text=True, env=environment)
    assert found.returncode == 0, found.stderr
    report = json.loads(found.stdout.splitlines()[-1])
    assert report["num"] > 100 and report["wrong"] == []
    assert [name for name, how in report["seen"] if how == "directly"] == report["evaluating"]
    assert not [name for name, how in report["seen"] if how == "through logpi"]
