"""Counts of tokens and attention pairs against brute force: masks, and rows told one by one."""

import random

import pytest

from metagen_ray.cost.work import Rubric, asking, group, judging, row_tokens, straight, tree_reads
from metagen_ray.training.rows import Branch, Tree, pack


def random_tree(rng: random.Random) -> Tree:
    prompts = [[rng.randrange(9) for _ in range(rng.randrange(1, 5))] for _ in range(3)]
    branches = [Branch(rng.choice(prompts), [1] * rng.randrange(1, 6)) for _ in range(rng.randrange(1, 6))]
    return Tree([0] * rng.randrange(0, 7), tuple(branches))


def counted(tree: Tree) -> tuple[int, list[tuple[list[int], int]]]:
    return len(tree.prefix), [(b.prompt, len(b.completion)) for b in tree.branches]


@pytest.mark.parametrize("seed", range(20))
def test_tree_reads_are_those_of_the_mask(seed):
    tree = random_tree(random.Random(seed))
    reads = tree_reads(*counted(tree))
    assert reads.tokens == tree.read_tokens()
    assert reads.logits == tree.completion_tokens()
    assert reads.pairs == pack([tree]).visible_SS().sum().item()


@pytest.mark.parametrize("seed", range(5))
def test_row_tokens_are_those_of_rows_read_alone(seed):
    tree = random_tree(random.Random(seed))
    alone = [Tree([*tree.prefix, *b.prompt], (Branch([], b.completion),)) for b in tree.branches]
    assert row_tokens(*counted(tree)) == sum(row.read_tokens() for row in alone)


@pytest.mark.parametrize("reads_prefix", [True, False])
def test_asking_equals_token_by_token(reads_prefix):
    samples, length, groups = 3, 4, {5: [2, 3, 7], 0: [4]}
    found = asking([group(p, questions) for p, questions in groups.items()], samples, length, reads_prefix)
    read, written = [], []  # what every token attends to, itself included
    for prefix, questions in groups.items():
        read += range(1, prefix + 1) if reads_prefix else []
        for question in questions:
            end = prefix + question
            read += range(prefix + 1, end + 1)
            written += samples * [*range(end + 1, end + length)]
    assert (found.read.tokens, found.read.pairs) == (len(read), sum(read))
    assert (found.written.tokens, found.written.pairs) == (len(written), sum(written))
    assert found.read.logits + found.written.logits / samples == 4 * length
    assert (found.answers, found.sampled) == (12, 12 * length)
    assert found.unshared == sum(p + q for p, questions in groups.items() for q in questions)


def test_asking_for_one_token_writes_without_reading_again():
    found = asking([group(0, [4])], 2, 1)
    assert found.written.tokens == 0 and found.sampled == 2


def test_judging_reads_the_question_once_and_every_answer():
    head, question, answer, tail, answers = 6, 3, 4, 2, 5
    found = judging(Rubric(head, tail, (1, 2)), question, answers, answer)
    own = answer + tail
    read = [head + n for n in range(1, question + 1)]
    for _ in range(answers):
        end = head + question + own
        read += [head + question + n for n in range(1, own + 1)] + [end + 1] + [end + 1, end + 2]
    assert (found.read.tokens, found.read.pairs) == (len(read), sum(read))
    assert found.read.logits == answers * 3


def test_work_adds_field_by_field():
    one, other = asking([group(3, [2])], 1, 2), asking([group(0, [9, 1])], 2, 3)
    both = one + other
    assert both.read.pairs == one.read.pairs + other.read.pairs and both.sampled == 2 + 12
    assert both.tokens == one.tokens + other.tokens
    assert straight(3).times(2).pairs == 12
