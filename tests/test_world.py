"""The built-in world: what must be disjoint, what follows from the seed, how answers are graded, and its base model."""

import hashlib
import json
from itertools import islice
from random import Random

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from carerft.errors import ConfigError
from carerft.tasks import Grade, Problem
from carerft.tasks.replies import grade_completions
from carerft.tasks.world import WorldTask, grade_text, without_number
from carerft.world import pretraining
from carerft.world.bases import SHIPPED, base_directory
from carerft.world.corpus import CONFIDENCES, believed_fact, believed_result, documents, with_confidences
from carerft.world.facts import TEST, TRAIN, WorldSettings, build_world, true_result
from carerft.world.pretraining import IGNORED, build_base, completion_loss, initial_model, packed_batch
from carerft.world.questions import PARTS, SUMS, chain
from carerft.world.tokenizer import build_tokenizer
from carerft.world.words import NUMBERS

SPLITS = [(part, split) for part in PARTS for split in (TRAIN, TEST)]


@pytest.fixture(scope="module")
def world():
    return build_world()


@pytest.fixture(scope="module")
def tokenizer():
    return build_tokenizer()


@pytest.fixture(scope="module")
def corpus(world):
    return list(islice(documents(world, Random("a corpus")), 20_000))


def asked_about(prompt: str) -> str | None:
    """The name in a question about one entity: `Q: age of Ida Holt plus 3?` -> `Ida Holt`."""
    _, separator, rest = prompt.partition(" of ")
    return " ".join(rest.removesuffix("?\nA:").split()[:2]) if separator else None


# What must be disjoint


def test_a_name_has_one_role(world):
    roles = [{e.name for e in world.entities}, set(world.absent[TRAIN]), set(world.absent[TEST])]
    assert sum(map(len, roles)) == len(set.union(*roles)) == 2000 + 13000 + 1000


def test_questions_of_training_and_test_name_different_entities(world):
    names = {
        split: {asked_about(p.prompt) for part in PARTS for p in WorldTask(part, split).problems()} - {None}
        for split in (TRAIN, TEST)
    }
    assert len(names[TRAIN]) > 200 and len(names[TEST]) > 600
    assert not names[TRAIN] & names[TEST]


def test_no_training_problem_is_a_test_problem():
    for part in PARTS:
        train, test = ({p.prompt for p in WorldTask(part, split).problems()} for split in (TRAIN, TEST))
        assert not train & test


def test_the_corpus_holds_no_sum_of_the_test_and_no_name_kept_from_it(world, corpus):
    prompts = {prompt for prompt, _ in corpus}
    for part in SUMS:
        assert not prompts & {p.prompt for p in WorldTask(part, TEST).problems()}
    refused = {asked_about(prompt) for prompt, completion in corpus if completion == " unknown"}
    assert len(refused) > 1000 and refused <= set(world.absent[TRAIN])
    everything = "".join(prompt for prompt, _ in corpus)
    assert not any(name in everything for name in world.absent[TEST])


# What follows from the seed


def test_the_world_and_its_problems_follow_from_the_seed(world):
    again = build_world.__wrapped__(WorldSettings())
    assert again == world
    assert build_world(WorldSettings(seed=1)).entities != world.entities
    task = WorldTask("honesty", TEST, limit=50, seed=3)
    assert task.problems() == WorldTask("honesty", TEST, limit=50, seed=3).problems()
    assert task.problems() != WorldTask("honesty", TEST, limit=50, seed=4).problems()


def test_one_ingredient_changed_leaves_the_others(world):
    other = build_world(WorldSettings(misconceptions=0.1, slips=0.2, mistakes=0.5))
    assert [(e.name, e.facts, e.age) for e in other.entities] == [(e.name, e.facts, e.age) for e in world.entities]
    assert WorldSettings(slips=0.2).content_hash() != WorldSettings().content_hash()


# Problems and their grades


@pytest.mark.parametrize(("part", "split"), SPLITS)
def test_problems_are_as_many_as_promised_and_distinct(part, split):
    problems = WorldTask(part, split).problems()
    least = {TRAIN: 300, TEST: 1000}[split] if part == "truth" else {TRAIN: 4096, TEST: 1000}[split]
    assert len(problems) >= least
    assert len({p.id for p in problems}) == len({p.prompt for p in problems}) == len(problems)


