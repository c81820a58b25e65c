"""What goes wrong in a run, one thing after the other: signals, numbers, memory, files; and what it must not break."""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from kinds import arguments, digests, prepare
from safetensors.torch import load_file

from logpi import api, checkpoint, cli, session
from logpi.device import is_out_of_memory
from logpi.errors import InputError, LogpiError, NonFiniteError, OutOfMemoryError
from logpi.experience import TaskExperience
from logpi.journal import Journal
from logpi.learner import Learner
from logpi.ledger import balance
from logpi.rollout import engine
from logpi.rollout.self_test import SelfTest
from logpi.run_folder import RunFolder

KINDS = ("full", "lora", "cartpole")


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("faults")
    prepare(root)
    return root


@pytest.fixture(scope="module")
def whole(root):
    """Return a function from a kind to the digests of a run that nothing happens to."""
    found = {}

    def of(kind):
        if kind not in found:
            assert start(root, kind, root / f"whole-{kind}")["status"] == "finished"
            found[kind] = digests(root / f"whole-{kind}")
        return found[kind]

    return of


class Notes:
    """An observer that remembers what it was told."""

    def __init__(self):
        self.notes, self.info = [], {}

    def start(self, info):
        self.info = info
        self.notes += info["notes"]

    def note(self, text):
        self.notes.append(text)

    def evaluation(self, *_): ...
    def step(self, *_): ...
    def finish(self, *_): ...


def configure(root, kind, **changes):
    words = arguments(root, kind, Path("x"))[1:-2]
    rest, overrides = cli.split_overrides(words)
    if "--max-steps" in rest:
        overrides["max_steps"] = int(rest[rest.index("--max-steps") + 1])
    return api.resolve(rest[0], api.merge(overrides, changes))


def start(root, kind, run, *, observer=None, fork=None, fresh=False, **changes):
    config = configure(root, kind, **changes)
    return api.run(config, folder=run, observer=observer or Notes(), fork=fork, fresh=fresh)


def rows(run, name="metrics.jsonl"):
    return [json.loads(line) for line in (run / name).read_text().splitlines()]


def at_call(monkeypatch, owner, name, number, action):
    """Call `action` in place of (or before) the numbered call of a method; it returns None to let the call go on."""
    original, calls = getattr(owner, name), []

    def wrapped(*args, **kwargs):
        calls.append(1)
        if len(calls) == number and (found := action()) is not None:
            return found
        return original(*args, **kwargs)

    monkeypatch.setattr(owner, name, wrapped)
    return calls


# --- signals ----------------------------------------------------------------------------------------------------------

MOMENTS = {
    "in the first evaluation": (engine, "_forward", 2),
    "in a later evaluation": (TaskExperience, "evaluate", 2),
    "while sampling": (engine, "_forward", 9),
    "in the first gradient": (Learner, "_accumulate", 1),
    "in an update": (Learner, "update", 3),
    "while saving": (checkpoint, "save", 2),
    "in the last steps": (Learner, "update", 9),
}


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("moment", MOMENTS)
def test_a_signal_saves_and_stops_and_the_run_ends_as_if_it_had_not_come(root, whole, tmp_path, moment, number):
    owner, name, call = MOMENTS[moment]
    with pytest.MonkeyPatch.context() as patch:
        at_call(patch, owner, name, call, lambda: os.kill(os.getpid(), number))
        before = signal.getsignal(number)
        summary = start(root, "lora", tmp_path / "run")
        assert signal.getsignal(number) is before
    assert summary["status"] == "stopped" and summary["signal"] == number
    assert checkpoint.steps(tmp_path / "run" / "checkpoints")[-1:] == [summary["steps"]] * bool(summary["steps"])
    assert start(root, "lora", tmp_path / "run")["status"] == "finished"
    assert digests(tmp_path / "run") == whole("lora")


REWARD = """
import os, signal, time
def right(completions, answer, **columns):
    if os.path.exists({flag!r}):
        os.kill(os.getpid(), signal.{first})
        os.kill(os.getpid(), signal.{second})
    return [float(a in c) + 0.01 * len(c) for c, a in zip(completions, answer)]
"""


