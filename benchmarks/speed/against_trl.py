"""A GRPO step of carerft against one of TRL's GRPOTrainer: equal model, prompts, lengths, reward, optimizer, threads.

    python benchmarks/speed/against_trl.py --trl-python PATH/bin/python --threads 2 --steps 10
    python benchmarks/speed/against_trl.py --trl-python PATH/bin/python --threads 2 --steps 3 --model DIR

A step samples 8 completions for each of 8 prompts, each forced to one length, rewards them, and takes one optimizer
step on all of them, on the CPU, in float32 or with --precision bfloat16 (autocast, TRL's default). The model is a Qwen2
of 3.1 million parameters, prompts have 16 tokens and completions 64: at this size the systems differ in the overhead
around the matrix products. With --model it is a model of yours, prompts are those of task=arithmetic in its chat
template, and completions have as many tokens as that task allows. TRL runs in its own environment; `trl_side.py` says
how it is tuned.

Each round measures every system once, so that a drift of the machine shows as a difference between the rounds.
Measure on an idle machine: two processes on the same cores slow each other by more than half.
The floor is the time of the step's matrix products alone (`matmul_floor`).
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from launch import how_to_get_trl, load_average, make_console, make_table, run
from measuring import BETA
from rich.table import Table
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM
from transformers.utils.logging import disable_progress_bar
from trl_side import reward

from carerft.config.settings import LearnerSettings
from carerft.objective.algorithms import Algorithm
from carerft.objective.regularizers import NoRegularizer, Regularizer, SkewReverseKL
from carerft.rollout import Rollouts, Sampling
from carerft.rollout.transformers import TransformersWorker
from carerft.tasks.arithmetic import ArithmeticTask
from carerft.tasks.encoding import ChatTask
from carerft.training.learner import Learner

Times = dict[str, list[float]]  # "step_s", "generate_s", "cpu_s" -> a number for each measured step


@dataclass(frozen=True)
class Work:
    """What one step does, and the shape of the model that does it."""

    threads: int
    steps: int
    warmup: int = 2
    prompts: int = 8
    samples: int = 8
    prompt_tokens: int = 16
    tokens: int = 64  # of each completion
    learning_rate: float = 1e-6
    hidden: int = 256
    layers: int = 4
    heads: int = 4
    groups: int = 2  # key/value heads
    intermediate: int = 704
    vocabulary: int = 512
    model: str = ""  # a directory; empty: the synthetic model
    precision: str = "float32"  # of the matrix products; weights are float32

    @staticmethod
    def of_model(directory: str, threads: int, steps: int, precision: str) -> "Work":
        """The work with a model of the user's own."""
        config = AutoConfig.from_pretrained(directory).get_text_config()
        work = Work(
            threads, steps, precision=precision, warmup=1, tokens=32, model=directory, hidden=config.hidden_size,
            layers=config.num_hidden_layers, heads=config.num_attention_heads, groups=config.num_key_value_heads,
            intermediate=config.intermediate_size, vocabulary=config.vocab_size,
        )  # fmt: skip
        tokens = PreTrainedTokenizerFast.from_pretrained(directory)(work.texts())["input_ids"]
        return replace(work, prompt_tokens=max(map(len, tokens)))

    @property
    def sequences(self) -> int:
        return self.prompts * self.samples

    @property
    def completion_tokens(self) -> int:
        return self.sequences * self.tokens

    def texts(self) -> list[str]:
        """Prompts of `prompt_tokens` words, which are as many tokens; of a model of the user's own, at most as many."""
        if self.model:
            tokenizer = PreTrainedTokenizerFast.from_pretrained(self.model)
            return [p.prompt for p in ChatTask(ArithmeticTask(limit=self.prompts), tokenizer).problems()]
        words = torch.randint(2, self.vocabulary, (self.prompts, self.prompt_tokens), generator=torch.manual_seed(0))
        return [" ".join(f"w{word}" for word in prompt) for prompt in words.tolist()]

    def saved_model(self, directory: str) -> str:
        """The directory of the model: the user's own, or this one, into which the synthetic one is written."""
        if not self.model:
            self._save_model(directory)
        return self.model or directory

    def _save_model(self, directory: str) -> None:
        """A random model and a tokenizer of one word per token, in Hugging Face format."""
        torch.manual_seed(0)
        config = Qwen2Config(
            vocab_size=self.vocabulary,
            hidden_size=self.hidden,
            num_hidden_layers=self.layers,
            num_attention_heads=self.heads,
            num_key_value_heads=self.groups,
            intermediate_size=self.intermediate,
            max_position_embeddings=256,
            tie_word_embeddings=True,
            bos_token_id=None,
            eos_token_id=1,
            pad_token_id=0,
        )
        Qwen2ForCausalLM(config).save_pretrained(directory)
        vocabulary = {"<pad>": 0, "<eos>": 1, **{f"w{i}": i for i in range(2, self.vocabulary)}}
        words = Tokenizer(models.WordLevel(vocabulary, unk_token="<pad>"))
        words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
        PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", eos_token="<eos>").save_pretrained(directory)


