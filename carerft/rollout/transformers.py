"""The rollout worker that samples with transformers, from the very weights that the learner trains.

No engine beside it, nothing to install, any causal language model with attention; slower than vLLM on a large model.
`generate` is not used: it reads the model's generation_config, concatenates its cache at every step, decodes rows that
have ended, and draws from the global random state.
"""

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from carerft.errors import ConfigError, NonFiniteError
from carerft.model.compilation import eagerly
from carerft.model.lora import merged_weights
from carerft.rollout import Rollouts, Sampling
from carerft.rollout.decoding import Decoder, decoder_for
from carerft.rollout.requests import check_context, check_sampling, completion_seeds
from carerft.rollout.stops import StopStrings

LOGITS = 2**27  # how many logits log_likelihood holds at a time: half a gibibyte in float32


def uniforms(seed: int, steps: int) -> Tensor:
    """(steps,) float64 in [0, 1): the noise of one completion, one number per token, the same at any limit of length.

    seed: of `completion_seeds`.
    """
    return torch.rand(steps, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def nucleus(log_probs: Tensor, top_p: float) -> Tensor:
    """(R, V) log-probabilities of the most likely tokens that together reach top_p, renormalised; -inf elsewhere.

    Holtzman et al. 2020, arXiv 1904.09751, equations 2 and 3.
    """
    descending, index = log_probs.sort(dim=-1, descending=True)
    probs = descending.exp()
    outside = probs.cumsum(-1) - probs >= top_p  # the tokens before it suffice
    outside = torch.zeros_like(outside).scatter_(-1, index, outside)
    return log_probs.masked_fill(outside, -torch.inf).log_softmax(-1)


def draw(logits: Tensor, uniform: Tensor, temperature: float, top_p: float) -> tuple[Tensor, Tensor]:
    """One token per row by inversion of the cumulative distribution, and the log-probability that it was drawn with.

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


class TransformersWorker:
    """Samples and scores with a transformers model in this process. Implements `RolloutWorker`.

    model: sampled from as it is at the call; it may be the module that the learner trains. Its mode (train or eval)
        is put back, its generation_config and the global random state are neither read nor changed.
    eos_token_ids: each of these ends a completion. pad_token_id: any token that exists.
    batch_size: sequences decoded together. Their keys and values are what memory is needed for.
    dtype: autocast to it; None computes in the dtype of the weights.
    progress: called with (sequences done, sequences asked for) after each batch.
    tokenizer: only stop strings need it.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        eos_token_ids: Sequence[int],
        pad_token_id: int,
        batch_size: int = 256,
        dtype: torch.dtype | None = None,
        progress: Callable[[int, int], None] | None = None,
        tokenizer: PreTrainedTokenizerBase | None = None,
    ):
        """Raises ConfigError where the model keeps recurrent state or batch_size is not positive."""
        if model._is_stateful or model.config.is_encoder_decoder:
            raise ConfigError(
                f"rollout=transformers cannot sample from {type(model).__name__}: it is no decoder of attention layers",
                "choose another model",
            )
        if batch_size < 1:
            raise ConfigError(f"rollout.batch_size={batch_size}", "write a positive number of sequences")
        self.model = model
        self.eos_token_ids, self.pad_token_id = torch.tensor(list(eos_token_ids), dtype=torch.int64), pad_token_id
        self.batch_size, self.dtype, self.progress, self.tokenizer = batch_size, dtype, progress, tokenizer

    def sample(self, prompts: Sequence[Sequence[int]], n: int, sampling: Sampling, seed: int) -> Rollouts:
        """n completions of each prompt. The same weights, arguments and seed give the same samples.

        A prompt's samples do not depend on the prompts beside it, on batch_size, or (the first of them) on n; only
        float rounding, which follows the shape of a batch, can in rare cases turn a token.
        Raises DataError (no prompts, an empty one, one longer than the context), ConfigError (sampling out of range,
        max_tokens beyond the context, stop strings without a tokenizer) and NonFiniteError (the model's probabilities
        are not numbers).
        """
        check_sampling(prompts, n, sampling, self._context())
        seeds = completion_seeds(prompts, n, seed)
        sequences = [(prompt, s) for prompt in range(len(prompts)) for s in seeds[prompt]]
        # Prompts of similar length together: less padding.
        order = sorted(range(len(sequences)), key=lambda i: len(prompts[sequences[i][0]]))
        # (sequences, their tokens, their log-probabilities)
        drawn: list[tuple[list[int], Tensor, Tensor]] = []
        stopped = torch.zeros(len(order), dtype=torch.int64)
        with self._evaluating():
            make_decoder = decoder_for(self.model)
            for start in range(0, len(order), self.batch_size):
                members = order[start : start + self.batch_size]
                chosen = [sequences[i] for i in members]
                noise = torch.stack([uniforms(s, sampling.max_tokens) for _, s in chosen])
                which, rows = torch.tensor([p for p, _ in chosen]).unique(return_inverse=True)
                stops = None
                if sampling.stop:
                    stops = StopStrings(self.tokenizer, sampling.stop, [prompts[p] for p, _ in chosen])
                decoder = make_decoder([prompts[i] for i in which], rows, sampling.max_tokens, self.pad_token_id)
                tokens, log_probs, ends = self._complete(decoder, noise.to(self.model.device), sampling, stops)
                drawn.append((members, tokens.cpu(), log_probs.cpu()))
                stopped[members] = ends
                if self.progress is not None:
                    self.progress(start + len(members), len(order))
        width = max(tokens.shape[1] for _, tokens, _ in drawn)
        tokens, log_probs = torch.zeros(len(order), width, dtype=torch.int64), torch.zeros(len(order), width)
        for members, some_tokens, some_log_probs in drawn:
            tokens[members, : some_tokens.shape[1]] = some_tokens
            log_probs[members, : some_tokens.shape[1]] = some_log_probs
        if not log_probs.isfinite().all():
            raise NonFiniteError(
                "sampling met probabilities that are not finite numbers: the policy's weights have diverged",
                "go back to an earlier checkpoint, and on with a lower learning rate",
            )
        return self._rollouts(prompts, tokens, log_probs, stopped, sampling.ignore_eos)

    def log_likelihood(self, prompts: Sequence[Sequence[int]], continuations: Sequence[Sequence[int]]) -> list[float]:
        """Sum of log-probabilities (nats) of each continuation's tokens given its prompt, at temperature 1.

        Raises DataError: no prompts, an empty one, or one that with its continuation exceeds the context.
        """
        pairs = [(list(p), list(c)) for p, c in zip(prompts, continuations, strict=True)]
        check_context(prompts, [len(c) for c in continuations], self._context())
        # Equal prompts side by side: a batch reads each of them once. Similar lengths together: less padding.
        order = sorted(range(len(pairs)), key=lambda i: (len(pairs[i][0]), pairs[i][0], len(pairs[i][1])))
        longest = max(1, max(len(continuation) for _, continuation in pairs))
        size = max(1, min(self.batch_size, LOGITS // (longest * self.model.config.get_text_config().vocab_size)))
        totals = [0.0] * len(pairs)
        with self._evaluating():
            for start in range(0, len(order), size):
                members = order[start : start + size]
                batch = [pairs[i] for i in members]
                for i, total in zip(members, self._likelihood(batch).tolist(), strict=True):
                    totals[i] = total
        return totals

    def sync(self, policy: torch.nn.Module) -> None:
        """Sample from these weights from now on: nothing to do where the policy is this very module."""
        if policy is not self.model:
            own = self.model.state_dict()
            for name, weight in merged_weights(policy):
                own[name].copy_(weight)

    def sleep(self) -> None:
        """There is no memory to give back: the weights are the learner's."""

    def close(self) -> None:
        """There is no engine to end."""

    def _complete(
        self, decoder: Decoder, noise: Tensor, sampling: Sampling, stops: StopStrings | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """(R, T) tokens, their log-probabilities, and (R,) int64 how many tokens a stop string ended with, or 0.

        noise: (R, max_tokens). T is where the last row ended; what follows a row's own end means nothing.
        """
        count, steps = noise.shape
        noise = noise.t().contiguous()
        eos = self.eos_token_ids.to(noise.device)
        tokens = torch.zeros(steps, count, dtype=torch.int64, device=noise.device)
        log_probs = torch.zeros(steps, count, device=noise.device)
        stopped = torch.zeros(count, dtype=torch.int64)
        rows = torch.arange(count, device=noise.device)  # of those still decoded
        done = torch.zeros(count, dtype=torch.bool, device=noise.device)
        logits = decoder.logits
        for step in range(steps):
            newest, log_prob = draw(logits, noise[step, rows], sampling.temperature, sampling.top_p)
            tokens[step, rows], log_probs[step, rows] = newest, log_prob
            if stops is not None:
                for i, (row, token, over) in enumerate(zip(*(t.tolist() for t in (rows, newest, done)), strict=True)):
                    if not over and stops.completes(row, token):
                        stopped[row], done[i] = step + 1, True
            if step == steps - 1:
                break
            if not sampling.ignore_eos:
                done |= torch.isin(newest, eos)
            if not sampling.ignore_eos or stops is not None:
                left = len(rows) - int(done.sum())
                if left == 0:
                    break
                if left <= 0.875 * len(rows):  # moving the others' keys costs a few steps' reading of them
                    going = (~done).nonzero()[:, 0]
                    decoder.keep(going)
                    rows, newest, done = rows[going], newest[going], done[going]
            logits = decoder.step(newest)
        return tokens[: step + 1].t(), log_probs[: step + 1].t(), stopped

    def _rollouts(
        self, prompts: Sequence[Sequence[int]], tokens: Tensor, log_probs: Tensor, stopped: Tensor, ignore_eos: bool
    ) -> Rollouts:
        """Cuts (S, T) after each row's first end-of-sequence token or stop string, and pads the prompts."""
        ends = torch.isin(tokens, self.eos_token_ids) & (not ignore_eos)
        ends |= torch.arange(1, tokens.shape[1] + 1) == stopped[:, None]
        finished = ends.any(1)
        lengths = torch.where(finished, ends.int().argmax(1) + 1, tokens.shape[1])
        width = int(lengths.max())
        outside = torch.arange(width) >= lengths[:, None]
        prompt_tokens = [torch.tensor(prompt, dtype=torch.int64) for prompt in prompts]
        return Rollouts(
            prompt_tokens=torch.nn.utils.rnn.pad_sequence(prompt_tokens, batch_first=True),
            prompt_lengths=torch.tensor([len(prompt) for prompt in prompts]),
            tokens=tokens[:, :width].masked_fill(outside, 0),
            lengths=lengths,
            log_probs=log_probs[:, :width].masked_fill(outside, 0),
            finished=finished,
        )

    def _likelihood(self, pairs: list[tuple[list[int], list[int]]]) -> Tensor:
        """(B,) summed log-probabilities. A prompt's keys and values serve all of its continuations."""
        device = self.model.device
        prompts = list(dict.fromkeys(tuple(prompt) for prompt, _ in pairs))
        place = {prompt: row for row, prompt in enumerate(prompts)}
        rows = torch.tensor([place[tuple(prompt)] for prompt, _ in pairs])
        continuations = [torch.tensor(tokens, dtype=torch.int64, device=device) for _, tokens in pairs]
        # (B, T), padded on the right: a causal model's real positions never see it.
        tokens = torch.nn.utils.rnn.pad_sequence(continuations, batch_first=True, padding_value=self.pad_token_id)
        if tokens.shape[1] == 0:
            return torch.zeros(len(pairs))
        decoder = Decoder(self.model, prompts, rows, tokens.shape[1] - 1, self.pad_token_id)
        logits = decoder.logits[:, None]
        if tokens.shape[1] > 1:
            logits = torch.cat([logits, decoder.read(tokens[:, :-1])], dim=1)
        losses = F.cross_entropy(logits.float().flatten(0, 1), tokens.flatten(), reduction="none").view(tokens.shape)
        lengths = torch.tensor([len(tokens) for tokens in continuations], device=device)
        scored = torch.arange(tokens.shape[1], device=device) < lengths[:, None]
        return -(losses * scored).sum(1).cpu()

    def _context(self) -> int:
        """Most tokens that the model can read; a model that names no limit has none."""
        return getattr(self.model.config.get_text_config(), "max_position_embeddings", None) or sys.maxsize

    @contextmanager
    def _evaluating(self) -> Iterator[None]:
        """Eval mode, no gradients, autocast if asked for; every module's own mode is put back."""
        modes = [(module, module.training) for module in self.model.modules()]
        self.model.eval()
        try:
            with (
                eagerly(),
                torch.inference_mode(),
                torch.autocast(self.model.device.type, dtype=self.dtype, enabled=self.dtype is not None),
            ):
                yield
        finally:
            for module, training in modes:
                module.training = training