@pytest.mark.parametrize(("first", "code"), [("SIGINT", 130), ("SIGTERM", 143)])
def test_the_command_exits_with_the_signals_code(tmp_path, first, code):
    prepare(tmp_path)
    plain = (tmp_path / "reward.py").read_text()
    (tmp_path / "reward.py").write_text(REWARD.format(flag=str(tmp_path / "flag"), first=first, second="SIGCONT"))
    (tmp_path / "reward.py").write_text(
        (tmp_path / "reward.py").read_text().replace("if os", "if len(completions) > 2 and os")
    )
    (tmp_path / "flag").touch()
    command = [sys.executable, "-m", "logpi", *arguments(tmp_path, "full", tmp_path / "run")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == code and "the same command goes on" in done.stderr, done.stderr
    assert "Traceback" not in done.stderr and plain


def test_a_second_signal_exits_at_once(tmp_path):
    """The reward swallows time and the first signal is waited for by nobody: the handler itself ends the process."""
    program = """
import os, signal, sys, time
from logpi.interrupts import Interrupts
with Interrupts() as interrupts:
    os.kill(os.getpid(), signal.SIGTERM)  # nothing is abandonable: only noted
    assert interrupts.signal == signal.SIGTERM
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(60)
print("not reached")
"""
    start_time = time.monotonic()
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert done.returncode == 143 and done.stdout == "" and time.monotonic() - start_time < 30


def test_stopped_by_sigstop_and_continued_nothing_is_lost(root, whole, tmp_path):
    command = [sys.executable, "-m", "logpi", *arguments(root, "full", tmp_path / "run")]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while not (tmp_path / "run" / "metrics.jsonl").exists():
        time.sleep(0.01)
    process.send_signal(signal.SIGSTOP)
    time.sleep(1.0)
    process.send_signal(signal.SIGCONT)
    assert process.wait(120) == 0
    assert digests(tmp_path / "run") == whole("full")


# --- one process, one run ---------------------------------------------------------------------------------------------


def test_a_second_process_is_refused_and_changes_nothing(root, tmp_path):
    with RunFolder.open(tmp_path / "run", configure(root, "full").plain()):
        before = {p: p.read_bytes() for p in (tmp_path / "run").rglob("*") if p.is_file()}
        with pytest.raises(InputError, match=rf"is in use by process {os.getpid()} on .*: wait until it ends"):
            start(root, "full", tmp_path / "run")
        assert {p: p.read_bytes() for p in (tmp_path / "run").rglob("*") if p.is_file()} == before
    assert start(root, "full", tmp_path / "run", max_steps=1)["status"] == "finished"


def test_other_data_weights_or_tokenizer_are_refused_and_other_rewards_said(tmp_path):
    prepare(tmp_path)
    start(tmp_path, "full", tmp_path / "run", max_steps=1)
    kept = {name: (tmp_path / name).read_text() for name in ("questions.jsonl", "reward.py", "model/tokenizer.json")}
    weights = (tmp_path / "model" / "model.safetensors").read_bytes()

    def refused(word):
        with pytest.raises(InputError, match=rf"the run began with other {word} .*go on as a new run with --fork STEP"):
            start(tmp_path, "full", tmp_path / "run", max_steps=2)
        assert len(rows(tmp_path / "run")) == 1

    (tmp_path / "questions.jsonl").write_text(kept["questions.jsonl"].replace("3+1", "3+2"))
    refused("data")
    (tmp_path / "questions.jsonl").write_text(kept["questions.jsonl"])
    (tmp_path / "model" / "model.safetensors").write_bytes(weights[:-1] + bytes([weights[-1] ^ 1]))
    refused("weights")
    (tmp_path / "model" / "model.safetensors").write_bytes(weights)
    text = kept["model/tokenizer.json"]
    (tmp_path / "model" / "tokenizer.json").write_text(
        text.replace('"<pad>": 2', '"<pod>": 2').replace("<pad>", "<pod>")
    )
    refused("tokenizer")
    (tmp_path / "model" / "tokenizer.json").write_text(text)
    (tmp_path / "reward.py").write_text(kept["reward.py"].replace("0.01", "0.02"))
    told = Notes()
    assert start(tmp_path, "full", tmp_path / "run", max_steps=2, observer=told)["status"] == "finished"
    assert "the code of the rewards has changed since the run began" in told.notes
    assert told.notes[-1] in rows(tmp_path / "run", "sessions.jsonl")[-1]["notes"]


def test_another_machine_is_said_and_recorded(root, tmp_path):
    start(root, "full", tmp_path / "run", max_steps=1)
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    record["machine"] |= {"torch": "2.0.0", "threads": 64}
    (tmp_path / "run" / "run.json").write_text(json.dumps(record))
    told = Notes()
    start(root, "full", tmp_path / "run", max_steps=2, observer=told)
    (note,) = told.notes
    assert "threads 64 → 1; torch 2.0.0 → " in note and note.endswith("values stay valid, bits may differ")
    assert rows(tmp_path / "run", "sessions.jsonl")[-1]["notes"] == [note]


def test_a_checkpoint_of_another_run_is_set_aside(root, whole, tmp_path):
    start(root, "full", tmp_path / "run", max_steps=2)
    state = checkpoint.load(tmp_path / "run" / "checkpoints" / "step-00000002")
    foreign = checkpoint.TrainState(9, state.tensors, state.numbers, "0badc0de")
    checkpoint.save(tmp_path / "run" / "checkpoints", foreign, keep=9)
    told = Notes()
    start(root, "full", tmp_path / "run", observer=told)
    assert any("step-00000009 belongs to another run (0badc0de): set aside as foreign-step" in n for n in told.notes)
    assert (tmp_path / "run" / "checkpoints" / "foreign-step-00000009").is_dir()
    assert digests(tmp_path / "run") == whole("full")


# --- checkpoints, journal, rows ---------------------------------------------------------------------------------------


def flip(file):
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def cut(file):
    file.write_bytes(file.read_bytes()[:-7])


DAMAGES = {
    "a flipped bit": lambda folder: flip(folder / "state.safetensors"),
    "a cut file": lambda folder: cut(folder / "state.safetensors"),
    "a missing file": lambda folder: (folder / "state.json").unlink(),
    "no manifest": lambda folder: (folder / "manifest.json").unlink(),
    "a manifest of nonsense": lambda folder: (folder / "manifest.json").write_text("[1]"),
    "a link": lambda folder: _link_out(folder),
}


def _link_out(folder):
    shutil.move(folder / "state.safetensors", folder.parents[2] / "elsewhere")
    (folder / "state.safetensors").symlink_to(folder.parents[2] / "elsewhere")


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_newest_checkpoint_is_set_aside_and_the_run_ends_the_same(root, whole, tmp_path, damage):
    """Killed after the third step's checkpoint was damaged on the disk: step 3 is done again from the second's."""
    start(root, "full", tmp_path / "run")
    for name in ("summary.json", "final"):
        path = tmp_path / "run" / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    DAMAGES[damage](tmp_path / "run" / "checkpoints" / "step-00000003")
    told = Notes()
    assert start(root, "full", tmp_path / "run", observer=told)["status"] == "finished"
    assert any("checkpoint step-00000003 is damaged" in note for note in told.notes)
    assert (tmp_path / "run" / "checkpoints" / "damaged-step-00000003").is_dir()  # never deleted
    assert digests(tmp_path / "run") == whole("full")


def test_rewards_are_not_asked_again_for_steps_that_the_journal_holds(tmp_path):
    """A reward that answers differently each time: what it first said is what is trained on and recorded."""
    prepare(tmp_path)
    (tmp_path / "reward.py").write_text(f"""
def right(completions, **columns):
    with open({str(tmp_path / "calls")!r}, "a") as file: file.write(f"{{len(completions)}} ")
    calls = len(open({str(tmp_path / "calls")!r}).read().split())
    return [calls + i / 8 for i in range(len(completions))]
""")

    class PowerCut(BaseException):
        pass

    def die():
        raise PowerCut

    with pytest.MonkeyPatch.context() as patch:
        at_call(patch, Learner, "backward", 2, die)  # step 2 is sampled, scored and in the journal
        with pytest.raises(PowerCut):
            start(tmp_path, "full", tmp_path / "run", checkpoint={"every_steps": 5})
    asked = (tmp_path / "calls").read_text().split()
    assert asked == ["2", "2", "1", "8", "8"]  # before the run, before training, two steps
    kept = [Journal(tmp_path / "run" / "journal", configure(tmp_path, "full").journal_key()).read(s) for s in (1, 2)]
    start(tmp_path, "full", tmp_path / "run", checkpoint={"every_steps": 5})
    asked = (tmp_path / "calls").read_text().split()
    assert asked[5:] == ["2", "2", "1", "8", "1"]  # before the run, evaluation 2, step 3, the last evaluation
    found = [r["reward"] for r in rows(tmp_path / "run", "samples.jsonl")]
    assert found[:16] == [float(t.rewards.sum()) for step in kept for t in step]


def test_a_journal_that_was_tampered_with_or_cut_is_not_read(tmp_path, root):
    with pytest.MonkeyPatch.context() as patch:
        at_call(patch, Learner, "backward", 1, lambda: (_ for _ in ()).throw(KeyboardInterrupt()))
        with pytest.raises(KeyboardInterrupt):
            start(root, "full", tmp_path / "run")
    journal = Journal(tmp_path / "run" / "journal", configure(root, "full").journal_key())
    (file,) = journal.folder.glob("*")
    assert len(journal.read(1)) == 8 and journal.read(2) is None
    assert Journal(journal.folder, "another configuration").read(1) is None
    flip(file)
    assert journal.read(1) is None
    flip(file)
    assert journal.read(1) is not None
    cut(file)
    assert journal.read(1) is None


def test_rows_survive_what_text_can_hold_and_a_torn_line(tmp_path):
    folder = RunFolder(tmp_path)
    nasty = ["\u2028\u2029\x85\x0b\x0c\x1c", "\r\n", "\ud800".encode("utf-8", "replace").decode(), "<b>\x1b[2J"]
    folder.append("samples.jsonl", [{"step": i, "text": text} for i, text in enumerate(nasty)])
    with (tmp_path / "samples.jsonl").open("ab") as file:
        file.write(b'{"step": 4, "te')
    assert [row["text"] for row in folder.rows("samples.jsonl")] == nasty
    folder.cut_back(2)
    assert [row["step"] for row in folder.rows("samples.jsonl")] == [0, 1, 2]
    assert (tmp_path / "samples.jsonl").read_bytes().endswith(b"\n")


def test_rows_that_damage_took_are_said(root, tmp_path):
    start(root, "full", tmp_path / "run", max_steps=2)
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    (tmp_path / "run" / "metrics.jsonl").write_text(lines[0][:-5] + "\n" + lines[1] + "\n")
    told = Notes()
    start(root, "full", tmp_path / "run", observer=told)
    assert "metrics.jsonl was damaged: it lacks the rows of 2 steps, 1 first" in told.notes


def test_the_ledger_sees_what_is_missing_twice_there_or_not_planned():
    def row(step, uid, sample, reward=1.0):
        return {"step": step, "prompt_uid": uid, "sample": sample, "reward": reward}

    plan = {0: [4, 7], 1: [4, 4]}  # step 2 asks prompt 4 twice
    good = [row(1, uid, s) for uid in (4, 7) for s in (0, 1)] + [row(2, 4, s) for s in range(4)]
    found = balance(good, plan.__getitem__, 2, 2, range(2))
    assert found == {"prompts": 4, "completions": 8, "left_out": 0, "as_planned": True, "differences": []}
    assert balance([*good[:-1], row(2, 4, 3, None)], plan.__getitem__, 2, 2, range(2))["left_out"] == 1
    for wrong, what in (
        (good[1:], "step 1, prompt 4, sample 0: 0 times, planned 1"),
        ([*good, good[0]], "step 1, prompt 4, sample 0: 2 times, planned 1"),
        ([*good, row(3, 4, 0)], "step 3, prompt 4, sample 0: 1 times, planned 0"),
    ):
        found = balance(wrong, plan.__getitem__, 2, 2, range(2))
        assert not found["as_planned"] and found["differences"] == [what]


def test_a_prompt_that_comes_twice_in_a_step_gets_other_draws(tmp_path):
    prepare(tmp_path)
    start(tmp_path, "full", tmp_path / "run", max_steps=1, rollout={"num_prompts": 5, "num_generations": 2}, seed=1)
    start(tmp_path, "full", tmp_path / "twice", max_steps=1, rollout={"num_prompts": 10, "num_generations": 2}, seed=1)
    found = rows(tmp_path / "twice", "samples.jsonl")
    assert len({(row["prompt_uid"], row["sample"]) for row in found}) == 20
    first = {(r["prompt_uid"], r["sample"]): r["completion"] for r in rows(tmp_path / "run", "samples.jsonl")}
    texts = {(r["prompt_uid"], r["sample"]): r["completion"] for r in found}
    assert all(texts[key] == text for key, text in first.items())  # the first time as ever
    assert any(texts[uid, 2] != texts[uid, 0] for uid in range(6) if (uid, 2) in texts)


def test_the_inventory_holds_what_the_next_step_reads(root, tmp_path):
    """Each entry counts: a checkpoint that lacks it, or holds something else there, can't give the same run."""
    start(root, "lora", tmp_path / "run")
    state = checkpoint.load(tmp_path / "run" / "checkpoints" / "step-00000002")
    kinds = {name.split("/")[0] + "/" + name.split("/")[1] for name in state.tensors if name.startswith("optimizer")}
    assert kinds == {"optimizer/exp_avg", "optimizer/exp_avg_sq", "optimizer/step"}
    trained = {name.removeprefix("parameter/") for name in state.tensors if name.startswith("parameter/")}
    assert "value_head.weight" in trained and any("lora_A" in name for name in trained)
    assert {name.split("/", 2)[2] for name in state.tensors if name.startswith("optimizer/")} == trained
    assert state.numbers.keys() == {
        "num_updates", "last_learning_rate", "num_actions", "train_seconds", "checks_passed", "skips_in_a_row",
        "moving_baseline", "check_is_open",
    }  # fmt: skip
    assert state.numbers["num_updates"] == 8 and state.numbers["last_learning_rate"] == 1e-3


def test_state_that_does_not_fit_is_refused_by_name():
    import models

    def learner(**shape):
        return Learner(models.policy("gpt2", **shape), models.get_algorithm("rloo"), learning_rate=1e-3)

    tensors, numbers = learner().state()
    name = next(n for n in tensors if n.endswith("wte.weight"))
    with pytest.raises(
        InputError, match=r"other parameters than the policy: transformer.wte.weight in one of them only"
    ):
        learner().restore({k: v for k, v in tensors.items() if k != name}, numbers)
    with pytest.raises(InputError, match=r"the checkpoint's transformer.wte.weight is torch.float32 \[20, 24\]"):
        learner().restore(tensors | {name: torch.zeros(20, 24)}, numbers)
    with pytest.raises(InputError, match=r"is torch.float64 .* the policy's torch.float32"):
        learner().restore({k: v.double() for k, v in tensors.items()}, numbers)


# --- going on, longer, elsewhere --------------------------------------------------------------------------------------


def test_more_steps_make_the_run_that_was_longer_from_the_start(root, whole, tmp_path):
    start(root, "full", tmp_path / "run", max_steps=2)
    start(root, "full", tmp_path / "run")
    long, found = whole("full"), digests(tmp_path / "run")
    different = [name for name in long if long[name] != found[name]]
    assert different in ([], ["evaluations.jsonl"])  # it was evaluated where it first ended


def test_a_finished_run_gives_its_summary_and_does_nothing(root, tmp_path):
    first = start(root, "cartpole", tmp_path / "run")
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "run").rglob("*") if p.is_file() and p.name != "lock"}
    told = Notes()
    assert start(root, "cartpole", tmp_path / "run", observer=told) == json.loads(json.dumps(first))
    assert "this run is finished" in told.notes[0]
    after = {p: p.stat().st_mtime_ns for p in (tmp_path / "run").rglob("*") if p.is_file() and p.name != "lock"}
    assert {p.name for p in before if before[p] != after[p]} <= {"config.json"}


