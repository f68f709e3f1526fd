"""What a study asks of a cluster: bundles against nodes, by hand and against every way of placing them."""

import importlib
import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from metagen_ray import nodes
from metagen_ray.errors import MachineError
from metagen_ray.nodes import SERVE, TRAIN, Bundle, Node, beyond, bundles, demand, unplaced
from metagen_ray.study import Resources, load_study

SMALL = st.sampled_from([0.0, 1.0, 2.0, 3.0])


def need(*settings: str) -> Resources:
    return load_study("pocket", [f"resources.{s}" for s in settings]).resources


def shapes(wanted: list[Bundle]) -> list[tuple[str, float, float]]:
    return sorted((b.what, b.resources["CPU"], b.resources.get("GPU", 0.0)) for b in wanted)


def test_phases_ask_for_workers_replicas_and_askers():
    asked = need("lanes=2", "workers_per_lane=2", "meta_workers=3", "gpus_per_worker=1", "replicas=2")
    assert shapes(bundles(asked, [TRAIN])) == [("a training worker", 0.8, 1.0)] * 4
    assert [what for what, *_ in shapes(bundles(asked, [SERVE]))] == [
        *["a serving replica"] * 2,
        "the app's small parts",
        *["what asks the app"] * 2,
    ]
    assert len(bundles(asked, [TRAIN, SERVE])) == 9


def fits_somehow(wanted: list[Bundle], where: list[Node]) -> bool:
    """Every way of dealing bundles to nodes."""
    for ways in itertools.product(range(len(where)), repeat=len(wanted)):
        for n, node in enumerate(where):
            mine = [b for b, way in zip(wanted, ways, strict=True) if way == n]
            for name in ("CPU", "GPU"):
                if sum(b.resources.get(name, 0) for b in mine) > node.resources.get(name, 0):
                    break
            else:
                continue
            break
        else:
            return True
    return False


@given(
    st.lists(st.tuples(SMALL, SMALL), max_size=5),
    st.lists(st.tuples(SMALL, SMALL), min_size=1, max_size=3),
)
def test_what_is_placed_fits_and_what_is_left_has_a_reason(asked: list, have: list):
    wanted = [Bundle("w", {"CPU": cpu, "GPU": gpu}) for cpu, gpu in asked]
    where = [Node({"CPU": cpu, "GPU": gpu}) for cpu, gpu in have]
    left = unplaced(wanted, where)
    if not left:
        assert fits_somehow(wanted, where)
    placed = list(wanted)
    for bundle in left:
        placed.remove(bundle)
    assert fits_somehow(placed, where)
    if len(wanted) == 1:
        assert bool(left) != fits_somehow(wanted, where)


def test_shares_of_a_core_that_add_up_to_it_fit():
    assert not unplaced([Bundle("w", {"CPU": 0.1})] * 10, [Node({"CPU": 1.0})])
    assert len(unplaced([Bundle("w", {"CPU": 0.1})] * 11, [Node({"CPU": 1.0})])) == 1


def test_labels_choose_nodes():
    wanted = bundles(need("train_nodes.market=spot", "serve_nodes.market=on-demand"), [TRAIN, SERVE])
    spot, other = Node({"CPU": 4.0}, {"market": "spot"}), Node({"CPU": 4.0}, {"market": "on-demand"})
    assert not unplaced(wanted, [spot, other])
    (left,) = unplaced(wanted, [other, other])
    assert str(left) == "a training worker (0.8 CPU, market=spot)"


def test_phases_in_turn_share_nodes_unless_their_labels_differ():
    both = [TRAIN, SERVE]
    turns = need("phases=in_turn", "gpus_per_worker=1", "meta_workers=4", "gpus_per_replica=2", "replicas=1")
    assert demand(turns, both) == bundles(turns, [TRAIN])
    assert demand(turns, [SERVE]) == bundles(turns, [SERVE])
    apart = need("phases=in_turn", "train_nodes.a=b", "serve_nodes.a=c")
    assert len(demand(apart, both)) == len(bundles(apart, both))
    together = need()
    assert len(demand(together, both)) == len(bundles(together, both))


def test_what_runs_is_not_asked_for_again():
    """It holds its nodes itself, and Ray Train and Ray Data ask for them: all that is asked for is added up."""
    together, turns, apart = (
        need(),
        need("phases=in_turn"),
        need("phases=in_turn", "train_nodes.a=b", "serve_nodes.a=c"),
    )
    assert beyond(together, [TRAIN, SERVE]) == bundles(together, [SERVE])
    assert beyond(together, [SERVE, TRAIN]) == bundles(together, [TRAIN])
    assert beyond(apart, [SERVE, TRAIN]) == bundles(apart, [TRAIN])
    assert beyond(turns, [SERVE, TRAIN]) == []  # the same nodes
    assert beyond(together, [SERVE]) == beyond(together, []) == []


def state_of(*impossible: Bundle):
    messages = importlib.import_module("ray.core.generated.autoscaler_pb2")
    state = messages.AutoscalingState(autoscaler_state_version=1)
    constraint = state.infeasible_cluster_resource_constraints.add()
    for bundle in impossible:
        request = constraint.resource_requests.add(count=1).request
        request.resources_bundle.update(bundle.resources)
        for name, value in bundle.labels.items():
            request.label_selectors.add().label_constraints.add(label_key=name, label_values=[value])
    return state


def test_what_no_node_type_can_hold_is_refused_by_name_and_what_others_asked_for_is_not_ours(monkeypatch):
    asked = bundles(need("gpus_per_worker=8", "meta_workers=2", "train_nodes.market=spot"), [TRAIN])
    assert nodes.impossible(asked, state_of(*asked)) == asked
    assert nodes.impossible(asked, state_of(Bundle("another", {"CPU": 64.0}))) == []
    monkeypatch.setattr(nodes, "alive", list)
    monkeypatch.setattr(nodes, "_ask", lambda wanted: None)
    monkeypatch.setattr(nodes, "PATIENT_S", 0.0)
    monkeypatch.setattr(nodes, "LOOK_S", 0.0)
    monkeypatch.setattr(nodes.autoscaler, "state", lambda: state_of(*asked))
    with pytest.raises(MachineError, match=r"add a node type for a training worker \(0.8 CPU, 8 GPU, market=spot\)"):
        nodes._wait_for(asked, 60.0)
    monkeypatch.setattr(nodes.autoscaler, "state", lambda: state_of(Bundle("another", {"CPU": 64.0})))
    with pytest.raises(
        MachineError, match=r"nodes did not come within 0 s: 2 x a training worker .*no node on the way"
    ):
        nodes._wait_for(asked, 0.0)


def test_what_is_impossible_while_old_nodes_go_is_waited_for(monkeypatch):
    asked = bundles(need(), [TRAIN])
    looks = iter([[], [], [Node({"CPU": 1.0})]])
    monkeypatch.setattr(nodes, "alive", lambda: next(looks))
    monkeypatch.setattr(nodes, "_ask", lambda wanted: None)
    monkeypatch.setattr(nodes, "LOOK_S", 0.0)
    monkeypatch.setattr(nodes.autoscaler, "state", lambda: state_of(*asked))
    nodes._wait_for(asked, 60.0)
