"""What a run shows: the right figures, and nothing that model text could do to a terminal."""

import io
import sys

import pytest
from rich.console import Console

from logpi.console import ON_POLICY_LOSS, LiveView, PlainView, duration, make_observer, number, sparkline, visible

HOSTILE = "[red]x[/] :smile: \x1b[2J\x1b]0;pwn\x07\x9b1A\r\x08\x7f\u202e\u2066\u200b\U000e0041\u2028\ud800\nstep 9/9"
INFO = {
    "run": "runs/a",
    "recipe": HOSTILE,
    "objective": "E[A log π]",
    "model": HOSTILE,
    "weights_hash": "9f86d081884c7d65",
    "device": "cpu",
    "dtype": "float32",
    "threads": 2,
    "num_parameters": 1000,
    "num_trainable": 10,
    "train_size": 90,
    "heldout_size": 20,
    "resumed_from": 4,
    "max_steps": 60,
    "notes": [HOSTILE],
}
SCORE = {"score": 0.74, "low": 0.66, "high": 0.81, "n": 200, "metrics": {HOSTILE: {"score": 0.5}}}
METRICS = {"step": 12, "reward": 0.61, "frac_reward_zero_std": 0.38, "entropy": 0.21, "grad_norm": 1.8, "loss": 1e-9}
TIMING = {
    "seconds": 3.1,
    "tokens_per_second": 412.0,
    "eta_seconds": 160,
    "sample_seconds": 2.0,
    "gradient_seconds": 1.0,
}
SAMPLE = {"prompt": HOSTILE, "completion": HOSTILE, "reward": "1"}
SUMMARY = {
    "status": "finished",
    "steps": 60,
    "seconds": 192.4,
    "evaluation": {
        "before": {"score": 0.31, "low": 0.22, "high": 0.42, "n": 200, "metrics": {}, "entropy": 0.9},
        "after": SCORE | {"entropy": 0.2, "probes": {"capitals": {"score": 0.5}, "copies": 0.25}},
    },
    "samples": [{"prompt": HOSTILE, "before": "?", "after": HOSTILE, "reward_before": 0.0, "reward_after": 1.0}],
    "run": "runs/a",
    "final": "runs/a/final",
}


def play(view):
    """Show a whole run."""
    view.start(INFO)
    view.evaluation(0, SCORE)
    for step in range(1, 12):
        view.step(METRICS | {"step": step}, TIMING, SAMPLE)
    view.note(HOSTILE)
    view.finish(SUMMARY)
    view.close()


@pytest.fixture
def plain():
    return PlainView(io.StringIO())


def live(width):
    return LiveView(Console(file=io.StringIO(), force_terminal=True, width=width, height=60, color_system=None))


def test_visible_text_is_one_printable_line():
    shown = visible(HOSTILE)
    assert shown.isprintable() and shown.isascii() is False and "\\x1b[2J\\x1b]0;pwn\\x07\\x9b1A\\r\\x08" in shown
    assert "\\u202e\\u2066\\u200b\\U000e0041\\u2028\\ud800↵step 9/9" in shown
    assert visible("日本 é [bold] 😀") == "日本 é [bold] 😀"
    assert visible(None) == "None"
    shown.encode("utf-8")


def test_plain_lines_cannot_be_forged_or_coloured(plain):
    play(plain)
    text = plain.stream.getvalue()
    assert all(line.isprintable() for line in text.split("\n"))
    assert not any(line.startswith("step 9/9") for line in text.split("\n")) and "[red]x[/] :smile:" in text


@pytest.mark.parametrize("width", [40, 80, 120])
def test_live_view_emits_only_its_own_escape_sequences(width):
    view = live(width)
    play(view)
    text = view.console.file.getvalue()
    assert not set(text) & set("\x07\x9b\x08\x7f\u202e\u2066\u200b\U000e0041\u2028\ud800") and "\x1b]" not in text
    # rich moves its own cursor (\r, up, erase) and hides it; the screen is never cleared
    assert "\x1b[2J" not in text and "[red]x[/]" in text and "😄" not in text


