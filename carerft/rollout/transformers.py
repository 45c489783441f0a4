"""The rollout worker that samples with transformers, from the very weights that the learner trains.

It needs no engine and works for any causal language model of attention layers; for a large model it is slower than
vLLM. It does not use transformers' `generate`, which reads the model's generation_config, concatenates its cache at
every step, continues to decode rows that have ended, and draws from the global random state.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import cached_property
from itertools import groupby
from typing import Any

import torch
from tokenizers.decoders import DecodeStream
from torch import Tensor
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from carerft.errors import ConfigError
from carerft.model.grouped_attention import grouping_queries
from carerft.model.loading import attends_fully, context_length, described
from carerft.model.lora import merged_weights
from carerft.model.modes import evaluating
from carerft.model.probe import probe
from carerft.rollout import Rollouts, RolloutWorker, Sampling
from carerft.rollout.decoding import SHARED, Decoder, common_beginning, decoder_for, decoding_mismatch
from carerft.rollout.requests import check_context, check_finite, check_sampling, completion_seeds
from carerft.terminal import sampling_bar

LOGITS = 2**27  # how many logits log_likelihood holds at a time: half a gibibyte in float32
PORTION = 2**23  # how many of them become probabilities at a time


def nucleus(log_probs: Tensor, top_p: float) -> Tensor:
    """(R, V) log-probabilities of the most likely tokens that together reach top_p, renormalised; -inf elsewhere.

    Holtzman et al. 2020, arXiv 1904.09751, equations 2 and 3.
    """
    descending, index = log_probs.sort(dim=-1, descending=True)
    probs = descending.exp()
    outside = probs.cumsum(-1) - probs >= top_p  # the tokens before this one already reach top_p
    outside = torch.zeros_like(outside).scatter_(-1, index, outside)
    return log_probs.masked_fill(outside, -torch.inf).log_softmax(-1)


def draw(logits: Tensor, uniform: Tensor, temperature: float, top_p: float) -> tuple[Tensor, Tensor]:
    """Draws one token per row, by inverting the cumulative distribution, and returns its log-probability too.

    logits: (R, V); uniform: (R,) float64 in [0, 1). Returns (R,) int64 and (R,) float32: the natural log of the
    sampler's own probability, after temperature and after top_p's truncation and renormalisation.
    """
    log_probs = (logits.float() / temperature).log_softmax(-1)
    if top_p < 1:
        log_probs = nucleus(log_probs, top_p)
    cumulative = log_probs.exp().cumsum(-1, dtype=torch.float64)
    target = uniform[:, None] * cumulative[:, -1:]
    tokens = torch.searchsorted(cumulative, target, right=True).clamp_(max=logits.shape[-1] - 1)
    return tokens[:, 0], log_probs.gather(1, tokens)[:, 0]


def _surprisal(logits: Tensor, tokens: Tensor) -> Tensor:
    """(N, V), (N,) -> (N,) float32, the negative log-probability of each token."""
    rows = max(1, PORTION // logits.shape[1])
    parts = zip(logits.split(rows), tokens.split(rows), strict=True)
    return torch.cat([F.cross_entropy(part.float(), target, reduction="none") for part, target in parts])


class StopStrings:
    """Follows the text of R completions token by token, as vLLM does: without special tokens and without the prompt.

    The prompts only initialise the decoders: the text of a first token can depend on the token before it.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase | None, stop: Sequence[str], prompts: Sequence[Sequence[int]]
    ):
        """Raises ConfigError if there is no tokenizer, or it cannot decode a stream."""
        if tokenizer is None or not tokenizer.is_fast:
            raise ConfigError(
                f"stop strings {tuple(stop)} need a tokenizer of the tokenizers library",
                "give the worker the model's tokenizer, or leave the stop strings out",
            )
        self.tokenizer: Any = tokenizer.backend_tokenizer
        self.stop = tuple(stop)
        self.tail_length = max(map(len, self.stop)) - 1  # characters in which a stop string may have begun
        self.streams = [DecodeStream(ids=list(map(int, prompt)), skip_special_tokens=True) for prompt in prompts]
        self.tails = [""] * len(prompts)

    def completes(self, row: int, token: int) -> bool:
        """Appends this token to the row's completion. Returns whether it completes a stop string."""
        text = self.tails[row] + (self.streams[row].step(self.tokenizer, token) or "")
        self.tails[row] = text[max(0, len(text) - self.tail_length) :]
        return any(stop in text for stop in self.stop)


