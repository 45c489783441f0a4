"""Read in the terminal what a model wrote while it learned, as `samples.every` kept it.

usage: carerft show RUN [worst|best|refused|truncated] [step=N] [key=value ...]

Right answers are green, wrong ones red. Underlined are the tokens that moved farthest from the base model: those whose
probability is now at least e times what the reference gives them.

examples:
  carerft show outputs/train/2026-11-29_10-00-00
  carerft show outputs/train/2026-11-29_10-00-00 worst step=40 count=3
"""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.panel import Panel
from rich.text import Text

from carerft.commands.arguments import argument, read, refuse
from carerft.errors import ConfigError
from carerft.runs.reading import read_lines
from carerft.terminal import open_console
from carerft.text import line, visible

WHICH = ("worst", "best", "refused", "truncated")
MOVED = 1.0  # nats
VERDICTS = {"True": ("right", "bold green"), "False": ("wrong", "bold red")}


@dataclass
class Show:
    """The keys of `carerft show`."""

    step: int | None = argument("of the file samples/step_<n>.jsonl; null: the last", None)
    count: int = argument("completions shown", 8, least=1)
    characters: int = argument("of a prompt and of a completion, at most", 1500, least=1)


def main() -> None:
    """Print completions. Raises ConfigError: no such run, no samples, or no such step."""
    settings, words = read(Show, sys.argv[1:], __doc__)
    which = [word for word in words if word in WHICH]
    places = [word for word in words if word not in WHICH and Path(word).is_dir()]
    refuse(settings, [word for word in words if word not in (*which, *places) and "=" in word])
    if len(places) != 1 or len(which) > 1 or len(words) != len(places) + len(which):
        wrong = next((word for word in words if word not in (*which, *places)), " ".join(words) or "nothing")
        raise ConfigError(f"{wrong!r} is not one run's directory", f"write carerft show RUN [{'|'.join(WHICH)}]")
    run, console = Path(places[0]), open_console()
    numbered = ((file.stem.removeprefix("step_"), file) for file in run.glob("samples/step_*.jsonl"))
    files = {int(digits): file for digits, file in numbered if digits.isdigit()}
    if not files:
        raise ConfigError(f"{run} holds no samples", "train with samples.every=10, which keeps some of each tenth step")
    step = max(files) if settings.step is None else settings.step
    if step not in files:
        steps = ", ".join(map(str, sorted(files)))
        raise ConfigError(f"step={step}: no samples of that step", f"there are those of {steps}")
    kept = list(read_lines(files[step], []))
    records = selected(kept, which[0] if which else None)
    told = f"{min(settings.count, len(records))} of {len(records)} completions"
    if {"refused", "truncated"} & set(which):
        told = f"{len(records)} of {len(kept)} completions {which[0]}"
    console.print(f"step {step}: {told}")
    prompt = None
    for record in records[: settings.count]:
        if record.get("problem_id") != prompt:
            prompt = record.get("problem_id")
            console.print(
                Panel(Text(visible(record.get("prompt", ""), settings.characters)), title=line(prompt), expand=False)
            )
        console.print(described(record))
        console.print(marked(record, settings.characters))
        console.print()


def selected(records: list[dict[str, Any]], which: str | None) -> list[dict[str, Any]]:
    """Those that a word names: the worst (or best) by reward first, or those that refuse or were cut."""
    if which in ("refused", "truncated"):
        return [record for record in records if record.get(which)]
    if which is None:
        return records
    known = [record for record in records if (record.get("rewards") or {}).get("total") is not None]
    return sorted(known, key=lambda record: record["rewards"]["total"], reverse=which == "best")


def described(record: dict[str, Any]) -> Text:
    """A line about a completion: its verdict, its rewards, its advantage."""
    verdict, style = VERDICTS.get(str(record.get("correct")), ("no verdict", "bold yellow"))
    words = [f'answer "{line(record["extracted"])}"' if record.get("extracted") is not None else "no answer"]
    words += [word for key, word in (("refused", "refuses"), ("truncated", "cut")) if record.get(key)]
    words += [f"{line(name)} {value:.3g}" for name, value in (record.get("rewards") or {}).items() if value is not None]
    if record.get("advantage") is not None:
        words.append(f"advantage {record['advantage']:+.2f}")
    return Text.assemble((verdict, style), "  ", ", ".join(words))


def marked(record: dict[str, Any], characters: int) -> Text:
    """A completion, with the tokens underlined that moved farthest from the base model."""
    tokens, own, base = (record.get(key) or [] for key in ("tokens", "log_probs", "reference_log_probs"))
    if not tokens or len(tokens) != len(base):
        return Text(visible(record.get("text", ""), characters))
    shown, room = Text(), characters
    for token, mine, theirs in zip(tokens, own, base, strict=True):
        shown.append(visible(token, room), "underline bold" if mine - theirs > MOVED else "")
        room -= len(token)
        if room <= 0:
            shown.append(" …")
            break
    return shown
