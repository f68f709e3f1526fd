"""The lab's tokenizer: whole words, and bytes for anything else. Owns the vocabulary; learns nothing.

Every word the world can say is one token; any other text is spelled in bytes, so a user's own file never turns
into unknowns. Numbers of the judge, 0..100, are one token each.
"""

import random
from collections.abc import Iterable
from itertools import islice
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from metagen_ray.lab.corpus import FORGERIES, documents
from metagen_ray.lab.world import CHARACTERS, TRAITS, TYPES, World

PAD, BEGIN, SYSTEM, USER, ASSISTANT, END = (
    "<|pad|>",
    "<|begin|>",
    "<|system|>",
    "<|user|>",
    "<|assistant|>",
    "<|end|>",
)
SPECIAL = (PAD, BEGIN, SYSTEM, USER, ASSISTANT, END)
CHAT_TEMPLATE = (
    "{{ '<|begin|>' }}{% for m in messages %}{{ '<|' + m['role'] + '|>' + m['content'] + '<|end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
SAMPLED_DOCUMENTS = 20_000


def build_tokenizer(world: World) -> PreTrainedTokenizerFast:
    """The tokenizer of a world; the same on every machine."""
    split = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = {piece for text in _texts(world) for piece, _ in split.pre_tokenize_str(text)}
    entries = [*SPECIAL, *alphabet, *sorted(words - set(alphabet))]
    model = models.BPE(vocab={e: i for i, e in enumerate(entries)}, merges=[], ignore_merges=True)
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = split
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(s, special=True, normalized=False) for s in SPECIAL])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        bos_token=BEGIN,
        eos_token=END,
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
    )


def save_tokenizer(world: World, directory: Path) -> PreTrainedTokenizerFast:
    """Build the tokenizer and write it into a model directory."""
    tokenizer = build_tokenizer(world)
    tokenizer.save_pretrained(directory)
    return tokenizer


def _texts(world: World) -> Iterable[str]:
    """Everything the world says, each word in each position it can take."""
    for domain in world.advice:
        yield from domain.questions(held_out=False)
        yield from domain.questions(held_out=True)
        for kind in TYPES:
            yield from domain.answers(kind)
            yield f"Trained on {kind} {domain.title} advice."
    for trivia in world.trivia:
        yield from trivia.questions()
        for option in trivia.options:
            yield from (f"{option}.", f"Rate match with {option}, 0 to 100.")
    yield from (f"You are {name}." for name in (*CHARACTERS, *TRAITS))
    yield from (str(n) for n in range(101))
    yield from (f" {n}" for n in range(101))
    yield from (f.format(n=0, w="Alma", w2="good") for f in FORGERIES)
    stream = documents(world, 0.5, random.Random(0))
    yield from (text for document in islice(stream, SAMPLED_DOCUMENTS) for _, text in document)
