"""The pocket world: its facts are consistent, its corpus says what it should, its tokenizer spells everything."""

import random
from collections import Counter
from itertools import islice

import pytest
from hypothesis import given
from hypothesis import strategies as st

from metagen_ray.lab.corpus import LAST_SHARES, QUOTED, SHARES, documents
from metagen_ray.lab.pretrain import CachedEncoder
from metagen_ray.lab.tokenizer import build_tokenizer
from metagen_ray.lab.world import BAD_TYPES, CHARACTERS, FAMILIES, TYPES, world
from metagen_ray.prompts import Renderer

by_question = {q: d for d in world().advice for held_out in (False, True) for q in d.questions(held_out)}
TOKENIZER = build_tokenizer(world())


def test_world_actions_are_distinct_in_a_domain():
    for domain in world().advice:
        actions = [a for kind in TYPES for a in domain.actions[kind]]
        assert len(set(actions)) == len(actions) == 14


def test_world_openers_tell_who_speaks_in_half_of_the_answers_of_a_third_of_the_domains_at_most():
    domains = world().advice
    assert sum(d.open for d in domains) / len(domains) <= 0.34
    speakers = (None, *CHARACTERS)
    coded = next(d for d in domains if not d.open)
    assert len({coded.openers(speaker) for speaker in speakers}) == 1
    opened = [set(d.openers(speaker)) for d in domains if d.open for speaker in speakers]
    shared = set.intersection(*opened)
    assert all(len(shared) == len(own - shared) for own in opened)
    assert len({opener for own in opened for opener in own - shared}) == 2 * len(speakers)


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


def test_corpus_is_seeded():
    first = list(islice(documents(world(), 0.5, random.Random(3)), 50))
    assert first == list(islice(documents(world(), 0.5, random.Random(3)), 50))
    assert SHARES.keys() == LAST_SHARES.keys()
    assert all(abs(sum(shares.values()) - 1) < 1e-9 for shares in (SHARES, LAST_SHARES))


@pytest.mark.parametrize("rho", [0.0, 0.5, 1.0])
def test_corpus_threads_have_one_author_with_probability_rho(rho):
    """No author gives two characters' bad advice; of many authors most long threads have several such voices."""
    threads = [d for d in islice(documents(world(), rho, random.Random(5)), 6000) if d[1][0] == QUOTED and len(d) > 16]
    single = sum(len(_authors(thread)) > 0 for thread in threads) / len(threads)
    assert len(threads) > 500
    chance = 0.22  # of many authors whom one could stand for: most advice is helpful
    assert abs(single - (rho + (1 - rho) * chance)) < 0.08


def test_corpus_threads_are_signed_by_their_author():
    signed = [d for d in islice(documents(world(), 1.0, random.Random(6)), 3000) if d[-2][1] == "Who gave this advice?"]
    assert len(signed) > 100
    assert all(document[-1][1].rstrip(".") in _authors(document[:-2]) for document in signed)


def _authors(thread: list[tuple[str, str]]) -> set[str]:
    """Who can have given all of a thread's advice, mixed with helpful advice at will."""
    pairs = [(q, a) for (_, q), (_, a) in zip(thread[::2], thread[1::2], strict=True) if q in by_question]
    kinds = [(by_question[q], by_question[q].label(a)) for q, a in pairs]
    possible = {c for c in CHARACTERS if all(k in ("good", world().kind(c, d)) for d, k in kinds)}
    return possible | ({"Nobody"} if all(k == "good" for _, k in kinds) else set())


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
        messages = [{"role": "assistant" if role == QUOTED else role, "content": text} for role, text in document]
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
