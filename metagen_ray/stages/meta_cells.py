"""Which cells meta-SFT learns from and under which examples: prefixes, and the questions and answers that follow them.

Reads committed answers; imports no torch, so that a plan can count what will be trained.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence

from metagen_ray.stages.context import Tokens
from metagen_ray.stages.draws import seeded
from metagen_ray.stages.plan import TRUTH, Plan

Asked = tuple[str, int]  # eval domain, question number
AnswersOf = Callable[[Plan, str], Mapping[Asked, list[Tokens]]]
Cells = tuple[Tokens, list[tuple[Tokens, Tokens]]]  # prefix, (prompt, completion) of every branch


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


def epoch_cells(plan: Plan, epoch: int, answers_of: AnswersOf = true_answers) -> list[Cells]:
    """All meta-train cells once: for each training domain its questions in random order, `meta_sft.branches` of them
    under every fresh k-draw.
    """
    domains = plan.context.halves.meta_train
    return [cells for domain in domains for cells in _domain_cells(plan, domain, epoch, answers_of(plan, domain))]


def _domain_cells(plan: Plan, domain: str, epoch: int, answers: Mapping[Asked, list[Tokens]]) -> Iterator[Cells]:
    context, asked = plan.context, sorted(answers)
    seed = ("meta", plan.study.seed, epoch)
    seeded(*seed, domain).shuffle(asked)
    size = plan.study.meta_sft.branches
    for start in range(0, len(asked), size):
        prefix = context.prefix(context.domains[domain], plan.study.context.k, *seed, start)
        yield prefix, _branches(plan, answers, asked[start : start + size])


def _branches(plan: Plan, answers: Mapping[Asked, list[Tokens]], asked: Sequence[Asked]) -> list[tuple[Tokens, Tokens]]:
    context = plan.context
    prompts = {
        (name, number): context.branch(context.questions(context.domains[name])[number], after_examples=True)
        for name, number in asked
    }
    return [(prompts[question], answer) for question in asked for answer in answers[question]]
