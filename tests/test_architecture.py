"""Who may import whom, and the rooms: read from the source tree, for whatever of it exists."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import logpi

ROOT = Path(logpi.__file__).parent
SOURCES = sorted(ROOT.rglob("*.py"))

# A file or folder imports only from lines above its own. Levels below 0 first, so that numbers are those of the design.
LEVELS = [
    {"errors"},
    {"platforms"},
    {"storage", "sections", "optimizer"},
    {"trajectory", "masking", "randomness", "config", "device", "formulas"},
    {"environments", "policies", "estimators", "losses"},  # blind to one another
    {"tasks", "rollout", "algorithms", "batching", "run_folder", "interrupts", "journal"},
    {
        "credit",
        "learner",
        "checkpoint",
        "distributed",
        "diagnostics",
        "evaluation",
        "identity",
        "ledger",
        "alerts",
        "drift",
        "writing",
    },
    {"exact", "experience", "control", "value_based", "metrics", "objective"},
    {"trainer", "supervised", "conversations"},
    {"recipes", "report"},
    {"build", "session"},
    {"cli", "console", "api", "overrides", "recipe_diff", "resume_proof"},
    {"__main__", "__init__"},
]
LEVEL = {name: level for level, names in enumerate(LEVELS, start=-3) for name in names}
FRONT = LEVEL["cli"]  # the front doors of one house: only they may import one another
FIRST_TO_SEE_CONFIG = LEVEL["exact"]
PURE = ("estimators", "losses")


def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def place(path: Path) -> str:
    """Return the top-level name that the file belongs to: its folder in logpi, or its own name."""
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def imports(tree: ast.AST) -> Iterator[str]:
    """Yield every imported module's dotted name, wherever the import stands (functions, TYPE_CHECKING)."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: a relative import; write it from logpi"
            if node.module == "logpi":
                yield from (f"logpi.{alias.name}" for alias in node.names)
            else:
                yield str(node.module)


def import_faults(name: str, tree: ast.AST) -> list[str]:
    """Return what the rules have against a file of `name` importing what it imports."""
    faults = []
    for module in imports(tree):
        first, _, rest = module.partition(".")
        imported = rest.partition(".")[0]
        if first != "logpi":
            if name in PURE and first not in ("torch", "jaxtyping", "__future__"):
                faults.append(f"{name} imports {module}: estimators and losses see tensors only")
            if name == "config" and first == "torch":
                faults.append(f"config imports {module}: it is free of torch")
        elif imported in (name, "__version__"):
            continue
        elif imported not in LEVEL:
            faults.append(f"{name} imports {module}, which has no level: give it one in tests/test_architecture.py")
        elif name in PURE and imported != "masking":
            faults.append(f"{name} imports {module}: of logpi it may import masking only")
        elif imported == "config" and LEVEL[name] < FIRST_TO_SEE_CONFIG:
            faults.append(f"{name} imports {module}: what stands below level {FIRST_TO_SEE_CONFIG} takes arguments")
        elif LEVEL[imported] >= LEVEL[name] and not LEVEL[imported] == LEVEL[name] == FRONT:
            faults.append(f"{name} (level {LEVEL[name]}) imports {module} (level {LEVEL[imported]})")
    return faults


def room_faults(name: str, tree: ast.AST) -> list[str]:
    """Return the verbs with consequences that stand outside their room."""
    faults = []

    def allow(node: ast.AST, verb: str, *rooms: str) -> None:
        if name not in rooms:
            faults.append(f"line {node.lineno}: {verb} belongs in {' or '.join(rooms) or 'no file'}")

    for node in ast.walk(tree):
        text = ast.unparse(node) if isinstance(node, ast.Attribute | ast.Name | ast.Call) else ""
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            verb = called.rpartition(".")[2]
            if verb == "backward" and "." in called and not called.endswith("learner.backward"):  # its own verb
                allow(node, ".backward()", "learner")
            if verb == "step" and "optim" in called.rpartition(".")[0].lower():
                allow(node, "an optimiser's step", "learner")
            if called in ("print", "exit"):
                allow(node, f"{called}()", "cli", "console")
            if verb == "uniforms":
                allow(node, "drawing", "rollout", "randomness")
            if verb in ("multinomial", "Categorical"):
                allow(node, f"{verb}(), a draw without a key,")
            if any(k.arg == "allow_pickle" and not is_false(k.value) for k in node.keywords):
                allow(node, "allow_pickle")
        elif (
            text in ("time.time", "datetime.now", "datetime.utcnow") and name != "session"
        ):  # a start's date, no duration
            allow(node, f"{text}, a clock that can jump,")
        elif text in ("sys.argv", "sys.exit"):
            allow(node, text, "cli", "console")
        elif text in ("torch.load", "torch.cpu", "torch.cuda", "torch.mps", "torch.backends.mps"):
            allow(node, text, *(["device"] if text != "torch.load" else []))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            if re.fullmatch(r"(cpu|cuda|mps)(:\d+)?", node.value):
                allow(node, f'the device name "{node.value}"', "device", "config")
        elif isinstance(node, ast.Import | ast.ImportFrom):
            modules = [a.name for a in node.names] + [getattr(node, "module", None) or ""]
            for module in modules:
                if module.partition(".")[0] in ("pickle", "cloudpickle", "dill", "joblib", "yaml"):
                    allow(node, module)
                if module.partition(".")[0] in ("socketserver", "http", "uvicorn", "starlette", "flask"):
                    allow(node, f"{module}, which listens,")
            if isinstance(node, ast.ImportFrom):
                for hidden in {f"{node.module}.{a.name}" for a in node.names} & {"sys.argv", "sys.exit", "torch.load"}:
                    allow(node, f"{hidden} under a short name")
    return faults


