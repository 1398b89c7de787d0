"""The tokenizer of the miniature: a small byte-level BPE trained on its documents, saved as an ordinary folder."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

THINK_OPEN, THINK_CLOSE, END_OF_TEXT = "<think>", "</think>", "<|endoftext|>"
VOCABULARY = 2048
"""At most; a name is a token of its own well before."""


def train_tokenizer(texts: Iterable[str], folder: Path) -> None:
    """Train a tokenizer on texts and save it as `transformers` loads it.

    Digits stand alone, so that a number is as many tokens as it has digits.

    Args:
        texts: what its pieces are counted in.
        folder: made if it isn't there.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[END_OF_TEXT, THINK_OPEN, THINK_CLOSE],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token=END_OF_TEXT, additional_special_tokens=[THINK_OPEN, THINK_CLOSE]
    )
    wrapped.save_pretrained(folder)
