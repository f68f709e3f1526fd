"""The study: loading, overrides, errors that help, and a fingerprint of content alone."""

import pytest

from metagen_ray.errors import InputError
from metagen_ray.study import Study, load_study, parse_yaml, preset_names, study_from


def test_presets_load_and_differ():
    studies = [load_study(name) for name in preset_names()]
    assert {"pocket", "pocket_full"} <= set(preset_names())
    assert len({s.fingerprint() for s in studies}) == len(studies)


def test_yaml_roundtrip_keeps_fingerprint(tmp_path):
    study = load_study("pocket", ["context.k=4", "object_sft.lr=0.002"])
    path = tmp_path / "mine.yaml"
    path.write_text(study.to_yaml())
    assert load_study(str(path)) == study


def test_override_of_one_setting_leaves_all_others():
    plain, changed = load_study("pocket"), load_study("pocket", ["meta_sft.recipe.epochs=1", "object_sft.rank=4"])
    recipe = plain.meta_sft.recipe.model_copy(update={"epochs": 1})
    assert changed.meta_sft == plain.meta_sft.model_copy(update={"recipe": recipe})
    assert changed.object_sft == plain.object_sft.model_copy(update={"rank": 4})


@pytest.mark.parametrize("change", ["name=other", "store=elsewhere", "resources.lanes=3"])
def test_fingerprint_ignores_where_and_with_what(change):
    assert load_study("pocket", [change]).fingerprint() == load_study("pocket").fingerprint()


@pytest.mark.parametrize("written", ["on", "off", "auto"])
def test_overlap_may_be_written_bare_where_yaml_takes_it_for_a_truth_value(written):
    study = load_study("pocket", [f"resources.overlap={written}"])
    assert study.resources.overlap == written and study.fingerprint() == load_study("pocket").fingerprint()


@pytest.mark.parametrize(
    "change", ["seed=1", "truth_seed=1", "context.k=7", "object_sft.rank=4", "samples=3", "domains=31"]
)
def test_fingerprint_follows_content(change):
    assert load_study("pocket", [change]).fingerprint() != load_study("pocket").fingerprint()


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("contxt.k=4", "did you mean 'context'"),
        ("context.kk=4", "did you mean 'k'"),
        ("seed=x", "seed"),
        ("context=3", "context"),
        ("seed.deep=3", "seed"),
        ("context.k", "key=value"),
        ("context.k=[", "not a YAML value"),
        ("name=../up", "name"),
        ("predict.samples=1", "predict.samples"),
    ],
)
def test_override_wrong_names_key_and_help(override, words):
    with pytest.raises(InputError, match=words.replace("[", r"\[")):
        load_study("pocket", [override])


def test_preset_unknown_names_nearest():
    with pytest.raises(InputError, match="did you mean 'pocket_full'"):
        load_study("pocket_ful")


@pytest.mark.parametrize("text", ["- a\n- b", "3", "a: b: c", "\x00", "{1: 2}", "[" * 5000])
def test_yaml_hostile_is_input_error(text, tmp_path):
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    with pytest.raises(InputError):
        load_study(str(path))


def test_yaml_tag_runs_nothing():
    with pytest.raises(InputError):
        parse_yaml("!!python/object/apply:os.system ['true']", "here")


def test_study_from_resolved_values_is_equal():
    assert study_from(Study().model_dump(mode="json"), "here") == Study()


def test_replicas_and_their_gpus_that_cannot_be_are_refused():
    assert load_study("pocket", ["resources.gpus_per_replica=0.5"]).resources.gpus_per_replica == 0.5
    with pytest.raises(InputError, match=r"max_replicas \(1\) must be at least replicas \(2\)"):
        load_study("pocket", ["resources.replicas=2", "resources.max_replicas=1"])
    with pytest.raises(InputError, match=r"1\.5 GPUs: a replica takes a share of one GPU, or whole ones"):
        load_study("pocket", ["resources.gpus_per_replica=1.5"])
