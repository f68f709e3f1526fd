"""One study, and something of it killed in every stage: it ends whole, by itself. The kill table has more of each."""

import random
import time
from pathlib import Path

import pytest

from tests.cluster.kills import WORKERS, Struck, whole
from tests.cluster.local import LocalCluster, missing

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(1200),
    pytest.mark.skipif(bool(missing()), reason=missing() or "namespaces are at hand"),
]
LINK_DOWN_S = 5
ENDS_S = 600  # a minute or two, unless something hangs
DAY = (
    ("object_sft", "lane worker"),
    ("ground_truth", "engine"),
    ("judge truth", "node"),
    ("predict untrained", "data actor"),
    ("meta_sft", "controller"),
)


def test_study_survives_a_death_in_every_stage(tmp_path: Path):
    with LocalCluster(WORKERS) as cluster:
        struck = Struck(cluster, random.Random("a bad day"), tmp_path)
        for stage, what in DAY:
            struck.wait_for((stage,))
            if what == "node":
                cluster.kill(struck.worker())
                continue
            struck.kill(what)
            if what == "data actor":
                node = struck.worker()
                cluster.link(node, "down")
                time.sleep(LINK_DOWN_S)
                cluster.link(node, "up")
        assert struck.ended(ENDS_S) == 0, struck.log.read_text()[-4000:]
        assert whole(struck.study)["artifacts"] > 100
