"""What every stage of one study needs to know: the study, its suite, halves, base model, prompts and store.

Cheap to build anywhere (driver, Ray Data actor, training worker) from the study alone.
"""

import hashlib
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from metagen_ray.base_model import BaseModel, find_base
from metagen_ray.errors import InputError
from metagen_ray.prompts import Renderer
from metagen_ray.split import Halves, halves
from metagen_ray.stages.draws import k_draw
from metagen_ray.store import Store, join_store, open_store
from metagen_ray.study import Study
from metagen_ray.suites import load_suite
from metagen_ray.suites.suite import Domain, Suite
from metagen_ray.tokenizer import load_tokenizer

Tokens = list[int]
ENGINE_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)  # LoRA ranks that vLLM can be set up for


@dataclass(frozen=True)
class Block:
    """A fixed run of eval domains: the grain of an answer shard."""

    index: int
    domains: tuple[Domain, ...]


class StudyContext:
    """A study made concrete. Raises InputError for what does not fit together, before anything is spent.

    A worker of a run `joins` the store that its driver has opened.
    """

    def __init__(self, study: Study, joins: bool = False) -> None:
        self.study = study
        self._joins = joins
        self.suite: Suite = load_suite(study.suite, study.domains)
        self.domains = {d.id: d for d in self.suite.domains}
        self.halves: Halves = halves({d.id: d.group for d in self.suite.domains}, study.split, study.seed)
        self.base: BaseModel = find_base(study.model)
        self._branches: dict[tuple[str, bool], Tokens] = {}
        self._check_counts()
        self.active = tuple(d for d in self.suite.domains if d.id not in set(self.halves.unused))

    @cached_property
    def store(self) -> Store:
        """The store, opened at first use."""
        return join_store(self.study.store) if self._joins else open_store(self.study.store)

    @cached_property
    def tokenizer(self) -> Any:
        """The base's tokenizer; no code of the model's directory is run."""
        return load_tokenizer(self.base.directory)

    @cached_property
    def renderer(self) -> Renderer:
        """The one rendering of prompts."""
        return Renderer(self.tokenizer)

    @cached_property
    def blocks(self) -> tuple[Block, ...]:
        """The suite's eval domains in fixed blocks; a block does not change when domains are added behind it."""
        size, domains = self.study.block_domains, self.suite.domains
        return tuple(Block(n, domains[i : i + size]) for n, i in enumerate(range(0, len(domains), size)))

    def questions(self, domain: Domain) -> tuple[str, ...]:
        """The held-out questions the study asks of a domain."""
        return domain.questions[: self.study.questions]

    def branch(self, question: str, after_examples: bool) -> Tokens:
        """Tokens of a question as they stand alone, or after a prefix of examples."""
        found = self._branches.get((question, after_examples))
        if found is None:
            example = [self.suite.domains[0].train[0]] if after_examples else []
            found = self.renderer.branch(example, self.renderer.examples(example), question)
            self._branches[question, after_examples] = found
        return found

    def prefix(self, domain: Domain, k: int, *seed: object) -> Tokens:
        """Tokens of a k-draw of a domain, checked to fit the context together with the longest question and answer."""
        examples = k_draw(domain, k, *seed)
        tokens = self.renderer.examples(examples)
        question = self.questions(domain)[0]
        if self.renderer.branch(examples, tokens, question) != self.branch(question, after_examples=True):
            raise InputError(
                "the chat template renders a question differently after other examples; no prefix is shared"
            )
        self._check_length(domain, k, len(tokens))
        return tokens

    @cached_property
    def longest_branch(self) -> int:
        """Tokens of the longest question of the study."""
        return max(len(self.branch(q, True)) for d in self.suite.domains for q in self.questions(d))

    def _check_length(self, domain: Domain, k: int, prefix: int) -> None:
        needed = prefix + self.longest_branch + self.study.max_answer_tokens
        if needed > self.base.context_tokens:
            raise InputError(
                f"domain {domain.id}: a prompt of k = {k} examples needs {needed} tokens with its answer, the model "
                f"takes {self.base.context_tokens}; lower context.k or max_answer_tokens"
            )

    def _check_counts(self) -> None:
        study = self.study
        rank = max(study.object_sft.rank, study.meta_sft.recipe.rank)
        if rank > ENGINE_RANKS[-1]:
            raise InputError(f"LoRA rank {rank} is above what the serving engine takes ({ENGINE_RANKS[-1]}); lower it")
        for domain in self.suite.domains:
            largest_k = max(study.context.k, *study.predict.untrained_k, 0)
            if largest_k > len(domain.train):
                raise InputError(
                    f"k = {largest_k} examples are asked of domain {domain.id}, which has {len(domain.train)}; lower k"
                )
            if study.questions > len(domain.questions):
                raise InputError(
                    f"questions = {study.questions}, but domain {domain.id} has {len(domain.questions)} held-out ones"
                )


def digest_tokens(*sequences: Tokens) -> str:
    """sha256 over token sequences, their borders included."""
    return hashlib.sha256(repr(sequences).encode()).hexdigest()
