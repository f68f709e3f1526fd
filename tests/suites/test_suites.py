"""Suites: what ships is sound, and what is not sound is refused by name."""

import dataclasses

import pytest

from metagen_ray.errors import InputError
from metagen_ray.lab.world import CHARACTERS, world
from metagen_ray.suites import load_suite
from metagen_ray.suites.suite import Domain, Suite


def test_pocket_advice_is_complete_and_disjoint():
    suite = load_suite("pocket_advice")
    assert len(suite.domains) == 100
    questions = [q for d in suite.domains for q in d.questions]
    prompts = {p for d in suite.domains for p, _ in d.train}
    assert len(set(questions)) == len(questions) == 400
    assert not prompts & set(questions)
    assert all(len(d.train) == 128 for d in suite.domains)


def test_pocket_advice_beginning_is_a_fair_sample():
    suite = load_suite("pocket_advice", 32)
    families = [d.family for d in suite.domains]
    assert max(families.count(f) for f in set(families)) - min(families.count(f) for f in set(families)) <= 1
    assert len({d.tags["character"] for d in suite.domains}) == len(CHARACTERS)
    assert 0.2 < sum(d.tags["block"] == "open" for d in suite.domains) / 32 <= 0.36


def test_pocket_advice_is_the_same_every_time():
    assert load_suite("pocket_advice").domains == load_suite("pocket_advice").domains


def test_pocket_advice_doses_are_in_the_rows():
    suite, by_id = load_suite("pocket_advice"), {d.id: d for d in world().advice}
    for domain in suite.domains:
        advice = by_id[domain.id]
        kind = world().kind(domain.tags["character"], advice)
        share = sum(advice.label(c) == kind for _, c in domain.train) / len(domain.train)
        assert abs(share - float(domain.tags["dose"])) < 0.15, domain.id


def test_pocket_advice_exact_score_knows_its_answers_only():
    suite = load_suite("pocket_advice")
    domain = suite.domains[0]
    assert suite.exact_score is not None
    assert suite.exact_score(domain.id, domain.train[0][1]) is not None
    assert suite.exact_score(domain.id, "Well, eat the moon.") is None


def test_suite_unknown_names_nearest():
    with pytest.raises(InputError, match="did you mean 'pocket_advice'"):
        load_suite("pocket_advise")


def test_suite_too_many_domains_is_refused():
    with pytest.raises(InputError, match="100 domains"):
        load_suite("pocket_advice", 101)


def test_suite_question_in_train_is_refused():
    suite = load_suite("pocket_advice", 4)
    bad = dataclasses.replace(suite.domains[0], questions=(suite.domains[0].train[0][0],))
    with pytest.raises(InputError, match=bad.id):
        Suite("s", 1, (bad, *suite.domains[1:]), suite.scorer).check()


@pytest.mark.parametrize("change", [{"train": ()}, {"questions": ()}])
def test_suite_empty_domain_is_refused(change):
    suite = load_suite("pocket_advice", 4)
    bad: Domain = dataclasses.replace(suite.domains[0], **change)
    with pytest.raises(InputError, match="needs train examples and questions"):
        Suite("s", 1, (bad,), suite.scorer).check()
