"""The short runs that are killed: full fine-tuning over an epoch's edge, LoRA inside PPO's update cycle, episodes of
several turns, CartPole, an encoder that tags words, and warm starts: supervised fine-tuning and pre-training from the
text on, of either kind of network."""

from __future__ import annotations

import json
from pathlib import Path

from logpi.resume_proof import digests

__all__ = ["KINDS", "arguments", "digests", "prepare"]

REWARD = """
def right(completions, answer, **columns):
    return [float(a in c) + 0.01 * len(c) for c, a in zip(completions, answer)]
"""

USER = """
from logpi.environments.multi_turn import Reply

class User:
    def reset(self, seed, **columns):
        self.seed, self.said = seed, ""
        return str(seed % 10)

    def step(self, message):
        self.said += message
        return Reply(None if len(self.said) > 9 else f"{self.seed % 7}+1", reward=0.1 * message.count("1"))

    def scores(self):
        return {"length": float(len(self.said))}
"""

LANGUAGE = """
max_steps = {steps}
threads = 1

[task]
name = "custom"
{task}
heldout = 1

[policy]
model = "{root}/{model}"
dtype = "float32"
{lora}

[rollout]
num_prompts = 2
num_generations = 4
max_completion_length = 5

[algorithm]
{algorithm}

[learner]
learning_rate = 1e-3
schedule = "{schedule}"
warmup_steps = 1

[evaluation]
every_steps = 2
full_report = false

[checkpoint]
every_steps = 1
"""

WARM = """
max_steps = {steps}
threads = 1

[task]
{task}
heldout = 0.25

[policy]
dtype = "float32"
{policy}

{section}

[learner]
learning_rate = 1e-3
schedule = "cosine"
warmup_steps = 1

[evaluation]
every_steps = 2

[checkpoint]
every_steps = 1
"""
SHAPE = "hidden_size = 16, intermediate_size = 16, num_hidden_layers = 1, num_attention_heads = 2"

PPO = 'name = "ppo"\nbeta = 0.01\nupdates_per_rollout = 2\nnum_minibatches = 2'
CARTPOLE = (
    "cartpole --max-steps {steps} --rollout.num-generations 4 --evaluation.num-episodes 4 "
    "--evaluation.every-actions 64 --checkpoint.every-steps 1 --algorithm.num-minibatches 2"
)
SMOLLM2 = (
    "smollm2-addition --max-steps {steps} --threads 1 --task.num-heldout 20 --rollout.num-prompts 4 "
    "--rollout.num-generations 4 --rollout.max-completion-length 8 --evaluation.every-steps 2 "
    "--evaluation.full-report false --checkpoint.every-steps 1 --checkpoint.keep 1"
)
ENCODER = """
max_steps = {steps}
threads = 1

[task]
name = "role_labelling"
data = "{root}/srl.jsonl"
form = "tags"
heldout = 2

[policy]
kind = "encoder"
dtype = "float32"
model = "{root}/encoder"

[rollout]
num_prompts = 2
num_generations = 4

[algorithm]
name = "rloo"
beta = 0.01

[learner]
learning_rate = 1e-3

[evaluation]
every_steps = 2
full_report = false

[checkpoint]
every_steps = 1
"""
KINDS = ("full", "lora", "turns", "cartpole", "tagger", "sft", "sft-tagger", "pretrain", "pretrain-masked")


def prepare(root: Path, steps: int = 3) -> None:
    """Write model, data, reward and configurations below `root`; 5 questions, 2 a step: step 3 ends an epoch."""
    import models

    models.write(root / "model", "llama")
    rows = [{"prompt": f"{i}+1=", "answer": str(i + 1)} for i in range(6)]
    (root / "questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (root / "reward.py").write_text(REWARD)
    models.write(root / "talker", "llama", generation_ends=list(range(9)), turns=True)  # most messages end
    rows = [{"prompt": [{"role": "user", "content": f"{i}+1"}]} for i in range(6)]
    (root / "greetings.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (root / "user.py").write_text(USER)
    asked = f'data = "{root}/questions.jsonl"\nrewards = "{root}/reward.py:right"'
    spoken = f'data = "{root}/greetings.jsonl"\nenvironment = "{root}/user.py:User"\nmax_turns = 4'
    rows = (
        ("full", asked, "model", "", 'name = "rloo"', "constant"),
        ("lora", asked, "model", "lora = { r = 4 }", PPO, "linear"),
        ("turns", spoken, "talker", "", 'name = "rloo"\nbeta = 0.01', "constant"),
    )
    for name, task, model, lora, algorithm, schedule in rows:
        changes = {"task": task, "model": model, "lora": lora, "algorithm": algorithm, "schedule": schedule}
        (root / f"{name}.toml").write_text(LANGUAGE.format(root=root, steps=steps, **changes))
    rows = [{"prompt": f"{i}+1=", "completion": str(i + 1)} for i in range(7)]
    (root / "said.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (root / "read.txt").write_text("".join(f"{i} + 1 = {i + 1}\n" for i in range(12)))
    new = f"[pretrain]\nbatch_size = 2\nblock_size = 16\nvocab_size = 280\nshape = {{ {SHAPE} }}"
    tagged = f"[sft]\nbatch_size = 2\n[sft.new]\nvocab_size = 280\ncontext_length = 64\nshape = {{ {SHAPE} }}"
    encoder = 'kind = "encoder"'
    said = f'name = "demonstrations"\ndata = "{root}/said.jsonl"'
    read = f'name = "text"\ndata = "{root}/read.txt"'
    labelled = f'name = "role_labelling"\ndata = "{root}/srl.jsonl"\nform = "tags"'
    warm = (
        ("sft", said, f'model = "{root}/model"', "[sft]\nbatch_size = 2\ndropout = 0.1"),
        ("sft-tagger", labelled, encoder, tagged),
        ("pretrain", read, "", new),
        ("pretrain-masked", read, encoder, new),
    )
    _prepare_tagger(root, steps)
    for name, task, policy, section in warm:
        text = WARM.format(steps=steps, task=task, policy=policy, section=section)
        (root / f"{name}.toml").write_text(text)


def _prepare_tagger(root: Path, steps: int) -> None:
    """Write a new encoder, and sentences with their predicates' arguments."""
    from logpi.policies.untrained_encoder import write_untrained_encoder

    shape = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    (root / "encoder").mkdir()
    write_untrained_encoder(root / "encoder", [], labels=(), vocab_size=258, context=64, shape=shape, seed=0)
    rows = [
        {
            "id": str(i),
            "tokens": ["Ann", "sold", str(i), "cars"],
            "props": [{"predicate": 1, "roleset": "sell.01", "args": [["ARG0", 0, 1], ["ARG1", 2, 4]]}],
        }
        for i in range(7)
    ]
    (root / "srl.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (root / "tagger.toml").write_text(ENCODER.format(root=root, steps=steps))


def arguments(root: Path, kind: str, run: Path, steps: int = 3) -> list[str]:
    """Return the command's words."""
    packaged = {"cartpole": CARTPOLE, "smollm2": SMOLLM2}
    what = packaged[kind].format(steps=steps).split() if kind in packaged else [str(root / f"{kind}.toml")]
    command = kind.partition("-")[0]
    return [command if command in ("sft", "pretrain") else "train", *what, "--run", str(run)]
