"""Answers that no worker of ours samples: of a file that another program wrote, and of a server."""

import json
import os
import socket
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from helpers.engines import needs_vllm

from carerft.cli import run
from carerft.config.settings import ModelSettings, OpenaiSettings
from carerft.errors import DataError, EngineError
from carerft.evaluation import served
from carerft.evaluation.answers import Answer, of_choice
from carerft.evaluation.recorded import Recorded
from carerft.evaluation.served import Server
from carerft.model.loading import load_model
from carerft.rollout import Sampling
from carerft.rollout.transformers import TransformersWorker
from carerft.sweeps import composition
from carerft.tasks import Problem
from carerft.tasks.selfaware import SelfAwareTask

QUESTIONS = [
    Problem("q/0", "Q: Capital of France?\nA:", "Paris", columns={"question": "Capital of  France?"}),
    Problem("q/1", "Q: Colour of the void?\nA:", None, columns={"question": "Colour of the void?"}),
]
TEXTS = {"q/0": ["Paris", "Lyon"], "q/1": ["It is not known.", "Black"]}


def lm_eval(question: str, texts: list[str], number: int, name: str) -> dict:
    return {
        "doc_id": number, "doc": {"question": question, "answer": "?"}, "target": "?", "filter": name,
        "arguments": {"gen_args_0": {"arg_0": f"Q: {question}", "arg_1": {}}}, "resps": [texts],
    }  # fmt: skip


def batch(name: str, texts: list[str]) -> dict:
    choices = [{"index": i, "message": {"content": t}, "finish_reason": "stop"} for i, t in enumerate(texts)]
    return {
        "id": "b1",
        "custom_id": name,
        "response": {"status_code": 200, "body": {"choices": choices}},
        "error": None,
    }


FORMATS = {
    "lm-evaluation-harness, two filters": [
        lm_eval(p.columns["question"], TEXTS[p.id], i, name)
        for i, p in enumerate(QUESTIONS)
        for name in ("none", "strict")
    ],
    "OpenAI's batch": [batch(p.id, TEXTS[p.id]) for p in QUESTIONS],
    "completions by question": [{"question": p.columns["question"], "completions": TEXTS[p.id]} for p in QUESTIONS],
    "a line each, by id": [{"id": p.id, "text": text} for p in QUESTIONS for text in TEXTS[p.id]],
    "a line each, by prompt": [{"prompt": p.prompt, "text": text} for p in QUESTIONS for text in TEXTS[p.id]],
}  # fmt: skip


def written(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize("rows", FORMATS.values(), ids=FORMATS)
def test_each_format_gives_the_same_answers(tmp_path, rows):
    recorded = Recorded.read(written(tmp_path / "samples.jsonl", rows), QUESTIONS)
    assert recorded.k == 2 and [p.id for p in recorded.questions] == ["q/0", "q/1"]
    answers = recorded.answers(QUESTIONS, 2, Sampling(9), 0)
    assert [[answer.text for answer in row] for row in answers] == list(TEXTS.values())


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"question": "Something else?", "text": "x"}], "belongs(?s:.*)if the benchmark has a limit"),
        ([{"id": "q/0", "text": "a"}, {"id": "q/0", "text": "b"}, {"id": "q/1", "text": "c"}], "equally many"),
        ([{"id": "q/0", "label": "x"}], "no field holds what a model wrote"),
        ([{"id": "q/0", "choices": ["A", "B"]}], "no field holds what a model wrote"),
        ([{"id": "q/0", "response": {"body": [1]}}], "no field holds what a model wrote"),
        ([{**lm_eval("Capital of France?", [], 0, "none"), "resps": [[[-1.5, False]]]}], "likelihoods"),
        ([{**lm_eval("Capital of France?", [], 0, "none"), "resps": None}], "l:1: its resps hold no answer"),
        ([{**lm_eval("Capital of France?", [], 0, "none"), "resps": [[]]}], "l:1: its resps hold no answer"),
        ([{**batch("q/0", []), "error": {"message": "overloaded"}}], "the request failed"),
        ([{"id": "q/0", "text": "a", "tokens": [3, 7]}], r"l:1: tokens is \[3, 7\]\n.*leave it out"),
        ([{"id": "q/0", "text": "a", "truncated": "false"}], 'l:1: truncated is "false"'),
        ([{"id": "q/0", "text": "a", "log_probability": "-1"}], 'l:1: log_probability is "-1"'),
    ],
)
def test_what_cannot_be_scored_is_refused(tmp_path, rows, message):
    with pytest.raises(DataError, match="is a table, and samples are JSON lines"):
        Recorded.read(written(tmp_path / "samples.csv", rows), QUESTIONS)
    with pytest.raises(DataError, match=message):
        Recorded.read(written(tmp_path / "samples.jsonl", rows), QUESTIONS)


