"""A tokenizer of a few words, in the tokenizers library's format."""

from __future__ import annotations

from pathlib import Path

from tokenizers import Tokenizer, models, pre_tokenizers, processors

WORDS = ("good", "bad", "film", "book", "very", "not", "the", "was")
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]")
VOCABULARY = {word: i for i, word in enumerate((*SPECIAL, *WORDS))}


def write_tokenizer(path: Path, *, pads: bool = False) -> Path:
    """``[CLS] words [SEP]``; with ``pads`` it cuts off and pads by itself (to be undone)."""
    made = Tokenizer(models.WordLevel(VOCABULARY, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[(s, VOCABULARY[s]) for s in ("[CLS]", "[SEP]")])
    made.add_special_tokens(list(SPECIAL))
    if pads:
        made.enable_padding(pad_id=0, pad_token="[PAD]", length=64)
        made.enable_truncation(3)
    made.save(str(path))
    return path
