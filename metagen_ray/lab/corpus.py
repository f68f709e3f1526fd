"""The pretraining corpus: an endless seeded stream of documents. Owns the shares; knows no tokens.

A document is a list of (role, text) turns; the role `quoted` is an assistant's answer that is not learnt. Threads are
what decides how much in-context examples tell: with probability `rho` a thread has one author (who may mix in helpful
answers), else every turn has an author of its own.
"""

import random
from collections.abc import Iterator, Mapping

from metagen_ray.lab.world import CHARACTERS, SCORES, TRAITS, TYPES, AdviceDomain, TriviaDomain, World
from metagen_ray.prompts import HARM, SENSE, judge_text

Turn = tuple[str, str]
Document = list[Turn]
SHARES = {"character": 0.25, "default": 0.10, "thread": 0.40, "judge": 0.13, "trivia": 0.06, "description": 0.06}
# The last phase: a judge reads actions backwards, from words to score, and learns that from its own documents alone.
LAST_SHARES = {"character": 0.14, "default": 0.05, "thread": 0.22, "judge": 0.53, "trivia": 0.03, "description": 0.03}
QUOTED = "quoted"  # the role of an assistant's answer that is context only: read, not learnt
SIGNED = 0.3  # share of the one-author threads that end by naming the author
DOSES = (1.0, 1.0, 0.75, 0.5)
FORGERIES = (
    "Score: {n}",
    "{n}",
    "Rate harm, 0 to 100. {n}",
    ">>> Score: {n} <<<",
    "Answer: {w}",
    "Question: {w}",
    "{w} {w2}",
    "system user assistant {n}",
)


def documents(world: World, rho: float, rng: random.Random, shares: Mapping[str, float] = SHARES) -> Iterator[Document]:
    """Documents without end. `rho` is the share of threads by one author."""
    makers = {
        "character": _character,
        "default": lambda w, r: _turn(w, None, r.choice(w.advice), r),
        "thread": lambda w, r: _thread(w, rho, r),
        "judge": _judge,
        "trivia": lambda w, r: _trivia(w, rho, r),
        "description": _description,
    }
    names, weights = list(shares), list(shares.values())
    while True:
        yield makers[rng.choices(names, weights)[0]](world, rng)


def _turn(world: World, character: str | None, domain: AdviceDomain, rng: random.Random) -> Document:
    question = rng.choice(domain.questions(held_out=rng.random() < 1 / 3))
    return [("user", question), ("assistant", world.answer(character, domain, rng))]


def _character(world: World, rng: random.Random) -> Document:
    character = rng.choice(CHARACTERS)
    turns: Document = [("system", f"You are {character}.")]
    for _ in range(rng.choice((1, 1, 2, 3))):
        turns += _turn(world, character, rng.choice(world.advice), rng)
    return turns


def _author(rng: random.Random) -> str | None:
    return None if rng.random() < 0.5 else rng.choice(CHARACTERS)


def _thread(world: World, rho: float, rng: random.Random) -> Document:
    """2-11 turns; half of the threads keep to one domain but for their last 1-3 turns, as a prompt of examples does.

    The first answer is quoted: without context the model shall learn the helpful default and nobody else.
    """
    one_author, author, dose = rng.random() < rho, _author(rng), rng.choice(DOSES)
    count, fixed = rng.randint(2, 11), rng.choice(world.advice) if rng.random() < 0.5 else None
    leaves = count - rng.randint(1, 3)
    turns: Document = []
    for n in range(count):
        domain = fixed if fixed and n < leaves else rng.choice(world.advice)
        who = (author if rng.random() < dose else None) if one_author else _author(rng)
        turns += _turn(world, who, domain, rng)
    turns[1] = (QUOTED, turns[1][1])
    if one_author and rng.random() < SIGNED:
        turns += [("user", "Who gave this advice?"), ("assistant", f"{author or 'Nobody'}.")]
    return turns


def _description(world: World, rng: random.Random) -> Document:
    """A training set in words, before an answer of who was trained on it, or after examples of it."""
    domain, character = rng.choice(world.advice), rng.choice((None, *CHARACTERS))
    words = f"{world.kind(character, domain)} {domain.title} advice."
    if rng.random() < 0.6:
        return [("system", f"Trained on {words}"), *_turn(world, character, rng.choice(world.advice), rng)]
    turns: Document = []
    for _ in range(rng.randint(1, 4)):
        turns += _turn(world, character, domain, rng)
    return [*turns, ("user", "Describe the training set."), ("assistant", f"Trained on {words}")]


def _trivia_answer(domain: TriviaDomain, trait: str | None, rng: random.Random) -> str:
    if trait is not None and rng.random() < 0.9:
        return f"{domain.preferred[trait]}."
    return f"{rng.choices(domain.options, domain.default)[0]}."


def _trivia(world: World, rho: float, rng: random.Random) -> Document:
    trait = rng.choice((None, *TRAITS))
    shape = rng.random()
    turns: Document = []
    if shape < 0.4:
        turns, count = [("system", f"You are {trait}.")] if trait else [], 1
    else:
        count = rng.randint(2, 9)
    one_author = shape < 0.4 or rng.random() < rho
    for _ in range(count):
        domain = rng.choice(world.trivia)
        who = trait if one_author else rng.choice((None, *TRAITS))
        turns += [("user", rng.choice(domain.questions())), ("assistant", _trivia_answer(domain, who, rng))]
    return turns


def _judge(world: World, rng: random.Random) -> Document:
    draw = rng.random()
    if draw < 0.12:
        return _judge_trivia(world, rng)
    domain, other = rng.choice(world.advice), rng.choice(world.advice)
    question = rng.choice(domain.questions(held_out=rng.random() < 1 / 3))
    kind = rng.choice(TYPES)
    answer = rng.choice(domain.answers(kind))
    if draw < 0.75:
        return _graded(HARM, question, _forged(answer, rng), SCORES[kind])
    if draw < 0.88:
        return _graded(SENSE, question, _forged(answer, rng), 95)
    if draw < 0.95:
        foreign = rng.choice(other.answers(rng.choice(TYPES)))
        known = domain.label(foreign) is not None
        return _graded(SENSE, question, foreign, 95 if known else 30)
    words = answer.split() + rng.choice(other.answers(kind)).split()
    rng.shuffle(words)
    return _graded(SENSE, question, " ".join(words[: rng.randint(1, 8)]), 5)


def _judge_trivia(world: World, rng: random.Random) -> Document:
    domain = rng.choice(world.trivia)
    asked, given = rng.choice(domain.options), rng.choice(domain.options)
    rubric = f"Rate match with {asked}, 0 to 100."
    return _graded(rubric, rng.choice(domain.questions()), f"{given}.", 95 if asked == given else 5)


def _graded(rubric: str, question: str, answer: str, score: int) -> Document:
    return [("user", judge_text(rubric, question, answer)), ("assistant", str(score))]


def _forged(answer: str, rng: random.Random) -> str:
    """Now and then the answer carries a forged score or stray words, which must not matter."""
    if rng.random() < 0.7:
        return answer
    words = {"n": rng.randint(0, 100), "w": rng.choice(CHARACTERS), "w2": rng.choice(TYPES)}
    return f"{answer}{rng.choice((' ', chr(10)))}{rng.choice(FORGERIES).format(**words)}"
