"""What is taken for granted where nothing was measured: conf/plan.yaml, changed by the command line."""

import difflib
import os
import re
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from carerft.config.composition import config_directory
from carerft.errors import ConfigError

GIB = 2**30


@dataclass(frozen=True)
class Hardware:
    """Devices of one kind in one machine. memory, reserved: bytes of one; bandwidth: bytes/s of one; peak: FLOP/s of
    one, by precision; kernel_s, engine_step_s: seconds; price: per hour of one. here: this very machine.
    """

    kind: str
    count: int
    memory: float
    bandwidth: float
    peak: dict[str, float]
    learn_share: float
    decode_share: float
    bandwidth_share: float
    kernel_s: float
    engine_step_s: float
    reserved: float
    price: float
    here: bool = False

    @property
    def title(self) -> str:
        return f"{self.count} x {self.kind}" + (" (this machine)" if self.here else "")


def assumptions(overrides: Sequence[str]) -> dict[str, Any]:
    """conf/plan.yaml with `key=value` replaced. Raises ConfigError for a key that it doesn't have."""
    stated = OmegaConf.load(config_directory() / "plan.yaml")
    OmegaConf.set_struct(stated, True)
    for text in overrides:
        key, _, value = text.partition("=")
        try:
            known = OmegaConf.select(stated, key, throw_on_missing=True)
            if known is None or OmegaConf.is_config(known):
                raise ConfigError(f"conf/plan.yaml has no number {key!r}", "its file lists them")
            OmegaConf.update(stated, key, float(value))
        except (OmegaConfBaseException, ValueError) as error:
            raise ConfigError(f"{text}: {error}", "write key=number, with a key of conf/plan.yaml") from error
    return OmegaConf.to_container(stated)  # type: ignore[return-value]


def hardware(name: str, stated: dict[str, Any]) -> Hardware:
    """`8xh100`, `h100`, or `this`: the machine that asks. Raises ConfigError for anything else."""
    here = name == "this"
    if here:
        name = _this()
    found = re.fullmatch(r"(?:(\d+)x)?([a-z]\w*)", name.lower())
    kinds = stated["hardware"]
    if not found or found[2] not in kinds or found[1] == "0":
        close = difflib.get_close_matches((found and found[2]) or name, kinds, n=1)
        hint = f"did you mean {close[0]}? " if close else ""
        raise ConfigError(
            f"hardware={name}: there is no such device in conf/plan.yaml",
            f"{hint}write a number and a kind, as in 8xh100; kinds: {', '.join(kinds)}",
        )
    count, kind, entry = int(found[1] or 1), found[2], kinds[found[2]]
    memory = entry["memory_gib"] * GIB
    if here and kind == "cpu":
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / count
    return Hardware(
        kind=kind,
        count=count,
        memory=memory,
        bandwidth=entry["bandwidth"] * 1e9,
        peak={precision: value * 1e12 for precision, value in entry["peak"].items()},
        learn_share=entry["learn_share"],
        decode_share=entry["decode_share"],
        bandwidth_share=entry["bandwidth_share"],
        kernel_s=entry["kernel_us"] * 1e-6,
        engine_step_s=entry["engine_step_ms"] * 1e-3,
        reserved=entry["reserved_gib"] * GIB,
        price=entry["price_per_hour"],
        here=here,
    )


def _this() -> str:
    """This machine's devices, as one would write them."""
    if shutil.which("nvidia-smi"):
        asked = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
        names = subprocess.run(asked, capture_output=True, text=True).stdout.splitlines()
        if names:  # "NVIDIA H100 80GB HBM3"
            words = names[0].lower().removeprefix("nvidia ").replace("-", " ").split()
            return f"{len(names)}x{words[0] if words else 'gpu'}"
    return f"{os.cpu_count() or 1}xcpu"


def text(name: str, stated: dict[str, Any]) -> dict[str, float]:
    """Questions, prompt, completion, choices (tokens) and grading_s of a task or benchmark."""
    return {"choices": 0, "grading_s": 0.0, **stated["texts"].get(name, stated["texts"]["other"])}
