"""What object-SFT learns from: a domain's training set as rows. Trains nothing."""

from metagen_ray.prompts import chat
from metagen_ray.stages.context import StudyContext
from metagen_ray.suites.suite import Domain
from metagen_ray.training.rows import Tree, plain_row


def domain_rows(context: StudyContext, domain: Domain) -> list[Tree]:
    """The training set of a domain as rows, rendered as the prompts of inference are."""
    prompts = {p: context.renderer.prompt(chat(p)) for p in {p for p, _ in domain.train}}
    answers = {a: context.renderer.completion(a) for a in {a for _, a in domain.train}}
    return [plain_row(prompts[prompt], answers[answer]) for prompt, answer in domain.train]