def test_a_fork_goes_on_from_a_checkpoint_with_another_configuration(root, tmp_path):
    start(root, "full", tmp_path / "run")
    before = digests(tmp_path / "run")
    with pytest.raises(InputError, match=r"learner.learning_rate: 0.001 → 0.5\n.*--fork STEP"):
        start(root, "full", tmp_path / "run", learner={"learning_rate": 0.5})
    with pytest.raises(InputError, match=r"has no checkpoint of step 1; it has: 2, 3"):
        start(root, "full", tmp_path / "run", fork=1, learner={"learning_rate": 0.5})
    with pytest.raises(InputError, match=r"--fork 2 starts from a run: name it with --run"):
        start(root, "full", None, fork=2)
    summary = start(root, "full", tmp_path / "run", fork=2, learner={"learning_rate": 0.5})
    forked = Path(summary["run"])
    assert forked.name.startswith("run-fork2-") and summary["steps"] == 3 and summary["ledger"]["as_planned"]
    assert [row["step"] for row in rows(forked)] == [3] and rows(forked)[0]["learning_rate"] == 0.5
    assert json.loads((forked / "run.json").read_text())["fork"]["changes"] == ["learner.learning_rate: 0.001 → 0.5"]
    assert rows(forked)[0]["reward"] == rows(tmp_path / "run")[2]["reward"]  # the same weights sampled step 3
    assert start(root, "full", tmp_path / "run", fork=2, learner={"learning_rate": 0.5})["run"] == str(forked)
    assert digests(tmp_path / "run") == before


