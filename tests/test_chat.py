"""Chat models: when prompts go into the model's chat template, what ends a turn, and what is shown of it."""

import json
import logging
from pathlib import Path

import pytest
import torch
from helpers.engines import needs_vllm
from helpers.invented_rows import LOSS, MOON, SUM, document, write
from helpers.runs import read_lines, run
from transformers import AutoModelForCausalLM, AutoTokenizer

from carerft.errors import ConfigError
from carerft.model.chat import end_of_turn, eos_token_ids, uses_chat
from carerft.report.build import build as build_report
from carerft.report.columns import samples_text
from carerft.report.rows import make_rows
from carerft.runs.reading import load_runs
from carerft.tasks import Problem
from carerft.tasks.encoding import ChatTask, encode, prompt_tokens, show_prompt
from carerft.tasks.gsm8k import Gsm8kTask
from carerft.world.bases import SHIPPED

# As Qwen2.5's, without its system message.
CHATML = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def with_template(template: str | None = CHATML):
    """The tiny base model and its tokenizer, with the tokens of a chat and a template beside them, as Qwen2.5's base
    models come."""
    tokenizer = AutoTokenizer.from_pretrained(SHIPPED)
    model = AutoModelForCausalLM.from_pretrained(SHIPPED)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    model.resize_token_embeddings(len(tokenizer))
    tokenizer.chat_template = template
    return model, tokenizer


@pytest.fixture
def base():
    return with_template()


@pytest.fixture
def chat(tmp_path) -> Path:
    """A directory of the same model as an instruction-tuned one comes: it generates until the end of a turn."""
    model, tokenizer = with_template()
    model.generation_config.eos_token_id = [tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids("<|im_end|>")]
    model.save_pretrained(tmp_path / "chat")
    tokenizer.save_pretrained(tmp_path / "chat")
    return tmp_path / "chat"


def test_a_base_model_that_comes_with_a_template_is_no_chat_model(base):
    assert uses_chat(None, *base) is False
    assert uses_chat(True, *base) is True
    assert uses_chat(None, *with_template(None)) is False


def test_a_model_that_generates_until_the_end_of_a_turn_is_one(chat):
    model, tokenizer = AutoModelForCausalLM.from_pretrained(chat), AutoTokenizer.from_pretrained(chat)
    assert uses_chat(None, model, tokenizer) is True
    assert uses_chat(False, model, tokenizer) is False


def test_the_token_that_ends_a_turn_ends_a_completion(base):
    model, tokenizer = base
    end, document_end = tokenizer.convert_tokens_to_ids("<|im_end|>"), tokenizer.eos_token_id
    assert end_of_turn(tokenizer) == end
    assert eos_token_ids(model, tokenizer) == [document_end]
    assert eos_token_ids(model, tokenizer, chat=True) == sorted([document_end, end])
    tokenizer.chat_template = "{% for m in messages %}{{ m.role }}: {{ m.content }} <|endoftext|>{% endfor %}"
    assert end_of_turn(tokenizer) == document_end


@pytest.mark.parametrize(
    "template",
    [None, "{% for m in messages %}{{ m.content }}\n{% endfor %}", "{{ raise_exception('no') }}", "{% for %}"],
    ids=["none", "without an end", "that refuses", "that is no template"],
)
def test_a_chat_without_a_usable_template_is_refused(template):
    model, tokenizer = with_template(template)
    assert end_of_turn(tokenizer) is None and uses_chat(None, model, tokenizer) is False
    with pytest.raises(ConfigError, match=r"model\.chat=true"):
        uses_chat(True, model, tokenizer)


def test_the_whole_prompt_is_the_users_turn_and_a_choice_the_assistants(base, tmp_path):
    class Moon:
        name = "moon"

        def problems(self):
            return [Problem("m", "Q: What is it?\nA:", "a stone", choices=((" a stone", True), (" a lamp", False)))]

    (problem,) = ChatTask(Moon(), base[1]).problems()
    assert problem.prompt == "<|im_start|>user\nQ: What is it?\nA:<|im_end|>\n<|im_start|>assistant\n"
    assert problem.choices == (("a stone", True), ("a lamp", False))
    assert (problem.id, problem.answer) == ("m", "a stone")
    plain = Gsm8kTask("test", path=write(tmp_path / "some.jsonl", SUM, LOSS))
    chat_task = ChatTask(plain, base[1])
    texts = ["#### 1,080", "?"]
    assert chat_task.name == plain.name
    assert chat_task.grade(chat_task.problems(), texts) == plain.grade(plain.problems(), texts)


