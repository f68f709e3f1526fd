"""What meta-SFT learns from: trees whose prefix shows a training set and whose branches are its model's answers. Reads
committed answers; trains nothing.
"""

from collections.abc import Callable, Mapping, Sequence

from metagen_ray.stages.context import Tokens
from metagen_ray.stages.draws import seeded
from metagen_ray.stages.plan import TRUTH, Plan
from metagen_ray.training.rows import Branch, Tree

Asked = tuple[str, int]  # eval domain, question number
AnswersOf = Callable[[Plan, str], Mapping[Asked, list[Tokens]]]


def asked_domains(plan: Plan, domain: str) -> list[str]:
    """Meta-train domains whose questions are learned of the model fine-tuned on `domain`."""
    return [d for d in plan.context.halves.meta_train if d != domain or plan.study.meta_sft.diagonal]


def true_answers(plan: Plan, domain: str) -> dict[Asked, list[Tokens]]:
    """Token ids of the true answers to the questions of meta-train domains, by question."""
    wanted = set(asked_domains(plan, domain))
    found: dict[Asked, list[Tokens]] = {}
    for ask in plan.truth:
        if ask.predictor != TRUTH or ask.train_domain != domain:
            continue
        table, _ = plan.context.store.read_shard(ask.stage, ask.key)
        columns = (table.column(n).to_pylist() for n in ("eval_domain", "question", "answer", "tokens"))
        for name, question, answer, tokens in zip(*columns, strict=True):
            if name in wanted:
                ids = tokens or plan.context.renderer.completion(answer)
                found.setdefault((name, question), []).append(ids)
    return found


def epoch_trees(plan: Plan, epoch: int, answers_of: AnswersOf = true_answers) -> list[Tree]:
    """All meta-train cells once: for each training domain its questions in random order, cut into trees of
    `meta_sft.branches` questions, every tree under a fresh k-draw.
    """
    domains = plan.context.halves.meta_train
    return [tree for domain in domains for tree in _domain_trees(plan, domain, epoch, answers_of(plan, domain))]


def _domain_trees(plan: Plan, domain: str, epoch: int, answers: Mapping[Asked, list[Tokens]]) -> list[Tree]:
    asked = sorted(answers)
    seed = ("meta", plan.study.seed, epoch)
    seeded(*seed, domain).shuffle(asked)
    size = plan.study.meta_sft.branches
    return [
        _tree(plan, domain, answers, asked[start : start + size], (*seed, start))
        for start in range(0, len(asked), size)
    ]


def _tree(plan: Plan, domain: str, answers: Mapping[Asked, list[Tokens]], asked: Sequence[Asked], seed: tuple) -> Tree:
    context = plan.context
    prefix = context.prefix(context.domains[domain], plan.study.context.k, *seed)
    branches = []
    for name, number in asked:
        prompt = context.branch(context.questions(context.domains[name])[number], after_examples=True)
        branches += [Branch(prompt, tokens) for tokens in answers[name, number]]
    return Tree(prefix, tuple(branches))
