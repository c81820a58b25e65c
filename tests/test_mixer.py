"""MIXER: completions that begin with a solution. That it is exact is in test_exact."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from models import NATIVE_BF16, write
from test_dynamic_sampling import Silent, rows, varied

from logpi import api
from logpi.algorithms import get_algorithm
from logpi.errors import InputError
from logpi.exact import measure, tabular
from logpi.policies.loading import load_causal_lm
from logpi.supervised import beginnings
from logpi.tasks.base import Problem, Task

PROMPTS = [{"prompt": f"{n}+{n % 5}=", "completion": str(n + n % 5) * (1 + n % 3)} for n in range(24)]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return write(tmp_path_factory.mktemp("model") / "tiny", "llama")


def settings(tiny, **sections):
    rollout = {"num_prompts": 4, "num_generations": 3, "max_completion_length": 6, "solution_tokens": 4}
    rollout |= sections.pop("rollout", {})
    return {
        "model": tiny, "data": PROMPTS, "rewards": varied, "max_steps": 4, "threads": 1, "observer": Silent(),
        "policy": {"dtype": sections.pop("dtype", "float32")}, "rollout": rollout, "algorithm": "mixer",
        "learner": {"learning_rate": 3e-3}, "evaluation": {"full_report": False, "every_steps": None},
        "checkpoint": {"every_steps": 1}, **sections,
    }  # fmt: skip


def test_fewer_tokens_are_given_by_step_and_never_the_last(tiny):
    policy = load_causal_lm(str(tiny), dtype="float32")
    problems = [Problem(i, row["prompt"], {"completion": row["completion"]}) for i, row in enumerate(PROMPTS[:6])]
    first = beginnings(problems, Task("made up", problems, []), policy, 4, 10)
    for problem in problems:
        whole = policy.tokenizer(problem.columns["completion"], add_special_tokens=False)["input_ids"]
        for step in range(10):
            count = min(-(-4 * (10 - step) // 10), len(whole))  # the end token behind them is never given
            assert first(problem.uid, step).tolist() == whole[:count]
        assert len(first(problem.uid, 10)) == 0


@pytest.mark.parametrize("dtype", ["float32"] + ["bfloat16"] * NATIVE_BF16)
def test_a_run_begins_completions_with_solutions(tiny, tmp_path, dtype, monkeypatch):
    """Given tokens come first, count 1 each, and the drawn ones behind them have the learner's bits."""
    from logpi.trainer import Trainer

    seen = []
    real = Trainer.trainable
    monkeypatch.setattr(Trainer, "trainable", lambda self, ts: seen.append(real(self, ts)) or seen[-1])
    api.train(run=tmp_path / "run", **settings(tiny, dtype=dtype))
    policy = load_causal_lm(str(tiny), dtype="float32")
    given = []
    for step, trajectories in enumerate(seen):
        for t in trajectories:
            row = PROMPTS[t.prompt_uid]
            solution = policy.tokenizer(row["completion"], add_special_tokens=False)["input_ids"]
            assert t.num_given == min(4 - step, len(solution)) and len(t) > t.num_given
            assert t.actions[: t.num_given].tolist() == solution[: t.num_given]
            assert t.inputs.tolist() == policy.tokenizer(row["prompt"])["input_ids"]
            assert (t.behavior_log_probs[: t.num_given] == 0).all() and (t.behavior_log_probs[t.num_given :] < 0).all()
            given.append(t.num_given)
    assert len(given) == 48 and set(given) == {1, 2, 3, 4}
    for row in rows(tmp_path / "run", "metrics.jsonl"):
        own = [t.entropies[t.num_given :] for t in seen[row["step"] - 1]]
        assert row["mismatch/max"] == 0.0 and row["entropy"] == pytest.approx(float(torch.cat(own).mean()), rel=1e-6)


def test_a_killed_run_ends_as_if_it_had_not_been(tiny, tmp_path, monkeypatch):
    from logpi.trainer import Trainer

    api.train(run=tmp_path / "whole", **settings(tiny))
    real, calls = Trainer.step, []

    def dies(self):
        calls.append(0)
        if len(calls) == 3:
            raise RuntimeError("killed")
        return real(self)

    monkeypatch.setattr(Trainer, "step", dies)
    with pytest.raises(RuntimeError):
        api.train(run=tmp_path / "run", **settings(tiny))
    monkeypatch.setattr(Trainer, "step", real)
    api.train(run=tmp_path / "run", **settings(tiny))
    for name in ("metrics.jsonl", "samples.jsonl", "final/model.safetensors"):
        assert (tmp_path / "run" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name


def test_a_row_that_takes_given_tokens_for_its_own_is_seen():
    """Set against MIXER's objective, leave-one-out on every token, given ones too, is another."""
    mixer = get_algorithm("mixer")
    broken = replace(mixer, advantage=get_algorithm("rloo").advantage)
    assert measure(mixer, "real", 2).relative_error <= 1e-9 < 0.1 < measure(broken, "real", 2).relative_error


def test_the_oracle_of_given_tokens():
    """With none given it is ∇J; with one, the two sums differentiate like their finite differences."""
    policy = tabular.TabularPolicy()
    torch.testing.assert_close(
        tabular.exact_mixed_gradient(policy, "real", 0), tabular.exact_gradient(policy, "real"), rtol=1e-12, atol=1e-14
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rollout": {"solution_tokens": 0}}, 'algorithm "mixer" begins completions .* set rollout.solution_tokens'),
        ({"rollout": {"num_spare_prompts": 2}}, 'num_spare_prompts: algorithm "mixer" learns from groups of equal'),
        ({"algorithm": "rloo"}, 'solution_tokens=4: algorithm "rloo" would take'),
        ({"data": [{"prompt": f"{n}="} for n in range(9)]}, 'row . has no text in its column "completion"'),
        ({"rollout": {"max_completion_length": 4000}}, "over the model's context"),
    ],
)
def test_what_cannot_be_is_said(tiny, tmp_path, changes, message):
    with pytest.raises(InputError, match=message):
        api.train(run=tmp_path / "run", **(settings(tiny, **changes)))
