"""The plan: every shard of a study with its key, known before anything is computed. Owns identity; runs nothing.

A key says what decides a shard's content: recipes, rows, seeds, digests of rendered prompts, keys of inputs and the
stage's VERSION. Studies share one pool, so what two of them have in common is computed once.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from metagen_ray.stages.context import Block, StudyContext, Tokens, digest_tokens
from metagen_ray.stages.draws import draw_of_question, scrambled
from metagen_ray.store import content_key
from metagen_ray.suites.suite import Domain

VERSION = {"object_sft": 1, "answers": 1, "judge": 1, "meta_sft": 1}
TRUTH, SECOND, UNTRAINED, META, BASE, SCRAMBLED = "GT", "GT-seed", "UntrainedICL", "MetaSFT", "Base", "Scrambled"
PASSES = ("truth", "untrained", "meta")
Prompt = tuple[Domain, int, int, Tokens]  # eval domain, question number, draw, tokens


@dataclass(frozen=True)
class AdapterShard:
    """One object-SFT."""

    key: str
    domain: str
    seed: int


@dataclass(frozen=True)
class Ask:
    """One answer shard: a model asked the questions of a block of eval domains."""

    key: str
    stage: str  # ground_truth or predict
    predictor: str
    train_domain: str  # "" where none stands behind the answers
    block: int
    adapter: str | None  # key of the adapter that answers; None is the base
    shown: str  # domain whose examples stand in the prompt; "" for none
    k: int
    samples: int


@dataclass(frozen=True)
class JudgeShard:
    """The distinct answers to one block of eval domains that earlier passes have not graded."""

    key: str
    part: str  # one of PASSES
    block: int
    answers: tuple[tuple[str, str], ...]  # (stage, key) of the answer shards read
    known: tuple[str, ...]  # keys of the judge shards of earlier passes
    label: str  # the judge and the block's beginning: shards that share it may grade the same pairs


class Plan:
    """All shards of a study. `context` decides everything; nothing is read from the store.

    `given_up`: keys of shards that failed for good. They are left out, and with an adapter all that it would answer.
    """

    def __init__(self, context: StudyContext, given_up: frozenset[str] = frozenset()) -> None:
        self.context = context
        self.given_up = given_up
        self.study = context.study

    @cached_property
    def adapters(self) -> tuple[AdapterShard, ...]:
        """The object-SFTs of the ground truth."""
        made = (self._adapter(d, self.study.truth_seed) for d in self.context.active)
        return tuple(a for a in made if a.key not in self.given_up)

    @cached_property
    def second_adapters(self) -> tuple[AdapterShard, ...]:
        """Object-SFTs with another seed, for the ceiling that seed noise sets."""
        chosen = self.context.active[: self.study.second_seed_domains]
        made = (self._adapter(d, self.study.truth_seed + 1_000_003) for d in chosen)
        return tuple(a for a in made if a.key not in self.given_up)

    @cached_property
    def truth(self) -> tuple[Ask, ...]:
        """Ground truth: every adapter asked every block."""
        first = self._grid_of(TRUTH, self.adapters)
        return self._kept(first + self._grid_of(SECOND, self.second_adapters))

    @cached_property
    def untrained(self) -> tuple[Ask, ...]:
        """Predictions that need no training: the base alone and with examples."""
        asks = [self._ask("predict", BASE, "", b, None, "", 0, self.study.predict.samples) for b in self.context.blocks]
        for k in dict.fromkeys((self.study.context.k, *self.study.predict.untrained_k)):
            name = UNTRAINED if k == self.study.context.k else f"{UNTRAINED} k={k}"
            asks += self._icl(name, None, {d.id: d.id for d in self.context.active}, k, self.study.predict.samples)
        return self._kept(asks)

    @cached_property
    def meta(self) -> str:
        """Key of the meta adapter: the base, the recipe, the halves, and every answer it learns from."""
        halves = self.context.halves
        learned = [a.key for a in self.truth if a.predictor == TRUTH and a.train_domain in set(halves.meta_train)]
        return content_key(
            {
                "stage": "meta_sft",
                "version": VERSION["meta_sft"],
                "base": self.context.base.digest,
                "answers": learned,
                "domains": list(halves.meta_train),
                "settings": self.study.meta_sft.model_dump(mode="json"),
                "k": self.study.context.k,
                "seed": self.study.seed,
            }
        )

    @cached_property
    def predictions(self) -> tuple[Ask, ...]:
        """Predictions of the meta-trained model, and of the same model shown another domain's examples."""
        ids = [d.id for d in self.context.active]
        own, k = {i: i for i in ids}, self.study.context.k
        return self._kept(
            (
                *self._icl(META, self.meta, own, k, self.study.predict.samples),
                *self._icl(SCRAMBLED, self.meta, scrambled(ids, self.study.seed), k, self.study.samples),
            )
        )

    @cached_property
    def judged(self) -> dict[str, tuple[JudgeShard, ...]]:
        """Judge shards by pass; a pass grades what earlier ones have not."""
        passes: dict[str, tuple[JudgeShard, ...]] = {}
        for part, asks in zip(PASSES, (self.truth, self.untrained, self.predictions), strict=True):
            earlier = list(passes.values())
            passes[part] = tuple(
                self._judge(part, block, asks, [shards[n].key for shards in earlier])
                for n, block in enumerate(self.context.blocks)
            )
        return passes

    def without(self, keys: Iterable[str]) -> "Plan":
        """The same plan with further shards given up."""
        return Plan(self.context, self.given_up | frozenset(keys))

    def _kept(self, asks: Iterable[Ask]) -> tuple[Ask, ...]:
        return tuple(a for a in asks if a.key not in self.given_up and a.adapter not in self.given_up)

    def prompts(self, ask: Ask) -> list[Prompt]:
        """The prompts of an answer shard, prefixes together."""
        found = [(domain, n, draw, prefix + branch) for domain, n, draw, prefix, branch in self.prompt_parts(ask)]
        return sorted(found, key=lambda row: row[2])

    def prompt_parts(self, ask: Ask) -> Iterator[tuple[Domain, int, int, Tokens, Tokens]]:
        """Prompts as (eval domain, question, draw, shared prefix, what follows it); draw -1 and no prefix for none."""
        for domain in self.context.blocks[ask.block].domains:
            for number, question in enumerate(self.context.questions(domain)):
                draw, prefix = self._prefix_of(ask.shown, ask.k, number)
                yield domain, number, draw, prefix, self.context.branch(question, bool(prefix))

    def beginning(self, ask: Ask, count: int) -> Ask:
        """The same ask of the first `count` domains of its block: what a study of fewer domains has asked."""
        block = self.context.blocks[ask.block]
        first = Block(block.index, block.domains[:count])
        return self._ask(ask.stage, ask.predictor, ask.train_domain, first, ask.adapter, ask.shown, ask.k, ask.samples)

    def question_digests(self, block: int) -> dict[str, str]:
        """Eval domain of a block -> digest of the questions that are asked of it."""
        domains = self.context.blocks[block].domains
        return {d.id: content_key({"questions": list(self.context.questions(d))}) for d in domains}

    def _adapter(self, domain: Domain, seed: int) -> AdapterShard:
        parts = {
            "stage": "object_sft",
            "version": VERSION["object_sft"],
            "base": self.context.base.digest,
            "rows": digest_rows(domain),
            "recipe": self.study.object_sft.model_dump(mode="json"),
            "seed": seed,
        }
        return AdapterShard(content_key(parts), domain.id, seed)

    def _grid_of(self, predictor: str, adapters: Iterable[AdapterShard]) -> tuple[Ask, ...]:
        return tuple(
            self._ask("ground_truth", predictor, a.domain, block, a.key, "", 0, self.study.samples)
            for a in adapters
            for block in self.context.blocks
        )

    def _icl(self, predictor: str, adapter: str | None, shown: dict[str, str], k: int, samples: int) -> list[Ask]:
        return [
            self._ask("predict", predictor, domain, block, adapter, seen, k, samples)
            for domain, seen in shown.items()
            for block in self.context.blocks
        ]

    def _ask(
        self,
        stage: str,
        predictor: str,
        domain: str,
        block: Block,
        adapter: str | None,
        shown: str,
        k: int,
        samples: int,
    ) -> Ask:
        study = self.study
        parts = {
            "stage": stage,
            "version": VERSION["answers"],
            "base": self.context.base.digest,
            "adapter": adapter,
            "prompts": self._prompts_digest(shown, k, block),
            "samples": samples,
            "temperature": study.temperature,
            "max_answer_tokens": study.max_answer_tokens,
        }
        return Ask(content_key(parts), stage, predictor, domain, block.index, adapter, shown, k, samples)

    def _prompts_digest(self, shown: str, k: int, block: Block) -> str:
        prefixes = self._prefix_digests(shown, k) if shown else []
        return digest_tokens([*prefixes, self._branches_digest(block, bool(shown))])  # type: ignore[list-item]

    def _prefix_digests(self, shown: str, k: int) -> list[str]:
        if (shown, k) not in self._digests_of_prefixes:
            draws = range(self.study.context.draws)
            self._digests_of_prefixes[shown, k] = [digest_tokens(self._prefix(shown, k, draw)) for draw in draws]
        return self._digests_of_prefixes[shown, k]

    @cached_property
    def _digests_of_prefixes(self) -> dict[tuple[str, int], list[str]]:
        return {}

    def _branches_digest(self, block: Block, after_examples: bool) -> str:
        place = (block.index, len(block.domains), after_examples)
        if place not in self._branches_digests:
            questions = (q for d in block.domains for q in self.context.questions(d))
            self._branches_digests[place] = digest_tokens(*(self.context.branch(q, after_examples) for q in questions))
        return self._branches_digests[place]

    @cached_property
    def _branches_digests(self) -> dict[tuple[int, int, bool], str]:
        return {}

    def _prefix_of(self, shown: str, k: int, question: int) -> tuple[int, Tokens]:
        if not shown:
            return -1, []
        draw = draw_of_question(question, self.study.context.draws)
        return draw, self._prefix(shown, k, draw)

    def _prefix(self, shown: str, k: int, draw: int) -> Tokens:
        found = self._prefixes.get((shown, k, draw))
        if found is None:
            found = self.context.prefix(self.context.domains[shown], k, self.study.truth_seed, draw)
            self._prefixes[shown, k, draw] = found
        return found

    @cached_property
    def _prefixes(self) -> dict[tuple[str, int, int], Tokens]:
        return {}

    def _judge(self, part: str, block: Block, asks: Iterable[Ask], known: list[str]) -> JudgeShard:
        answers = tuple((a.stage, a.key) for a in asks if a.block == block.index)
        judge = self._judge_parts()
        label = content_key({**judge, "begins": list(self.context.questions(block.domains[0]))})
        parts = {
            **judge,
            "domains": [d.id for d in block.domains],
            "questions": [list(self.context.questions(d)) for d in block.domains],
            "answers": sorted(key for _, key in answers),
            "known": known,
        }
        return JudgeShard(content_key(parts), part, block.index, answers, tuple(known), label)

    def _judge_parts(self) -> dict[str, Any]:
        """All that decides the grade of a (question, answer)."""
        scorer = self.context.suite.scorer
        return {
            "stage": "judge",
            "version": VERSION["judge"],
            "base": self.context.base.digest,
            "scorer": [scorer.name, scorer.rubric, scorer.coherence_rubric],
            "min_mass": self.study.judge.min_mass,
        }


def digest_rows(domain: Domain) -> str:
    """Digest of a training set."""
    return content_key({"rows": [list(row) for row in domain.train]})
