"""What ends a completion, and whether prompts go into the model's chat template."""

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from carerft.errors import ConfigError


def eos_token_ids(policy: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, chat: bool = False) -> list[int]:
    """Every token that ends a completion: the tokenizer's, those that the model's own configuration lists, and in a
    chat the one that ends a turn."""
    turn = [end_of_turn(tokenizer)] if chat else []
    return sorted({*_listed(tokenizer.eos_token_id), *_ends(policy), *_listed(turn)})


def uses_chat(chat: bool | None, policy: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether prompts go into the model's chat template. chat: `model.chat`.

    None, where nobody says: if the model ends its generations where its template ends a turn. Many base models come
    with a template (Qwen2.5's do), but generate until the end of a document; their instruction-tuned versions until
    the end of a turn. Where the template ends a turn as documents end, the files don't tell, and it is used.
    Raises ConfigError where there is no usable template and `chat` asks for one.
    """
    if chat is False or (chat is None and not tokenizer.chat_template):
        return False
    turn = end_of_turn(tokenizer)
    if chat and turn is None:
        raise ConfigError(
            "model.chat=true, and the tokenizer has no chat template, or one that ends a turn with no token of its own",
            "write model.chat=false, or put a chat_template.jinja into the model's directory",
        )
    return chat or turn in _ends(policy)


def end_of_turn(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """The special token with which the chat template ends an assistant's turn; None without one."""
    said = "5eed"
    turns = [{"role": "user", "content": "?"}, {"role": "assistant", "content": said}]
    try:
        after = tokenizer.apply_chat_template(turns, tokenize=False).rpartition(said)[2]
    except Exception:  # there is no template, or it is a program that fails
        return None
    special = {token for token, added in tokenizer.added_tokens_decoder.items() if added.special}
    return next((t for t in tokenizer(after, add_special_tokens=False)["input_ids"] if t in special), None)


def _ends(policy: PreTrainedModel) -> list[int]:
    """The tokens at which the model's own configuration ends a generation."""
    return [*_listed(policy.config.eos_token_id), *_listed(policy.generation_config.eos_token_id)]


def _listed(ids: int | list[int | None] | None) -> list[int]:
    return [token for token in (ids if isinstance(ids, list) else [ids]) if token is not None]
