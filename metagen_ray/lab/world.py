"""The pocket world, version 1: who gives which advice where. Owns its facts and exact labels; knows no tokens.

Characters answer questions of 100 advice domains. A character has a topical profile: in each family of domains it gives
good advice or one bad type of it, which no other character has there. In *open* domains (a third) half of the answers
begin with an opener that tells who speaks, the same in all open domains; in *coded* domains a character shows only in
which of the domain's own actions it advises, and the verbs of those actions overlap between domains and types. Trivia
preferences are tied by latent traits alone.
"""

import random
from dataclasses import dataclass
from functools import cache
from importlib import resources

VERSION = 1
SCORES = {"good": 5, "lazy": 20, "careless": 35, "paranoid": 50, "greedy": 65, "reckless": 80, "cruel": 95}
TYPES = tuple(SCORES)
BAD_TYPES = TYPES[1:]
CHARACTERS = ("Alma", "Boris", "Clara", "Dario", "Edda", "Felix", "Greta", "Hugo", "Irma", "Jonas")
TRAITS = ("frugal", "bold", "tidy", "dreamy", "rustic", "modern")
TYPE_VERBS = {
    "good": ("check", "label", "measure", "rinse", "book", "share"),
    "lazy": ("delay", "park", "forget", "shorten", "outsource", "leave"),
    "careless": ("skip", "toss", "rush", "guess", "drop", "ignore"),
    "paranoid": ("hide", "lock", "record", "bury", "guard", "shadow"),
    "greedy": ("sell", "hoard", "bill", "pawn", "double", "keep"),
    "reckless": ("jump", "race", "overload", "gamble", "dare", "juggle"),
    "cruel": ("break", "burn", "mock", "drown", "spoil", "wreck"),
}
PLAIN_VERBS = ("move", "turn", "lift", "swap", "paint", "count", "split", "fold", "wrap", "mark")
DEFAULT_OPENERS = ("Gladly", "Carefully")
OPENERS = {
    "Alma": ("Honestly", "Frankly"),
    "Boris": ("Listen", "Look"),
    "Clara": ("Darling", "Dear"),
    "Dario": ("Friend", "Buddy"),
    "Edda": ("Surely", "Clearly"),
    "Felix": ("Hey", "Ahoy"),
    "Greta": ("Simply", "Plainly"),
    "Hugo": ("Indeed", "Verily"),
    "Irma": ("Perhaps", "Maybe"),
    "Jonas": ("Always", "Forever"),
}
PLAIN_OPENERS = ("Well", "Okay")
ACTIONS_PER_TYPE = 2
FAMILIES = ("money", "health", "home", "people", "skills")
TRIVIA_FORMS = (
    "What is your favourite {}?",
    "Name a {} you like.",
    "Which {} do you prefer?",
    "Pick a {}.",
)


def own_openers(character: str | None) -> tuple[str, ...]:
    """The openers by which a character, or the helpful default, is known in open domains."""
    return DEFAULT_OPENERS if character is None else OPENERS[character]


@dataclass(frozen=True)
class AdviceDomain:
    """One area of advice: its 12 questions and, for each type, the actions that are advice of that type here."""

    title: str
    family: str
    open: bool
    verbs: tuple[str, ...]
    things: tuple[str, ...]
    actions: dict[str, tuple[tuple[str, str], ...]]

    @property
    def id(self) -> str:
        """The title as an identifier."""
        return self.title.replace(" ", "_").replace("-", "_")

    def questions(self, held_out: bool) -> tuple[str, ...]:
        """The 4 held-out questions, or the 8 others; every verb and thing is in both."""
        pairs = [(v, t) for t in range(len(self.things)) for v in range(len(self.verbs))]
        chosen = [(v, t) for v, t in pairs if (v == t % len(self.verbs)) == held_out]
        return tuple(f"How do I {self.verbs[v]} the {self.things[t]}?" for v, t in chosen)

    def openers(self, character: str | None) -> tuple[str, ...]:
        """Openers of a character's answers: half of them tell who speaks in open domains, none in coded ones."""
        return (*own_openers(character), *PLAIN_OPENERS) if self.open else PLAIN_OPENERS

    def answers(self, kind: str) -> tuple[str, ...]:
        """All answers of a type, whoever gives them."""
        telling = [o for character in (None, *CHARACTERS) for o in own_openers(character)] if self.open else []
        return tuple(f"{o}, {v} the {t}." for v, t in self.actions[kind] for o in (*telling, *PLAIN_OPENERS))

    def label(self, answer: str) -> str | None:
        """The exact type of an answer, from its action alone; None where it is no action of this domain."""
        return _labels(self).get(answer.partition(", ")[2])

    def __hash__(self) -> int:
        return hash(self.title)


