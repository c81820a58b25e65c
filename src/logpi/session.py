"""One start of a run: whether it is still the run that it was, room on the disk, what its first screen says."""

from __future__ import annotations

import json
import os
import socket
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from logpi import checkpoint, identity
from logpi.config import Config
from logpi.errors import InputError, MismatchError
from logpi.objective import objective
from logpi.policies.loading import why_own_forward
from logpi.policies.own_forward import OwnForward
from logpi.rollout.self_test import SAME_BITS, self_test
from logpi.run_folder import RunFolder, differences
from logpi.storage import free_bytes, new_folder

FORK = "fork.json"


def begin(config: Config, experience: Any, policy: Any, algorithm: Any, folder: RunFolder, threads: int) -> dict:
    """Record what the run is made of, or compare it with the record; return what its first screen says.

    `run.json` is written once. `sessions.jsonl` gets a row at each start. Raises InputError where data, weights or
    tokenizer are not those that the run began with.
    """
    fingerprints = _fingerprints(config, experience, policy)
    machine = identity.of_machine(
        config.device, str(getattr(policy, "dtype", "float32")).removeprefix("torch."), threads
    )
    run = folder.read_json("run.json")
    notes = _dropout_notes(policy)
    parity = run.get("parity") if run is not None and run["machine"] == machine else _parity(policy, notes)
    if config.strict and parity not in (None, SAME_BITS):
        raise MismatchError(f"--strict: {parity} on this machine; without --strict the run goes on and records it")
    if run is None:
        fork = folder.read_json(FORK)
        run = _describe(config, experience, policy, algorithm) | {"fingerprints": fingerprints, "machine": machine}
        run |= {"parity": parity}
        folder.write_json("run.json", run | ({"fork": fork} if fork else {}))
    else:
        notes += identity.check_same_run(run["fingerprints"], fingerprints)
        notes += identity.machine_notes(run["machine"], machine)
    steps = checkpoint.steps(folder.path / "checkpoints")
    resumed_from = steps[-1] if steps else None
    now = datetime.now(UTC).isoformat(timespec="seconds")
    session = {"started": now, "process": os.getpid(), "host": socket.gethostname(), "resumed_from": resumed_from}
    sessions = [*folder.rows("sessions.jsonl"), session | {"machine": machine, "notes": notes}]
    folder.write_text("sessions.jsonl", "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in sessions))
    shown = {"run": str(folder.path), "max_steps": config.max_steps, "resumed_from": resumed_from, "notes": notes}
    return run | machine | shown | {"weights_hash": fingerprints.get("weights")}


def _parity(policy: Any, notes: list[str]) -> str | None:
    """Try whether sampler and learner agree on this machine; None for a policy whose sampler is its learner."""
    if not hasattr(policy, "sampler"):
        return None
    if isinstance(policy, OwnForward):
        why = why_own_forward(policy.network.config)
        notes.append(f"{why}; mismatch/max records how far they are apart")
        return why
    found = self_test(policy)
    if not found.is_exact:
        notes.append(f"{found.line()}; every step records how much as mismatch/max (--strict stops instead)")
    return found.line()


def _fingerprints(config: Config, experience: Any, policy: Any) -> dict[str, str]:
    if config.task is None:
        return {"environment": identity.fingerprint([config.environment, policy.module.state_dict().keys()])}
    from logpi.policies.loading import weights_hash

    found = identity.of_task(experience.task)
    return {"weights": weights_hash(policy), "tokenizer": identity.of_tokenizer(policy.tokenizer), **found}


def _describe(config: Config, experience: Any, policy: Any, algorithm: Any) -> dict[str, Any]:
    described: dict[str, Any] = {
        "run_id": config.fingerprint(),
        "recipe": config.recipe,
        **objective(algorithm, config),
        "algorithm": algorithm.name,
        "source": algorithm.source,
        "model": _model_name(config, policy),
        "num_trainable": sum(p.numel() for p in policy.trainable_parameters().values()),
        "num_parameters": sum(p.numel() for p in policy.module.parameters()),
    }
    if config.task is not None:
        data = experience if config.demonstrated else experience.task
        described |= {"train_size": len(data.train), "heldout_size": len(data.heldout)}
    return described


def _model_name(config: Config, policy: Any) -> str:
    if config.begins_anew:
        return f"{policy.network.config.model_type}, new"
    return config.policy.model or f"mlp {list(config.policy.hidden_sizes)}"


def _dropout_notes(policy: Any) -> list[str]:
    settings = vars(policy.network.config) if hasattr(policy, "network") else {}
    dropout = [name for name, value in settings.items() if name.endswith(("pdrop", "dropout")) and value]
    return [f"the model's dropout ({', '.join(dropout)}) is off: every forward is the same policy"] if dropout else []


def check_space(folder: RunFolder, policy: Any, keep: int) -> None:
    """Raise InputError where the disk has no room for the checkpoints to come and the final model."""
    trainable = sum(p.numel() * p.element_size() for p in policy.trainable_parameters().values())
    one = 3 * trainable  # weights and Adam's two moments
    missing = max(1, keep + 1 - len(checkpoint.steps(folder.path / "checkpoints")))  # one more than stays, meanwhile
    needed = missing * one + sum(p.numel() * p.element_size() for p in policy.module.parameters())
    free = free_bytes(folder.path)
    if free < needed:
        raise InputError(
            f"{folder.path}: the run needs about {needed / 1e9:.2f} GB for checkpoints of {one / 1e9:.2f} GB and the "
            f"final model, {free / 1e9:.2f} GB are free; free some, keep fewer (--checkpoint.keep 1) or name another "
            "folder with --run"
        )


def fork(source: Path, step: int, config: Config) -> Path:
    """Return the folder of a new run that goes on from another run's checkpoint with this configuration; make it, whole
    or not at all, where it does not exist yet. The other run stays as it is."""
    target = source.with_name(f"{source.name}-fork{step}-{config.fingerprint()}")
    if target.exists():
        return target
    parent = RunFolder(source).read_json("config.json")
    if parent is None:
        raise InputError(f"{source} is no run that could be forked; name one with --run")
    there = checkpoint.steps(source / "checkpoints")
    if step not in there:
        raise InputError(f"{source} has no checkpoint of step {step}; it has: {', '.join(map(str, there)) or 'none'}")
    state = checkpoint.load(source / "checkpoints" / f"step-{step:08d}")
    changes = differences(parent, config.plain())
    with new_folder(target, state.num_bytes()) as folder:
        checkpoint.save(folder / "checkpoints", replace(state, run=config.fingerprint()), keep=1)
        (folder / FORK).write_text(json.dumps({"run": str(source), "step": step, "changes": changes}))
        (folder / "config.json").write_text(json.dumps(config.plain()))
    return target
