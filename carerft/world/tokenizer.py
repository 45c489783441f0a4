"""The tokenizer of the tiny base models: one token for each word of the world, and bytes for all other text.

A Qwen2 tokenizer, because that is what everything that loads a Qwen2 model makes of its vocabulary and merges, whatever
else the directory says: transformers 5 rebuilds it with its own splitting of text (NFC, runs of letters with their
leading space, single digits, runs of other signs) and without `ignore_merges`.

The merges spell each word from its first byte on: " owl" is made by " o", " ow", " owl". The left side of every merge
starts a word with its space and the right side is one byte, so no two merges compete, and text that is no word falls
into its longest known beginning and bytes. Every text has an encoding that decodes to (the NFC form of) itself.
"""

from tokenizers import pre_tokenizers
from transformers import Qwen2Tokenizer

from carerft.world.words import CLOSING, spaced_words

END, PADDING = "<|endoftext|>", "<|pad|>"


def build_tokenizer(model_max_length: int = 8192) -> Qwen2Tokenizer:
    """Ids: 0..255 the bytes, then the words' beginnings and the words, then end of text and padding. No
    beginning-of-text is ever added."""
    # Byte-level tokenizers spell bytes as printable characters; the words have to be spelt alike.
    bytewise = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    pieces = (CLOSING.removesuffix("A:"), *(f" {word}" for word in spaced_words()))
    words = [bytewise.pre_tokenize_str(piece)[0][0] for piece in pieces]
    merges = dict.fromkeys((word[:end], word[end]) for word in words for end in range(1, len(word)))
    vocabulary = [*sorted(pre_tokenizers.ByteLevel.alphabet()), *(start + byte for start, byte in merges)]
    return Qwen2Tokenizer(
        vocab={spelling: number for number, spelling in enumerate(vocabulary)},
        merges=list(merges),
        eos_token=END,
        pad_token=PADDING,
        unk_token=None,
        clean_up_tokenization_spaces=False,
        model_max_length=model_max_length,
        padding_side="right",
    )
