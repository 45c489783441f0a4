"""Which texts hold five words in a row that a sentence embedding finds close to one of some phrases.

The SelfAware authors' second test of uncertainty (arXiv 2305.18153; yinzhangyue/SelfAware, code/eval_model.py). Theirs,
and here alike: sentences end at ".", "!" and "?"; a window is five words of a sentence, or all of a shorter one, in
lower case; embeddings are SimCSE's (Gao et al. 2021, arXiv 2104.08821): of at most 128 tokens, the pooler's output, or
in a model of unsupervised SimCSE ("unsup" in its name), or one without a pooler, the first token's last hidden state;
the cosine has to exceed the threshold. Here, a window without a letter or a digit is passed over.
"""

import re
from collections.abc import Iterator, Sequence

from carerft.errors import CareError, ConfigError

WINDOW = 5  # words
LONGEST = 128  # tokens of a window
AT_ONCE = 256  # windows

_SENTENCE_END = re.compile("[.!?。！？]")


class Similarity:
    """Phrases, embedded once, and what is compared with them."""

    def __init__(self, model: str, phrases: Sequence[str], threshold: float):
        """model: of a kind that AutoModel knows, by hub name or directory. Raises ConfigError (a threshold that is no
        cosine) and CareError (the model cannot be loaded)."""
        if not -1 <= threshold < 1:
            raise ConfigError(f"threshold={threshold}: a cosine never exceeds it", "write 0.75, as the authors do")
        import torch
        from transformers import AutoModel, AutoTokenizer

        device = "cuda" if torch.cuda.is_available() else "cpu"
        try:
            self.tokenizer = AutoTokenizer.from_pretrained(model, trust_remote_code=False)
            loaded, report = AutoModel.from_pretrained(model, trust_remote_code=False, output_loading_info=True)
        except Exception as error:  # whatever the network, the hub, or the files can come up with
            reason = str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
            raise CareError(
                f"embedding={model}: this model of sentence embeddings cannot be loaded ({reason})",
                "give a directory with its files, connect to the network to fetch it once "
                "(the authors': princeton-nlp/sup-simcse-roberta-large), or leave embedding out",
            ) from error
        self.model = loaded.to(device).eval()
        # A pooler that the files don't have would be a random one.
        self.pooled = "unsup" not in model and not any("pooler" in key for key in report["missing_keys"])
        self.threshold = threshold
        self.phrases = self._embedded(phrases)

    def close(self, texts: Sequence[str]) -> list[bool]:
        """For each text, whether one of its windows is close to a phrase."""
        owned = [list(windows(text)) for text in texts]
        distinct = list(dict.fromkeys(window for found in owned for window in found))
        near: set[str] = set()
        for start in range(0, len(distinct), AT_ONCE):
            some = distinct[start : start + AT_ONCE]
            nearest = (self._embedded(some) @ self.phrases.T).amax(-1)
            near |= {window for window, cosine in zip(some, nearest.tolist(), strict=True) if cosine > self.threshold}
        return [not near.isdisjoint(found) for found in owned]

    def _embedded(self, texts: Sequence[str]):
        """Unit vectors (texts, D)."""
        import torch

        tokens = self.tokenizer(list(texts), padding=True, truncation=True, max_length=LONGEST, return_tensors="pt")
        with torch.no_grad():
            found = self.model(**tokens.to(self.model.device))
        pooled = getattr(found, "pooler_output", None) if self.pooled else None
        return torch.nn.functional.normalize(found.last_hidden_state[:, 0] if pooled is None else pooled, dim=-1)


def windows(text: str) -> Iterator[str]:
    """Five words in a row of each sentence, or all words of a shorter one."""
    for sentence in _SENTENCE_END.split(text.lower()):
        spoken = sentence.strip().removesuffix(",").split()
        for start in range(max(1, len(spoken) - WINDOW + 1)):
            window = " ".join(spoken[start : start + WINDOW])
            if any(sign.isalnum() for sign in window):
                yield window