def test_fresh_starts_in_a_folder_of_its_own(root, tmp_path):
    names = [Path(start(root, "cartpole", tmp_path / "run", fresh=True, max_steps=1)["run"]).name for _ in range(3)]
    assert names == ["run", "run-2", "run-3"]


# --- numbers ----------------------------------------------------------------------------------------------------------


def nan_loss(patch, calls):
    """Make the learner's numbered losses NaN."""
    original, count = Learner.loss, []

    def loss(self, batch):
        count.append(1)
        value, found = original(self, batch)
        return (value * float("nan") if len(count) in calls else value), found

    patch.setattr(Learner, "loss", loss)


def infinite_gradient(patch, calls):
    original, count = Learner._accumulate, []

    def accumulate(self, batch):
        count.append(1)
        found = original(self, batch)
        if len(count) in calls:
            name = next(n for n, p in self.parameters.items() if p.grad is not None)
            self.parameters[name].grad[..., 0] = float("inf")
        return found

    patch.setattr(Learner, "_accumulate", accumulate)


def state_of(run, step):
    return load_file(run / "checkpoints" / f"step-{step:08d}" / "state.safetensors")


@pytest.mark.parametrize(
    ("fault", "message"),
    [(nan_loss, "the loss is nan in prompt"), (infinite_gradient, "the gradient's norm is inf; not finite in model")],
)
def test_an_update_that_is_not_finite_is_skipped_bit_for_bit_counted_and_kept(root, tmp_path, fault, message):
    told = Notes()
    with pytest.MonkeyPatch.context() as patch:
        fault(patch, {2})
        summary = start(root, "full", tmp_path / "run", observer=told, checkpoint={"keep": 9})
    assert summary["status"] == "finished" and summary["ledger"]["as_planned"]
    one, two, three = (state_of(tmp_path / "run", step) for step in (1, 2, 3))
    assert all(torch.equal(one[name], two[name]) for name in one) and one.keys() == two.keys()
    assert any(not torch.equal(two[name], three[name]) for name in two)
    metrics = rows(tmp_path / "run")
    assert [m.get("skipped_updates", 0) for m in metrics] == [0, 1, 0] and message in metrics[1]["skipped_because"]
    assert any(message in note and "weights and optimiser are as they were" in note for note in told.notes)
    (kept,) = (tmp_path / "run" / "skipped").iterdir()
    assert kept.name.startswith("step-00000002-")


