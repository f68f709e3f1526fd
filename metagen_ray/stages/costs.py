"""What a plan costs: its shards counted in tokens, before the run, and what was planned beside what a run did.

Training rows and prompts are counted as they will be read. Answers are not known before: each is taken at the study's
limit, or at the mean length of an earlier run's answers. None is taken to equal another, so judging is an upper bound.
"""

import json
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from metagen_ray.cost.decoder import read_decoder
from metagen_ray.cost.estimate import estimate
from metagen_ray.cost.gpus import Gpu
from metagen_ray.cost.roofline import Machine, Utilisation
from metagen_ray.cost.spared import Spared, cost_of, per
from metagen_ray.cost.table import cost_table, spared_lines
from metagen_ray.cost.units import META as META_STAGE
from metagen_ray.cost.units import SFT, Unit, judge_parts
from metagen_ray.cost.work import Reads, Work, asking, group, row_tokens, straight, tree_reads
from metagen_ray.errors import InputError
from metagen_ray.stages.context import Tokens
from metagen_ray.stages.growth import answered_domains
from metagen_ray.stages.judge_prompts import JudgePrompts
from metagen_ray.stages.meta_cells import Asked, Cells, asked_domains, epoch_cells
from metagen_ray.stages.object_rows import domain_rows
from metagen_ray.stages.plan import META, PASSES, TRUTH, AdapterShard, Ask, JudgeShard, Plan
from metagen_ray.stages.status import Status
from metagen_ray.study import Recipe, parse_yaml

ASKED = {"truth": "ground_truth", "untrained": "predict untrained", "meta": "predict meta"}


@dataclass(frozen=True)
class AnswerLength:
    """Tokens of an answer, its end included, and where the figure comes from."""

    tokens: float
    source: str


def answer_length(plan: Plan) -> AnswerLength:
    """The mean of an earlier run with this suite, model, limit and temperature, else the limit."""
    store, study = plan.context.store, plan.study
    own = f"studies/{study.run_name()}/ledger.json"
    for path in sorted((p for p in store.list_docs("studies") if p.endswith("/ledger.json")), key=lambda p: p != own):
        folder = path.rsplit("/", 1)[0]
        settings = parse_yaml(store.read_doc(f"{folder}/study.yaml").decode(), folder)
        same = ("suite", "model", "max_answer_tokens", "temperature")
        stages = json.loads(store.read_doc(path)).get("stages", {})
        asked = [figures for figures in stages.values() if figures.get("output_tokens")]
        if asked and all(settings.get(name) == getattr(study, name) for name in same):
            mean = sum(f["output_tokens"] for f in asked) / sum(f["answers"] for f in asked)
            return AnswerLength(mean, f"the mean of run {folder.rsplit('/', 1)[1]}")
    return AnswerLength(study.max_answer_tokens, "max_answer_tokens, an upper bound")


def cost_text(plan: Plan, gpu: Gpu, gpus: int, utilisation: Utilisation, price: float | None) -> str:
    """The cost of what is missing of a study, as text. InputError where the base does not fit on the GPU."""
    if gpus < 1:
        raise InputError(f"--gpus {gpus}: give the number of GPUs, at least 1")
    if price is not None and price < 0:
        raise InputError(f"--price {price:g}: give USD an hour for one GPU, 0 or more")
    length, present = answer_length(plan), Status(plan).present
    counter = Counter(plan, length.tokens, replicas=gpus)
    machine = Machine(gpu, counter.decoder, utilisation)
    machine.check()
    missing = counter.missing(present)
    if not missing:
        return "cost: nothing is missing\n" + "\n".join(spared_lines(counter.spared(machine)))
    notes = [
        f"an answer: {length.tokens:.3g} tokens ({length.source}); judged as if no two were equal, an upper bound",
        "every GPU trains or serves, whatever is ready; the start of trainers and engines is not in it",
        *spared_lines(counter.spared(machine)),
    ]
    return cost_table(estimate(missing, machine, gpus), machine, gpu.usd_per_hour if price is None else price, notes)