def test_heartbeat(plain):
    plain.start(INFO)
    plain.evaluation(10, SCORE)
    plain.step(METRICS, TIMING, None)
    last = plain.stream.getvalue().splitlines()[-1]
    assert last == (
        "step 12/60  reward 0.61  score 0.74 [0.66, 0.81]  entropy 0.21  informative 62%  grad 1.80  "
        "412 tok/s  3.1 s  ETA 2m40s"
    )


def test_heartbeat_of_an_environment_leaves_out_what_is_not_measured(plain):
    plain.start({"max_steps": 5})
    plain.step({"step": 1, "episode_return": 21.5, "loss": 0.3}, {"seconds": 0.2}, None)
    assert plain.stream.getvalue().splitlines()[-1] == "step 1/5  return 21.5  0.2 s"
    assert "data " not in plain.stream.getvalue()


def test_a_sample_is_printed_every_tenth_step(plain):
    for step in range(21):
        plain.step({"step": step, "reward": 0.0}, {}, {"prompt": "p", "completion": "c", "reward": "1"})
    assert plain.stream.getvalue().count("completion  c") == 3


def test_introduction_and_report(plain):
    play(plain)
    text = plain.stream.getvalue()
    for expected in ("9f86d081884c, 10 of 1,000 parameters", "resumed from step 4", "90 problems to train on, 20 held"):
        assert expected in text
    for expected in ("finished after 60 steps, 3m12s", "0.31 [0.22, 0.42]  n=200  0.74 [0.66, 0.81]  n=200"):
        assert expected in text
    for expected in ("probes/capitals", "before  ?  (reward 0.00)", "run     runs/a\n", "final   runs/a/final\n"):
        assert expected in text


def test_a_summary_without_evaluation_is_reported(plain):
    plain.finish({"status": "stopped", "steps": 3, "seconds": 2.0, "run": "runs/a"})
    assert plain.stream.getvalue() == "\nstopped after 3 steps, 2s\n\nrun     runs/a\n"


def test_panel_shows_every_figure_and_explains_a_zero_loss():
    view = live(120)
    play(view)
    text = view.console.file.getvalue()
    for expected in ("step 11/60", "0.74 [0.66, 0.81]", "62%", "412 tok/s", "ETA 2m40s", "sample 67%, gradient 33%"):
        assert expected in text
    assert f"0.000 {ON_POLICY_LOSS}" in text


@pytest.mark.parametrize("loss", [0.2, -0.001])
def test_another_loss_is_not_explained_away(loss):
    view = live(120)
    view.start(INFO)
    view.step(METRICS | {"loss": loss}, TIMING, None)
    view.close()
    assert number(loss) in view.console.file.getvalue() and "by construction" not in view.console.file.getvalue()


def test_the_terminal_is_given_back_after_an_error_and_close_may_come_first():
    view = live(80)
    view.close()
    view.start(INFO)
    view.close()
    view.close()
    assert view.console.file.getvalue().rstrip().endswith("\x1b[?25h")


def test_a_pipe_gets_lines_and_json_leaves_stdout_alone(monkeypatch):
    assert type(make_observer(json=False)) is PlainView and make_observer(json=False).stream is sys.stdout
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm")
    assert type(make_observer(json=False)) is LiveView
    assert make_observer(json=True).stream is sys.stderr
    monkeypatch.setenv("TERM", "dumb")
    assert type(make_observer(json=False)) is PlainView


def test_figures():
    assert [number(x) for x in (0, 0.5, 0.00123, 12.34, 475.25, 12345.6, -0.5, float("nan"), None)] == [
        *("0.00", "0.50", "1.2e-03", "12.3", "475.2", "12,346", "-0.50", "nan", "")
    ]
    assert [duration(x) for x in (0.2, 59.6, 160, 3700, float("inf"))] == ["0s", "1m00s", "2m40s", "61m40s", "?"]
    assert sparkline([0, float("nan"), 7]) == "▁ █" and sparkline([1]) == "" and sparkline([2, 2]) == "▁▁"
    assert len(sparkline(list(range(100)))) == 24