def test_after_too_many_in_a_row_the_run_stops_and_names_the_samples(root, tmp_path):
    with pytest.MonkeyPatch.context() as patch:
        nan_loss(patch, set(range(2, 99)))
        with pytest.raises(NonFiniteError, match=r"step 3: the loss is nan in prompt \d+ sample \d+.*2 steps in a row"):
            start(root, "full", tmp_path / "run", learner={"max_skipped_steps": 2})
    assert checkpoint.steps(tmp_path / "run" / "checkpoints") == [1, 2]
    assert NonFiniteError.exit_code == 3


def test_one_update_of_a_cycle_is_skipped_and_the_others_count(root, tmp_path):
    with pytest.MonkeyPatch.context() as patch:
        nan_loss(patch, {2})
        start(root, "lora", tmp_path / "run")
    first = rows(tmp_path / "run")[0]
    assert first["skipped_updates"] == 1 and first["grad_norm"] > 0


def test_a_completion_whose_logits_are_not_finite_is_left_out_and_named(root, tmp_path):
    from logpi.policies.causal_lm import CausalLM

    original, calls = CausalLM.next_token_logits, []

    def broken(self, hidden):
        calls.append(1)
        found = original(self, hidden)
        if len(calls) == 7 and len(found) > 3:  # a decoding step of the first rollout
            found[3] = float("nan")
        return found

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(session, "self_test", lambda policy: SelfTest((), 0.0))  # it samples as well
        patch.setattr(CausalLM, "next_token_logits", broken)
        summary = start(root, "full", tmp_path / "run")
    failed = [row for row in rows(tmp_path / "run", "samples.jsonl") if "failure" in row]
    assert len(failed) == 1 and failed[0]["reward"] is None and "logits not finite at position" in failed[0]["failure"]
    metrics = rows(tmp_path / "run")[failed[0]["step"] - 1]
    assert metrics["completions/unscored_ratio"] == pytest.approx(1 / 8)
    assert summary["ledger"]["as_planned"] and summary["ledger"]["left_out"] == 1