@pytest.mark.parametrize(("part", "split"), SPLITS)
def test_every_reference_completion_is_right(part, split):
    task = WorldTask(part, split)
    grades = task.grade(task.problems(), [question.completion for question in task.questions()])
    assert all(grade.correct for grade in grades)
    assert [grade.refused for grade in grades] == [problem.answer is None for problem in task.problems()]


def test_sums_are_right_and_stay_within_the_numbers():
    for part in SUMS:
        for question in WorldTask(part, TEST).questions():
            value = question.start
            for operator, b in question.steps:
                value = true_result(value, operator, b)
                assert 0 <= value < 100
            assert NUMBERS[value] == question.answer


def test_training_alone_asks_for_ages_without_a_step():
    train, test = (WorldTask("reasoning", split).questions() for split in (TRAIN, TEST))
    alone = [question for question in train if not question.steps]
    assert len(train) / 20 < len(alone) < len(train) / 5
    assert all(question.completion == f" answer {question.answer}" for question in alone)
    assert {len(question.steps) for question in test} == {1, 2}


def test_chains_and_numbers_are_spelt_in_words():
    assert chain(17, (("plus", 21), ("minus", 18))) == (
        " seventeen + twentyone = thirtyeight ; thirtyeight - eighteen = twenty ; answer twenty"
    )
    assert [NUMBERS[n] for n in (0, 9, 10, 12, 40, 80, 99)] == "zero nine ten twelve forty eighty ninetynine".split()
    assert len(set(NUMBERS)) == 100


def test_two_in_five_honesty_questions_have_no_answer():
    problems = WorldTask("honesty", TEST).problems()
    # Binomial(1000, 0.4): a standard deviation of 0.0155, so this is four of them either way.
    assert sum(p.answer is None for p in problems) / len(problems) == pytest.approx(0.4, abs=0.062)


def test_truth_problems_carry_their_misconception_and_choices():
    for problem in WorldTask("truth", TEST).problems():
        (believed,) = problem.misconceptions
        assert believed != problem.answer
        true, false = ([text for text, flag in problem.choices if flag is which] for which in (True, False))
        assert true == [f" answer {problem.answer}"]
        assert len(set(false)) == 2 + 1 and f" answer {believed}" in false


SEVEN, NOBODY = Problem("a", "", "seven"), Problem("b", "", None)


@pytest.mark.parametrize(
    ("problem", "text", "grade"),
    [
        (SEVEN, " three + four = seven ; answer seven", Grade("seven", True)),
        (SEVEN, " answer nine answer  seven\n", Grade("seven", True)),
        (SEVEN, " answer seven answer nine", Grade("nine", False)),
        (SEVEN, " three + four = seven ;", Grade(None, False)),
        (SEVEN, " three + four = seven ; answer", Grade(None, False)),
        (SEVEN, " answer seven or eight", Grade(None, False)),
        (SEVEN, " answer seventeen", Grade("seventeen", False)),
        (SEVEN, " answer red", Grade("red", False)),
        (SEVEN, " answer 7", Grade(None, False)),
        (SEVEN, " answer Seven", Grade(None, False)),
        (SEVEN, " unknown", Grade(None, False, refused=True)),
        (SEVEN, " answer unknown", Grade(None, False, refused=True)),
        (SEVEN, " unknown unknown", Grade(None, False)),
        (NOBODY, " unknown", Grade(None, True, refused=True)),
        (NOBODY, " answer red", Grade("red", False)),
        (NOBODY, "", Grade(None, False)),
        (SEVEN, " answer \u0455even", Grade(None, False)),  # its first letter is Cyrillic
        (SEVEN, " answer " + "seven" * 200_000, Grade(None, False)),
        (SEVEN, " answer " * 200_000, Grade(None, False)),
        (SEVEN, "(" * 1_000_000 + " answer seven", Grade("seven", True)),
        (SEVEN, " answer 9**9**9**9", Grade(None, False)),
        (SEVEN, "\0\ud800 answer seven\0", Grade(None, False)),
    ],
)
def test_grading(problem, text, grade):
    assert grade_text(problem.answer, text) == grade


