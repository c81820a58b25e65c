"""The child's side of `isolation`: import one reward function, score one completion a line, until stdin ends."""

from __future__ import annotations

import json
import os

from logpi.errors import LogpiError, NothingScoredError
from logpi.platforms import die_with_parent


def main(location: str, replies: int) -> None:
    """Serve requests. The descriptor for replies is closed in whatever the reward starts."""
    die_with_parent()
    os.set_inheritable(replies, False)

    def reply(content: dict) -> None:
        os.write(replies, json.dumps(content).encode() + b"\n")

    requests = os.fdopen(os.dup(0), "rb")
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)  # a reward that reads stdin must not eat a request
    try:
        from logpi.tasks.reward_loading import load_reward
        from logpi.tasks.rewarding import score

        reward = load_reward(location)
    except LogpiError as error:
        reply({"error": str(error)})
        return
    reply({"ready": True})
    for line in requests:
        request = {name: [value] for name, value in json.loads(line).items()}
        fixed = [request.pop(name) for name in ("prompts", "completions", "completion_ids")]
        try:
            reply({"value": score([reward], *fixed, columns=request).total[0]})
        except NothingScoredError:
            reply({"value": None})
        except LogpiError as error:
            reply({"error": str(error).removeprefix(f'reward "{reward.name}": ')})
