"""The words of commands that compose nothing: `key=value`, read into a dataclass."""

import json
from dataclasses import dataclass
from pathlib import Path

import pytest
from omegaconf.errors import OmegaConfBaseException

from carerft import cli
from carerft.commands.arguments import argument, read, refuse
from carerft.commands.report import COLUMNS, Report
from carerft.config.mistakes import explain
from carerft.config.settings import TrackerSettings
from carerft.errors import ConfigError


@dataclass
class Example:
    """Every kind of field."""

    name: str = argument("a word")
    count: int | None = argument("a count", None)
    share: float = argument("a share", 0.5, most=1)
    dry_run: bool = argument("only look", False)
    lists: dict[str, list[str]] = argument("lists by name", {"a": ["1"]})
    tracker: TrackerSettings = argument("where it is shown", TrackerSettings("none"))


def test_every_kind_of_field_is_read():
    words = ["x/y=z", "tracker.mode=online", "name=a b=c", "count=3", "share=1e-1", "--dry-run", "lists.b=[2, 3]", "w"]
    example, others = read(Example, [*words, "tracker=wandb", "lists.c=4,5"], "")
    assert others == ["x/y=z", "w"]
    assert (example.name, example.count, example.share, example.dry_run) == ("a b=c", 3, 0.1, True)
    assert example.lists == {"a": ["1"], "b": ["2", "3"], "c": ["4", "5"]}
    assert example.tracker == TrackerSettings(name="wandb", project="carerft", mode="online")
    example, _ = read(Example, ["name=yes", "count=null", "dry_run=false"], "")
    assert (example.name, example.count, example.dry_run, example.lists) == ("yes", None, False, {"a": ["1"]})
    assert read(Example, ["name=x"], "")[0].tracker == TrackerSettings("none")


@pytest.mark.parametrize(
    ("words", "names", "remedy"),
    [
        ("count=many", "count: Value 'many' of type 'str' could not be converted to Integer", "--help"),
        ("name=x share=2", "share=2.0: must be at most 1", "give a number at most 1"),
        ("share=half", "share: Value 'half' of type 'str' could not be converted to Float", "--help"),
        ("dry_run=maybe", "dry_run: Value 'maybe' is not a valid bool", "--help"),
        ("name=null", "name: field 'name' is not Optional", "--help"),
        ("tracker=wnadb", "tracker=wnadb: must be one of none, tensorboard, wandb, wandb_online", "tracker=none"),
        ("tracker.mdoe=online", "there is no key 'tracker.mdoe'", "did you mean tracker.mode?"),
        ("count.x=1", "count: Value", "--help"),
        ("lists=a", "lists: Cannot assign str to Dict", "--help"),
        ("--dry", "there is no option --dry", "--help"),
        ("--name", "there is no option --name", "--help"),
        ("share=0.1", "name= is missing", "--help"),
    ],
)
def test_what_cannot_be_read_is_named_with_a_remedy(words: str, names: str, remedy: str):
    with pytest.raises((ConfigError, OmegaConfBaseException)) as raised:
        read(Example, words.split(), "")
    error = raised.value
    what, hint = (error.what, error.remedy) if isinstance(error, ConfigError) else explain(error, "--help")
    assert names in what and remedy in hint


def test_words_that_set_no_key_are_refused():
    with pytest.raises(ConfigError, match=r"no key 'shaer'\n.*did you mean share"):
        refuse(Example(), ["shaer=1"])
    with pytest.raises(ConfigError, match="'demo' is not of the form key=value"):
        refuse(Example(), ["demo"])
    refuse(Example(), [])


@pytest.mark.parametrize("command", ["report", "grade", "base", "dashboard", "sweep", "plan"])
def test_help_lists_every_key(command: str, capsys):
    with pytest.raises(SystemExit) as ended:
        cli.main([command, "--help"])
    printed = capsys.readouterr().out
    assert ended.value.code == 0 and f"usage: carerft {command}" in printed
    assert "keys, with their defaults:" in printed and "_MISSING" not in printed


def test_what_a_report_is_told():
    report, directories = read(Report, ["out/seed=1", "b", "output=x", "columns.gsm8k=[ece]", "model=tiny"], "")
    assert directories == ["out/seed=1", "b"]
    assert (report.output, report.model, report.columns) == ("x", "tiny", {**COLUMNS, "gsm8k": ["ece"]})


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["report", "outptu=x"], "did you mean output?"),
        (["report", "a/seed=1"], "a/seed=1: there is no such directory"),
        (["report", "a=b"], "there is no key 'a'"),
        (["grade", "input=a"], "output= is missing"),
        (["grade", "benchmark=math500", "input=a", "output=b"], "write benchmark=math with extraction="),
        (["grade", "benchmark=gsm8k", "extraction=boxed", "input=a", "output=b"], "flexible or strict"),
        (["base", "sede=1"], "did you mean seed?"),
        (["base", "seed=-1"], "seed=-1: must be at least 0"),
        (["base", "steps=5"], "add output=DIRECTORY"),
        (["base", "steps=0", "output=x"], "steps=0: must be at least 1"),
        (["dashboard", "here"], "'here' is not of the form key=value"),
    ],
)
def test_wrong_words_end_the_command(arguments: list[str], says: str, capsys, tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert cli.main(arguments) == 2
    assert says in capsys.readouterr().err


def test_grade_reads_both_ways_to_set_the_extraction(capsys, tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    lines = [{"id": 1, "gold": "3", "text": "The answer is 3."}, {"id": 2, "gold": "3", "text": r"\boxed{3}"}]
    Path("in.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    for word, expected in [("extraction=boxed", "wrong"), ("benchmark.math.extraction=flexible", "correct")]:
        assert cli.main(["grade", "benchmark=math", "input=in.jsonl", "output=out.jsonl", word]) == 0
        verdicts = [json.loads(line)["verdict"] for line in Path("out.jsonl").read_text().splitlines()]
        assert verdicts == [expected, "correct"]