def test_when_all_logits_are_not_finite_the_run_stops(root, tmp_path):
    from logpi.policies.causal_lm import CausalLM

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(CausalLM, "next_token_logits", lambda self, hidden: torch.full((len(hidden), 30), torch.nan))
        with pytest.raises(LogpiError, match=r"step 1: none of the 8 trajectories .*logits not finite at position 0"):
            start(root, "full", tmp_path / "run")


# --- memory -----------------------------------------------------------------------------------------------------------


def test_out_of_memory_is_retried_in_smaller_micro_batches_with_the_same_gradient():
    import models

    trajectories = models.sample(models.policy("gpt2", torch.float64), [9, 30, 17, 5])
    _, expected = models.gradient(models.policy("gpt2", torch.float64), trajectories)
    original, sizes = Learner.loss, []

    def tight(self, batch):
        if len(batch) > 3:
            sizes.append(len(batch))
            raise RuntimeError(
                "[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory: you ..."
            )
        return original(self, batch)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Learner, "loss", tight)
        _, found = models.gradient(models.policy("gpt2", torch.float64), trajectories, micro_batch_tokens=400)
        assert sizes and models.relative_error(found, expected) < 1e-12
        patch.setattr(Learner, "loss", lambda self, batch: (_ for _ in ()).throw(MemoryError()))
        with pytest.raises(OutOfMemoryError, match="out of memory with one trajectory at a time; lower rollout"):
            models.gradient(models.policy("gpt2", torch.float64), trajectories)
        patch.setattr(Learner, "loss", lambda self, batch: (_ for _ in ()).throw(RuntimeError("a bug")))
        with pytest.raises(RuntimeError, match="a bug"):
            models.gradient(models.policy("gpt2", torch.float64), trajectories)


