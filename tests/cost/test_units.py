"""Units as tasks: banks on lanes, what waits for what, and the schedule of a study of 10,000 cells."""

import pytest

from benchmarks.makespan import DOMAINS, MACHINE, QUESTIONS, SAMPLES, study_units
from metagen_ray.cost.estimate import estimate, study_bank
from metagen_ray.cost.makespan import bound_of, chains, simulate
from metagen_ray.cost.units import META, SFT, STAGES, banks_of, tasks_of


@pytest.fixture(scope="module")
def units():
    return study_units()


def test_study_of_the_benchmark_has_10000_cells(units):
    answers = sum(u.work.answers for u in units if u.stage == "ground_truth")
    assert answers == 10_000 * QUESTIONS * SAMPLES
    assert set(STAGES) == {u.stage for u in units}


@pytest.mark.parametrize(("lanes", "size"), [(1, 16), (8, 4), (64, 2), (128, 1)])
def test_banks_hold_every_fine_tune_once(units, lanes, size):
    banks = [bank for lane in banks_of(units, lanes, size) for bank in lane]
    assert sorted(u.key for bank in banks for u in bank) == sorted(u.key for u in units if u.stage == SFT)
    assert max(map(len, banks)) <= size


def test_tasks_do_the_work_of_the_units(units):
    tasks = tasks_of(units, MACHINE, 8, 1)
    alone = sum(MACHINE.seconds(MACHINE.phases(u.work, u.adapter)) for u in units)
    assert bound_of(tasks, 8).work_s == pytest.approx(alone)


def test_tasks_wait_for_what_they_read(units):
    by_name = {t.name: t for t in tasks_of(units, MACHINE, 8, 4)}
    (bank,) = by_name["truth 7.0"].after
    assert bank.startswith("lane ") and by_name[bank].worker == int(bank.split()[1])
    assert by_name[META].everyone and len(by_name[META].after) == DOMAINS // 2 * 5
    assert by_name["MetaSFT 7.0"].after == (META,)
    part = by_name["judge meta 0 part 0"]
    assert by_name[part.after[0]].after[-2:] == ("judge truth 0", "judge untrained 0")
    behind = chains(list(by_name.values()))
    assert behind["truth 0.0"] > behind[META] > behind["MetaSFT 0.0"] > part.seconds


@pytest.mark.parametrize(("gpus", "aim"), [(1, 0.999), (8, 0.95), (64, 0.90)])
def test_schedule_comes_near_its_lower_bound(units, gpus, aim):
    bank = study_bank(units, MACHINE, gpus)
    tasks = tasks_of(units, MACHINE, gpus, bank)
    bound, span = bound_of(tasks, gpus), simulate(tasks, gpus)
    assert aim <= bound.seconds / span <= 1 + 1e-9
    assert bound.loss < 0.01


def test_estimate_sums_its_stages_and_spends_no_less_than_the_limit(units):
    found = estimate(units, MACHINE, 8)
    assert found.total.hours == pytest.approx(sum(row.hours for row in found.stages))
    assert found.total.units == len(units)
    assert all(row.limit_h <= row.hours for row in found.stages)
    assert found.bound.seconds <= found.wall_s <= found.total.hours * 3600
    assert found.total.hours * 3600 == pytest.approx(found.bound.work_s, rel=0.01)
