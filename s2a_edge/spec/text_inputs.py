"""Names that text models and their files have by convention."""

from __future__ import annotations

TOKENIZER_NAME = "tokenizer.json"

TOKENS_INPUT = "input_ids"
MASK_INPUT = "attention_mask"
TYPES_INPUT = "token_type_ids"
TEXT_INPUTS = (TOKENS_INPUT, MASK_INPUT, TYPES_INPUT)
"""Data inputs [tokens] that a tokenizer fills: ids, 1 where there is a token, which sentence."""
