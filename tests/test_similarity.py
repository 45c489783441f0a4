"""SelfAware's window of sentence embeddings, with a small random BERT as the embedding model."""

from itertools import pairwise

import pytest
import torch
from helpers.invented_rows import KNOWN, UNKNOWABLE, configured, document
from helpers.runs import read_lines, run
from tokenizers import Tokenizer, models, pre_tokenizers
from tokenizers.processors import TemplateProcessing
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

from carerft.errors import CareError
from carerft.tasks import Grade
from carerft.tasks.similarity import Similarity, windows

WORDS = "nobody can say that for certain it is a river in oslan i cannot tell you".split()
NEAR = "nobody can say that for"


def save_embedder(directory, pooler: bool = True) -> str:
    """A BERT of random weights that knows WORDS: texts are [CLS] words [SEP]."""
    torch.manual_seed(0)
    vocabulary = {word: i for i, word in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)])
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="[PAD]").save_pretrained(directory)
    config = BertConfig(
        vocab_size=len(vocabulary), hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64,
        initializer_range=0.5,
    )  # fmt: skip
    BertModel(config, add_pooling_layer=pooler).save_pretrained(directory)
    return str(directory)


@pytest.fixture(scope="module")
def embedder(tmp_path_factory) -> str:
    return save_embedder(tmp_path_factory.mktemp("sup") / "embedder")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("One two three four five six, seven.", ["one two three four five", "two three four five six,",
                                                 "three four five six, seven"]),
        ("One two. Three!", ["one two", "three"]),
        ("Who knows? Nobody, ", ["who knows", "nobody"]),
        ("", []),
        ("... ?!", []),
        ("- -", []),
    ],
)  # fmt: skip
def test_windows_are_five_words_of_one_sentence(text, expected):
    assert list(windows(text)) == expected


def test_a_text_is_close_if_one_of_its_windows_is(embedder):
    """The cosine of a phrase with itself is 1; that of others is what the model's own forward pass gives."""
    similarity = Similarity(embedder, [NEAR, "i cannot tell you"], threshold=0.9999)
    texts = [f"It is a river. {NEAR.title()} certain.", "I cannot tell you!", "It is a river in Oslan.", "", "?"]
    assert similarity.close(texts) == [True, True, False, False, False]
    assert similarity.close([]) == []

    tokenizer, model = similarity.tokenizer, similarity.model
    with torch.no_grad():
        vectors = [model(**tokenizer(t, return_tensors="pt")).pooler_output[0] for t in (NEAR, "it is a river in")]
    cosine = float(torch.nn.functional.cosine_similarity(*vectors, dim=0))
    assert -0.99 < cosine < 0.99
    for threshold, close in ((cosine - 1e-4, True), (cosine + 1e-4, False)):
        # A much longer window beside it, so that this one is padded.
        batch = ["it is a river in", "oslan " * 3 + "unheard-of words: a b c d e f"]
        assert Similarity(embedder, [NEAR], threshold).close(batch)[0] is close


@pytest.mark.parametrize(("name", "pooler"), [("unsup-simcse", True), ("other", False)])
def test_an_unsupervised_model_and_one_without_a_pooler_embed_by_the_first_tokens_last_state(tmp_path, name, pooler):
    similarity = Similarity(save_embedder(tmp_path / name, pooler), [NEAR], threshold=0.5)
    with torch.no_grad():
        state = similarity.model(**similarity.tokenizer(NEAR, return_tensors="pt")).last_hidden_state[0, 0]
    assert torch.allclose(similarity.phrases[0], state / state.norm(), atol=1e-6)


def test_what_is_close_to_a_phrase_is_a_refusal(embedder, tmp_path):
    """At a threshold of -1 every window is close, but an empty reply has none."""
    rows = document(tmp_path / "s.json", [KNOWN, UNKNOWABLE])
    texts = ["The grey brook.", "It is a river.", "", "The grey brook.\nQ: And?\nA: a river"]
    for threshold, refused in ((-1.0, [True, True, False, True]), (0.999999, [False] * 4)):
        task = configured("selfaware", path=rows, embedding=embedder, threshold=threshold)
        known = min(task.problems(), key=lambda problem: problem.id)
        assert [grade.refused for grade in task.grade([known] * 4, texts)] == refused
    # The phrases refuse as before.
    assert task.grade([known], ["It is not known."]) == [Grade(None, False, True)]


def test_long_replies_are_embedded_once_per_window(embedder):
    """20,000 characters of one word are a single window, however many replies repeat it."""
    seen = []
    similarity = Similarity(embedder, [NEAR], 0.5)
    embedded = similarity._embedded
    similarity._embedded = lambda texts: seen.append(list(texts)) or embedded(texts)
    similarity.close(["river " * 3333] * 8)
    assert seen == [["river river river river river"]]
    similarity.close([" ".join(f"{a}{b}" for a, b in pairwise(range(2000)))])
    assert [len(some) for some in seen[1:]] == [256] * 7 + [1999 - 4 - 7 * 256]


@pytest.mark.parametrize("kind", ["absent", "empty"])
def test_an_embedding_model_that_cannot_be_loaded(tmp_path, kind):
    directory = tmp_path / "model"
    if kind == "empty":
        directory.mkdir()
    with pytest.raises(CareError, match=f"embedding={directory}: this model of sentence embeddings cannot be loaded"):
        configured("selfaware", embedding=str(directory))


def test_evaluate_takes_it_from_the_configuration(embedder, tmp_path):
    rows = document(tmp_path / "s.json", [KNOWN, UNKNOWABLE])
    overrides = ["benchmark=selfaware", f"benchmark.selfaware.path={rows}", "benchmark.selfaware.max_tokens=8"]
    near = [f"benchmark.selfaware.embedding={embedder}", "benchmark.selfaware.threshold=-1"]
    for directory, more, expected in (("plain", [], {False}), ("near", near, {True})):
        assert run(tmp_path / directory, *overrides, *more, verb="evaluate") == 0
        records = read_lines(tmp_path / directory / "evaluation" / "selfaware.jsonl")
        assert {r["refused"] for r in records if r["text"].strip(" .")} == expected