class TransformersWorker(RolloutWorker):
    """Samples and scores with a transformers model in this process.

    model: may be the module that the learner trains. Its mode (train or eval) is restored after each call; its
        generation_config and the global random state are neither read nor changed.
    eos_token_ids: each of these ends a completion. pad_token_id: any token that exists.
    batch_size: sequences decoded together. Memory is needed for their keys and values.
    dtype: autocast to it; None computes in the dtype of the weights.
    tokenizer: needed for stop strings only.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        eos_token_ids: Sequence[int],
        pad_token_id: int,
        batch_size: int = 256,
        dtype: torch.dtype | None = None,
        tokenizer: PreTrainedTokenizerBase | None = None,
    ):
        """Raises ConfigError if the model is recurrent or an encoder-decoder, or batch_size is not positive."""
        if model._is_stateful or model.config.is_encoder_decoder:
            raise ConfigError(
                f"rollout=transformers cannot sample from {described(model)}: it is no decoder of attention layers",
                "choose another model, of the types in docs/models.md, or rollout=vllm",
            )
        if batch_size < 1:
            raise ConfigError(f"rollout.batch_size={batch_size}", "write a positive number of sequences")
        self.model = model
        self.eos_token_ids, self.pad_token_id = torch.tensor(list(eos_token_ids), dtype=torch.int64), pad_token_id
        self.batch_size, self.dtype, self.tokenizer = batch_size, dtype, tokenizer
        self.context = context_length(model)
        self.mixes_lengths = self._verified()

    def _verified(self) -> bool:
        """Whether prompts of unequal lengths can be decoded side by side. Raises ConfigError if not even the samples of
        one prompt have the probabilities of a plain forward pass."""
        expected, wrong = probe(self.model), ""
        if expected is None:
            return True
        for padded in (True, False):
            wrong = decoding_mismatch(self.model, expected, padded, self.pad_token_id)
            if not wrong:
                return padded
        raise ConfigError(
            f"rollout=transformers cannot sample from {described(self.model)}: with cached keys and values {wrong}, "
            "against a forward pass without them",
            "choose another model, of the types in docs/models.md, or rollout=vllm",
        )

    @cached_property
    def shares_beginnings(self) -> bool:
        """Whether a beginning that prompts share can be read once: tried when the first such prompts come."""
        # Padding after a beginning would count in the distances that a window looks at. Layers with an attention of
        # their own may have one that no configuration names.
        attention = self.model.config.get_text_config()._attn_implementation
        if attention not in ("sdpa", "packed") or not attends_fully(self.model):
            return False
        expected, padded = probe(self.model, beginning=2), self.mixes_lengths
        return expected is None or not decoding_mismatch(self.model, expected, padded, self.pad_token_id, shared=2)

    def sample(self, prompts: Sequence[Sequence[int]], n: int, sampling: Sampling, seed: int) -> Rollouts:
        """As `RolloutWorker.sample`. batch_size does not change the samples either, but for float rounding."""
        check_sampling(prompts, n, sampling, self.context)
        seeds = [s for of_prompt in completion_seeds(prompts, n, seed) for s in of_prompt]  # i is of prompt i // n
        prompt_lengths = [len(prompt) for prompt in prompts for _ in range(n)]
        order = sorted(range(len(seeds)), key=lambda i: prompt_lengths[i])  # similar ones together: less padding
        tokens = [torch.empty(0)] * len(seeds)
        log_probs, finished = list(tokens), torch.zeros(len(seeds), dtype=torch.bool)
        with self._evaluating(), sampling_bar(len(seeds)) as advance:
            make_decoder = decoder_for(self.model)
            for members in self._batches(order, prompt_lengths):
                owners, rows = (torch.tensor(members) // n).unique(return_inverse=True)
                asked = [prompts[i] for i in owners]
                stops = None
                if sampling.stop:
                    stops = StopStrings(self.tokenizer, sampling.stop, [prompts[i // n] for i in members])
                decoder = make_decoder(asked, rows, sampling.max_tokens - 1, self.pad_token_id, self._shared(asked))
                completed = self._complete(decoder, [seeds[i] for i in members], sampling, stops, advance)
                drawn, drawn_log_probs, lengths, finished[members] = completed
                check_finite(drawn_log_probs)
                for row, (i, length) in enumerate(zip(members, lengths.tolist(), strict=True)):
                    tokens[i], log_probs[i] = drawn[row, :length], drawn_log_probs[row, :length]
        return Rollouts.from_rows(prompts, tokens, log_probs, finished)

    def log_likelihood(self, prompts: Sequence[Sequence[int]], continuations: Sequence[Sequence[int]]) -> list[float]:
        check_context(prompts, continuations, self.context)
        totals = torch.zeros(len(prompts))
        with self._evaluating():
            for members in self.likelihood_batches(prompts, continuations):
                totals[members] = self._likelihood([prompts[i] for i in members], [continuations[i] for i in members])
        return totals.tolist()

    def likelihood_batches(
        self, prompts: Sequence[Sequence[int]], continuations: Sequence[Sequence[int]]
    ) -> list[list[int]]:
        """The indices of the continuations that `log_likelihood` scores together. One batch alone has the same scores,
        to the last bit, as among the others."""
        asked = list(map(tuple, prompts))
        most = LOGITS // self.model.config.get_text_config().vocab_size  # tokens of a batch of several continuations
        one_lot = self.mixes_lengths or len(set(map(len, prompts))) == 1
        if one_lot and len(prompts) <= self.batch_size and sum(map(len, continuations)) <= most:
            return [list(range(len(prompts)))]  # a batch alone, too, which keeps its order
        # Equal prompts side by side: a batch reads each of them once. Similar lengths together: less padding; of
        # prompts that differ in a short end only, similar lengths of what follows.
        longest: dict[tuple[int, ...], int] = {}
        if self.mixes_lengths and self._shared(list(set(asked))):
            for prompt, continuation in zip(asked, continuations, strict=True):
                longest[prompt] = max(longest.get(prompt, 0), len(continuation))

        def key(i: int) -> tuple[int, int, tuple[int, ...], int]:
            return longest.get(asked[i], 0), len(asked[i]), asked[i], len(continuations[i])

        order = sorted(range(len(prompts)), key=key)
        batches: list[list[int]] = []
        for members in self._batches(order, list(map(len, prompts))):
            tokens = most + 1  # the batch in hand is as good as full
            for i in members:
                tokens += len(continuations[i])
                if tokens > most:
                    batches.append([])
                    tokens = len(continuations[i])
                batches[-1].append(i)
        return batches

    def sync(self, policy: torch.nn.Module) -> None:
        """Copies the policy's weights, unless the policy is this worker's own model."""
        if policy is not self.model:
            state = self.model.state_dict()
            for name, weight in merged_weights(policy):
                state[name].copy_(weight)

    def _shared(self, prompts: Sequence[Sequence[int]]) -> int:
        """How many tokens of their common beginning are read once: all, if that is long, or none."""
        shared = common_beginning(prompts) if len(prompts) > 1 else 0
        return shared if shared >= SHARED and self.shares_beginnings else 0

    def _batches(self, order: list[int], lengths: list[int]) -> Iterator[list[int]]:
        """`order` cut into batches of at most `batch_size`. lengths: of the sequences' prompts; if the model cannot
        decode prompts of unequal lengths side by side, ascending in this order, and equal within a batch."""
        lots = [order] if self.mixes_lengths else [list(lot) for _, lot in groupby(order, lambda i: lengths[i])]
        for lot in lots:
            yield from (lot[start : start + self.batch_size] for start in range(0, len(lot), self.batch_size))

    def _complete(
        self,
        decoder: Decoder,
        seeds: list[int],
        sampling: Sampling,
        stops: StopStrings | None,
        advance: Callable[[int, int], None],
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """(R, T) tokens and log-probabilities, (R,) int64 each row's length, and (R,) bool whether the row has ended.

        T is the length of the longest row; what follows a row's end is meaningless. advance: of `sampling_bar`.
        """
        count, steps, device = len(seeds), sampling.max_tokens, decoder.logits.device
        # One random number in [0, 1) per token: those of a longer completion begin with those of a shorter one.
        streams = [torch.Generator().manual_seed(seed) for seed in seeds]
        uniforms = torch.stack([torch.rand(steps, dtype=torch.float64, generator=s) for s in streams], dim=1).to(device)
        eos = self.eos_token_ids.to(device)
        tokens = torch.zeros(steps, count, dtype=torch.int64, device=device)
        log_probs = torch.zeros(steps, count, device=device)
        lengths = torch.zeros(count, dtype=torch.int64, device=device)
        rows = torch.arange(count, device=device)  # those that are still decoded
        done = torch.zeros(count, dtype=torch.bool, device=device)  # of those, which have ended
        logits, step, left = decoder.logits, 0, count
        for step in range(steps):
            newest, log_prob = draw(logits, uniforms[step, rows], sampling.temperature, sampling.top_p)
            tokens[step, rows], log_probs[step, rows] = newest, log_prob
            lengths[rows] += ~done
            if stops is not None:
                triples = zip(rows.tolist(), newest.tolist(), done.tolist(), strict=True)
                completed = [not ended and stops.completes(row, token) for row, token, ended in triples]
                done |= torch.tensor(completed, device=device)
            if not sampling.ignore_eos:
                done |= torch.isin(newest, eos)
            active = (~done).nonzero()[:, 0]
            advance(left - len(active), left)
            left = len(active)
            if step == steps - 1 or len(active) == 0:
                break
            if len(active) <= 0.875 * len(rows):  # moving their keys costs as much as reading them in a few steps
                decoder.keep(active)
                rows, newest, done = rows[active], newest[active], done[active]
            logits = decoder.step(newest)
        advance(left, 0)
        finished = torch.ones(count, dtype=torch.bool, device=device)
        finished[rows] = done
        return tokens[: step + 1].t().cpu(), log_probs[: step + 1].t().cpu(), lengths.cpu(), finished.cpu()

    def _likelihood(self, prompts: Sequence[Sequence[int]], continuations: Sequence[Sequence[int]]) -> Tensor:
        """(B,) summed log-probabilities. A prompt's keys and values serve all of its continuations."""
        device = self.model.device
        row_of = {prompt: row for row, prompt in enumerate(dict.fromkeys(map(tuple, prompts)))}
        rows, asked = torch.tensor([row_of[tuple(prompt)] for prompt in prompts]), list(row_of)
        unpadded = [torch.tensor(tokens, dtype=torch.int64, device=device) for tokens in continuations]
        # (B, T), padded on the right: in a causal model no real position attends to padding.
        tokens = pad_sequence(unpadded, batch_first=True, padding_value=self.pad_token_id)
        if tokens.shape[1] == 0:
            return torch.zeros(len(prompts))
        lengths = torch.tensor(list(map(len, continuations)), device=device)
        scored = torch.arange(tokens.shape[1], device=device) < lengths[:, None]
        losses = torch.zeros(tokens.shape, device=device)
        decoder = Decoder(self.model, asked, rows, tokens.shape[1] - 1, self.pad_token_id, self._shared(asked))
        first, later = scored[:, :1], scored[:, 1:]
        losses[:, :1][first] = _surprisal(decoder.logits[first[:, 0]], tokens[:, :1][first])
        if later.any():
            losses[:, 1:][later] = _surprisal(decoder.read_places(tokens[:, :-1], later), tokens[:, 1:][later])
        return -losses.sum(1).cpu()

    @contextmanager
    def _evaluating(self) -> Iterator[None]:
        """As `evaluating`, with `grouping_queries` and autocast to self.dtype."""
        rounds = self.dtype is not None
        with (
            evaluating(self.model),
            grouping_queries(),
            nullcontext() if rounds else torch.inference_mode(),  # in which autocast rounds all weights at every step
            torch.autocast(self.model.device.type, dtype=self.dtype, enabled=rounds),
        ):
            yield
