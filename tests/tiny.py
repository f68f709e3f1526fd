"""A tiny random Qwen3 with a fast tokenizer, made on the fly. Owns its vocabulary; knows no test."""

from pathlib import Path
from typing import Any, Literal

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

SPECIAL = ("<|system|>", "<|user|>", "<|assistant|>", "<|end|>")
TEMPLATE = (
    "{% for m in messages %}{{ '<|' + m['role'] + '|>' + m['content'] + '<|end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
WORDS = "the a of to and is it you should not always never ask money friend doctor help good bad Score".split()


def make_tokenizer(vocab: Literal["words", "digits"] = "words") -> Any:
    """Whole words else bytes; "words" knows the numbers 0..100 as tokens, "digits" splits every number."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    numbers = [str(n) for n in range(10, 101)] if vocab == "words" else []
    words = [form for word in WORDS for form in (word, "Ġ" + word)]
    pieces = dict.fromkeys([*SPECIAL, *letters, *numbers, *words])
    ids = {piece: i for i, piece in enumerate(pieces)}
    tokenizer = Tokenizer(models.BPE(ids, merges=[], ignore_merges=True))
    split = [
        pre_tokenizers.Digits(individual_digits=vocab == "digits"),
        pre_tokenizers.ByteLevel(add_prefix_space=False),
    ]
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(split)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|end|>",
        pad_token="<|end|>",
        additional_special_tokens=list(SPECIAL[:3]),
    )
    fast.chat_template = TEMPLATE
    return fast


def make_tiny_model(directory: Path, vocab: Literal["words", "digits"] = "words", seed: int = 0) -> Path:
    """Write a random Qwen3 of 2 layers x 64 and its tokenizer into `directory`; returns it."""
    tokenizer = make_tokenizer(vocab)
    config = Qwen3Config(
        vocab_size=-(-len(tokenizer) // 8) * 8,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
        pad_token_id=tokenizer.pad_token_id,
    )
    torch.manual_seed(seed)
    Qwen3ForCausalLM(config).save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory
