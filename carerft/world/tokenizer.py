"""The tokenizer of the tiny base models: one token for each word of the world, and single bytes for all other text.

It is a byte-level BPE without any merge. With `ignore_merges`, a piece of text that is itself in the vocabulary is one
token, and any other piece falls apart into its bytes, so that every text has an encoding that decodes to itself.
"""

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from carerft.world.words import BARE, CLOSING, OPENING, spaced_words

END, PADDING = "<|endoftext|>", "<|pad|>"

# A word or number with its leading space, or a run of other signs, or one blank; first the two signs of the format.
PIECES = rf"{OPENING}|\?\nA:| ?[A-Za-z]+| ?[0-9]+| ?[^\sA-Za-z0-9]+|\s"
assert CLOSING == "?\nA:"


def build_tokenizer(model_max_length: int = 2048) -> PreTrainedTokenizerFast:
    """Ids: 0..255 the bytes, then the words, then end of text and padding. No beginning-of-text is ever added."""
    bytewise = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    # Byte-level tokenizers spell bytes as printable characters; the words have to be spelt alike.
    words = [bytewise.pre_tokenize_str(word)[0][0] for word in (*BARE, *(f" {word}" for word in spaced_words()))]
    spellings = dict.fromkeys([*sorted(pre_tokenizers.ByteLevel.alphabet()), *words])
    tokenizer = Tokenizer(
        models.BPE(vocab={spelling: i for i, spelling in enumerate(spellings)}, merges=[], ignore_merges=True)
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(PIECES), "isolated"), bytewise])
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=END,
        pad_token=PADDING,
        clean_up_tokenization_spaces=False,
        model_max_length=model_max_length,
        padding_side="right",
    )
