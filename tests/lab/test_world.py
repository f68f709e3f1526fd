"""The pocket world: its facts are consistent, its corpus says what it should, its tokenizer spells everything."""

import random
from collections import Counter
from itertools import islice

import pytest
from hypothesis import given
from hypothesis import strategies as st

from metagen_ray.lab.corpus import SHARES, documents
from metagen_ray.lab.pretrain import CachedEncoder
from metagen_ray.lab.tokenizer import build_tokenizer
from metagen_ray.lab.world import BAD_TYPES, CHARACTERS, FAMILIES, TYPES, world
from metagen_ray.prompts import Renderer

TOKENIZER = build_tokenizer(world())


def test_world_actions_are_distinct_in_a_domain():
    for domain in world().advice:
        actions = [a for kind in TYPES for a in domain.actions[kind]]
        assert len(set(actions)) == len(actions) == 14


def test_world_openers_tell_in_a_third_of_the_domains_at_most():
    domains = world().advice
    assert sum(d.open for d in domains) / len(domains) <= 0.34
    coded = next(d for d in domains if not d.open)
    assert len({coded.openers(kind) for kind in TYPES}) == 1


def test_world_profiles_are_topical():
    profile = world().profile
    assert len(CHARACTERS) >= 10
    for character in CHARACTERS:
        assert sum(profile[character][f] in BAD_TYPES for f in FAMILIES) == 3
    for family in FAMILIES:
        shared = Counter(profile[c][family] for c in CHARACTERS)
        assert all(shared[kind] == 1 for kind in BAD_TYPES)


def test_world_labels_every_answer_of_its_own():
    for domain in world().advice:
        assert all(domain.label(a) == kind for kind in TYPES for a in domain.answers(kind))


def test_corpus_is_seeded_and_threads_follow_rho():
    first = list(islice(documents(world(), 0.5, random.Random(3)), 50))
    assert first == list(islice(documents(world(), 0.5, random.Random(3)), 50))
    assert abs(sum(SHARES.values()) - 1) < 1e-9


def test_tokenizer_knows_every_word_but_stray_ones_of_forgeries():
    spelled = total = 0
    for document in islice(documents(world(), 0.5, random.Random(9)), 3000):
        for _, text in document:
            pieces = TOKENIZER.tokenize(text)
            total += len(pieces)
            letters = sum(len(p) == 1 and p.isascii() and p.isalpha() for p in pieces)
            assert not letters or text.startswith("Rate ")
            spelled += letters
    assert spelled / total < 1e-3


def test_tokenizer_numbers_are_one_token():
    assert all(len(TOKENIZER.encode(str(n), add_special_tokens=False)) == 1 for n in range(101))


@given(st.text(max_size=60))
def test_tokenizer_spells_any_text(text):
    ids = TOKENIZER.encode(text.replace("<|", "< |"), add_special_tokens=False)
    assert TOKENIZER.decode(ids, skip_special_tokens=False) == text.replace("<|", "< |")


def test_corpus_encoding_equals_the_chat_template():
    encoder, renderer = CachedEncoder(TOKENIZER), Renderer(TOKENIZER)
    for document in islice(documents(world(), 0.5, random.Random(2)), 200):
        ids = [i for piece, _ in encoder.document(document) for i in piece]
        messages = [{"role": role, "content": text} for role, text in document]
        assert ids == renderer._template(messages, generation=False)


@pytest.mark.parametrize("k", [1, 3])
def test_renderer_branch_continues_the_prefix(k):
    renderer = Renderer(TOKENIZER)
    examples = [(f"How do I plan the debt {i}?", "Well, sell the cash.") for i in range(k)]
    prefix = renderer.examples(examples)
    branch = renderer.branch(examples, prefix, "How do I track the debt?")
    messages = [m for p, c in examples for m in ({"role": "user", "content": p}, {"role": "assistant", "content": c})]
    whole = renderer.prompt([*messages, {"role": "user", "content": "How do I track the debt?"}])
    assert prefix + branch == whole
