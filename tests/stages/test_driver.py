import json
from contextlib import nullcontext
from pathlib import Path
from typing import Any, cast

import pytest

from metagen_ray.stages import driver
from metagen_ray.stages.ledger import Ledger
from metagen_ray.stages.plan import Plan
from tests.calm import plan_of


def test_what_was_given_up_side_by_side_is_not_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    plan = plan_of(tmp_path)
    lost, seen = plan.adapters[0], []

    def overlapped(plan: Plan, status: Any, ledger: Ledger, app: Any, check: Any) -> None:
        ledger.given_up["object_sft", lost.key] = "failed three times"

    def step(plan: Plan, *_: Any) -> Plan:
        seen.append({a.key for a in plan.adapters} | {a.adapter for a in plan.truth})
        return plan

    monkeypatch.setattr(driver, "side_by_side", overlapped)
    monkeypatch.setattr(driver, "STEPS", dict.fromkeys(driver.STEPS, step))
    monkeypatch.setattr(driver, "Serving", lambda *_, **__: nullcontext())
    for owner, name, found in (("cluster", "reach", None), ("cluster", "overlaps", True), ("nodes", "hold", None)):
        monkeypatch.setattr(getattr(driver, owner), name, lambda *_, found=found: found)
    ledger = Ledger(cast(Any, None), cast(Any, None))
    kept = driver._compute(plan, ledger, None, lambda: None, ())
    assert len(seen) == len(driver.STEPS) and not any(lost.key in keys for keys in seen)
    assert list(ledger.given_up) == [("object_sft", lost.key)] and lost not in kept.adapters


def test_given_up_json_stands_while_something_is_given_up(tmp_path: Path):
    plan, ledger = plan_of(tmp_path), Ledger(cast(Any, None), cast(Any, None))
    path = tmp_path / "studies" / plan.study.run_name() / "given_up.json"
    ledger.given_up["object_sft", "a" * 64] = "failed three times"
    driver._write_given_up(plan, ledger)
    assert json.loads(path.read_text()) == {"object_sft": {"a" * 64: "failed three times"}}
    ledger.given_up.clear()
    driver._write_given_up(plan, ledger)
    assert not path.exists()