def test_a_text_begins_once_where_the_tokenizer_begins_texts(base):
    """As Llama's does: <|im_start|> plays its <|begin_of_text|>."""
    from tokenizers.processors import TemplateProcessing

    tokenizer = base[1]
    plain = encode(["Q: two"], tokenizer)
    assert plain == [tokenizer("Q: two")["input_ids"]]  # nothing is added by Qwen's
    begin = tokenizer.convert_tokens_to_ids("<|im_start|>")
    tokenizer.bos_token = "<|im_start|>"
    assert encode(["Q: two"], tokenizer) == plain  # it has such a token, and does not put it before texts
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<|im_start|> $A", special_tokens=[("<|im_start|>", begin)]
    )
    assert encode(["Q: two", "<|im_start|>user"], tokenizer)[0] == [begin, *plain[0]]
    assert encode(["<|im_start|>user"], tokenizer)[0].count(begin) == 1
    assert encode([], tokenizer) == []


def test_what_is_shown_of_a_prompt_is_what_the_model_reads(base, caplog):
    problem = Problem("x", "<|im_start|>user\n1 + 1 , and\n\n  2?<|im_end|>\n", "2")
    (tokens,) = prompt_tokens([problem], base[1], max_tokens=1, context=100)
    with caplog.at_level(logging.INFO):
        show_prompt("math", problem, tokens, base[1])
    assert caplog.messages == [f"math, prompt of problem x ({len(tokens)} tokens):\n{problem.prompt}"]


@pytest.mark.parametrize(("setting", "templated"), [("null", True), ("false", False)])
def test_evaluate_asks_a_chat_model_in_its_template_and_says_so(chat, tmp_path, setting, templated):
    rows, moon = write(tmp_path / "g.jsonl", SUM, LOSS), document(tmp_path / "t.json", [MOON])
    overrides = [
        f"model={chat}", f"model.chat={setting}", "benchmark=[gsm8k,truthfulqa]", f"benchmark.gsm8k.path={rows}",
        f"benchmark.truthfulqa.path={moon}", "benchmark.gsm8k.prompt=instruction", "benchmark.gsm8k.max_tokens=4",
        "benchmark.truthfulqa.max_tokens=4",
    ]  # fmt: skip
    assert run(tmp_path / "run", *overrides, verb="evaluate") == 0
    evaluation = json.loads((tmp_path / "run" / "evaluation.json").read_text())
    assert evaluation["chat"] is templated
    assert evaluation["prompts"] == {"gsm8k": "instruction", "truthfulqa": "few_shot"}
    prompt = read_lines(tmp_path / "run" / "evaluation" / "gsm8k.problems.jsonl")[0]["prompt"]
    assert prompt.startswith("<|im_start|>user\nAnn has") is templated
    assert prompt.endswith("boxed{}.<|im_end|>\n<|im_start|>assistant\n") is templated
    (record,) = read_lines(tmp_path / "run" / "evaluation" / "truthfulqa.problems.jsonl")
    assert 0 < record["mc2"] < 1
    log = (tmp_path / "run" / "evaluate.log").read_text()
    assert f"gsm8k, prompt of problem gsm8k/test/0 ({len_of(prompt, chat)} tokens):\n{prompt}" in log
    assert "truthfulqa, prompt of problem truthfulqa/mc/0" in log


def test_choices_are_measured_without_sampling_anything(chat, tmp_path, capsys):
    """With `max_tokens=0`: MC1 and MC2 are those of a measurement with samples, and a report can show them."""
    moon = document(tmp_path / "t.json", [MOON])
    common = [f"model={chat}", "model.chat=false", "benchmark=truthfulqa", f"benchmark.truthfulqa.path={moon}"]
    entries = {}
    for tokens in (0, 4):
        assert (
            run(tmp_path / "runs" / str(tokens), *common, f"benchmark.truthfulqa.max_tokens={tokens}", verb="evaluate")
            == 0
        )
        entries[tokens] = json.loads((tmp_path / "runs" / str(tokens) / "evaluation.json").read_text())["benchmarks"]
    alone, beside = (entries[tokens]["truthfulqa"] for tokens in (0, 4))
    assert alone == {"n": 1, "k": 0, "metrics": {name: beside["metrics"][name] for name in ("mc1", "mc2")}}
    page = build_report([tmp_path / "runs" / "0"]).read_text()
    assert "MC2" in page and "ECE" not in page and "No such file" not in page
    rows = make_rows(load_runs([tmp_path / "runs"]))
    assert samples_text(rows, ["truthfulqa"]) == "2"  # of those that were sampled
    gsm8k = [f"benchmark.gsm8k.path={write(tmp_path / 'g.jsonl', SUM)}", "benchmark.gsm8k.max_tokens=0"]
    capsys.readouterr()
    assert run(tmp_path / "runs" / "x", f"model={chat}", "benchmark=gsm8k", *gsm8k, verb="evaluate") != 0
    assert "max_tokens=0 measures by the likelihoods of choices alone" in capsys.readouterr().err


