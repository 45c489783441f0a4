"""The tokens that end a completion, and whether prompts are put into the model's chat template."""

from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from carerft.errors import ConfigError


def eos_token_ids(policy: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, chat: bool = False) -> list[int]:
    """The ids of all tokens that end a completion, ascending: the tokenizer's end-of-sequence token, those in the
    model's own configuration and, in a chat, the token that ends a turn."""
    turn = end_of_turn(tokenizer) if chat else None
    return sorted({*_as_list(tokenizer.eos_token_id), *_configured_eos(policy), *_as_list(turn)})


def uses_chat(chat: bool | None, policy: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether prompts are put into the model's chat template. chat: the setting `model.chat`.

    With chat=None the template is used if the model's configuration ends generations with the token that ends a turn.
    Many base models come with a template (Qwen2.5's do) but generate until the end of a document; their
    instruction-tuned versions stop at the end of a turn. Where the same token ends turns and documents, the files
    cannot tell the two apart, and the template is used.

    Raises ConfigError if chat=True and the tokenizer has no usable template.
    """
    if chat is False or (chat is None and not tokenizer.chat_template):
        return False
    turn = end_of_turn(tokenizer)
    if chat and turn is None:
        raise ConfigError(
            "model.chat=true, but the tokenizer has no chat template, or its template ends a turn without a special "
            "token",
            "write model.chat=false, or put a chat_template.jinja into the model's directory",
        )
    return chat or turn in _configured_eos(policy)


def end_of_turn(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """The special token that ends an assistant's turn in the chat template; None without a template or a token."""
    answer = "5eed"
    turns = [{"role": "user", "content": "?"}, {"role": "assistant", "content": answer}]
    try:
        ending = str(tokenizer.apply_chat_template(turns, tokenize=False)).rpartition(answer)[2]
    except Exception:  # no template, or a template whose code fails
        return None
    special = {token for token, added in tokenizer.added_tokens_decoder.items() if added.special}
    return next((t for t in tokenizer(ending, add_special_tokens=False)["input_ids"] if t in special), None)


def _configured_eos(policy: PreTrainedModel) -> list[int]:
    parts = (policy.config, policy.config.get_text_config(), policy.generation_config)
    return [token for part in parts for token in _as_list(getattr(part, "eos_token_id", None))]


def _as_list(ids: Any) -> list[int]:
    """ids: an int, a list of ints, or None, as a configuration has them; transformers declares more types."""
    return [token for token in (ids if isinstance(ids, list) else [ids]) if token is not None]