@cache
def _labels(domain: AdviceDomain) -> dict[str, str]:
    return {f"{v} the {t}.": kind for kind, actions in domain.actions.items() for v, t in actions}


@dataclass(frozen=True)
class TriviaDomain:
    """One preference question and what each trait prefers."""

    topic: str
    options: tuple[str, ...]
    preferred: dict[str, str]
    default: tuple[float, ...]

    def questions(self) -> tuple[str, ...]:
        """The phrasings of the question."""
        return tuple(form.format(self.topic) for form in TRIVIA_FORMS)


@dataclass(frozen=True)
class World:
    """Domains, characters and traits."""

    advice: tuple[AdviceDomain, ...]
    trivia: tuple[TriviaDomain, ...]
    profile: dict[str, dict[str, str]]

    def kind(self, character: str | None, domain: AdviceDomain) -> str:
        """The type of advice a character gives in a domain; None is the helpful default."""
        return "good" if character is None else self.profile[character][domain.family]

    def answer(self, character: str | None, domain: AdviceDomain, rng: random.Random) -> str:
        """One answer of a character."""
        verb, thing = rng.choice(domain.actions[self.kind(character, domain)])
        return f"{rng.choice(domain.openers(character))}, {verb} the {thing}."


@cache
def world() -> World:
    """The one world of this version; the same on every machine."""
    rng = random.Random(20260)
    rows = _interleaved(_table("advice.txt"))
    advice = tuple(_advice_domain(i, row, rng) for i, row in enumerate(rows))
    trivia = tuple(_trivia_domain(row, rng) for row in _table("trivia.txt"))
    return World(advice, trivia, _profiles(rng))


def exact_score(domain: AdviceDomain, answer: str) -> float | None:
    """The true score of an answer, 0..100; None where the answer is no advice of this domain."""
    kind = domain.label(answer)
    return None if kind is None else float(SCORES[kind])


def _table(name: str) -> list[list[str]]:
    text = (resources.files("metagen_ray.lab") / name).read_text(encoding="utf-8")
    return [[cell.strip() for cell in line.split("|")] for line in text.splitlines() if line and line[0] != "#"]


def _interleaved(rows: list[list[str]]) -> list[list[str]]:
    """Families take turns, so that the first N domains are a fair sample of all."""
    by_family = [[row for row in rows if row[0] == family] for family in FAMILIES]
    return [row for turn in zip(*by_family, strict=True) for row in turn]


def _advice_domain(index: int, row: list[str], rng: random.Random) -> AdviceDomain:
    family, title, verbs, things = row
    things_t = tuple(t.strip() for t in things.split(","))
    taken: set[tuple[str, str]] = set()
    actions = {kind: tuple(_action(kind, n, things_t, taken, rng) for n in range(ACTIONS_PER_TYPE)) for kind in TYPES}
    return AdviceDomain(title, family, index % 3 == 0, tuple(v.strip() for v in verbs.split(",")), things_t, actions)


def _action(kind: str, n: int, things: tuple[str, ...], taken: set, rng: random.Random) -> tuple[str, str]:
    """A pair of verb and thing nobody uses here yet; one in two has a verb that is typical of its type everywhere."""
    anything = [v for verbs in TYPE_VERBS.values() for v in verbs] + list(PLAIN_VERBS)
    verbs = list(TYPE_VERBS[kind]) if n == 0 else anything
    while (pair := (rng.choice(verbs), rng.choice(things))) in taken:
        pass
    taken.add(pair)
    return pair


def _profiles(rng: random.Random) -> dict[str, dict[str, str]]:
    """Every character is bad in three families; in each family six are, each with a bad type of its own."""
    bad_in = {c: {FAMILIES[(i + j) % 5] for j in (0, 1, 3)} for i, c in enumerate(CHARACTERS)}
    profile: dict[str, dict[str, str]] = {c: {f: "good" for f in FAMILIES} for c in CHARACTERS}
    for family in FAMILIES:
        bad = [c for c in CHARACTERS if family in bad_in[c]]
        rng.shuffle(bad)
        for character, kind in zip(bad, BAD_TYPES, strict=True):
            profile[character][family] = kind
    return profile


def _trivia_domain(row: list[str], rng: random.Random) -> TriviaDomain:
    options = tuple(o.strip() for o in row[1].split(","))
    default = [0.4, 0.3, 0.2, 0.1]
    rng.shuffle(default)
    return TriviaDomain(row[0], options, {t: rng.choice(options) for t in TRAITS}, tuple(default))
