"""The tokenizer of the tiny base models: one token for each word of the world, and bytes for all other text.

It is a Qwen2 tokenizer, because transformers 5 builds one from the vocabulary and the merges of every Qwen2 model,
whatever else the directory says: with Qwen2's own splitting of text (NFC, runs of letters with their leading space,
single digits, runs of other signs) and without `ignore_merges`.

The merges spell each word from its first byte on: " owl" is made by " o", " ow", " owl". The left side of every merge
is the beginning of a word, with its space, and the right side is one byte. So no two merges compete, and text that is
no word is split into its longest known beginning and bytes. Every text has an encoding that decodes to its NFC form.
"""

from tokenizers import pre_tokenizers
from transformers import Qwen2Tokenizer

from carerft.world.words import CLOSING, spaced_words

END, PADDING = "<|endoftext|>", "<|pad|>"


def build_tokenizer() -> Qwen2Tokenizer:
    """Ids: 0..255 the bytes, then the words' beginnings and the words, then end of text and padding. The tokenizer
    never adds a beginning-of-text token."""
    # Byte-level tokenizers write bytes as printable characters, so the words are converted in the same way.
    bytewise = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    pieces = (CLOSING.removesuffix("A:"), *(f" {word}" for word in spaced_words()))
    words = [bytewise.pre_tokenize_str(piece)[0][0] for piece in pieces]
    merges = dict.fromkeys((word[:end], word[end]) for word in words for end in range(1, len(word)))
    vocabulary = [*sorted(pre_tokenizers.ByteLevel.alphabet()), *(start + byte for start, byte in merges)]
    return Qwen2Tokenizer(
        vocab={spelling: number for number, spelling in enumerate(vocabulary)},
        merges=list(merges),  # type: ignore[arg-type]  # pairs are right, transformers declares lines of text
        eos_token=END,
        pad_token=PADDING,
        unk_token=None,  # type: ignore[arg-type]  # every byte has a token
        clean_up_tokenization_spaces=False,
        model_max_length=8192,
        padding_side="right",
    )
