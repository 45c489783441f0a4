"""The command line's configuration: what is refused, how fast, and what is said instead. Nothing here loads a model."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.configurations import composed, refused, settings
from hydra.utils import instantiate

from carerft import cli
from carerft.config.checks import check_choice, check_evaluate, check_model_directory, check_train, check_words
from carerft.config.choices import WORLD_VOCABULARY, Machine, assuming, cpu_multiplies_in_bfloat16
from carerft.config.composition import CONF, train_settings
from carerft.config.identity import config_hash, differences
from carerft.errors import CareError, ConfigError
from carerft.world.bases import SHIPPED


@pytest.mark.parametrize(
    "overrides",
    [
        [],
        ["regularizer=none"],
        ["regularizer=rkl", "regularizer.estimator=k3"],
        ["regularizer=jsd", "regularizer.estimator=unbiased", "regularizer.match=local"],
        ["regularizer.beta_schedule=linear", "regularizer.beta_end=0"],
        ["regularizer.alpha_schedule=cosine", "regularizer.alpha_end=0"],
        ["algorithm.clip_high=null", "algorithm.polarity=negative"],
        ["algorithm=dapo", "algorithm.overlong_buffer=1", "algorithm.dynamic_shortage=smaller"],
        ["rollout.importance_correction=sequence", "rollout.importance_cap=0.5"],
        ["model=qwen2.5-7b", "task=math", "learner.precision=bfloat16"],
        ["model=qwen2.5-3b", "task=gsm8k"],
        ["model=qwen2.5-0.5b", "benchmark=[math,gsm8k]"],
        ["benchmark=[selfaware,truthfulqa,truthfulqa_binary]", "benchmark.truthfulqa.form=binary"],
        ["benchmark=none", "tracker=none", "steps=0"],
        ["experiment=demo"],
    ],
)
def test_compositions_that_work(overrides: list[str]):
    check_train(settings(*overrides))


def test_what_the_issue_reads_like():
    config = composed(
        "model=tiny",
        "algorithm=grpo",
        "regularizer=srkl",
        "regularizer.alpha=0.8",
        "regularizer.beta=0.04",
        "task=world",
    )
    assert config["regularizer"]["alpha"] == 0.8 and config["regularizer"]["estimator"] == "exact"
    assert list(config["benchmark"]) == ["world_reasoning", "world_transfer", "world_honesty", "world_truth"]
    assert list(composed("task=gsm8k")["benchmark"]) == ["gsm8k"]  # the benchmark follows the task


def test_an_evaluation_composes():
    check_evaluate(settings(verb="evaluate"))


@pytest.mark.parametrize(
    ("override", "names", "remedy"),
    [
        ("evaluation.temperature=0", "there would be one answer alone", "evaluation.temperature=0.01 is nearly greedy"),
        ("evaluation.temperature=-1", "evaluation.temperature=-1.0: must be at least 0", "0 or more"),
        ("evaluation.top_p=0", "evaluation.top_p=0.0: must be above 0 and at most 1", "at most 1"),
    ],
)
def test_impossible_evaluations(override: str, names: str, remedy: str):
    with pytest.raises(ConfigError) as error:
        check_evaluate(settings(override, verb="evaluate"))
    assert names in str(error.value) and remedy in str(error.value)
    refused(override, names, remedy)


@pytest.mark.parametrize(
    ("word", "instead"),
    [
        ("rollout.temperature=0.2", "write evaluation.temperature=0.2"),
        ("+rollout.top_p=0.2", "write evaluation.top_p=0.2"),
        ("rollout.max_tokens=1", "write benchmark.world_reasoning.max_tokens=1"),
    ],
)
def test_what_an_evaluation_does_not_take_from_rollout_is_refused(word: str, instead: str):
    with pytest.raises(ConfigError, match=rf"does not use it\n  {instead}"):
        check_words(settings(verb="evaluate"), ["benchmark=world", word])
    check_words(settings(verb="evaluate"), ["rollout=vllm", "rollout.batch_size=3"])


def test_a_server_may_be_asked_for_its_likeliest_answer_but_not_by_default_of_the_built_in_world():
    words = ["rollout=openai", "evaluation.temperature=0"]
    served = settings(*words, verb="evaluate")
    check_evaluate(served)
    with pytest.raises(ConfigError, match=r"rollout=openai without a benchmark: .*\n.*benchmark=\[math500,gsm8k\]"):
        check_choice(served, words)
    check_choice(served, [*words, "benchmark=world"])


@pytest.mark.parametrize(
    ("override", "names", "remedy"),
    [
        ("regularizer.alpha=1", "regularizer.alpha=1.0", "regularizer=none"),
        ("regularizer.alpha=-0.1", "regularizer.alpha=-0.1", "0.8"),
        ("regularizer.beta=-1", "regularizer.beta=-1", "0 or more"),
        ("regularizer.estimator=k1", "k1 has the wrong gradient", "exact"),
        ("regularizer.estimator=k4", "regularizer.estimator=k4", "exact"),
        ("algorithm.group_size=1", "algorithm.group_size=1", "2 or more"),
        ("algorithm.ratio=word", "algorithm.ratio=word", "token"),
        ("rollout.temperature=0.7", "rollout.temperature=0.7", "rollout.allow_biased_sampling=true"),
        ("rollout.top_p=0.9", "rollout.top_p=0.9", "evaluation.top_p"),
        ("rollout.top_p=1.1 rollout.allow_biased_sampling=true", "rollout.top_p=1.1", "at most 1"),
        ("rollout.temperature=0 rollout.allow_biased_sampling=true", "temperature=0.0: must be above 0", "1 is"),
        ("learner.updates_per_batch=5", "learner.updates_per_batch=5", "multiple of 5"),
        ("learner.precision=float16", "learner.precision=float16", "float32"),
        ("learner.max_grad_norm=0", "learner.max_grad_norm", "1e9"),
        ("task=gsm8k task.path=/nowhere/at/all.jsonl", "task.path=/nowhere/at/all.jsonl", "file of rows"),
        ("steps=-1", "steps=-1", "0 or more"),
        ("model.path=nonsense", "nonsense", "Qwen/Qwen2.5-3B"),
        ("tracker.mode=offlin", "tracker.mode=offlin", "offline"),
        ("learner.max_grad_norm=nan", "learner.max_grad_norm", "1e9"),
        ("rollout.importance_correction=word", "importance_correction=word: must be one of auto, none, token", "auto"),
        ("rollout.lookahead=2", "rollout.lookahead=2: must be 0 or 1", "staler"),
        ("rollout.lookahead=1", "rollout.lookahead=1 with rollout=transformers", "rollout.placement=dedicated"),
        ("rollout.importance_cap=0", "rollout.importance_cap=0.0: must be above 0", "2 is usual"),
        ("rollout.importance_cap=nan", "rollout.importance_cap=nan: must be above 0", "2 is usual"),
    ],
)
def test_impossible_values_are_named_with_a_remedy(override: str, names: str, remedy: str):
    refused(override, names, remedy)


@pytest.mark.parametrize(
    ("override", "names", "remedy"),
    [
        ("polarity=neither", "polarity=neither: must be one of both, positive, negative", "algorithm.polarity=both"),
        ("aggregation=mean", "aggregation=mean: must be one of sequence, token, constant", "sequence"),
        ("aggregation_constant=0", "aggregation_constant=0.0: must be above 0", "=${rollout.max_tokens}"),
        ("aggregation_constant=nan", "aggregation_constant=nan: must be above 0", "=${rollout.max_tokens}"),
        ("advantage_baseline=median", "advantage_baseline=median: must be one of mean, leave_one_out", "mean"),
        ("advantage_std=robust", "advantage_std=robust: must be one of sample, population, none", "sample"),
        ("advantage_eps=-1e-6", "advantage_eps=-1e-06: must be at least 0", "0 or more"),
        ("clip_low=-0.2", "clip_low=-0.2: must lie between 0 and 1", "between 0 and 1"),
        ("clip_low=1.5", "clip_low=1.5: must lie between 0 and 1", "between 0 and 1"),
        ("clip_high=-0.2", "clip_high=-0.2: must be at least 0", "0 or more"),
        ("dynamic_rounds=0", "dynamic_rounds=0: must be at least 1", "1 or more"),
        ("dynamic_shortage=ignore", "dynamic_shortage=ignore: must be one of error, smaller", "error"),
        ("overlong_buffer=1.2", "overlong_buffer=1.2: it is a share of rollout.max_tokens", "from 0 (no penalty) to 1"),
        ("overlong_buffer=-0.1", "overlong_buffer=-0.1: it is a share", "from 0 (no penalty) to 1"),
        ("overlong_buffer=0.2", "overlong_buffer=0.2 with algorithm.overlong_penalty=0: one does nothing", "set both"),
        ("overlong_penalty=0.5", "overlong_buffer=0 with algorithm.overlong_penalty=0.5: one does", "set both"),
        ("overlong_penalty=-0.5", "overlong_penalty=-0.5: must be at least 0", "0 or more"),
    ],
)
def test_impossible_algorithms(override: str, names: str, remedy: str):
    refused(f"algorithm.{override}", f"algorithm.{names}", remedy)


@pytest.mark.parametrize(
    ("name", "overrides", "names", "remedy"),
    [
        ("forward_kl", "estimator=k2", "estimator=k2: k2 is defined for a KL(policy || target) alone", "=exact"),
        ("jsd", "estimator=k2", "alone; must be one of exact, unbiased, k3", "regularizer.estimator=exact"),
        (
            "jsd",
            "estimator=k1",
            "estimator=k1: k1 has the wrong gradient; must be one of exact, unbiased, k3",
            "=exact",
        ),
        ("rkl", "estimator=k1", "k1 has the wrong gradient; must be one of exact, unbiased, k2, k3", "=exact"),
        ("rkl", "beta=-0.04", "regularizer.beta=-0.04: must be at least 0", "0 or more"),
        ("rkl", "beta_schedule=linear beta_end=-1", "regularizer.beta_end=-1.0: must be at least 0", "0 or more"),
        ("none", "entropy_bonus=-0.1", "regularizer.entropy_bonus=-0.1: must be at least 0", "0 or more"),
        ("rkl", "match=global", "regularizer.match=global: must be one of none, local", "regularizer.match=none"),
        ("srkl", "alpha_schedule=linear alpha_end=1", "alpha_end=1.0: must be at least 0 and below 1", "0.8"),
        ("srkl", "alpha_schedule=linear alpha_end=-0.1", "alpha_end=-0.1: must be at least 0 and below 1", "0.8"),
        ("srkl", "alpha=nan", "regularizer.alpha=nan: must be at least 0 and below 1", "0.8"),
        ("rkl", "beta_schedule=step beta_end=1", "beta_schedule=step: must be one of constant, linear, cosine", "="),
        ("rkl", "beta_schedule=linear", "beta_schedule=linear with regularizer.beta_end=null", "beta_end=NUMBER"),
        ("rkl", "beta_end=0.1", "beta_schedule=constant with regularizer.beta_end=0.1", "beta_schedule=linear"),
        ("srkl", "alpha_schedule=cosine", "alpha_schedule=cosine with regularizer.alpha_end=null", "alpha_end=NUMBER"),
        ("srkl", "alpha_end=0.5", "alpha_schedule=constant with regularizer.alpha_end=0.5", "alpha_schedule=linear"),
    ],
)
def test_impossible_regularizers(name: str, overrides: str, names: str, remedy: str):
    refused(" ".join([f"regularizer={name}", *(f"regularizer.{o}" for o in overrides.split())]), names, remedy)


@pytest.mark.parametrize(
    "own",
    [
        {"regularizer": {"_target_": "own.Penalty", "name": "own", "beta": 0.1}},
        {"algorithm": {"_target_": "own.Objective", "name": "own", "group_size": 4}},
        {"algorithm": {"_target_": "own.Objective", "name": "own", "group_size": 4, "overlong_buffer": None}},
        {"algorithm": {"_target_": "own.Objective", "name": "own", "group_size": 4, "aggregation_constant": None}},
    ],
)
def test_a_method_of_a_users_own_need_not_have_every_key(own: dict):
    check_train(train_settings({**composed(), **own}))


def test_a_bad_override_fails_before_torch_is_imported(tmp_path: Path):
    """In a process of its own: which modules were loaded, and the exit status."""
    code = (
        "import sys\nfrom carerft import cli\nstatus = cli.main(['train', 'regularizer.alpha=1'])\n"
        "heavy = [m for m in ('torch', 'transformers', 'datasets', 'wandb') if m in sys.modules]\n"
        "print(status, heavy)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, timeout=60)
    assert done.stdout.strip().endswith("2 []"), done.stdout + done.stderr
    assert "regularizer.alpha=1.0" in done.stderr


def write_model(directory: Path, **config: object) -> Path:
    directory.mkdir()
    (directory / "config.json").write_text(json.dumps({"model_type": "qwen2", **config}))
    (directory / "model.safetensors").write_bytes(b"")
    (directory / "tokenizer.json").write_text("{}")
    return directory


def test_model_directories(tmp_path: Path):
    check_model_directory(write_model(tmp_path / "good"))
    no_tokenizer = write_model(tmp_path / "no_tokenizer")
    (no_tokenizer / "tokenizer.json").unlink()
    with pytest.raises(CareError, match="holds no tokenizer"):
        check_model_directory(no_tokenizer)
    with pytest.raises(CareError, match="wants to run code"):
        check_model_directory(write_model(tmp_path / "code", auto_map={"AutoModelForCausalLM": "modeling.Evil"}))
    no_weights = write_model(tmp_path / "no_weights")
    (no_weights / "model.safetensors").unlink()
    with pytest.raises(CareError, match="safetensors"):
        check_model_directory(no_weights)
    with pytest.raises(CareError, match="no config"):
        check_model_directory(tmp_path / "absent")
    (tmp_path / "good" / "config.json").write_text("{")
    with pytest.raises(CareError, match="not valid JSON"):
        check_model_directory(tmp_path / "good")


def test_the_path_of_a_model_chooses_it():
    assert cli.expand_model(["model=/a/b=c", "seed=1"]) == ["model=path", 'model.path="/a/b=c"', "seed=1"]
    assert cli.expand_model(["model=tiny"]) == ["model=tiny"]
    config = composed(*cli.expand_model(["model=Some-Org/Some.Model-3B"]))
    assert config["model"]["name"] == "Some.Model-3B" and config["model"]["path"] == "Some-Org/Some.Model-3B"


def test_tab_completion_in_a_real_shell(tmp_path: Path):
    script = """
        eval "$(carerft train -sc install=bash)"
        try() {
            COMP_LINE="$1"; COMP_POINT=${#1}; COMP_WORDS=($1); COMP_CWORD=$((${#COMP_WORDS[@]} - 1)); COMPREPLY=()
            hydra_bash_completion
            echo "${COMPREPLY[@]}"
        }
        try "carerft ev"; try "carerft train regularizer=sr"; try "carerft train algorithm.gr"
    """
    path = f"{Path(sys.executable).parent}:/usr/bin:/bin"
    done = subprocess.run(
        ["bash", "-c", script], capture_output=True, text=True, cwd=tmp_path, timeout=60, env={"PATH": path}
    )
    assert not done.stderr
    assert done.stdout.splitlines() == [
        "evaluate",
        "regularizer=srkl regularizer=srkl_matched",
        "algorithm.group_size=",
    ]


def test_what_identifies_a_run():
    one, other = composed("seed=1"), composed("seed=2", "tracker=none", "learner.checkpoint_every=3", "name=other")
    assert differences(one, other) == ["seed: 1 -> 2"]
    assert config_hash(one) != config_hash(other)
    assert config_hash(composed("seed=2")) == config_hash(other)


def test_without_a_penalty_the_settings_of_one_decide_nothing():
    """A sweep at another beta has the reference that it had; an entropy bonus is a reference of its own."""

    def identity(*words: str) -> str:
        return config_hash(composed(*words))

    none = identity("regularizer=none")
    assert identity("regularizer=none", "regularizer.beta=0.64", "regularizer.match=local") == none
    assert identity("regularizer=none", "regularizer.estimator=k3") == none
    assert identity("regularizer=none", "regularizer.entropy_bonus=0.01") != none
    assert identity("regularizer=rkl", "regularizer.beta=0.64") != identity("regularizer=rkl")


def test_every_yaml_file_can_be_chosen():
    """None of conf/ can rot: each choice of each group composes with the defaults of the verb that it belongs to."""
    own = ["model.path=org/name"]  # of a model that is not on this disk
    elsewhere = dict.fromkeys(("path", "smollm2-135m", "demo_real", "demo_real_base"), own)
    needs = elsewhere | {"questions": [f"benchmark.questions.path={__file__}"]}
    needs |= {"recorded": [f"rollout.path={__file__}", "benchmark=world_truth"]}
    for file in sorted(CONF.glob("*/*.yaml")):
        group, name = file.parent.name, file.stem
        overrides = [f"{group}={name}", *needs.get(name, [])]
        verb = "evaluate" if name.endswith("_base") or name in ("openai", "recorded") else "train"
        config = settings(*overrides, verb=verb)
        needed = config.rollout.name, config.tracker.name
        if any(importlib.util.find_spec(one) is None for one in ("vllm", "tensorboard") if one in needed):
            continue  # composes; that it is refused without what it needs has a test of its own
        (check_evaluate if verb == "evaluate" else check_train)(config)


METHODS = [(g, f.stem) for g in ("algorithm", "regularizer") for f in sorted((CONF / g).glob("*.yaml"))]


@pytest.mark.parametrize(("group", "name"), METHODS)
def test_every_algorithm_and_regularizer_builds_with_what_its_file_says(group: str, name: str):
    record = composed(f"{group}={name}")[group]
    built = instantiate(record)
    assert f"{type(built).__module__}.{type(built).__name__}" == record.pop("_target_")
    assert {key: getattr(built, key) for key in record} == record


def test_biased_sampling_has_to_be_asked_for():
    check_train(settings("rollout.temperature=0.7", "rollout.top_p=0.9", "rollout.allow_biased_sampling=true"))


def test_the_constant_of_dr_grpo_is_the_limit_of_length():
    assert composed("algorithm=dr_grpo")["algorithm"]["aggregation_constant"] == 24  # the world's
    assert composed("algorithm=dr_grpo", "rollout.max_tokens=50")["algorithm"]["aggregation_constant"] == 50


def test_help_and_version(capsys):
    assert cli.main([]) == 0 and "usage: carerft COMMAND" in capsys.readouterr().out
    assert cli.main(["--version"]) == 0


def test_the_schema_documents_the_defaults():
    """Interpolated defaults resolve: what depends on the model and the task is filled in."""
    config = composed("model=qwen2.5-3b", "task=math")
    assert config["learner"]["learning_rate"] == config["model"]["learning_rate"] == 1e-6
    assert config["rollout"]["max_tokens"] == config["task"]["max_tokens"]


@pytest.mark.parametrize("verb", ["train", "evaluate"])
def test_a_real_model_is_not_taken_to_the_built_in_world_by_default(verb: str):
    what = "task" if verb == "train" else "benchmark"
    chosen = settings("model=qwen2.5-3b", verb=verb)
    for words in (["model=qwen2.5-3b"], ["model=qwen2.5-3b", "steps=3"]):
        with pytest.raises(ConfigError, match=f"model=qwen2.5-3b without a {what}") as raised:
            check_choice(chosen, words)
        assert "questions" in raised.value.remedy
    for words in ([f"{what}=world"], ["experiment=table1"], ["scale=tiny"], [f"+{what}@{what}.mine=world"]):
        check_choice(chosen, words)
    check_choice(settings("model=tiny", verb=verb), [])
    check_choice(settings(f"model.path={SHIPPED}", verb=verb), [])


def test_the_built_in_vocabulary_is_that_of_the_shipped_model():
    assert json.loads((SHIPPED / "config.json").read_text())["vocab_size"] == WORLD_VOCABULARY


def test_an_algorithm_of_ones_own_with_a_parameter_of_its_own(tmp_path: Path, capsys: pytest.CaptureFixture):
    """Its file lists all keys; one that takes a schema as well is told why its key is refused."""
    (tmp_path / "algorithm").mkdir()
    (tmp_path / "algorithm/gained.yaml").write_text(
        "defaults: [/schema/algorithm@_here_]\nname: gained\n_target_: mine.Gained\ngain: 2.0\n"
    )
    assert cli.main(["train", "--config-dir", str(tmp_path), "algorithm=gained", "--cfg", "job"]) == 2
    said = capsys.readouterr().err
    assert "algorithm/gained: the key 'gain'" in said and "leave `defaults` out" in said and "docs/method.md" in said
    (tmp_path / "algorithm/gained.yaml").write_text("name: gained\n_target_: mine.Gained\ngain: 2.0\n")
    assert (
        cli.main(["train", "--config-dir", str(tmp_path), "algorithm=gained", "algorithm.gain=3", "--cfg", "job"]) == 0
    )
    assert "gain: 3" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("flags", "quick"), [("avx512f avx512_bf16", True), ("amx_bf16", True), ("avx512f avx2", False)]
)
def test_a_small_real_model_learns_in_bfloat16_where_the_cpu_multiplies_in_it(flags, quick, tmp_path):
    info = tmp_path / "cpuinfo"
    info.write_text(f"processor : 0\nflags : fpu {flags}\n\nprocessor : 1\n")
    assert cpu_multiplies_in_bfloat16(info) is quick
    assert not cpu_multiplies_in_bfloat16(tmp_path / "absent")
    with assuming(Machine(gpu=False, vllm=False, quick_cpu=quick)):
        small = settings("scale=small", "model=smollm2-135m")
        assert small.learner.precision == ("bfloat16" if quick else "float32")
        assert settings("model=smollm2-135m", "task=arithmetic", "benchmark=none").learner.precision == "float32"
    with assuming(Machine(gpu=True, vllm=False, older="a T4", quick_cpu=True)):
        assert settings("scale=small", "model=smollm2-135m").learner.precision == "float32"
        assert settings("scale=small", "model=smollm2-135m", "learner.device=cpu").learner.precision == "bfloat16"


def test_precision_checkpointing_and_rollout_follow_model_and_machine():
    """Without a GPU everything is as the code's defaults have it, and no hash changes."""

    def taken(*words: str) -> tuple[str, bool, str]:
        chosen = settings(*words)
        return chosen.learner.precision, chosen.learner.gradient_checkpointing, chosen.rollout.name

    real, usual = ["model=qwen2.5-3b", "task=math"], ("float32", False, "transformers")
    assert taken(*real) == taken("model=tiny") == usual
    on_cpu = composed(*real)
    with assuming(Machine(gpu=True, vllm=True)):
        assert taken(*real) == ("bfloat16", True, "vllm")
        assert taken("model=tiny") == usual and taken(f"model.path={SHIPPED}") == usual  # of so small a model
        assert taken(*real, "learner.device=cpu")[:2] == usual[:2]
        assert taken(*real, "learner.precision=float32", "rollout=transformers") == ("float32", True, "transformers")
        assert settings("model=qwen2.5-3b", "benchmark=math", verb="evaluate").precision == "bfloat16"
        assert {"learner.precision: float32 -> bfloat16"} < set(differences(on_cpu, composed(*real)))
    with assuming(Machine(gpu=True, vllm=False)):
        assert taken(*real) == ("bfloat16", True, "transformers")
    plainly = ["learner.precision=float32", "learner.gradient_checkpointing=false", "rollout=transformers"]
    assert config_hash(on_cpu) == config_hash(composed(*real, *plainly))
