"""What a run shows while it goes: a live panel on a terminal, a line a step elsewhere. All model text is untrusted."""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import IO, Any

ON_POLICY_LOSS = "(0 by construction on-policy: look at reward and gradient norm)"
STAGES = ("sample", "reward", "advantage", "gradient", "update")
SAMPLE_KEYS = ("prompt", "completion", "reward")
SAMPLE_EVERY = 10


def make_observer(json: bool) -> PlainView:
    """Return the panel on a real terminal, else plain lines; with `json` these go to stderr."""
    if json or not sys.stdout.isatty() or os.environ.get("TERM", "dumb") == "dumb":
        return PlainView(sys.stderr if json else sys.stdout)
    return LiveView()


def visible(text: Any) -> str:
    r"""Return text as one harmless line: newlines as ↵, other control and format characters as \x1b or \u202e.

    Nothing in the result moves the cursor, sets a colour, reverses the reading order or forges a line. Markup such as
    [red] is left as it is: this module never hands text to a markup parser.
    """
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in str(text).replace("\n", "↵"))


@dataclass
class Progress:
    """What the views know of a run."""

    info: Mapping[str, Any] = field(default_factory=dict)
    metrics: Mapping[str, Any] = field(default_factory=dict)
    timing: Mapping[str, Any] = field(default_factory=dict)
    sample: Mapping[str, str] | None = None
    rewards: list[float] = field(default_factory=list)
    evaluations: list[Mapping[str, Any]] = field(default_factory=list)

    def add_step(self, metrics: Mapping[str, Any], timing: Mapping[str, Any], sample: Mapping[str, str] | None) -> None:
        self.metrics, self.timing, self.sample = metrics, timing, sample or self.sample
        self.rewards.append(metrics.get("reward", metrics.get("episode_return", metrics.get("loss", math.nan))))

    @property
    def position(self) -> str:
        return f"step {self.metrics.get('step', self.info.get('resumed_from') or 0)}/{self.info.get('max_steps', '?')}"

    @property
    def reward_label(self) -> str:
        """What a step is followed by: the loss of demonstrations, which have no reward."""
        labels = {"episode_return": "return", "reward": "reward", "loss": "loss"}
        return next((label for name, label in labels.items() if name in self.metrics), "reward")

    @property
    def informative(self) -> str | None:
        """The share of groups whose rewards differ: only they carry a gradient."""
        same = self.metrics.get("frac_reward_zero_std")
        return None if same is None else f"{1 - same:.0%}"

    @property
    def speed(self) -> list[str]:
        forms = {"tokens_per_second": "{:,.0f} tok/s", "seconds": "{:.1f} s"}
        parts = [form.format(self.timing[key]) for key, form in forms.items() if self.timing.get(key)]
        eta = self.timing.get("eta_seconds")
        return parts if eta is None else [*parts, f"ETA {duration(eta)}"]

    def heartbeat(self) -> str:
        """Return the step as one line; what the run does not measure is left out."""
        parts = {
            self.reward_label: number(self.rewards[-1]),
            "score": self.evaluations and interval(self.evaluations[-1]),
            "entropy": number(self.metrics.get("entropy")),
            "informative": self.informative,
            "grad": number(self.metrics.get("grad_norm")),
        }
        return "  ".join([self.position, *(f"{name} {value}" for name, value in parts.items() if value), *self.speed])


class PlainView:
    """One line a step, a sample now and then: for logs, pipes and CI."""

    def __init__(self, stream: IO[str]) -> None:
        self.stream = stream
        self.progress = Progress()

    def start(self, info: Mapping[str, Any]) -> None:
        self.progress.info = info
        self.print(*introduction(info))

    def evaluation(self, step: int, result: Mapping[str, Any]) -> None:
        self.progress.evaluations.append(result)
        others = [f"{visible(key)} {_cell(value)}" for key, value in (result.get("metrics") or {}).items()]
        self.print("  ".join([f"evaluation at step {step}: score {_cell(result)}", *others]))

    def step(self, metrics: Mapping[str, Any], timing: Mapping[str, Any], sample: Mapping[str, str] | None) -> None:
        self.progress.add_step(metrics, timing, sample)
        self.print(self.progress.heartbeat())
        if sample and len(self.progress.rewards) % SAMPLE_EVERY == 1:
            self.print(*(f"  {key:<10}  {visible(sample.get(key, ''))}" for key in SAMPLE_KEYS))

    def note(self, text: str) -> None:
        self.print(f"note: {visible(text)}")

    def finish(self, summary: Mapping[str, Any]) -> None:
        self.close()
        self.print(*report(summary))

    def close(self) -> None:
        """Give the terminal back; may be called twice."""

    def print(self, *lines: str) -> None:
        print(*lines, sep="\n", file=self.stream, flush=True)