def test_what_torch_raises_without_memory_is_known():
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            now = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
            resource.setrlimit(resource.RLIMIT_AS, (now + 2**28, now + 2**28))
            try:
                torch.empty(2**30, dtype=torch.uint8)
            except (RuntimeError, MemoryError) as error:
                status = 0 if is_out_of_memory(error) else 2
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


# --- the disk ---------------------------------------------------------------------------------------------------------


def test_a_disk_without_room_is_said_before_the_first_step(root, tmp_path, monkeypatch):
    monkeypatch.setattr(session, "free_bytes", lambda path: 1000)
    with pytest.raises(InputError, match=r"needs about 0.00 GB for checkpoints .*--checkpoint.keep 1"):
        start(root, "full", tmp_path / "run")
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


def test_files_have_the_users_permissions(root, tmp_path):
    start(root, "full", tmp_path / "run", max_steps=1)
    umask = os.umask(0)
    os.umask(umask)
    for path in (tmp_path / "run").rglob("*"):
        expected = (0o777 if path.is_dir() else 0o666) & ~umask
        assert path.stat().st_mode & 0o777 == expected, path


@pytest.mark.parametrize(
    ("name", "message"),
    [("a\nb", "can't be printed"), ("x" * 201, "at most 200 are allowed"), ("a\x1b[2Jb", "can't be")],
)
def test_run_names_that_would_harm_are_refused(root, tmp_path, name, message):
    with pytest.raises(InputError, match=message):
        start(root, "full", tmp_path / name)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["../elsewhere", "a/b", "a\0b", "x" * 101, ""])
def test_a_recipe_cannot_name_a_folder_elsewhere(root, name):
    with pytest.raises(InputError, match="recipe"):
        configure(root, "full", recipe=name)
