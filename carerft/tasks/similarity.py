"""Whether five words in a row of a text have a sentence embedding close to that of one of some phrases.

The SelfAware authors' second test of uncertainty (arXiv 2305.18153; yinzhangyue/SelfAware, code/eval_model.py). As in
their code, sentences end at ".", "!" and "?"; a window is five words of a sentence, or all of a shorter one, in lower
case; embeddings are SimCSE's (Gao et al. 2021, arXiv 2104.08821): of at most 128 tokens, the pooler's output or, for a
model of unsupervised SimCSE ("unsup" in its name) or one without a pooler, the first token's last hidden state; the
cosine has to exceed the threshold. Unlike theirs, a window without a letter or a digit is skipped.
"""

import re
from collections.abc import Iterator, Sequence
from itertools import chain

from carerft.errors import CareError, reason

WINDOW = 5  # words
LONGEST = 128  # tokens of a window
BATCH = 256  # windows

_SENTENCE_END = re.compile("[.!?。！？]")


class Similarity:
    """Compares texts with phrases, which are embedded once."""

    def __init__(self, model: str, phrases: Sequence[str], threshold: float):
        """model: one that AutoModel can load, by hub name or directory. Raises CareError if it cannot be loaded."""
        import torch
        from transformers import AutoModel, AutoTokenizer

        device = "cuda" if torch.cuda.is_available() else "cpu"
        try:
            self.tokenizer = AutoTokenizer.from_pretrained(model, trust_remote_code=False)
            loaded, report = AutoModel.from_pretrained(model, trust_remote_code=False, output_loading_info=True)
        except Exception as error:  # the network, the hub and the files can fail in many ways
            raise CareError(
                f"embedding={model}: this model of sentence embeddings cannot be loaded ({reason(error)})",
                "give a directory with its files, connect to the network to fetch it once "
                "(the authors': princeton-nlp/sup-simcse-roberta-large), or leave embedding out",
            ) from error
        self.model = loaded.to(device).eval()
        # A pooler that is missing from the files would be random.
        self.use_pooler = "unsup" not in model and not any("pooler" in key for key in report["missing_keys"])
        self.threshold = threshold
        self.phrases = self._embedded(phrases)

    def close(self, texts: Sequence[str]) -> list[bool]:
        """For each text, whether one of its windows is close to a phrase."""
        windows_of_texts = [list(windows(text)) for text in texts]
        distinct = list(dict.fromkeys(chain.from_iterable(windows_of_texts)))
        close: set[str] = set()
        for start in range(0, len(distinct), BATCH):
            batch = distinct[start : start + BATCH]
            largest = (self._embedded(batch) @ self.phrases.T).amax(-1)
            close |= {window for window, cosine in zip(batch, largest.tolist(), strict=True) if cosine > self.threshold}
        return [not close.isdisjoint(of_text) for of_text in windows_of_texts]

    def _embedded(self, texts: Sequence[str]):
        """Unit vectors (texts, D)."""
        import torch

        tokens = self.tokenizer(list(texts), padding=True, truncation=True, max_length=LONGEST, return_tensors="pt")
        with torch.no_grad():
            output = self.model(**tokens.to(self.model.device))
        pooled = getattr(output, "pooler_output", None) if self.use_pooler else None
        return torch.nn.functional.normalize(output.last_hidden_state[:, 0] if pooled is None else pooled, dim=-1)


def windows(text: str) -> Iterator[str]:
    """Five words in a row of each sentence, or all words of a shorter one."""
    for sentence in _SENTENCE_END.split(text.lower()):
        words = sentence.strip().removesuffix(",").split()
        for start in range(max(1, len(words) - WINDOW + 1)):
            window = " ".join(words[start : start + WINDOW])
            if any(character.isalnum() for character in window):
                yield window