class LiveView(PlainView):
    """A panel that is redrawn at each event, by no thread of its own."""

    def __init__(self, console: Any = None) -> None:
        from rich.console import Console
        from rich.live import Live

        self.console = console or Console()
        self.live = Live(console=self.console, auto_refresh=False, vertical_overflow="crop")
        super().__init__(self.console.file)

    def start(self, info: Mapping[str, Any]) -> None:
        super().start(info)
        self.live.start()
        self.draw()

    def evaluation(self, step: int, result: Mapping[str, Any]) -> None:
        self.progress.evaluations.append(result)
        self.draw()

    def step(self, metrics: Mapping[str, Any], timing: Mapping[str, Any], sample: Mapping[str, str] | None) -> None:
        self.progress.add_step(metrics, timing, sample)
        self.draw()

    def close(self) -> None:
        self.live.stop()

    def draw(self) -> None:
        self.live.update(panel(self.progress), refresh=True)

    def print(self, *lines: str) -> None:
        self.console.print("\n".join(lines), markup=False, highlight=False, emoji=False)


def panel(progress: Progress) -> Any:
    """Return the panel, as something that rich draws at any width."""
    from rich.panel import Panel
    from rich.table import Table
    from rich.text import Text

    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    for label, value in _panel_rows(progress):
        table.add_row(label, Text(value))
    if progress.sample:
        table.add_row()
        for key in SAMPLE_KEYS:
            text = shorten(visible(progress.sample.get(key, "")), 320)
            table.add_row(key, Text(text, "cyan" if key == "completion" else ""))
    title = Text(f"logpi · {progress.position} · {visible(progress.info.get('recipe', ''))}", "bold")
    footer = Text("Ctrl-C stops, the same command goes on", "dim")
    return Panel(table, title=title, title_align="left", subtitle=footer, subtitle_align="left", border_style="dim")


def _panel_rows(progress: Progress) -> Iterator[tuple[str, str]]:
    metrics = progress.metrics
    if checks := progress.evaluations:
        yield "held-out score", f"{interval(checks[-1])}  {sparkline([check['score'] for check in checks])}"
    if not metrics:
        yield "first step", "under way ..."
        return
    yield progress.reward_label, f"{number(progress.rewards[-1])}  {sparkline(progress.rewards)}"
    if progress.informative:
        yield "informative groups", f"{progress.informative}  (rewards differ: only these teach)"
    for label, key in (("entropy", "entropy"), ("gradient norm", "grad_norm")):
        if metrics.get(key) is not None:
            yield label, number(metrics[key])
    if (loss := metrics.get("loss")) is not None and progress.reward_label != "loss":
        yield "loss", f"{loss:.3f} {ON_POLICY_LOSS}" if abs(loss) < 1e-5 else number(loss)
    if (length := metrics.get("completions/mean_length")) is not None:
        yield "completion length", f"{number(length)} tokens, {metrics.get('completions/clipped_ratio', 0):.0%} cut off"
    yield "speed", " · ".join(progress.speed)
    seconds = {stage: progress.timing.get(f"{stage}_seconds") or 0.0 for stage in STAGES}
    if total := sum(seconds.values()):
        yield "time", ", ".join(f"{stage} {part / total:.0%}" for stage, part in seconds.items() if part > total / 200)


def sparkline(values: list[float], width: int = 24) -> str:
    """Return the last values as eight heights between their least and greatest; NaN is a gap."""
    shown = values[-width:]
    finite = [value for value in shown if math.isfinite(value)]
    if len(finite) < 2:
        return ""
    low, span = min(finite), (max(finite) - min(finite)) or 1.0
    return "".join("▁▂▃▄▅▆▇█"[round(7 * (v - low) / span)] if math.isfinite(v) else " " for v in shown)


def introduction(info: Mapping[str, Any]) -> list[str]:
    """Return what runs, on what, from where."""
    get = {key: visible(value) for key, value in info.items() if value is not None}.get
    trained = f"{info.get('num_trainable') or 0:,} of {info.get('num_parameters') or 0:,} parameters trained"
    what = "demonstrations" if info.get("algorithm") == "maximum_likelihood" else "problems"
    lines = [
        f"recipe     {get('recipe', '')}, {get('max_steps', '?')} steps",
        f"objective  {get('objective', '')}",
        f"model      {' '.join(filter(None, (get('model'), get('weights_hash', '')[:12])))}, {trained}",
        f"machine    {get('device', '')}, {get('dtype', '')}, {get('threads', '?')} threads",
        f"parity     {get('parity')}",
        f"data       {get('train_size')} {what} to train on, {get('heldout_size', '?')} held out",
        f"run        {get('run', '')}" + (f", resumed from step {get('resumed_from')}" if get("resumed_from") else ""),
    ]
    lines += [f"note: {visible(text)}" for text in info.get("notes") or ()]
    absent = {"data": not get("train_size"), "parity": not get("parity")}
    return [line for line in lines if not absent.get(line.split()[0])]


