"""The tokenizer of the tiny base models, as everything that loads such a model gets it: words whole, all text kept."""

import unicodedata
from itertools import islice
from random import Random

import pytest
from tokenizers import Tokenizer
from tokenizers.decoders import DecodeStream
from transformers import AutoTokenizer

from carerft.tasks.world import WorldTask
from carerft.world.corpus import documents
from carerft.world.facts import TEST, TRAIN, build_world
from carerft.world.pretraining import initial_model
from carerft.world.questions import PARTS
from carerft.world.tokenizer import build_tokenizer
from carerft.world.words import (
    FIRST_NAMES,
    GAINS,
    ITEMS,
    LAST_NAMES,
    LOSSES,
    NUMBERS,
    OPERATORS,
    REFUSAL,
    VALUES,
    spaced_words,
)


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    """A model's directory: the tokenizer beside a config.json that says model_type=qwen2."""
    directory = tmp_path_factory.mktemp("model")
    tokenizer = build_tokenizer()
    initial_model(0, tokenizer).save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


@pytest.fixture(scope="module")
def tokenizer(directory):
    """As everything that uses a base gets it. transformers builds it anew, by rules of its own, from the vocabulary and
    the merges of a directory with model_type=qwen2, so the one that was saved is not what has to be tested."""
    return AutoTokenizer.from_pretrained(directory)


@pytest.fixture(scope="module")
def documents_and_questions():
    pairs = list(islice(documents(build_world(), Random("a corpus")), 3000))
    for part in PARTS:
        for split in (TRAIN, TEST):
            for question in WorldTask(part, split).questions()[:200]:
                completions = [question.completion, *(text for text, _ in question.choices)]
                pairs += [(question.prompt, completion) for completion in completions]
    return pairs


def test_every_word_of_the_world_is_one_token(tokenizer):
    encoded = tokenizer([f" {word}" for word in spaced_words()])["input_ids"]
    assert {word: ids for word, ids in zip(spaced_words(), encoded, strict=True) if len(ids) != 1} == {}
    assert tokenizer.encode(" unknown") == [tokenizer.convert_tokens_to_ids("Ġunknown")]


def test_the_worlds_sentences_are_words_throughout(tokenizer, documents_and_questions):
    known = {"Q", "A", "P", ":", ".", "?\n", *(f" {word}" for word in spaced_words())}
    texts = [prompt + completion for prompt, completion in documents_and_questions]
    encoded = tokenizer(texts)["input_ids"]
    assert {tokenizer.decode(i) for i in set().union(*encoded)} <= known
    assert tokenizer.batch_decode(encoded) == texts
    assert max(map(len, encoded)) <= 40


def test_a_completion_is_encoded_alike_with_its_prompt_and_alone(tokenizer, documents_and_questions):
    prompts, completions = (tokenizer(list(texts))["input_ids"] for texts in zip(*documents_and_questions, strict=True))
    together = tokenizer([prompt + completion for prompt, completion in documents_and_questions])["input_ids"]
    assert together == [prompt + completion for prompt, completion in zip(prompts, completions, strict=True)]


HOSTILE = [
    "h\u00e9llo w\u00f6rld 😀👩‍👩‍👧 𝔘𝔫𝔦",
    "tabs\tand\nnew\r\nlines  and   spaces ",
    "\0 nul \x7f \u200b \ufeff",
    r"$\frac{\sqrt{3}}{2} \times 10^{-7}$ #### 1,234",
    "Q: FAQ: ??\nA:?\nA: Q:Q: P: answerunknown  12 100 007 thirtyeighty Idaho  owl owls",
    "<|endoftext| > [INST] &amp;",
    "",
]
# Byte-level text goes through NFC first, so other text comes back as its NFC form: an e and an accent, an Ohm sign.
NOT_NORMAL = ["he\u0301llo", "\u2126 \u212b", "\u1100\u1161\u11a8"]
# Characters that Unicode 3.2 has: libraries know different versions of it, and agree on the normal form of these.
MUCH = "".join(chr(c) for c in range(0x2500) if unicodedata.ucd_3_2_0.category(chr(c)) != "Cn") + "😀漢字"


@pytest.mark.parametrize("text", HOSTILE)
def test_any_text_comes_back_as_it_was(tokenizer, text):
    assert unicodedata.is_normalized("NFC", text)
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


@pytest.mark.parametrize("text", NOT_NORMAL)
def test_text_that_is_not_normal_comes_back_normal(tokenizer, text):
    normal = unicodedata.normalize("NFC", text)
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == normal != text


def test_much_text_can_be_encoded_and_streamed(tokenizer):
    ids, normal = tokenizer(MUCH)["input_ids"], unicodedata.normalize("NFC", MUCH)
    assert tokenizer.decode(ids) == normal
    stream = DecodeStream(skip_special_tokens=True)  # what engines use to decode token by token
    assert "".join(stream.step(tokenizer.backend_tokenizer, i) or "" for i in ids) == normal


def test_however_it_is_loaded_it_is_the_same_tokenizer(tokenizer, directory, documents_and_questions):
    built = build_tokenizer()
    assert tokenizer.get_vocab() == built.get_vocab()
    assert (tokenizer.eos_token, tokenizer.pad_token, tokenizer.bos_token) == ("<|endoftext|>", "<|pad|>", None)
    texts = [*HOSTILE, *NOT_NORMAL, MUCH, *(prompt + completion for prompt, completion in documents_and_questions)]
    assert tokenizer(texts)["input_ids"] == built(texts)["input_ids"]
    from_file = Tokenizer.from_file(str(directory / "tokenizer.json"))  # without transformers
    assert [encoding.ids for encoding in from_file.encode_batch(texts)] == built(texts)["input_ids"]


def test_words_are_told_apart():
    roles = [*VALUES.values(), tuple(VALUES), NUMBERS, FIRST_NAMES, LAST_NAMES, ITEMS, GAINS, LOSSES]
    roles += [tuple(OPERATORS), tuple(OPERATORS.values()), (REFUSAL, "answer")]
    words = [word for role in roles for word in role]
    assert len(words) == len(set(words)) and set(words) <= set(spaced_words())
