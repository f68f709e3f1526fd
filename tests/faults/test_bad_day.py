"""One study, and something of it killed in every stage: it ends whole, by itself. The kill table has more of each."""

import random
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cluster.kills import FAULTS, WORKERS, Struck, whole
from tests.cluster.local import LocalCluster, missing
from tests.store.s3_server import CREDENTIALS, credentials

pytestmark = [
    pytest.mark.slow,
    pytest.mark.machine,
    pytest.mark.timeout(1200),
    pytest.mark.skipif(bool(missing()), reason=missing() or "namespaces are at hand"),
]
LINK_DOWN_S, STORE_FAILS_S = 5, 10
ENDS_S = 600  # a minute or two, unless something hangs


def lose_head(struck: Struck) -> None:
    """Every node's power is cut, the head's among them; all are started again, and so is the study."""
    FAULTS["head"].strike(struck)
    struck.follower = struck.submit()


def lose_engine(struck: Struck) -> None:
    """An engine dies, and the store is broken while another one starts."""
    struck.kill("engine")
    struck.store_fails("500", STORE_FAILS_S)


def lose_network(struck: Struck) -> None:
    """A node's network is gone for good, and the store is slow before Ray has noticed."""
    FAULTS["network for good"].strike(struck)
    struck.store_fails("slow", STORE_FAILS_S)


def lose_touch(struck: Struck) -> None:
    """A Data actor and a replica die, and then a node's network is gone for a moment."""
    struck.kill("data actor")
    struck.kill("replica")
    node = struck.worker()
    struck.cluster.link(node, "down")
    time.sleep(LINK_DOWN_S)
    struck.cluster.link(node, "up")


def lose_controller(struck: Struck) -> None:
    """Train's controller dies; in place of the node that was cut off comes another."""
    struck.kill("controller")
    struck.replace_cut_off()


def lose_node(struck: Struck) -> None:
    """A node's power is cut, and the store asks for patience."""
    struck.cluster.kill(struck.worker())
    struck.store_fails("503", STORE_FAILS_S)


DAY: tuple[tuple[str, Callable[[Struck], None]], ...] = (
    ("object_sft", lose_head),
    ("ground_truth", lose_engine),
    ("judge truth", lose_network),
    ("predict untrained", lose_touch),
    ("meta_sft", lose_controller),
    ("predict meta", lose_node),
)


def test_study_survives_a_death_in_every_stage(tmp_path: Path):
    with LocalCluster(WORKERS, env=CREDENTIALS) as cluster, credentials():
        struck = Struck(cluster, random.Random("a bad day"), tmp_path, FAULTS["s3 503"])
        for stage, strike in DAY:
            struck.wait_for((stage,))
            strike(struck)
        assert struck.ended(ENDS_S) == 0, struck.log.read_text()[-4000:]
        assert whole(struck.study)["artifacts"] > 100