def report(summary: Mapping[str, Any]) -> list[str]:
    """Return how a run ended: scores before and after, samples before and after, where everything lies."""
    seconds = duration(summary.get("seconds", math.nan))
    lines = ["", f"{visible(summary.get('status', 'finished'))} after {summary.get('steps', '?')} steps, {seconds}"]
    evaluation = summary.get("evaluation") or {}
    before, after = (dict(_rows(evaluation.get(when) or {})) for when in ("before", "after"))
    table = [(name, before.get(name, "–"), after.get(name, "–")) for name in dict.fromkeys([*before, *after])]
    if table:
        table = [("", "before", "after"), *table]
        widths = [max(len(row[column]) for row in table) for column in range(2)]
        lines += ["", *(f"{name:<{widths[0]}}  {old:<{widths[1]}}  {new}" for name, old, new in table)]
    for sample in summary.get("samples") or ():
        lines += ["", f"prompt  {shorten(visible(sample.get('prompt', '')), 600)}"]
        for when in ("before", "after"):
            completion = shorten(visible(sample.get(when, "")), 600)
            lines.append(f"{when:<7} {completion}  (reward {_cell(sample.get(f'reward_{when}'))})")
    return [*lines, "", *(f"{key:<7} {visible(summary[key])}" for key in ("run", "final") if summary.get(key))]


def _rows(result: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, str]]:
    """Yield (name, value) of an evaluation: the score, its metrics, then whatever else it holds, nested/like/this."""
    if "score" in result:
        yield above or "score", _cell(result)
    for key, value in result.items():
        if isinstance(value, Mapping):
            yield from _rows(value, above if key == "metrics" else f"{above}/{visible(key)}".lstrip("/"))
        elif key not in ("score", "low", "high", "n", "texts"):
            yield f"{above}/{visible(key)}".lstrip("/"), _cell(value)


def outline(value: Mapping[str, Any], indent: str = "") -> list[str]:
    """Return nested plain data as indented lines; `memory` holds bytes."""
    lines: list[str] = []
    for key, item in value.items():
        name = indent + visible(key)
        if key == "memory" and isinstance(item, Mapping):
            item = {part: f"{count / 1e6:,.1f} MB" for part, count in item.items()}
        if isinstance(item, Mapping) and "score" not in item:
            lines += [name, *outline(item, indent + "  ")]
        elif isinstance(item, list) and item and isinstance(item[0], Mapping):
            lines += [name, *(line for entry in item for line in outline(entry, indent + "  "))]
        else:
            lines.append(f"{name}: {_cell(item)}")
    return lines


def interval(result: Mapping[str, Any]) -> str:
    """Return `0.74 [0.66, 0.81]`: a score and its confidence interval."""
    bounds = "" if result.get("low") is None else f" [{number(result['low'])}, {number(result['high'])}]"
    return number(result["score"]) + bounds


def number(value: float | None) -> str:
    """Return a number with about three digits that matter, nothing for None."""
    if value is None or not math.isfinite(value):
        return "" if value is None else str(value)
    if value != 0 and abs(value) < 0.01:
        return f"{value:.1e}"
    return f"{value:.2f}" if abs(value) < 10 else f"{value:.1f}" if abs(value) < 1000 else f"{value:,.0f}"


def duration(seconds: float) -> str:
    """Return `2m40s`."""
    if not math.isfinite(seconds):
        return "?"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}m{rest:02}s" if minutes else f"{rest}s"


def shorten(text: str, width: int) -> str:
    """Return at most `width` characters, the middle left out."""
    return text if len(text) <= width else f"{text[: width // 2 - 1]} … {text[-(width // 2 - 2) :]}"


def _cell(value: Any) -> str:
    if isinstance(value, Mapping) and "score" in value:
        return interval(value) + (f"  n={value['n']}" if "n" in value else "")
    return number(value) if isinstance(value, float) else visible(value)


def difference_lines(a: str, b: str, found: Mapping[str, Any]) -> list[str]:
    """Return what `logpi recipes --diff` prints: `key: a → b` a line, then both objectives where they differ."""
    if not found["differences"]:
        return [f"{visible(a)} and {visible(b)}: no difference"]
    lines = [visible(f"{row['key']}: {row['a']} → {row['b']}") for row in found["differences"]]
    return lines + [visible(f"objective of {name}: {found['objective'][side]}")
                    for name, side in ((a, "a"), (b, "b")) if "objective" in found]  # fmt: skip


BIAS_HEAD = f"{'algorithm':<22}{'rewards':<18}{'class':<24}{'error':>9}{'scale':>9}{'off':>9}{'variance':>10}"


def bias_row(row: Mapping[str, Any]) -> str:
    """Return one line of the table that `logpi prove` prints; `BIAS_HEAD` stands above it."""
    figures = f"{row['relative_error']:>9.1e}{row['scale']:>9.3g}{row['off_direction']:>9.1e}{row['variance']:>10.2f}"
    return f"{visible(row['name']):<22}{row['rewards']:<18}{row['class']:<24}{figures}"


def resume_row(row: Mapping[str, Any]) -> str:
    """Return one line of what `logpi prove --resume` prints."""
    step = row["killed_after_step"]
    moment = "ended before it could be killed" if step is None else f"killed after step {step}"
    found = f"DIFFERENT: {', '.join(row['different'])}" if row["different"] else f"{row['files']} files the same"
    return visible(f"{row['run']:<16}{moment}, went on: {found}")
