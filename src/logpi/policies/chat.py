"""Messages to tokens, through the tokenizer's chat template: a prompt, and what comes between two messages of a policy.

What a policy wrote is never decoded and encoded again: a longer conversation is the tokens of the shorter one, the
policy's message as it was drawn, and the tokens of the replies.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jinja2.exceptions import TemplateError
from torch import Tensor

from logpi.errors import InputError
from logpi.trajectory import OWN

Message = dict[str, Any]  # {"role", "content"}
WRITTEN = {"role": "assistant", "content": "written"}  # stands for a message of the policy, whose text is not needed


def prompt_tokens(tokenizer: Any, prompt: str | list[Message]) -> Tensor:
    """Return a prompt's token ids. Raises InputError for chat messages without a chat template, or an empty prompt."""
    if isinstance(prompt, str):
        ids = tokenizer(prompt)["input_ids"]
    elif tokenizer.chat_template is None:
        raise InputError(
            "the dataset has chat messages, but the model's tokenizer has no chat template; give prompts as plain text"
        )
    else:
        ids = _templated(tokenizer, prompt, return_dict=True)["input_ids"]
    if not ids:
        raise InputError(f"the prompt {prompt!r:.60} has no tokens; give each row a prompt")
    return torch.tensor(ids)


def reply_tokens(tokenizer: Any, before: Sequence[Message], replies: Sequence[Message], ends: Sequence[int]) -> Tensor:
    """Return the tokens from the end of a policy's message to the start of its next one.

    `before` is the conversation up to that message. `ends` are the tokens that end one: drawn by the policy, so the one
    that the template puts there is left out. Raises InputError for a template that changes what was said before.
    """
    start = _templated(tokenizer, before, tokenize=False) + WRITTEN["content"]
    whole = _templated(tokenizer, [*before, WRITTEN, *replies], tokenize=False)
    if not whole.startswith(start):
        place = next(i for i, (a, b) in enumerate(zip(start, whole + "\0", strict=False)) if a != b)
        raise InputError(
            "the tokenizer's chat template is not prefix-preserving: with the next message it writes "
            f"{whole[place : place + 40]!r} where it wrote {start[place : place + 40]!r} before, so later turns are "
            "not what the policy saw and wrote. Save the model with a template that only appends (for example without "
            "a default thinking block or a rule for the last message)"
        )
    ids = tokenizer(whole[len(start) :], add_special_tokens=False)["input_ids"]
    return torch.tensor(ids[1:] if ids and ids[0] in ends else ids, dtype=torch.long)


def woven(
    tokenizer: Any, prompt: Sequence[Message], messages: Sequence[Message], ends: Sequence[int]
) -> tuple[Tensor, Tensor]:
    """Return (inputs with OWN where an action stands, actions) of a conversation that goes on from a prompt, as if a
    policy had written its assistant messages, each with the first of `ends` behind it. Other messages at its end are
    left out."""
    said = [*prompt]
    inputs: list[Tensor] = []
    actions: list[Tensor] = []
    told: list[Message] = []
    for message in messages:
        if message["role"] != "assistant":
            told.append(message)
            continue
        if not actions:
            said += told
            inputs.append(prompt_tokens(tokenizer, said))
        else:
            inputs.append(reply_tokens(tokenizer, said, told, ends))
            said += [WRITTEN, *told]
        told = []
        ids = tokenizer(message["content"], add_special_tokens=False)["input_ids"]
        actions.append(torch.tensor([*ids, ends[0]]))
        inputs.append(torch.full((len(actions[-1]),), OWN))
    if not actions:
        raise InputError("the conversation has no assistant message, so nothing to imitate")
    return torch.cat(inputs), torch.cat(actions)


def _templated(tokenizer: Any, messages: Sequence[Message], **options: Any) -> Any:
    """Return messages as the template puts them, with the start of the policy's next one."""
    try:
        return tokenizer.apply_chat_template(list(messages), add_generation_prompt=True, **options)
    except TemplateError as error:  # SecurityError among them: a template that reaches for more than messages
        raise InputError(f"the tokenizer's chat template can't be used: {type(error).__name__}: {error}") from error
