"""From no workers to a finished study and back to none, by Ray's own autoscaler."""

import tempfile
from pathlib import Path

import pytest

from metagen_ray.errors import MachineError
from tests.cluster.autoscaled import inside
from tests.cluster.local import missing

pytestmark = [
    pytest.mark.slow,
    pytest.mark.machine,
    pytest.mark.timeout(1000),
    pytest.mark.skipif(bool(missing()), reason=missing() or "namespaces are at hand"),
]


def test_nodes_come_for_a_study_and_go_after_it_and_what_no_node_can_hold_is_refused_at_once():
    with tempfile.TemporaryDirectory(prefix="ma", dir="/tmp", ignore_cleanup_errors=True) as folder:
        found = inside(Path(folder))
    refused, late, ran = found["refused"], found["late"], found["ran"]
    assert refused["code"] == MachineError.exit_code and refused["seconds"] < 100
    assert "add a node type for a training worker (1.2 CPU, 8 GPU)" in refused["error"]
    assert late["code"] == MachineError.exit_code and "nodes did not come within 0 s" in late["error"]
    assert ran["code"] == 0, ran["error"]
    assert (found["nodes_at_submission"], found["nodes_at_most"]) == (1, 3) and found["gone_after_end_s"] < 120
