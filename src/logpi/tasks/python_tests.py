"""A reward for programs: the share of tests that a Python program passes, run in the sandbox.

The program never sees what is expected of it. The child says what each call returned, or what it printed; the parent
compares. So there is no verdict to forge: exiting early, patching `==`, or writing to the channel earns nothing, except
with the right values.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from logpi.errors import InputError
from logpi.tasks.rewarding import Completion, completion_text
from logpi.tasks.sandbox import SandboxLimits, require_sandbox, run_python

FENCE = re.compile(r"```(?:python|py)?[ \t]*\n(.*?)```", re.DOTALL)
AT_ONCE = 2

# Run the program, then each call; write what each returned, a JSON line each. The program's own prints go nowhere.
_CALLS = """
import json, os, sys
given = json.loads(sys.stdin.read())
results = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)
space = {"__name__": "program"}
exec(compile(given["program"], "program", "exec"), space)
for call in given["calls"]:
    try:
        line = json.dumps({"value": eval(call, space)}, default=repr)
    except Exception as error:
        line = json.dumps({"error": type(error).__name__})
    results.write(line + chr(10))
    results.flush()
"""


def python_tests(completions: Sequence[Completion], tests: Sequence[list[Any]], **_: Any) -> list[float]:
    """Give the share of a row's tests that the completion's program passes; the last fenced block, else the whole text.

    A test is {"call": "f(2)", "expected": 4}, {"input": "2", "output": "4"} (standard input and output), or
    "assert f(2) == 4" with a literal on the right. Raises InputError for a test that is none of these, and where there
    is no sandbox.
    """
    require_sandbox()
    all_tests = [parsed(row, index) for index, row in enumerate(tests)]
    with ThreadPoolExecutor(AT_ONCE) as threads:
        return list(threads.map(_share_passed, [program_in(completion_text(c)) for c in completions], all_tests))


def program_in(text: str) -> str:
    """Return the program in a completion: the last fenced block, else the whole text."""
    blocks = FENCE.findall(text)
    return blocks[-1] if blocks else text


def parsed(tests: Any, index: int) -> list[dict[str, Any]]:
    """Return a row's tests in their first two forms. Raises InputError for one that is none of the three."""
    if not isinstance(tests, list) or not tests:
        raise InputError(f'"tests" of completion {index} is {tests!r:.60}; it must be a list of at least one test')
    return [_parsed_one(test, index) for test in tests]


def _parsed_one(test: Any, index: int) -> dict[str, Any]:
    if isinstance(test, dict) and set(test) in ({"call", "expected"}, {"input", "output"}):
        texts = [test[name] for name in ("call", "input", "output") if name in test]
        if all(isinstance(text, str) for text in texts):
            return test
    if isinstance(test, str):
        try:
            (statement,) = ast.parse(test.strip()).body
            assert isinstance(statement, ast.Assert) and isinstance(statement.test, ast.Compare)
            (operator,), (expected,) = statement.test.ops, statement.test.comparators
            assert isinstance(operator, ast.Eq)
            return {"call": ast.unparse(statement.test.left), "expected": ast.literal_eval(expected)}
        except (SyntaxError, ValueError, AssertionError, RecursionError):
            pass
    raise InputError(
        f'a test of completion {index} is {test!r:.80}; write {{"call": "f(2)", "expected": 4}}, '
        '{"input": "2", "output": "4"}, or "assert f(2) == 4" with a literal on the right'
    )


def _share_passed(program: str, tests: list[dict[str, Any]]) -> float:
    calls = [test for test in tests if "call" in test]
    passed = _num_calls_passed(program, calls) if calls else 0
    for test in tests:
        if "input" in test:
            found = run_python(program, test["input"].encode())
            passed += found.ended and _lines(found.output.decode(errors="replace")) == _lines(test["output"])
    return passed / len(tests)


def _num_calls_passed(program: str, tests: list[dict[str, Any]]) -> int:
    request = json.dumps({"program": program, "calls": [test["call"] for test in tests]})
    output = run_python(_CALLS, request.encode(), SandboxLimits()).output
    passed = 0
    for line, test in zip(output.split(b"\n"), tests):  # fewer lines: the program ended, or was ended, before
        try:
            answer = json.loads(line)
            passed += isinstance(answer, dict) and "value" in answer and answer["value"] == _as_json(test["expected"])
        except (ValueError, RecursionError):
            continue
    return passed


def _as_json(value: Any) -> Any:
    """Return a value as the child would send it: tuples as lists, keys as text, anything else by its repr."""
    return json.loads(json.dumps(value, default=repr))


def _lines(text: str) -> list[str]:
    """Return the lines without the white space at their ends, and without empty lines at the end."""
    return [line.rstrip() for line in text.rstrip().split("\n")]
