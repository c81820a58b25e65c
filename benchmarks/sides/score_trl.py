"""TRL's side of `seconds_to_score.py`: GRPOTrainer on the same task, reward, prompts, numbers; bf16 where native."""

from __future__ import annotations

import json
import os
import sys
import tempfile

import torch
from datasets import Dataset
from precision import native
from score import Clock, wanted
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
from trl import GRPOConfig, GRPOTrainer

from logpi.evaluation import estimate
from logpi.tasks.problems import columns_of
from logpi.tasks.rewarding import as_completions, score

asked = json.loads(sys.argv[1])
clock = Clock(asked)
torch.set_num_threads(asked["threads"])
config, task = wanted(asked)
length = config.rollout.max_completion_length
tokenizer = AutoTokenizer.from_pretrained(asked["model"], padding_side="left")
rows = [{"prompt": p.prompt, **p.columns} for p in task.train]


def reward(prompts, completions, completion_ids, **columns):
    """The task's rewards, summed by weight, as logpi sums them."""
    named = {name: columns[name] for name in task.train[0].columns}
    found = score(task.rewards, prompts, completions, completion_ids, named).by_name
    weights = {r.name: r.weight for r in task.rewards}
    return [sum(weights[name] * (values[i] or 0.0) for name, values in found.items()) for i in range(len(completions))]


@torch.no_grad()
def evaluate(model):
    """Completions of what is held out, scored by the task's first metric."""
    model.eval()
    drawn = {"temperature": config.policy.temperature, "top_k": 0} if task.draws else {}
    prompts, texts, ids = [p.prompt for p in task.heldout], [], []
    for start in range(0, len(prompts), 64):
        some = prompts[start : start + 64]
        how = {"return_tensors": "pt", "padding": True}
        if isinstance(some[0], str):
            asked_now = tokenizer(some, **how)
        else:
            asked_now = tokenizer.apply_chat_template(some, add_generation_prompt=True, return_dict=True, **how)
        with torch.autocast("cpu", torch.bfloat16, enabled=native() == torch.bfloat16):
            out = model.generate(**asked_now, max_new_tokens=length, do_sample=task.draws, **drawn)
        new = out[:, asked_now["input_ids"].shape[1] :]
        ids += new.tolist()
        texts += tokenizer.batch_decode(new, skip_special_tokens=True)
    model.train()
    values = score(task.metrics, prompts, as_completions(prompts, texts), ids, columns_of(task.heldout)).by_name
    return estimate([v or 0.0 for v in values[task.score or task.metrics[0].name]])


class Checks(TrainerCallback):
    def on_step_begin(self, args, state, control, **rest):
        clock.begin()

    def on_step_end(self, args, state, control, **rest):
        clock.completions += asked["prompts"] * asked["generations"]
        lengths = trainer._metrics["train"]["completions/mean_length"]
        clock.tokens += int(asked["prompts"] * asked["generations"] * lengths[-1])
        if state.global_step % clock.every == 0 and clock.check(lambda: evaluate(trainer.model)):
            clock.answer()
            os._exit(0)


per_device = 32
trainer = GRPOTrainer(
    model=AutoModelForCausalLM.from_pretrained(asked["model"], dtype=torch.float32),
    reward_funcs=reward,
    args=GRPOConfig(
        output_dir=tempfile.mkdtemp(prefix="logpi-bench-"),
        use_cpu=True,
        bf16=native() == torch.bfloat16,
        gradient_checkpointing=asked["checkpointing"],
        per_device_train_batch_size=per_device,
        gradient_accumulation_steps=asked["prompts"] * asked["generations"] // per_device,
        num_generations=asked["generations"],
        max_completion_length=length,
        temperature=config.policy.temperature,
        beta=config.algorithm.beta or 0.0,
        learning_rate=asked["rate"],
        lr_scheduler_type="constant",
        max_steps=100_000,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        seed=asked["seed"],
    ),
    train_dataset=Dataset.from_list(rows),
    processing_class=tokenizer,
    callbacks=[Checks()],
)
trainer.train()
