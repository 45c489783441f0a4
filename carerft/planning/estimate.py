"""Memory, time and money of an experiment: the arithmetic of every run, corrected by what was measured."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from carerft.planning.assumptions import Hardware
from carerft.planning.job import Job, job
from carerft.planning.measured import Measured, with_lengths
from carerft.planning.memory import Memory, memory
from carerft.planning.seconds import Seconds, seconds
from carerft.planning.shapes import Shape

STAGES = ("sampling", "learning", "rest")


@dataclass(frozen=True)
class Machine:
    """hardware, and how it is used: runs side by side, each with so many cores (of a CPU)."""

    hardware: Hardware
    side: int
    cores: int


@dataclass(frozen=True)
class Estimator:
    """Estimates runs of one model on one machine. factors: measured over computed seconds, by stage."""

    shape: Shape
    machine: Machine
    stated: dict[str, Any]
    factors: dict[str, float]

    def job(self, config: dict[str, Any]) -> Job:
        return job(config, self.stated)

    def memory(self, config: dict[str, Any]) -> list[Memory]:
        return memory(self.job(config), self.shape, self.machine.hardware, self.machine.cores)

    def seconds(self, config: dict[str, Any]) -> Seconds:
        found = computed(config, self.shape, self.machine.hardware, self.machine.cores, self.stated)
        rest = self.factors["rest"]
        return replace(
            found,
            sampling=found.sampling * self.factors["sampling"],
            learning=found.learning * self.factors["learning"],
            evaluating=found.evaluating * rest,
            fixed=found.fixed * rest,
        )


def computed(config: dict[str, Any], shape: Shape, hardware: Hardware, cores: int, stated: dict[str, Any]) -> Seconds:
    """By arithmetic alone."""
    start = stated["start_s"]["vllm" if config["rollout"]["name"] == "vllm" else "transformers"]
    return seconds(job(config, stated), shape, hardware, cores, start, stated["disk"] * 1e9)


def calibrated(
    shape: Shape, machine: Machine, stated: dict[str, Any], measured: Sequence[Measured], finished: bool = True
) -> Estimator:
    """For each stage one factor, which makes the measured runs' computed seconds add up to those that they took; and,
    where these were whole runs, `finished`, the lengths of their texts."""
    sums = {stage: [0.0, 0.0] for stage in STAGES}
    for one in measured:
        own = with_lengths(stated, [one])
        found = computed(one.config, shape, machine.hardware, one.cores, own)
        amounts = {"sampling": found.batches * found.sampling, "learning": found.steps * found.learning}
        for stage in STAGES:
            sums[stage][0] += getattr(one, stage)
            sums[stage][1] += amounts.get(stage, found.rest)
    factors = {stage: took / made if took and made else 1.0 for stage, (took, made) in sums.items()}
    return Estimator(shape, machine, with_lengths(stated, measured if finished else []), factors)


def wall(runs: Sequence[float], side: int) -> float:
    """Seconds until the last of these runs has ended, each started on the first of `side` places that is free."""
    places = [0.0] * max(1, side)
    for one in runs:
        first = min(range(len(places)), key=places.__getitem__)
        places[first] += one
    return max(places)


def machine(hardware: Hardware, devices: int, runs: int, side: int | None) -> Machine:
    """How runs of `devices` GPUs each share the hardware. side: runs side by side; None: as many as have room."""
    if hardware.kind == "cpu":
        side = min(runs, side or hardware.count)
        return Machine(hardware, side, max(1, hardware.count // side))
    return Machine(hardware, min(runs, side or max(1, hardware.count // devices)), 1)
