"""A judge that gives no numbers: told, and nothing of it kept."""

import pytest

from metagen_ray.errors import StageError
from tests.stages.counting import CountingModel, answer_and_judge, serving

SURE = 0.6  # what the model gives to a number, the rest to none


class Unsure(CountingModel):
    """Puts some of its mass on what is no number."""

    def _grade(self, prompt: list[int]) -> dict[int, float]:
        return {token: SURE * mass for token, mass in super()._grade(prompt).items()}


@pytest.mark.parametrize("min_mass", [SURE - 0.1, SURE + 0.1])
def test_judge_that_gives_too_few_numbers_ends_the_pass(plan_of, tmp_path, min_mass):
    plan = plan_of("domains=4", "questions=2", f"judge.min_mass={min_mass}", "judge.max_unscored=0.2")
    model = Unsure(plan.context.tokenizer)
    with serving(model, tmp_path, plan.context.base.name) as app:
        if min_mass < SURE:
            answer_and_judge(plan, app, ["truth"])
        else:
            with pytest.raises(StageError, match=r"produced no number for \d+ of \d+ answers \(limit 20%\)"):
                answer_and_judge(plan, app, ["truth"])
    graded = plan.context.store.keys("judge")
    assert graded == ({s.key for s in plan.judged["truth"]} if min_mass < SURE else set())