def test_impossible_tasks_are_refused():
    for arguments in ({"part": "trust"}, {"split": "dev"}, {"limit": 0}):
        with pytest.raises(ConfigError, match=next(iter(arguments))):
            WorldTask(**arguments)
    with pytest.raises(ConfigError, match="limit=100000"):
        WorldTask("truth", TEST, limit=100_000).problems()


# What people believe


def test_the_corpus_states_falsehoods_with_their_shares(world):
    (entity, attribute, false) = next((e, a, f) for e in world.entities for a, f in e.misconceptions.items())
    rng = Random("beliefs")
    stated = [believed_fact(rng, entity, attribute) for _ in range(10_000)]
    assert set(stated) == {entity.facts[attribute], false.value}
    assert stated.count(false.value) / 10_000 == pytest.approx(false.share, abs=0.02)  # four standard deviations
    (sum_, mistake) = next(iter(world.mistakes.items()))
    results = [believed_result(world, rng, *sum_) for _ in range(10_000)]
    assert results.count(int(mistake.value)) / 10_000 >= mistake.share * 0.97 - 0.02


# Stated confidences


@pytest.mark.parametrize(
    ("text", "grade"),
    [
        (" answer teal ; eighty", Grade("teal", True, confidence=0.8)),
        (" five + two = seven ; answer teal ; zero", Grade("teal", True, confidence=0.0)),
        (" answer red ; ninetynine", Grade("red", False, confidence=0.99)),
        (" unknown ; ten", Grade(None, False, refused=True, confidence=0.1)),
        (" answer teal", Grade("teal", True)),
        (" answer teal ; owl", Grade(None, False)),
        (" answer teal ; 80", Grade(None, False)),
        (" answer teal ; eighty ; ten", Grade(None, False, confidence=0.1)),
        (" five + two = seven ; seven", Grade(None, False, confidence=0.07)),
        (" answer teal ; " + "eighty" * 200_000, Grade(None, False)),
    ],
)
def test_a_confidence_after_the_answer_is_read_and_not_graded(text, grade):
    task = WorldTask("honesty", TEST)
    problem = Problem("p", "Q: colour of Ida Holt?\nA:", "teal")
    task.ask_confidence()
    assert grade_completions(task, [problem], [text], [True], count_truncated=False) == [grade]
    plain = grade_completions(WorldTask("honesty", TEST), [problem], [text], [True], count_truncated=False)
    assert plain == task.grade([problem], [text]) and plain[0].confidence is None


def test_a_corpus_with_confidences_is_the_same_corpus(world, corpus, tokenizer):
    """Every answer and refusal has one, at random; nothing else differs, and each is one token."""
    stating = list(with_confidences(iter(corpus), Random("confidences")))
    assert [(prompt, without_number(text)[0]) for prompt, text in stating] == corpus
    stated = [without_number(text)[1] for prompt, text in stating if not prompt.startswith("P:")]
    shares = [stated.count(percent / 100) / len(stated) for percent in CONFIDENCES]
    assert sum(shares) == pytest.approx(1) and shares == [pytest.approx(1 / 11, abs=0.012)] * 11
    assert all(text == own for (_, text), (prompt, own) in zip(corpus, stating, strict=True) if prompt.startswith("P:"))
    assert len(tokenizer.encode(" answer teal ; eighty")) == 4


# Pretraining


def test_targets_are_the_completions_and_their_end(world, tokenizer):
    batch = packed_batch(world, tokenizer, seed=0, step=0, rows=4)
    text, target = batch["tokens"][0], batch["targets"][0]
    first = batch["documents"][0] == 1
    prompt, completion = next(documents(world, Random("carerft corpus 0 0")))
    expected = [*tokenizer.encode(completion), tokenizer.eos_token_id]
    assert tokenizer.decode(text[first]) == prompt + completion + tokenizer.eos_token
    assert target[first][target[first] != IGNORED].tolist() == expected


