"""The plan: keys follow content and nothing else, studies share what they have in common, prompts are as stated."""

import pytest

from metagen_ray.errors import InputError
from metagen_ray.stages.draws import k_draw, scrambled
from metagen_ray.stages.plan import META, SCRAMBLED, TRUTH


def keys(plan) -> dict[str, list[str]]:
    return {
        "adapters": [a.key for a in plan.adapters],
        "truth": [a.key for a in plan.truth],
        "untrained": [a.key for a in plan.untrained],
        "meta": [plan.meta],
        "predictions": [a.key for a in plan.predictions],
        "judge": [s.key for shards in plan.judged.values() for s in shards],
    }


def test_plan_counts_shards(plan_of):
    found = keys(plan_of())
    assert {name: len(k) for name, k in found.items()} == {
        "adapters": 8, "truth": 16, "untrained": 2 + 16, "meta": 1, "predictions": 32, "judge": 6,
    }  # fmt: skip
    assert all(len(set(k)) == len(k) for k in found.values())


def test_plan_is_the_same_when_made_again(plan_of):
    assert keys(plan_of()) == keys(plan_of("name=other", "resources.lanes=2"))


def test_plan_other_split_shares_truth_and_untrained_predictions(plan_of):
    one, two = keys(plan_of("seed=0")), keys(plan_of("seed=1"))
    assert one["adapters"] == two["adapters"] and one["truth"] == two["truth"]
    assert one["untrained"] == two["untrained"]
    assert one["meta"] != two["meta"] and not set(one["predictions"]) & set(two["predictions"])


def test_plan_more_domains_keep_finished_blocks(plan_of):
    few, many = keys(plan_of("domains=8")), keys(plan_of("domains=12"))
    assert set(few["adapters"]) < set(many["adapters"]) and set(few["truth"]) < set(many["truth"])


@pytest.mark.parametrize(
    ("change", "moved"),
    [
        ("object_sft.lr=0.002", {"adapters", "truth", "meta", "predictions", "judge"}),
        ("truth_seed=1", {"adapters", "truth", "untrained", "meta", "predictions", "judge"}),
        ("context.k=4", {"untrained", "meta", "predictions", "judge"}),
        ("temperature=0.5", {"truth", "untrained", "meta", "predictions", "judge"}),
        ("meta_sft.branches=4", {"meta", "predictions", "judge"}),
        ("judge.min_mass=0.5", {"judge"}),
        ("analysis.deals=7", set()),
    ],
)
def test_plan_keys_move_with_what_decides_them(plan_of, change, moved):
    before, after = keys(plan_of()), keys(plan_of(change))
    changed = {name for name in before if before[name] != after[name]}
    assert changed == moved


def test_plan_prompts_show_the_domain_and_deal_questions_over_draws(plan_of):
    plan = plan_of()
    ask = next(a for a in plan.predictions if a.predictor == META)
    prompts = plan.prompts(ask)
    assert len(prompts) == 4 * 4 and {draw for _, _, draw, _ in prompts} == {0, 1, 2, 3}
    shown = plan.context.domains[ask.shown]
    for domain, number, draw, tokens in prompts:
        examples = k_draw(shown, 8, 0, draw)
        whole = plan.context.renderer.prompt(
            [m for p, c in examples for m in ({"role": "user", "content": p}, {"role": "assistant", "content": c})]
            + [{"role": "user", "content": plan.context.questions(domain)[number]}]
        )
        assert tokens == whole


def test_plan_scrambled_never_shows_the_own_domain(plan_of):
    plan = plan_of()
    asks = [a for a in plan.predictions if a.predictor == SCRAMBLED]
    assert all(a.shown != a.train_domain for a in asks)
    assert {a.shown for a in asks} == {a.train_domain for a in asks}
    assert all(a != b for a, b in scrambled(["a", "b"], 3).items())


def test_asks_that_show_the_same_examples_to_one_model_stand_as_near_as_turns_allow(plan_of):
    from metagen_ray.stages.answers import AppAddress, ask_work

    plan = plan_of("predict.untrained_k=[2]")
    asks = [*plan.predictions, *plan.truth, *plan.untrained]
    _, rows = ask_work(plan, asks, AppAddress("http://127.0.0.1:9", "", "base"), {})
    shown = [(row["adapter"], row["shown"], row["k"]) for row in rows]
    places = {key: [n for n, own in enumerate(shown) if own == key] for key in shown}
    together = plan.study.resources.asked_at_once * max(map(len, places.values()))
    assert len(rows) == len(asks) and all(p[-1] - p[0] < together for p in places.values())


def test_plan_truth_asks_without_examples(plan_of):
    plan = plan_of()
    ask = next(a for a in plan.truth if a.predictor == TRUTH)
    assert all(draw == -1 and len(tokens) < 20 for _, _, draw, tokens in plan.prompts(ask))


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["context.k=129"], "has 128"),
        (["questions=5"], "held-out"),
        (["object_sft.rank=513"], "above what the serving engine takes"),
        (["domains=101"], "too many"),
        (["model=/nowhere/at/all"], "no such directory"),
        (["model=lab:nonesuch"], "no such lab base"),
        (["split.eval_share=0.01"], "leaves the meta-eval half empty"),
    ],
)
def test_plan_bad_study_is_refused(plan_of, overrides, words):
    with pytest.raises(InputError, match=words):
        _ = plan_of(*overrides).truth


def test_plan_prompt_longer_than_the_context_is_refused(plan_of):
    with pytest.raises(InputError, match=r"needs \d+ tokens"):
        _ = plan_of("context.k=128").untrained


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda d: (d / "config.json").write_text("{"), "not valid JSON"),
        (lambda d: (d / "config.json").unlink(), "no config.json"),
        (lambda d: (d / "config.json").write_text('{"architectures": ["ViTModel"]}'), "no decoder"),
        (lambda d: (d / "model.safetensors").unlink(), "safetensors"),
        (lambda d: (d / "tokenizer.json").unlink(), "tokenizer.json"),
    ],
)
def test_base_model_spoilt_is_refused(tmp_path, base_dir, spoil, words):
    import shutil

    from metagen_ray.base_model import find_base

    copy = shutil.copytree(base_dir, tmp_path / "copy")
    spoil(copy)
    with pytest.raises(InputError, match=words):
        find_base(str(copy))


def test_plan_without_an_adapter_or_a_shard_leaves_out_what_needs_them_and_nothing_else(plan_of):
    plan = plan_of()
    adapter, shard = plan.adapters[0], plan.truth[-1]
    left = plan.without([adapter.key]).without([shard.key])
    assert left.given_up == {adapter.key, shard.key}
    assert set(plan.adapters) - set(left.adapters) == {adapter}
    gone = {a.key for a in plan.truth} - {a.key for a in left.truth}
    assert gone == {shard.key, *(a.key for a in plan.truth if a.adapter == adapter.key)}
    assert left.untrained == plan.untrained
    kept = {key for shards in left.judged.values() for s in shards for _, key in s.answers}
    assert not kept & gone
