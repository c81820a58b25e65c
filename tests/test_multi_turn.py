"""Episodes of several turns: the exact gradient by enumeration, the same bits in sampler and learner, templates."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import pairwise, product
from pathlib import Path

import models
import pytest
import torch
from tokenizers import Regex, Tokenizer, pre_tokenizers
from tokenizers import models as tokenizer_models
from torch.nn.utils.rnn import pad_sequence
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from logpi import api
from logpi.algorithms import get_algorithm
from logpi.config import make_config
from logpi.console import make_observer
from logpi.credit import assign_credit
from logpi.environments.multi_turn import Reply
from logpi.errors import InputError, RewardError
from logpi.policies import attention
from logpi.policies.causal_lm import CausalLM
from logpi.policies.chat import prompt_tokens, reply_tokens, woven
from logpi.policies.turns import unrolled
from logpi.randomness import Stream
from logpi.rollout import episodes
from logpi.rollout.engine import Sampling, TokenPrompt, generate
from logpi.rollout.episodes import Start, play
from logpi.rollout.kv_cache import PrefixCache
from logpi.supervised import MAXIMUM_LIKELIHOOD, solutions
from logpi.tasks import make_task
from logpi.tasks.base import Problem, Task
from logpi.trajectory import OWN, Trajectory, make_batch, turns_of

CHAT = [{"role": "user", "content": "1+2"}]
EOS, A, B, ASK = range(4)
LONGEST = 2  # tokens of a message


# --- the exact gradient ---------------------------------------------------------------------------------------------


class Guess:
    """Two turns: what the user says depends on the first message, the rewards on both."""

    def reset(self, seed, **columns):
        self.before = None
        return None

    def step(self, message):
        if self.before is None:
            self.before = message
            return Reply("ab" if "a" in message else "b", reward=0.5 * message.count("b") - 0.3)
        return Reply(None, reward=float(message == "a") + (message == self.before))

    def scores(self):
        return {}


def four_tokens():
    """Return a float64 policy over four tokens: the end, a, b, ?."""
    attention.register()
    torch.manual_seed(1)
    shape = dict(vocab_size=4, n_positions=24, n_embd=8, n_layer=1, n_head=2, initializer_range=0.6)
    module = GPT2LMHeadModel(GPT2Config(bos_token_id=None, eos_token_id=EOS, **shape)).double()
    module.set_attn_implementation(attention.NAME)
    backend = Tokenizer(tokenizer_models.WordLevel({"<eos>": 0, "a": 1, "b": 2, "?": 3}, unk_token="?"))
    backend.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<eos>")
    tokenizer.chat_template = models.TURNS
    return CausalLM(module, tokenizer, eos_token_ids=(EOS,), context_length=24, dtype=torch.float64)


def messages():
    """Return every message: ended, or cut at two tokens."""
    ended = [(*p, EOS) for n in range(LONGEST) for p in product((A, B, ASK), repeat=n)]
    return ended, list(product((A, B, ASK), repeat=LONGEST))


def outcomes():
    """Yield (messages, all tokens, which of them are the policy's, reward), from the rules alone."""
    ended, cut = messages()
    start = (A, ASK)
    for first in cut:
        yield [first], [*start, *first], [False] * 2 + [True] * 2, 0.0
    for first in ended:
        reply = (A, B, ASK) if A in first else (B, ASK)
        given = 0.5 * first.count(B) - 0.3
        for second in ended + cut:
            own = [False] * 2 + [True] * len(first) + [False] * len(reply) + [True] * len(second)
            is_sent = second[-1] == EOS
            reward = is_sent * (float(second == (A, EOS)) + (second == first))
            yield [first, second], [*start, *first, *reply, *second], own, given + reward


def probability(policy, tokens, own):
    """Return p of the policy's tokens by a plain forward of the whole with the attention of transformers."""
    sequence = torch.tensor([tokens])
    log_probs = policy.module(input_ids=sequence).logits[0, :-1].log_softmax(-1)
    chosen = log_probs.gather(1, sequence[0, 1:, None])[:, 0]
    return chosen[torch.tensor(own)[1:]].sum().exp()


def exact_gradient(policy):
    """Return (J, its gradient by parameter, p and reward of each outcome), summed over all outcomes."""
    policy.module.set_attn_implementation("eager")
    found = [(probability(policy, tokens, own), reward) for _, tokens, own, reward in outcomes()]
    objective = torch.stack([p * reward for p, reward in found]).sum()
    parameters = policy.trainable_parameters()
    slopes = torch.autograd.grad(objective, list(parameters.values()))
    policy.module.set_attn_implementation(attention.NAME)
    return dict(zip(parameters, slopes, strict=True)), [(float(p.detach()), reward) for p, reward in found]


def scripted(policy, script, monkeypatch):
    """Return the trajectory of an episode in which the policy writes these messages."""
    turns = iter(script)

    def written(policy, prompts, *_, **__):
        tokens = torch.tensor(next(turns))
        zeros, ended = torch.zeros(len(tokens), dtype=torch.float64), tokens[-1] == EOS
        (prompt,) = prompts
        return [Trajectory(0, 0, 0, 0, tokens, zeros, zeros, prompt.tokens, bool(ended), not ended)]

    monkeypatch.setattr(episodes, "generate", written)
    start = Start(0, [{"role": "user", "content": "a"}])
    options = dict(max_turns=2, environment_stream=Stream.ENVIRONMENT)
    (found,) = play(policy, Guess, [start], 1, Sampling(LONGEST), **options)
    return found


@pytest.mark.parametrize("name", ["reinforce", "reinforce_to_go"])
def test_two_turns_have_the_exact_gradient(name, monkeypatch):
    """Every outcome, through the library's episode, batch, forward and learner, weighted by its probability."""
    policy = four_tokens()
    exact, chances = exact_gradient(policy)
    assert sum(p for p, _ in chances) == pytest.approx(1, abs=1e-12) and len(chances) == 61
    found = []
    for (script, *_), (chance, reward) in zip(outcomes(), chances, strict=True):
        t = scripted(policy, script, monkeypatch)
        assert float(t.rewards.sum()) == pytest.approx(reward, abs=1e-12)
        found.append(replace(t, group=len(found), rewards=t.rewards * chance * len(chances)))
    _, slopes = models.gradient(policy, found, get_algorithm(name))
    difference = sum(float((slopes[n] + exact[n]).square().sum()) for n in exact) ** 0.5  # a loss descends
    assert difference / sum(float(g.square().sum()) for g in exact.values()) ** 0.5 < 1e-10


@pytest.mark.parametrize(
    ("gae_lambda", "values", "is_exact"), [(1.0, "wrong", 1), (0.3, "exact", 1), (0.3, "wrong", 0)]
)
def test_advantages_by_turn_have_the_exact_gradient(gae_lambda, values, is_exact, monkeypatch):
    """Every outcome once more: Σ p · A · ∇log π, the value function a number for each history that a turn begins with.
    Between those it is nonsense: nothing may read it there."""
    policy = four_tokens()
    exact, chances = exact_gradient(policy)
    row = get_algorithm("ppo_by_turn").with_options(gae_lambda=gae_lambda)
    whole = [((script[:1], own.index(True, 4)) if len(script) > 1 else None) for script, _, own, _ in outcomes()]
    episodes_ = [scripted(policy, script, monkeypatch) for script, *_ in outcomes()]
    to_come: dict = {}  # what comes after each first message: p, and Σ p · reward of the second turn
    for script_of, (p, _), t in zip(whole, chances, episodes_, strict=True):
        if script_of is not None:
            second = float(t.rewards[len(script_of[0][0]) :].sum())
            mass, total = to_come.get(script_of[0][0], (0.0, 0.0))
            to_come[script_of[0][0]] = (mass + p, total + p * second)
    at_start = sum(p * float(t.rewards.sum()) for (p, _), t in zip(chances, episodes_, strict=True))
    objective = torch.zeros((), dtype=torch.float64)
    for script_of, (p, _), t in zip(whole, chances, episodes_, strict=True):
        batch = make_batch([t])
        v = torch.full((1, len(t)), 1e3, dtype=torch.float64)
        v[0, 0] = at_start if values == "exact" else 2.0
        if script_of is not None:
            mass, total = to_come[script_of[0][0]]
            v[0, len(script_of[0][0])] = total / mass if values == "exact" else -3.0
        batch = assign_credit(row, replace(batch, values=v, final_values=torch.zeros(1, dtype=torch.float64)))
        log_probs = policy.evaluate(batch.actions, batch.mask, batch.truncated, batch.inputs).log_probs
        objective = objective + p * (log_probs * batch.advantages).sum()
    slopes = dict(zip(exact, torch.autograd.grad(objective, list(policy.trainable_parameters().values()))))
    difference = sum(float((slopes[n] - exact[n]).square().sum()) for n in exact) ** 0.5
    error = difference / sum(float(g.square().sum()) for g in exact.values()) ** 0.5
    assert (error < 1e-10) == bool(is_exact) and (is_exact or error > 0.01)


def test_a_turn_ends_where_somebody_else_speaks(monkeypatch):
    two = scripted(four_tokens(), [(B, EOS), (A, EOS)], monkeypatch)
    one = replace(two, inputs=torch.tensor([A, ASK]))
    left = replace(two, inputs=torch.tensor([A, ASK, OWN, OWN, OWN, B, ASK]))  # the last action is not marked
    steps = replace(two, inputs=torch.zeros(5, 3))  # of a control policy
    assert turns_of(make_batch([two, one, left])).tolist() == [[0, 0, 1, 1], [0, 0, 0, 0], [0, 0, 0, 1]]
    assert turns_of(make_batch([steps])).tolist() == [[0, 1, 2, 3]]


def test_only_its_own_tokens_are_actions(monkeypatch):
    t = scripted(four_tokens(), [(B, EOS), (A, EOS)], monkeypatch)
    assert t.actions.tolist() == [B, EOS, A, EOS] and len(t) == 4
    assert t.inputs.tolist() == [A, ASK, OWN, OWN, B, ASK, OWN, OWN]
    assert t.rewards.tolist() == [0, 0.2, 0, 1] and t.terminated and not t.truncated
    assert int(make_batch([t]).mask.sum()) == 4
    cut = scripted(four_tokens(), [(B, A), (A, EOS)], monkeypatch)  # a message that the limit cuts is not sent
    assert cut.rewards.tolist() == [0, 0] and cut.truncated and not cut.terminated


# --- sampler and learner --------------------------------------------------------------------------------------------


class Echo:
    """A user who repeats what was said, and adds a digit of the seed."""

    def reset(self, seed, extra="", **columns):
        self.seed, self.num = seed, 0
        return f"{seed % 10}{extra}"

    def step(self, message):
        self.num += 1
        return Reply(None if "=" in message else f"{message}{self.seed % 7}", reward=len(message))

    def scores(self):
        return {"turns": self.num}


def talker(kind="llama", dtype=torch.float32, **options):
    policy = models.policy(kind, dtype, ends=(0, 1, 2, 3, 4), **options)
    policy.tokenizer.chat_template = models.TURNS
    return policy


def talk(policy, num=5, *, generations=3, longest=10, max_turns=4, rows=128, step=0, **options):
    starts = [Start(uid, CHAT if uid % 2 else [], {"extra": "+1" * uid}) for uid in range(num)]
    options = dict(max_turns=max_turns, environment_stream=Stream.ENVIRONMENT, step=step) | options
    return play(policy, Echo, starts, generations, Sampling(longest, max_rows=rows), **options)


@pytest.mark.parametrize("dtype", [torch.float32] + [torch.bfloat16] * models.NATIVE_BF16)
@pytest.mark.parametrize("kind", ["gpt2", "llama", "qwen3", "gpt_neox"])
def test_the_learner_has_the_samplers_bits(kind, dtype):
    policy = talker(kind, dtype)
    batch = make_batch(talk(policy))
    assert sum(len(unrolled(*row)[1][0]) > len(row[0][0]) for row in _rows(batch)) > 5  # more than a turn
    out = policy.evaluate(batch.actions, batch.mask, batch.truncated, batch.inputs)
    assert torch.equal(out.log_probs, batch.behavior_log_probs)


def _rows(batch):
    return [(batch.actions[i : i + 1], batch.mask[i : i + 1], batch.inputs[i : i + 1]) for i in range(len(batch))]


def test_an_episode_does_not_depend_on_the_others():
    policy = talker()
    whole, alone = talk(policy), talk(policy, rows=8)
    for a, b in zip(whole, alone, strict=True):
        assert torch.equal(a.actions, b.actions) and torch.equal(a.behavior_log_probs, b.behavior_log_probs)
        assert torch.equal(a.inputs, b.inputs) and torch.equal(a.rewards, b.rewards)
    few = talk(policy, 2, generations=2)
    assert [t.actions.tolist() for t in few] == [t.actions.tolist() for t in whole if t.prompt_uid < 2 and t.sample < 2]
    other = talk(policy, step=1)
    assert [t.actions.tolist() for t in other] != [t.actions.tolist() for t in whole]


@pytest.mark.parametrize("dtype", [torch.float32] + [torch.bfloat16] * models.NATIVE_BF16)
@pytest.mark.parametrize("kind", ["gpt2", "llama", "qwen3", "gpt_neox"])
def test_a_turn_goes_on_from_what_was_run_before_it(kind, dtype, monkeypatch):
    """A prompt runs whole in an episode's first turn only; with no room to keep it, in each: the same bits."""
    policy = talker(kind, dtype)
    run, prompts = policy.prompt_pass, []

    def watched(asked):
        prompts.extend(asked)
        return run(asked)

    monkeypatch.setattr(policy, "prompt_pass", watched)
    found = []
    for room, rows in [(0, 128), *((2**n, 8) for n in range(12, 20)), (2**20, 128)]:
        monkeypatch.setattr(episodes, "CACHE_BYTES", room)
        prompts.clear()
        found.append((talk(policy, longest=24, rows=rows), len(prompts)))
    counts = [number for _, number in found]
    assert counts[0] > 25 and counts[-2:] == [15, 15]  # of 15 episodes
    assert any(15 < number < counts[0] for number in counts)  # where there is room for some
    for others, _ in found[1:]:
        for a, b in zip(others, found[0][0], strict=True):
            assert torch.equal(a.actions, b.actions) and torch.equal(a.inputs, b.inputs)
            assert torch.equal(a.behavior_log_probs, b.behavior_log_probs) and torch.equal(a.entropies, b.entropies)


def test_what_another_prompt_has_run_is_not_gone_on_from():
    policy, kept = talker(), PrefixCache(2**20)
    first = torch.tensor([5, 6, 7])
    said = generate(policy, [TokenPrompt(uid, first) for uid in range(9)], 1, Sampling(30), kept=kept)
    uid = next(t.prompt_uid for t in said if t.terminated and len(t) > 2)
    run = kept.known[uid, 0].tokens
    assert torch.equal(run, torch.cat([first, said[uid].actions[:-1]]))
    other = torch.cat([run, run])
    other[1] = 9
    (found,), (alone,) = (generate(policy, [TokenPrompt(uid, other)], 1, Sampling(9), kept=k) for k in (kept, None))
    assert torch.equal(found.behavior_log_probs, alone.behavior_log_probs)
    generate(policy, [TokenPrompt(99, first)], 1, Sampling(1), kept=kept)
    assert not kept.known  # what nobody asks for any more is forgotten


def test_draws_count_on_across_turns():
    """A policy that finds all tokens equally likely writes what its draws say: the same in each turn if they repeat."""
    policy = talker()
    with torch.no_grad():
        for parameter in policy.module.parameters():
            parameter.zero_()
    policy.weights_changed()
    num_compared = 0
    for t in talk(policy, 20):
        ends = [i + 1 for i, a in enumerate(t.actions.tolist()) if a in policy.eos_token_ids]
        turns = [t.actions[i:j].tolist() for i, j in pairwise([0, *ends])]
        long = [turn[:3] for turn in turns if len(turn) > 3]
        num_compared += len(long) > 1
        assert len({tuple(turn) for turn in long}) == len(long)
    assert num_compared > 10


def test_a_group_meets_the_same_user():
    found = talk(talker(), 3, generations=4)
    for group in range(3):
        assert len({int(t.inputs[0]) for t in found if t.group == group}) == 1
    assert len({int(t.inputs[0]) for t in talk(talker(), 12, generations=1)}) > 1


def test_an_episode_is_cut_where_its_context_ends():
    policy = talker(context=24)
    found = talk(policy, 4, longest=6, max_turns=10)
    assert all(len(t.inputs) <= 24 for t in found)
    assert any(
        t.truncated and t.actions[-1] in policy.eos_token_ids for t in found
    )  # a whole message, and no room for another


def test_completions_are_the_case_of_one_turn():
    """Without anything in between, `unrolled` gives what a prompt and its completion are."""
    actions, mask = torch.tensor([[5, 6, 0], [7, 0, 0]]), torch.tensor([[True] * 3, [True, True, False]])
    prompts, tokens, places = unrolled(actions, mask, (torch.tensor([1, 2]), torch.tensor([3])))
    assert [p.tolist() for p in prompts] == [[1, 2], [3]] and [t.tolist() for t in tokens] == [[5, 6, 0], [7, 0]]
    assert [p.tolist() for p in places] == [[0, 1, 2], [0, 1]]
    told = (torch.tensor([1, OWN, 8, 9]), torch.tensor([3, OWN, OWN]))
    prompts, tokens, places = unrolled(actions, mask, told)
    assert [p.tolist() for p in prompts] == [[1], [3]] and [t.tolist() for t in tokens] == [[5, 8, 9, 6, 0], [7, 0]]
    assert [p.tolist() for p in places] == [[0, 3, 4], [0, 1]]


# --- templates, broken environments -----------------------------------------------------------------------------------


def test_what_the_policy_wrote_is_never_encoded_again(monkeypatch):
    """ " 1" and "1" are the same text for this tokenizer's decoder; the tokens in the inputs stay those drawn."""
    policy = talker()
    for t in talk(policy, 3):
        own = t.inputs == OWN
        prompt = prompt_tokens(policy.tokenizer, [*(CHAT if t.prompt_uid % 2 else []), *_opening(policy, t)])
        assert torch.equal(t.inputs[: len(prompt)], prompt) and int(own.sum()) == len(t)
        for place in (own[:-1] & ~own[1:]).nonzero()[:, 0].tolist():  # a reply follows each message's end
            assert t.actions[int(own[: place + 1].sum()) - 1] in policy.eos_token_ids


def _opening(policy, t):
    text = policy.tokenizer.decode(t.inputs[: (t.inputs == OWN).nonzero()[0, 0]]).replace(" ", "")
    return [{"role": "user", "content": text.removesuffix("?").split("?")[-1]}]


@pytest.mark.parametrize(
    "template",
    [
        models.TURNS.replace("m['content']", "m['content'] if loop.last else ''"),
        models.TURNS + "{% if add_generation_prompt %}What{% endif %}",
    ],
)
def test_a_template_that_changes_what_was_said_is_refused(template):
    policy = talker()
    policy.tokenizer.chat_template = template
    with pytest.raises(InputError, match="not prefix-preserving"):
        talk(policy, max_turns=8)


def test_the_end_that_the_template_writes_is_the_one_that_was_drawn():
    tokenizer = models.tokenizer()
    tokenizer.chat_template = models.TURNS
    reply = [{"role": "user", "content": "3"}]
    assert reply_tokens(tokenizer, CHAT, reply, (0,)).tolist() == [*ids("3"), *ids("?")]
    tokenizer.chat_template = models.TURNS.replace("eos_token", "''")
    assert reply_tokens(tokenizer, CHAT, reply, (0,)).tolist() == [*ids("3"), *ids("?")]


def ids(text):
    return [models.CHARACTERS.index(c) for c in text]


class Broken(Echo):
    def step(self, message):
        raise KeyError("goal")


class Endless(Echo):
    def step(self, message):
        return Reply("1", reward=float("nan"))


@pytest.mark.parametrize(
    ("environment", "problem"),
    [(Broken, "Broken, row 1.step raised KeyError: 'goal'"), (Endless, "row 1: reward is nan; it must be a finite")],
)
def test_what_an_environment_does_wrong_is_said(environment, problem):
    options = dict(max_turns=2, environment_stream=Stream.ENVIRONMENT)
    with pytest.raises(RewardError, match=problem):
        play(talker(), environment, [Start(1, CHAT)], 2, Sampling(40), **options)


# --- demonstrations ---------------------------------------------------------------------------------------------------

SPOKEN = [
    [("user", "1+1"), ("assistant", "2"), ("user", "9"), ("assistant", "it is 9")],
    [("user", "What"), ("assistant", "?"), ("tool", "3"), ("tool", "4"), ("assistant", "34"), ("user", "a")],
    [("user", "7"), ("assistant", "77777777")],
]


def conversations():
    rows = [[{"role": role, "content": content} for role, content in said] for said in SPOKEN]
    return [Problem(i, [], {"completion": row}) for i, row in enumerate(rows)]


def test_conversations_have_the_loss_and_gradient_of_hugging_face(monkeypatch):
    """Against labels −100 on everything that is not the assistant's."""
    policy = talker("gpt2", torch.float64)
    problems = conversations()
    given = solutions(problems, Task("said", problems, []), policy)
    loss, slopes = models.gradient(policy, [d.trajectory(group=i) for i, d in enumerate(given)], MAXIMUM_LIKELIHOOD)

    rows, labels = [], []
    for said in SPOKEN:
        row, label = [], []
        for role, content in said:
            tokens = [*ids(content), 0 if role == "assistant" else ids("?")[0]]
            row += tokens
            label += tokens if role == "assistant" else [-100] * len(tokens)
        rows.append(torch.tensor(row))
        labels.append(torch.tensor(label))
    policy.network.set_attn_implementation("eager")
    attend = pad_sequence([torch.ones(len(row)) for row in rows], batch_first=True)
    padded = [pad_sequence(x, batch_first=True, padding_value=p) for x, p in ((rows, 2), (labels, -100))]
    with monkeypatch.context() as patch:
        patch.setattr(torch.Tensor, "float", lambda tensor: tensor)  # their loss would round to float32
        theirs = policy.network(input_ids=padded[0], attention_mask=attend, labels=padded[1]).loss
    parameters = policy.trainable_parameters()
    expected = dict(zip(parameters, torch.autograd.grad(theirs, list(parameters.values())), strict=True))
    assert loss == pytest.approx(float(theirs.detach()), abs=1e-12)
    for name in expected:
        assert torch.allclose(slopes[name], expected[name], atol=1e-10), name


def test_a_woven_conversation():
    tokenizer = models.tokenizer()
    tokenizer.chat_template = models.TURNS
    inputs, actions = woven(tokenizer, [], conversations()[1].columns["completion"], (0,))
    assert actions.tolist() == [*ids("?"), 0, *ids("34"), 0]
    assert inputs.tolist() == [*ids("What?"), OWN, OWN, *ids("3?4?"), OWN, OWN, OWN]
    with pytest.raises(InputError, match="no assistant message"):
        woven(tokenizer, CHAT, CHAT, (0,))


# --- runs -------------------------------------------------------------------------------------------------------------

OWN_ENVIRONMENT = """
from logpi.environments.multi_turn import Reply

class Sum:
    def reset(self, seed, **columns):
        self.num = 0

    def step(self, message):
        self.num += 1
        return Reply(None if self.num == 3 else f"{self.num}+1", reward=float("1" in message))

    def scores(self):
        return {"right": float(self.num == 3)}
"""


def settings(folder: Path, **sections):
    model = models.write(folder / "model", "llama", generation_ends=list(range(9)), turns=True)
    rows = [{"prompt": [{"role": "user", "content": f"{i}+2"}]} for i in range(6)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "own.py").write_text(OWN_ENVIRONMENT)
    task = {"name": "custom", "data": str(folder / "rows.jsonl"), "heldout": 2, "max_turns": 3}
    values = {
        "task": task | {"environment": f"{folder}/own.py:Sum"},
        "policy": {"model": str(model), "dtype": "float32"},
        "rollout": {"num_prompts": 2, "num_generations": 3, "max_completion_length": 5},
        "evaluation": {"every_steps": 1, "full_report": False},
        "max_steps": 2,
        "threads": 1,
        "strict": True,
    }
    return values | sections


def test_a_run_with_an_environment_of_ones_own(tmp_path):
    summary = api.run(make_config(settings(tmp_path)), folder=tmp_path / "run", observer=make_observer(json=True))
    assert summary["status"] == "finished" and summary["ledger"]["as_planned"]
    assert set(summary["evaluation"]["after"]["metrics"]) == {"right", "reward"}
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert all(row["mismatch/max"] == 0 and "rewards/right/mean" in row for row in rows)
    samples = [json.loads(line) for line in (tmp_path / "run" / "samples.jsonl").read_text().splitlines()]
    assert len(samples) == 12 and all(row["completion"].replace(" ", "")[1:4] == "+2?" for row in samples)


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"rewards": "python_tests"}, "either rewards, or an environment"),
        ({"environment": "nowhere.py:Sum"}, "no such file"),
        ({"environment": "json:Sum"}, 'environment "json:Sum": json has no Class "Sum"'),
        ({"environment": "json:JSONDecoder"}, "JSONDecoder has no method reset; it needs reset, step and scores"),
        ({"environment": "Sum"}, 'write "path/to/file.py:Class" or "module:Class"'),
        ({"max_turns": 0}, "max_turns=0: the policy writes at least one message"),
    ],
)
def test_what_a_custom_task_can_not_use(tmp_path, changes, problem):
    task = settings(tmp_path)["task"] | changes
    with pytest.raises(InputError, match=problem):
        make_task(**task)


def test_prompts_that_are_text_are_refused(tmp_path):
    with pytest.raises(InputError, match='row 0: "prompt" is text; several turns need chat messages'):
        make_task("custom", data=[{"prompt": "1"}, {"prompt": "2"}], environment=Echo)


@pytest.mark.parametrize(
    ("sections", "problem"),
    [
        ({"reward": {"overlong_tokens": 2}}, "reward.overlong_tokens: the environment of task"),
        ({"algorithm": {"name": "remax"}}, 'algorithm "remax" is of single completions'),
    ],
)
def test_options_that_several_turns_do_not_read_are_refused(tmp_path, sections, problem):
    config = make_config(settings(tmp_path, **sections))
    with pytest.raises(InputError, match=problem):
        api.run(config, folder=tmp_path / "run", observer=make_observer(json=True))