def len_of(prompt: str, directory: Path) -> int:
    return len(AutoTokenizer.from_pretrained(directory)(prompt)["input_ids"])


def says_only(model, token: int) -> None:
    """Make a model's every next token this one: no layer adds anything, and this token's embedding is the longest."""
    with torch.no_grad():
        for layer in model.model.layers:
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
        model.model.norm.weight.fill_(1.0)
        for embedding in (model.get_input_embeddings().weight, model.get_output_embeddings().weight):
            embedding.fill_(0.5)
            embedding[token] = 5.0


@pytest.mark.parametrize("backend", ["transformers", pytest.param("vllm", marks=needs_vllm)])
@pytest.mark.parametrize("setting", ["true", "false"])
def test_an_evaluation_samples_no_further_than_a_reply_is_read(base, tmp_path, backend, setting):
    """A model that says nothing but " owl", and a template whose replies end at the third."""
    model, tokenizer = base
    says_only(model, tokenizer(" owl")["input_ids"][0])
    model.save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    rows, prompt = write(tmp_path / "g.jsonl", SUM, LOSS), document(tmp_path / "p.yaml", OWLS)
    overrides = [
        f"model={tmp_path / 'base'}", f"model.chat={setting}", "benchmark=gsm8k", f"benchmark.gsm8k.path={rows}",
        f"benchmark.gsm8k.prompt={prompt}", "benchmark.gsm8k.max_tokens=40", f"rollout={backend}",
    ]  # fmt: skip
    assert run(tmp_path / "run", *overrides, verb="evaluate") == 0
    records = read_lines(tmp_path / "run" / "evaluation" / "gsm8k.jsonl")
    assert {(r["text"], r["tokens"], r["truncated"]) for r in records} == {(" owl owl owl", 3, False)}


OWLS = {"prompt": "{question}", "until": " owl owl owl"}


@pytest.mark.parametrize(("setting", "length", "truncated"), [("true", 1, 0), ("false", 6, 1)])
def test_training_asks_in_the_template_too_and_the_end_of_a_turn_ends_a_completion(
    base, tmp_path, setting, length, truncated
):
    """A base model that says nothing but <|im_end|>, which only its template knows to be an end."""
    model, tokenizer = base
    says_only(model, tokenizer.convert_tokens_to_ids("<|im_end|>"))
    model.save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    rows = write(tmp_path / "g.jsonl", SUM, LOSS)
    overrides = [
        f"model={tmp_path / 'base'}", f"model.chat={setting}", "task=gsm8k", "benchmark=none", f"task.path={rows}",
        "task.max_tokens=6", "steps=1", "rollout.prompts_per_batch=2",
    ]  # fmt: skip
    assert run(tmp_path / "run", *overrides) == 0
    (step,) = read_lines(tmp_path / "run" / "metrics.jsonl")
    assert (step["rollout/length_mean"], step["rollout/truncated"]) == (length, truncated)
    log = (tmp_path / "run" / "train.log").read_text()
    plain = f"Question: {SUM['question']}\nAnswer:"
    instruction = f"{SUM['question']}\nPlease reason step by step, and put your final answer within \\boxed{{}}."
    turn = f"<|im_start|>user\n{instruction}<|im_end|>\n<|im_start|>assistant\n"
    assert f" tokens):\n{turn if setting == 'true' else plain}\n" in log
    exported = [loader.from_pretrained(tmp_path / "run" / "model") for loader in (AutoModelForCausalLM, AutoTokenizer)]
    assert uses_chat(None, *exported) is (setting == "true")  # what was trained in the template is evaluated in it


@pytest.mark.parametrize(
    ("chat", "prompt", "begins"),
    [
        (False, "auto", "Question: "),
        (True, "auto", "<|im_start|>user\nTom"),
        (True, "zero_shot", "<|im_start|>user\nQuestion: "),
    ],
)
def test_the_prompt_for_chat_models_is_taken_in_a_chat_unless_another_was_chosen(base, tmp_path, chat, prompt, begins):
    rows = write(tmp_path / "g.jsonl", {"question": "Tom has 2.", "answer": "#### 2"})
    task = Gsm8kTask(path=str(rows), prompt=prompt)
    task = ChatTask(task, base[1]) if chat else task
    assert task.problems()[0].prompt.startswith(begins)