def test_beside_an_answer_choices_are_the_questions_options(tmp_path):
    rows = [{"id": "q/0", "choices": ["Paris", "Rome"], "text": "Paris"}]
    rows += [{"id": "q/1", "choices": [{"label": "A", "text": "Red"}], "completions": ["Black"]}]
    recorded = Recorded.read(written(tmp_path / "samples.jsonl", rows), QUESTIONS)
    assert [answer.text for (answer,) in recorded.answers(QUESTIONS, 1, Sampling(9), 0)] == ["Paris", "Black"]
    said = {"message": {"content": "Paris"}, "finish_reason": "stop"}
    rows = [{"id": "q/0", "choices": [said], "text": "Capital of France?"}, {"id": "q/1", "choices": [{"text": "Red"}]}]
    recorded = Recorded.read(written(tmp_path / "samples.jsonl", rows), QUESTIONS)
    assert [answer.text for (answer,) in recorded.answers(QUESTIONS, 1, Sampling(9), 0)] == ["Paris", "Red"]


@pytest.mark.parametrize(
    ("logprobs", "log_probability", "tokens"),
    [
        ({"content": [{"logprob": -1.5}, {"logprob": -0.25}]}, -1.75, 2),
        ({"token_logprobs": [-1.5, -0.25]}, -1.75, 2),
        ({"token_logprobs": [None, -0.25]}, None, 2),
        ({"content": [{"token": "a"}]}, None, 1),
        ({"content": ["a", 7]}, None, 2),
        ({"content": 7, "token_logprobs": 3}, None, None),
        ([1], None, None),
        (None, None, None),
    ],
)
def test_a_likelihood_is_known_where_every_tokens_is(logprobs, log_probability, tokens):
    answer = of_choice({"message": {"content": "Paris"}, "finish_reason": "length", "logprobs": logprobs})
    assert answer == Answer("Paris", finished=False, log_probability=log_probability, tokens=tokens)


def test_some_questions_alone_are_scored_and_it_is_said(tmp_path, caplog):
    rows = [{"id": "q/1", "text": "Black"}, {"id": "q/7", "text": "x"}]
    recorded = Recorded.read(written(tmp_path / "samples.jsonl", rows), QUESTIONS)
    assert [p.id for p in recorded.questions] == ["q/1"]
    assert "1 of 2 lines belong to no question" in caplog.text and "q/0 has none" in caplog.text


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([{"id": "q/0", "completions": ["Paris", "Paris"]}, {"id": "q/1", "completions": ["Red", "Red"]}], "the same"),
        ([{"id": "q/0", "text": "Paris"}], "one answer to each question"),
        (2 * [lm_eval("Capital of France?", ["Paris", "Lyon"], 0, "none")], "every line twice"),
        (FORMATS["completions by question"], ""),
        (FORMATS["lm-evaluation-harness, two filters"], ""),
    ],
)
def test_votes_that_show_no_confidence_are_named(tmp_path, caplog, rows, said):
    Recorded.read(written(tmp_path / "samples.jsonl", rows), QUESTIONS)
    warnings = [m for m in caplog.messages if "and those alone are scored" not in m]
    assert len(warnings) == bool(said) and all(said in m for m in warnings)


def score(tmp_path: Path, monkeypatch, rows: list[dict], *words: str) -> int:
    monkeypatch.chdir(tmp_path)
    data = [{"question": "Capital of France?", "answer": "Paris"}, {"question": "Colour of the void?", "answer": None}]
    written(tmp_path / "mine.jsonl", data)
    written(tmp_path / "samples.jsonl", rows)
    own = ["benchmark=questions", "benchmark.questions.path=mine.jsonl", "benchmark.questions.answer=answer"]
    own += ["benchmark.questions.grader=contains", "tracker=none", "name=s"]
    return run("score", ["samples=samples.jsonl", *own, *words])