def is_false(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and node.value is False


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_each_file_keeps_to_its_level_and_its_rooms(path):
    name = place(path)
    assert name in LEVEL, f'"{name}" has no level: give it one in LEVELS, tests/test_architecture.py'
    tree = parse(path)
    faults = import_faults(name, tree) + room_faults(name, tree)
    assert not faults, f"{path.relative_to(ROOT)}:\n  " + "\n  ".join(faults)
    num_lines = len(path.read_text(encoding="utf-8").splitlines())
    assert num_lines <= 400, f"{path.relative_to(ROOT)} has {num_lines} lines; 400 is the limit"


def test_one_step_of_the_trainer_reads_on_one_screen():
    path = ROOT / "trainer.py"
    if not path.exists():
        pytest.skip("no trainer.py yet")
    trainers = [n for n in parse(path).body if isinstance(n, ast.ClassDef) and n.name == "Trainer"]
    steps = [n for c in trainers for n in c.body if isinstance(n, ast.FunctionDef) and n.name == "step"]
    assert steps, "trainer.py has no Trainer.step"
    num_lines = steps[0].end_lineno - steps[0].lineno + 1
    assert num_lines <= 60, f"Trainer.step has {num_lines} lines; 60 is the limit"


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("trajectory", "import logpi.masking"),
        ("masking", "from logpi import losses"),
        ("policies", "from logpi.environments.gym import Gym"),
        ("rollout", "from logpi.tasks.base import Task"),
        ("rollout", "def f():\n    from logpi.trainer import Trainer"),
        ("learner", "from logpi.checkpoint import save"),
        ("learner", "from logpi.config import Config"),
        ("trainer", "from logpi import cli"),
        ("trainer", "import logpi.novelty"),
        ("estimators", "import numpy as np"),
        ("losses", "from logpi.errors import InputError"),
        ("losses", "from logpi.trajectory import Batch"),
        ("config", "from torch import Tensor"),
        ("config", "from logpi.algorithms import ALGORITHMS"),
        ("trainer", "loss.sum().backward()"),
        ("supervised", "self.optimizer.step()"),
        ("trainer", "print(1)"),
        ("trainer", "sys.exit(1)"),
        ("trainer", "from sys import exit"),
        ("config", "x = sys.argv[1:]"),
        ("evaluation", "uniforms(0, 1, 2, 3, 4, 5)"),
        ("trainer", "randomness.uniforms(0, 1, 2, 3, 4, 5)"),
        ("rollout", "torch.multinomial(p, 1)"),
        ("checkpoint", "torch.load(path)"),
        ("checkpoint", "import pickle"),
        ("trainer", "start = time.time()"),
        ("config", "import yaml"),
        ("api", "from http.server import HTTPServer"),
        ("checkpoint", "from pickle import loads"),
        ("checkpoint", "np.load(path, allow_pickle=True)"),
        ("learner", "x.to('cuda:0')"),
        ("policies", "torch.autocast('cpu', torch.bfloat16)"),
        ("learner", "torch.cuda.is_available()"),
        ("policies", "device = 'mps'"),
    ],
)
def test_a_violation_is_seen(name, source):
    tree = ast.parse(source)
    assert import_faults(name, tree) + room_faults(name, tree)


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("learner", "from logpi.losses import per_token\nloss.backward()\nself.optimizer.step()"),
        (
            "trainer",
            "from logpi.config import Config\nfrom logpi import learner\nenvironment.step(a)\nlearner.backward(b)",
        ),
        ("cli", "import logpi.console\nfrom logpi.trainer import Trainer\nprint(sys.argv)\nsys.exit(0)"),
        ("estimators", "import torch\nfrom torch import Tensor\nfrom logpi.masking import masked_sum"),
        ("rollout", "from logpi.randomness import uniforms\nuniforms(0, 1, 2, 3, 4, 5)"),
        ("policies", "def backward(ctx, g):\n    '''Not cuda.'''\n    torch.autograd.grad(x, y)"),
        ("device", "torch.cuda.is_available() and torch.device('cuda')"),
        ("config", "from logpi.errors import InputError"),
    ],
)
def test_what_is_allowed_passes(name, source):
    tree = ast.parse(source)
    assert import_faults(name, tree) + room_faults(name, tree) == []
