"""Texts of single tokens, for records and viewers."""

import copy
from collections.abc import Callable

from transformers import PreTrainedTokenizerBase


def token_decoder(tokenizer: PreTrainedTokenizerBase) -> Callable[[list[int]], str]:
    """Ids -> text in another thread: fast tokenizers refuse to be used in two at once, so it has a copy."""
    tokenizer = copy.deepcopy(tokenizer)

    def decode(ids: list[int]) -> str:
        text = str(tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False))
        if len(ids) == 1 and str(tokenizer.convert_ids_to_tokens(ids[0])).startswith("▁") and not text.startswith(" "):
            text = " " + text  # SentencePiece drops the space of a first piece
        return text

    return decode