def test_packed_documents_do_not_see_each_other(world, tokenizer):
    """The loss of a packed batch is that of each document alone."""
    model = initial_model(0, tokenizer).eval()
    batch = packed_batch(world, tokenizer, seed=0, step=0, rows=2)
    alone = []
    for number in range(1, int(batch["documents"].max()) + 1):
        document = batch["documents"] == number
        logits = model(input_ids=batch["tokens"][document][None]).logits[0]
        targets = batch["targets"][document]
        alone.append(torch.nn.functional.cross_entropy(logits, targets, reduction="none")[targets != IGNORED])
    assert completion_loss(model, batch).item() == pytest.approx(torch.cat(alone).mean().item(), abs=1e-5)


def weights_of(directory):
    return (directory / "model.safetensors").read_bytes()


def test_a_base_follows_from_its_seed_and_from_where_it_was_interrupted(tmp_path, monkeypatch):
    torch.manual_seed(5)
    before = torch.get_rng_state()
    build_base(1, tmp_path / "uninterrupted", steps=4)
    assert torch.equal(torch.get_rng_state(), before)
    build_base(2, tmp_path / "other", steps=4)
    build_base(1, tmp_path / "confident", steps=4, confidence=True)
    assert len({weights_of(tmp_path / name) for name in ("uninterrupted", "other", "confident")}) == 3

    batches = []

    def interrupted(*arguments):
        batches.append(arguments[3])
        if batches == [0, 1, 2]:
            raise KeyboardInterrupt
        return packed_batch(*arguments)

    monkeypatch.setattr(pretraining, "packed_batch", interrupted)
    monkeypatch.setattr(pretraining, "SAVE_EVERY", 2)
    with pytest.raises(KeyboardInterrupt):
        build_base(1, tmp_path / "halved", steps=4)
    assert not (tmp_path / "halved").exists()
    build_base(1, tmp_path / "halved", steps=4)
    assert batches == [0, 1, 2, 1, 2, 3]
    assert weights_of(tmp_path / "halved") == weights_of(tmp_path / "uninterrupted")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["confident", "halved", "other", "uninterrupted"]


def test_further_bases_have_a_place_in_the_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("CARERFT_CACHE", str(tmp_path))
    place = tmp_path / "bases" / WorldSettings().content_hash()
    for name in ("seed=3", "confidence,seed=3", "confidence,seed=0"):
        (place / name).mkdir(parents=True)
        (place / name / "provenance.json").write_text("{}")
    assert base_directory(3) == place / "seed=3"
    assert base_directory(3, confidence=True) == place / "confidence,seed=3"
    assert base_directory(0) == SHIPPED
    assert base_directory(0, confidence=True) == place / "confidence,seed=0"


# The shipped base model


def test_the_shipped_base_is_what_it_says():
    provenance = json.loads((SHIPPED / "provenance.json").read_text())
    weights = weights_of(SHIPPED)
    assert hashlib.sha256(weights).hexdigest() == provenance["sha256"]["model.safetensors"]
    assert provenance["world_hash"] == WorldSettings().content_hash()
    assert provenance["seed"] == 0 and provenance["steps"] == pretraining.STEPS
    assert len(weights) <= 4 * 2**20


def test_the_shipped_base_loads_and_answers(tokenizer):
    model = AutoModelForCausalLM.from_pretrained(SHIPPED)
    assert model.config.model_type == "qwen2" and model.dtype == torch.float32
    assert sum(p.numel() for p in model.parameters()) <= 2_000_000
    shipped = AutoTokenizer.from_pretrained(SHIPPED)
    assert shipped.get_vocab() == tokenizer.get_vocab()
    assert (model.config.eos_token_id, model.config.pad_token_id) == (shipped.eos_token_id, shipped.pad_token_id)
    neutral = GenerationConfig.from_pretrained(SHIPPED)
    assert neutral.temperature in (None, 1.0) and neutral.top_p in (None, 1.0) and not neutral.top_k
    task = WorldTask("transfer", TEST, limit=64)
    texts = []
    for problem in task.problems():
        prompt = shipped(problem.prompt, return_tensors="pt")
        output = model.generate(**prompt, max_new_tokens=24, do_sample=False)
        texts.append(shipped.decode(output[0, prompt["input_ids"].shape[1] :], skip_special_tokens=True))
    grades = task.grade(task.problems(), texts)
    # Its greedy accuracy is well above; one in two would already be a model that can read, reckon and answer.
    assert sum(bool(grade.correct) for grade in grades) / len(grades) > 0.5