def timed(work: Work, generate: Callable[[int], Any], learn: Callable[[Any], object]) -> Times:
    """Times of the measured steps. generate takes the step's number; learn takes what generate returns."""
    times: Times = {"step_s": [], "generate_s": [], "cpu_s": []}
    for step in range(work.warmup + work.steps):
        cpu, begin = time.process_time(), time.perf_counter()
        rollouts = generate(step)
        generated = time.perf_counter()
        learn(rollouts)
        if step >= work.warmup:
            times["step_s"].append(time.perf_counter() - begin)
            times["generate_s"].append(generated - begin)
            times["cpu_s"].append(time.process_time() - cpu)
    return times


def ours(work: Work, directory: str, regularizer: Regularizer) -> Times:
    """Steps of `TransformersWorker`, which samples from the learner's own policy, and of `Learner`."""
    policy = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(directory)
    algorithm = Algorithm("grpo", work.samples)
    # TRL without KL holds no reference model, so ours holds none either.
    settings = LearnerSettings(work.learning_rate, monitor_reference=False, precision=work.precision)
    learner = Learner(policy, algorithm, regularizer, settings, work.warmup + work.steps)
    dtype = torch.bfloat16 if work.precision == "bfloat16" else None
    worker = TransformersWorker(policy, [tokenizer.eos_token_id], tokenizer.pad_token_id, dtype=dtype)
    sampling = Sampling(work.tokens, ignore_eos=True)

    def generate(step: int) -> Rollouts:
        rollouts = worker.sample(tokenizer(work.texts())["input_ids"], work.samples, sampling, seed=step)
        assert rollouts.tokens.shape == (work.sequences, work.tokens), "the completions do not have the forced length"
        return rollouts

    def learn(rollouts: Rollouts) -> None:
        texts = tokenizer.batch_decode(rollouts.tokens)
        rewards = torch.tensor([reward(text) for text in texts]).view(work.prompts, work.samples)
        learner.step(rollouts, algorithm.advantages(rewards).flatten())
        worker.sync(policy)

    return timed(work, generate, learn)


def trl(work: Work, directory: str, beta: float, python: str) -> Times:
    """Steps of TRL's GRPOTrainer, in a process of its own environment."""
    spec = {**asdict(work), "model": directory, "prompts": work.texts(), "beta": beta}
    times = run([python, str(Path(__file__).with_name("trl_side.py")), json.dumps(spec)], work.threads)
    if "why_not" in times:
        raise SystemExit(f"TRL {times['why_not']}\n{how_to_get_trl(Path(__file__).name)}")
    return times


