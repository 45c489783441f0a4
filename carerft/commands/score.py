"""Score answers that another program wrote: accuracy, honesty and calibration, without a model.

usage: carerft score samples=FILE benchmark=BENCHMARK [key=value ...]

FILE holds samples of lm-evaluation-harness (--log_samples), the output of a batch of OpenAI's API, or JSON lines
{"question" or "id": ..., "text": ... or "completions": [...]}. Every question needs the same number of answers.
Other keys are those of `carerft evaluate`.

examples:
  carerft score samples=samples_selfaware.jsonl benchmark=selfaware
  carerft score samples=out.jsonl benchmark=questions benchmark.questions.path=my.csv benchmark.questions.grader=number
"""

import sys

from carerft.errors import ConfigError


def main() -> None:
    """`carerft evaluate` of a file's answers."""
    words = sys.argv[1:]
    if {"-h", "--help"} & set(words):
        print((__doc__ or "").strip())
        return
    keys = {word.partition("=")[0] for word in words}
    for key in ("samples", "benchmark"):
        if key not in keys:
            raise ConfigError(f"{key}= is missing", "write carerft score samples=FILE benchmark=selfaware")
    named = [word.replace("samples=", "rollout.path=", 1) if word.startswith("samples=") else word for word in words]
    name = [] if "name" in keys else ["name=score"]
    sys.argv = [sys.argv[0], "rollout=recorded", *name, *named]

    from carerft.commands import evaluate

    evaluate.main()