def test_scores_by_hand(tmp_path, monkeypatch, capsys):
    assert score(tmp_path, monkeypatch, FORMATS["completions by question"]) == 0
    (path,) = tmp_path.glob("outputs/s/*/evaluation.json")
    (result,) = json.loads(path.read_text())["benchmarks"].values()
    value = {name: metric["value"] for name, metric in result["metrics"].items()}
    assert (result["n"], result["k"]) == (2, 2)
    assert value["accuracy"] == 0.5  # Paris, and the refusal
    assert value["refusal_f1"] == pytest.approx(2 / 3)  # 1 of 2 refused; none refused elsewhere
    assert value["majority"] == 1.0 and value["confidence"] == 0.5 and value["ece"] == 0.5
    assert "truncated" not in value and "entropy" not in value and "ece_likelihood" not in value  # nobody said
    assert "refusal F1" in capsys.readouterr().out


def test_the_commands_of_the_docs_score_what_lm_eval_wrote(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    page = (Path(__file__).parents[1] / "docs/integrations.md").read_text()
    commands = [line.split()[1:] for line in page.splitlines() if line.startswith("carerft score ")]
    if not (data := os.environ.get("CARERFT_DATA")) or not Path(data, "selfaware").is_dir():
        commands = [command for command in commands if "benchmark=selfaware" not in command]
    else:
        asked = [problem.columns["question"] for problem in SelfAwareTask().problems()[:3]]
        rows = [lm_eval(question, ["It is unknown."] * 8, i, "none") for i, question in enumerate(asked)]
        written(tmp_path / "samples_selfaware.jsonl", rows)
    sums = [{"question": f"What is {a} plus 1?", "answer": str(a + 1)} for a in range(4)]
    written(tmp_path / "mine.jsonl", sums)
    answers = [lm_eval(row["question"], [f"It is {row['answer']}."] * 6 + ["It is 7."] * 2, i, "none") for i, row in
               enumerate(sums)]  # fmt: skip
    written(tmp_path / "samples_mine.jsonl", answers)
    for command in commands:
        assert run(command[0], [*command[1:], "tracker=none"]) == 0
    scores = [json.loads(path.read_text())["benchmarks"] for path in tmp_path.glob("outputs/*/*/evaluation.json")]
    (mine,) = (entry["questions"] for entry in scores if "questions" in entry)
    assert len(scores) == len(commands) and mine["metrics"]["accuracy"]["value"] == 0.75 and mine["k"] == 8


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["benchmark=[questions,world_truth]"], "one at a time"),
        (["rollout.path=absent.jsonl"], "no such file"),
        (["evaluation.self_report=true"], "no model to ask"),
    ],
)
def test_a_word_that_does_not_fit_is_refused(tmp_path, monkeypatch, capsys, words, message):
    assert score(tmp_path, monkeypatch, FORMATS["completions by question"], *words) != 0
    assert message in capsys.readouterr().err


class Api(BaseHTTPRequestHandler):
    """A server with faults that a real one can't be made to have: it is busy at first, and knows no `n`."""

    busy, asked, lost, serves = 2, [], 0, "only"

    def log_message(self, *_: object) -> None: ...

    def answer(self, status: int, body: dict) -> None:
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def do_GET(self) -> None:
        self.answer(200, {"data": [{"id": Api.serves}]})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if Api.busy:
            Api.busy -= 1
            return self.answer(503, {"error": "busy"})
        if Api.lost and len(Api.asked) >= Api.lost:
            return self.answer(404, {"error": "gone"})
        if body["messages"][-1]["content"] == "forbidden":
            return self.answer(400, {"error": "the prompt is too long"})
        Api.asked.append(body)
        token = [{"logprob": -0.5}, {"logprob": -0.25}]
        said = {"message": {"content": str(body["seed"])}, "finish_reason": "length", "logprobs": {"content": token}}
        self.answer(200, {"choices": [said]})


@pytest.fixture
def api(monkeypatch):
    monkeypatch.setattr(served.time, "sleep", lambda _: None)
    Api.busy, Api.asked, Api.lost, Api.serves = 2, [], 0, "only"
    server = ThreadingHTTPServer(("127.0.0.1", 0), Api)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield OpenaiSettings(name="openai", url=f"http://127.0.0.1:{server.server_port}/v1")
    server.shutdown()


