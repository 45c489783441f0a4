"""The files of a run's directory, as docs/reference/files.md lists them."""

FILES = {
    "`manifest.json`": "status, configuration and its hash, inputs, git revision, versions, hardware, seed, times, the "
    "error if it failed",
    "`.hydra/`": "the composed configuration, and the words of the command",
    "`train.log`, `evaluate.log`": "what was logged",
    "`metrics.jsonl`": "a line for each optimizer step: [metrics](metrics.md)",
    "`samples/step_<n>.jsonl`": "completions of the batch that step n began with (samples.every): prompt, text, "
    "rewards, advantage, tokens with their log-probabilities under policy and reference",
    "`checkpoints/step_<n>/`": "all that a bit-exact resumption needs, with checksums",
    "`model/`": "the final policy in Hugging Face format; `adapter/` beside it with LoRA",
    "`evaluation.json`": "every metric with its bootstrap interval, and a calibration diagram's bins",
    "`evaluation/<benchmark>.problems.jsonl`": "a line for each question: prompt, answer, MC1 and MC2",
    "`evaluation/<benchmark>.jsonl`": "a line for each sampled answer: text, what was extracted, verdict, refusal, "
    "log-probability, tokens",
    "`evaluation/step_<n>/`": "the same files of the policy after step n, and evaluation.json (evaluation.every)",
    "`model_best/`": "the policy that was best (keep_best)",
    "`after_step_<n>/`": "evaluation of a run that was then continued with more steps",
    "`nonfinite/`": "the batch of a step whose loss or gradient was not finite",
    "`wandb/`, `tensorboard/`": "what these trackers write",
}
