"""lm-evaluation-harness's half of `against_lm_eval.py`, run by the Python of its own environment.

    python lm_eval_side.py SPEC.json

SPEC.json: {"model": a directory, "truthfulqa" | "gsm8k" | "math": JSON lines in the hub's form}. Prints one line of
JSON, {task: {filter/metric: a value for each row, in order}}. The tasks are lm-eval's own YAML files, but the data are
read from these files. Rows of gsm8k and math have a field `completion`, which replaces a model's completion.
"""

import json
import os
import sys
import tempfile
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = os.environ["HF_DATASETS_OFFLINE"] = "1"

import lm_eval
import yaml
from lm_eval.api.model import LM
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager

TASKS = {
    "truthfulqa_mc1": ("truthfulqa", "truthfulqa/truthfulqa_mc1.yaml", "validation"),
    "truthfulqa_mc2": ("truthfulqa", "truthfulqa/truthfulqa_mc2.yaml", "validation"),
    "gsm8k": ("gsm8k", "gsm8k/gsm8k.yaml", "test"),
    "minerva_math": ("math", "minerva_math/minerva_math_algebra.yaml", "test"),
}
"""name: (key of SPEC.json, lm-eval's file, the split that it measures)."""


class Replay(LM):
    """A model whose completion of a row is the row's `completion`, cut at the task's stop strings."""

    def generate_until(self, requests, **kwargs) -> list[str]:
        completions = []
        for request in requests:
            text = request.doc["completion"]
            for stop in request.args[1]["until"]:
                text = text.split(stop)[0]
            completions.append(text)
        return completions

    def loglikelihood(self, requests, **kwargs):
        raise NotImplementedError

    loglikelihood_rolling = loglikelihood


def local_task(name: str, file: str, split: str, data: str) -> str:
    """The YAML of lm-eval's task, with data from a file, and without examples before the question."""
    splits = {key: None for key in ("training_split", "validation_split", "test_split", "fewshot_split")}
    changes = {
        "include": str(Path(lm_eval.__file__).parent / "tasks" / file),
        "task": f"{name}_local",
        "dataset_path": "json",
        "dataset_name": None,
        "dataset_kwargs": {"data_files": {split: data}},
        "num_fewshot": 0,
        "tag": None,
        **splits,
        f"{split}_split": split,
    }
    return yaml.safe_dump(changes)


def main(spec: dict) -> dict:
    results = {}
    with tempfile.TemporaryDirectory() as directory:
        tasks = {name: task for name, task in TASKS.items() if task[0] in spec}
        for name, (key, file, split) in tasks.items():
            (Path(directory) / f"{name}.yaml").write_text(local_task(name, file, split, spec[key]))
        manager = TaskManager(include_path=directory, include_defaults=False)
        for name, (key, _, _) in tasks.items():
            model = Replay()
            if key == "truthfulqa":
                model = HFLM(pretrained=spec["model"], dtype="float32", device="cpu", batch_size=32)
            result = lm_eval.simple_evaluate(
                model, tasks=[f"{name}_local"], task_manager=manager, bootstrap_iters=0, log_samples=True
            )
            values: dict[str, dict[int, float]] = {}
            for sample in result["samples"][f"{name}_local"]:
                for metric in sample["metrics"]:
                    values.setdefault(f"{sample['filter']}/{metric}", {})[sample["doc_id"]] = float(sample[metric])
            results[name] = {key: [rows[i] for i in sorted(rows)] for key, rows in values.items()}
    return results


if __name__ == "__main__":
    print(json.dumps(main(json.loads(Path(sys.argv[1]).read_text()))))