def test_a_busy_server_is_asked_again_and_n_is_not_needed(api):
    server = Server.connect(api)
    assert server.model == "only"
    rows = server.answers(QUESTIONS, 3, Sampling(5, stop=("\n",)), seed=1)
    assert [len(row) for row in rows] == [3, 3] and len({a.text for row in rows for a in row}) == 6  # seeds differ
    assert all((a.finished, a.log_probability, a.tokens) == (False, -0.75, 2) for row in rows for a in row)
    first = Api.asked[0]
    assert (first["max_tokens"], first["temperature"], first["stop"]) == (5, 1.0, ["\n"])


def test_faults_of_a_server_are_named(api):
    with pytest.raises(EngineError, match="serves only, and not other"):
        Server.connect(OpenaiSettings(name="openai", url=api.url, model="other"))
    Api.busy = 99
    with pytest.raises(EngineError, match="503"):
        Server.connect(api).answers(QUESTIONS, 1, Sampling(5), 0)
    Api.busy = 0
    with pytest.raises(EngineError, match="too long"):
        Server.connect(api).answers([Problem("x", "forbidden", "y")], 1, Sampling(5), 0)
    with pytest.raises(EngineError, match="vllm serve"):
        Server.connect(OpenaiSettings(name="openai", url="http://127.0.0.1:9/v1"))


def test_an_evaluation_whose_server_was_lost_goes_on(api, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Api.busy, Api.lost = 0, 100
    rows = [{"question": f"What is {i}?", "answer": str(i)} for i in range(130)]
    written(tmp_path / "mine.jsonl", rows)
    command = ["rollout=openai", f"rollout.url={api.url}", "samples=1", "benchmark=questions", "rollout.batch_size=1"]
    command += ["benchmark.questions.path=mine.jsonl", "benchmark.questions.grader=number", "tracker=none", "name=s"]

    def evaluated() -> int:
        composition._run_names.clear()  # as in a process of its own
        return run("evaluate", command)

    assert evaluated() != 0
    Api.lost, Api.serves = 0, "another"  # which has nothing to do with the first
    assert evaluated() == 0
    Api.serves, Api.asked = "only", []
    assert evaluated() == 0
    first, other = sorted(tmp_path.glob("outputs/s/*"))
    assert [len((d / "evaluation/questions.jsonl").read_text().splitlines()) for d in (first, other)] == [130, 130]
    assert len(Api.asked) == 130 - 64  # 64 answers had been kept


@needs_vllm
@pytest.mark.slow
def test_vllms_own_server(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    base = Path(__file__).parents[1] / "carerft/world/base"
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = ["--model", str(base), "--served-model-name", "tiny", "--host", "127.0.0.1", "--port", str(port)]
    words += ["--dtype", "float32", "--enforce-eager", "--max-model-len", "256"]
    url = f"http://127.0.0.1:{port}/v1"
    server = subprocess.Popen(
        [sys.executable, "-m", "vllm.entrypoints.openai.api_server", *words],
        env={**os.environ, "VLLM_CPU_KVCACHE_SPACE": "1"}, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        deadline = time.monotonic() + 300
        while True:
            try:
                Server.connect(OpenaiSettings(name="openai", url=url))
                break
            except EngineError:
                assert time.monotonic() < deadline
        command = ["rollout=openai", f"rollout.url={url}", "rollout.chat=false", "benchmark=world_honesty"]
        assert run("evaluate", [*command, "evaluation.limit=20", "samples=4", "tracker=none", "name=s"]) == 0
    finally:
        server.terminate()
        server.wait(60)
    (directory,) = tmp_path.glob("outputs/s/*")
    problems, answers = (
        [json.loads(line) for line in (directory / f"evaluation/world_honesty{part}.jsonl").read_text().splitlines()]
        for part in (".problems", "")
    )
    prompts = {problem["problem_id"]: problem["prompt"] for problem in problems}
    policy, tokenizer = load_model(ModelSettings(name="tiny", path="world"), torch.device("cpu"))
    ended = [answer for answer in answers if not answer["truncated"]]
    texts = [[*tokenizer(answer["text"])["input_ids"], tokenizer.eos_token_id] for answer in ended]
    asked = [tokenizer(prompts[answer["problem_id"]])["input_ids"] for answer in ended]
    expected = TransformersWorker(policy, [0], 0).log_likelihood(asked, texts)
    assert len(ended) > 40 and len({answer["text"] for answer in ended}) > 5
    assert [answer["log_probability"] for answer in ended] == pytest.approx(expected, abs=1e-3)
