"""What object-SFT learns from: a domain's training set as token rows. Trains nothing and imports no torch."""

from metagen_ray.prompts import chat
from metagen_ray.stages.context import StudyContext, Tokens
from metagen_ray.suites.suite import Domain


def domain_rows(context: StudyContext, domain: Domain) -> list[tuple[Tokens, Tokens]]:
    """(prompt, completion) of every training example, rendered as the prompts of inference are."""
    prompts = {p: context.renderer.prompt(chat(p)) for p in {p for p, _ in domain.train}}
    answers = {a: context.renderer.completion(a) for a in {a for _, a in domain.train}}
    return [(prompts[prompt], answers[answer]) for prompt, answer in domain.train]