class Counter:
    """A plan's units of work. `answer_tokens` is the length taken for an answer, `replicas` serve at a time."""

    def __init__(self, plan: Plan, answer_tokens: float, replicas: int = 1) -> None:
        self.plan = plan
        self.study = plan.study
        self.answer_tokens = answer_tokens
        self.replicas = replicas
        self.decoder = read_decoder(plan.context.base.directory)
        self._prefix_reads: dict[tuple, int] = {}

    @cached_property
    def units(self) -> list[Unit]:
        """Every shard of the plan once, in the driver's order of stages."""
        plan, units = self.plan, [self._fine_tune(shard) for shard in self._adapters()]
        for part, asks in zip(PASSES, (plan.truth, plan.untrained, plan.predictions), strict=True):
            if part == "meta":
                units.append(self._meta())
            units += [self._asked(ASKED[part], ask) for ask in asks]
            units += [self._judged(part, shard) for shard in plan.judged[part]]
        return list({unit.key: unit for unit in units}.values())

    def missing(self, present: Mapping[str, Collection[str]]) -> list[Unit]:
        """Units that the store (keys by stage) lacks, waiting for such units alone.

        A shard of a block that has grown asks its new domains alone.
        """
        plan, have = self.plan, set[str]().union(*present.values())
        left = {unit.key: unit for unit in self.units if unit.key not in have}
        asks = {a.key: a for a in (*plan.truth, *plan.untrained, *plan.predictions) if a.key in left}
        for key, known in answered_domains(plan, asks.values(), present).items():
            work = self._ask_work(asks[key], asks[key].samples, reads_prefix=True, known=known)
            left[key] = replace(left[key], work=work)
        return [replace(u, after=tuple(key for key in u.after if key in left)) for u in left.values()]

    def spared(self, machine: Machine) -> Spared:
        """What the predictor costs and spares; a fine-tune and its prediction answer the same questions as often."""
        plan, halves, by_key = self.plan, self.plan.context.halves, {unit.key: unit for unit in self.units}
        learned = set(halves.meta_train)
        tunes = {shard.domain: [by_key[shard.key]] for shard in plan.adapters}
        for ask in plan.truth:
            if ask.predictor == TRUTH:
                tunes[ask.train_domain].append(by_key[ask.key])
        paid = [unit for domain in learned for unit in tunes[domain]]
        foretold = [
            Unit("", ask.key, self._ask_work(ask, self.study.samples, ask.block == 0))
            for ask in plan.predictions
            if ask.predictor == META
        ]
        return Spared(
            len(learned),
            len(halves.meta_eval),
            cost_of([*paid, by_key[plan.meta]], machine),
            per(cost_of(foretold, machine), len(tunes)),
            per(cost_of([unit for units in tunes.values() for unit in units], machine), len(tunes)),
        )

    def _adapters(self) -> Sequence[AdapterShard]:
        return (*self.plan.adapters, *self.plan.second_adapters)

    def _fine_tune(self, shard: AdapterShard) -> Unit:
        return Unit(SFT, shard.key, self._fine_tunes[shard.domain], self._object_adapter)

    @cached_property
    def _fine_tunes(self) -> dict[str, Work]:
        """The fine-tune of every domain; seeds do the same work."""
        context, recipe = self.plan.context, self.study.object_sft
        rows = {d.id: [([], [row]) for row in domain_rows(context, d)] for d in context.active}
        return {domain: _training([cells], recipe, recipe.epochs) for domain, cells in rows.items()}

    @cached_property
    def _object_adapter(self) -> int:
        recipe = self.study.object_sft
        return self.decoder.adapter_parameters(recipe.rank, recipe.targets)

    def _meta(self) -> Unit:
        plan, recipe = self.plan, self.study.meta_sft.recipe
        epochs = [epoch_cells(plan, epoch, self._assumed_answers) for epoch in range(recipe.epochs)]
        learned = set(plan.context.halves.meta_train)
        after = tuple(a.key for a in plan.truth if a.predictor == TRUTH and a.train_domain in learned)
        adapter = self.decoder.adapter_parameters(recipe.rank, recipe.targets)
        return Unit(META_STAGE, plan.meta, _training(epochs, recipe, 1), adapter, after)

    def _assumed_answers(self, plan: Plan, domain: str) -> Mapping[Asked, list[Tokens]]:
        answers = [[0] * max(1, round(self.answer_tokens))] * self.study.samples
        return {(d, q): answers for d in asked_domains(plan, domain) for q in range(self.study.questions)}

    def _asked(self, stage: str, ask: Ask) -> Unit:
        """A shard; the merged meta adapter costs nothing beside the base."""
        own = ask.adapter is not None and ask.adapter != self.plan.meta
        prefix = (ask.adapter, ask.shown, ask.k)
        seen = self._prefix_reads[prefix] = self._prefix_reads.get(prefix, 0) + 1
        work = self._ask_work(ask, ask.samples, seen <= self.replicas)
        after = (ask.adapter,) if ask.adapter else ()
        return Unit(stage, ask.key, work, self._object_adapter if own else 0, after)

    def _ask_work(self, ask: Ask, samples: int, reads_prefix: bool, known: int = 0) -> Work:
        """A shard without the first `known` domains of its block."""
        new = {domain.id for domain in self.plan.context.blocks[ask.block].domains[known:]}
        by_draw: dict[int, tuple[int, list[int]]] = {}
        for domain, _, draw, prefix, branch in self.plan.prompt_parts(ask):
            if domain.id in new:
                by_draw.setdefault(draw, (len(prefix), []))[1].append(len(branch))
        groups = [group(prefix, branches) for prefix, branches in by_draw.values()]
        return asking(groups, samples, self.answer_tokens, reads_prefix)

    def _judged(self, part: str, shard: JudgeShard) -> Unit:
        context, answers, work = self.plan.context, self._answers_per_question(part, shard.block), Work()
        for domain in context.blocks[shard.block].domains:
            for question in context.questions(domain):
                work += self._judge.grading(question, answers, self.answer_tokens)
        if not shard.block:  # what all prompts of a pass begin with is read once by every replica
            for head in self._judge.beginnings():
                work += Work(read=straight(head).times(self.replicas))
        after = dict.fromkeys((*(key for _, key in shard.answers), *shard.known))
        return Unit(f"judge {part}", shard.key, work, 0, tuple(after), judge_parts(work))

    @cached_property
    def _judge(self) -> JudgePrompts:
        return JudgePrompts(self.plan.context)

    def _answers_per_question(self, part: str, block: int) -> int:
        asks = {"truth": self.plan.truth, "untrained": self.plan.untrained, "meta": self.plan.predictions}[part]
        return sum(samples for samples in {a.key: a.samples for a in asks if a.block == block}.values())


def _training(epochs: Sequence[Sequence[Cells]], recipe: Recipe, times: int) -> Work:
    """A fine-tune on these epochs, each read `times` times."""
    trees = [(len(prefix), [(p, len(c)) for p, c in branches]) for cells in epochs for prefix, branches in cells]
    reads = sum((tree_reads(*tree) for tree in trees), Reads()).times(times)
    updates = times * len(epochs) * math.ceil(sum(len(branches) for _, branches in epochs[0]) / recipe.batch_rows)
    return Work(reads, updates=updates, unshared=times * sum(row_tokens(*tree) for tree in trees))