def matmul_floor(work: Work) -> Times:
    """Times of the matrix products that a step without a reference cannot avoid.

    Each product is computed at its real size, as often as it occurs, and each layer has its own operands:
    - generation: the P prompts of p tokens once, (P * p, hidden) times each weight; then T - 1 steps of (S, hidden)
      times each weight, and for each sequence and key/value head its (heads / groups) queries times the t keys so far,
      and these scores times the values, with t from p + 1 to p + T - 1; the head for S rows, T times.
    - learning: the forward products over P * p + S * T positions (each prompt is read once for its group), S * heads
      attention products of p + T squared (a dense product cannot leave out the half that is not causal), the head for
      the S * T completion tokens; each has two more products in the backward pass, the gradients of its two operands.
    """
    w, d, dtype = work, work.hidden // work.heads, getattr(torch, work.precision)
    randn = partial(torch.randn, dtype=dtype)
    length, positions = w.prompt_tokens + w.tokens, w.prompts * w.prompt_tokens + w.completion_tokens
    shapes = [(w.hidden, (w.heads + 2 * w.groups) * d), (w.heads * d, w.hidden)]
    shapes += [(w.hidden, 2 * w.intermediate), (w.intermediate, w.hidden)]
    layers = [[randn(shape) for shape in shapes] for _ in range(w.layers)]
    head = randn(w.hidden, w.vocabulary)
    keys = [randn(w.sequences * w.groups, length, d) for _ in range(2 * w.layers)]
    queries = randn(w.sequences * w.groups, w.heads // w.groups, d)
    outputs: dict[tuple[int, ...], torch.Tensor] = {}  # used again and again: memory is not measured here

    def inputs(rows: int) -> list[torch.Tensor]:
        return [randn(rows, shape[0]) for shape in shapes]

    def product(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        shape = (*a.shape[:-1], b.shape[-1])
        if shape not in outputs:
            outputs[shape] = torch.empty(shape, dtype=dtype)
        return torch.matmul(a, b, out=outputs[shape])

    prompt, step, learning = inputs(w.prompts * w.prompt_tokens), inputs(w.sequences), inputs(positions)
    grads = [randn(positions, shape[1]) for shape in shapes]
    q, scores = randn(w.sequences * w.heads, length, d), randn(w.sequences * w.heads, length, length)
    hidden, grad_logits = randn(w.completion_tokens, w.hidden), randn(w.completion_tokens, w.vocabulary)

    def generate(step_number: int) -> None:
        for t in range(w.prompt_tokens, length):
            for layer, weights in enumerate(layers):
                for x, weight in zip(prompt if t == w.prompt_tokens else step, weights, strict=True):
                    product(x, weight)
                if t > w.prompt_tokens:
                    attention = product(queries, keys[2 * layer][:, :t].transpose(1, 2))
                    product(attention, keys[2 * layer + 1][:, :t])
            product(step[0], head)

    def learn(_: None) -> None:
        for weights in layers:
            for x, weight, grad in zip(learning, weights, grads, strict=True):
                for a, b in ((x, weight), (grad, weight.T), (x.T, grad)):
                    product(a, b)
            for a, b in ((q, q.mT), (scores, q), (scores, q), (scores.mT, q), (q, q.mT), (scores.mT, q)):
                product(a, b)  # two forward, four backward
        for a, b in ((hidden, head), (grad_logits, head.T), (hidden.T, grad_logits)):
            product(a, b)

    with torch.inference_mode():
        return timed(work, generate, learn)


def summary(work: Work, rounds: list[Times]) -> dict[str, float]:
    """Medians over the steps of all rounds. drift: the largest median of a round over the smallest, less 1."""
    steps = [time for times in rounds for time in times["step_s"]]
    generation = statistics.median(time for times in rounds for time in times["generate_s"])
    learning = statistics.median(
        step - generate for times in rounds for step, generate in zip(times["step_s"], times["generate_s"], strict=True)
    )
    medians = [statistics.median(times["step_s"]) for times in rounds]
    return {
        "step_s": statistics.median(steps),
        "generate_s": generation,
        "learn_s": learning,
        "generated_tokens_per_s": work.completion_tokens / generation,
        "learned_tokens_per_s": work.completion_tokens / learning,
        "cpu_s": statistics.median(time for times in rounds for time in times["cpu_s"]),
        "drift": max(medians) / min(medians) - 1,
    }


def show(work: Work, summaries: dict[str, dict[str, float]], base: str | None) -> Table:
    """One row per system. generated/s, learned/s: tokens; "of floor": the floor's seconds over this system's."""
    ratios = ["step", "generate", "learn"] if base else []
    columns = ["", "s/step", "generated/s", "learned/s", *ratios, "of floor", "CPU", "rounds differ"]
    name = Path(work.model).name if work.model else "Qwen2 3.1M"
    title = f"One GRPO step: {work.sequences} completions of {work.tokens} tokens, {name}, {work.precision}, CPU"
    table = make_table(title, columns)
    if base:
        table.caption = f"step, generate, learn: times as fast as {base}. s/step, CPU: medians, in seconds."
    floor = summaries["matmul floor"]["step_s"]
    for name, row in summaries.items():
        keys = ("step_s", "generate_s", "learn_s")
        against = [f"{summaries[base][key] / row[key]:.2f}" for key in keys] if base else []
        rates = [f"{row['generated_tokens_per_s']:,.0f}", f"{row['learned_tokens_per_s']:,.0f}"]
        tail = [f"{floor / row['step_s']:.0%}", f"{row['cpu_s']:.2f}", f"{row['drift']:.0%}"]
        table.add_row(name, f"{row['step_s']:.3f}", *rates, *against, *tail)
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trl-python", help="the Python of an environment that has TRL; without it, only ours runs")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--steps", type=int, default=10, help="measured steps of each system in each round")
    parser.add_argument("--rounds", type=int, default=2, help="how often every system is measured")
    parser.add_argument("--output", type=Path, help="also write the numbers of every step to this JSON file")
    parser.add_argument("--precision", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--model", help="the directory of a model; without it, the synthetic one")
    options = parser.parse_args()
    console = make_console(120)
    disable_progress_bar()
    torch.set_num_threads(options.threads)
    given = {"threads": options.threads, "steps": options.steps, "precision": options.precision}
    work = Work.of_model(options.model, **given) if options.model else Work(**given)
    load = load_average(console)
    with tempfile.TemporaryDirectory() as temporary:
        directory = work.saved_model(temporary)
        systems: dict[str, Callable[[], Times]] = {"matmul floor": lambda: matmul_floor(work)}
        if options.trl_python:
            systems["TRL, no KL"] = lambda: trl(work, directory, 0.0, options.trl_python)
            systems["TRL, KL (k3)"] = lambda: trl(work, directory, BETA, options.trl_python)
        systems["carerft, no KL"] = lambda: ours(work, directory, NoRegularizer())
        systems["carerft, exact SRKL"] = lambda: ours(work, directory, SkewReverseKL(BETA))
        rounds: dict[str, list[Times]] = {name: [] for name in systems}
        for number in range(options.rounds):
            for name, measure in systems.items():
                with console.status(f"round {number + 1} of {options.rounds}: {name}"):
                    rounds[name].append(measure())

    summaries = {name: summary(work, times) for name, times in rounds.items()}
    base = "TRL, no KL" if options.trl_python else None
    console.print(show(work, summaries, base))
    if options.output:
        machine = {"threads": options.threads, "cores": os.cpu_count(), "load_before": load, "torch": torch.__version__}
        report = {"work": asdict(work), "machine": machine, "summary": summaries, "rounds": rounds}
        options.output.write_text(json.dumps(report, indent=1) + "\n")
    if not options.trl_python:
        console.print(how_to_get_trl(Path(__file__).name), style="yellow", markup=False)
        sys.exit(2)


if __name__ == "__main__":
    main()
