"""Samples of one prompt read its end once. Owns who waits for whom and which blocks are copied, on the CPU engine.

vLLM shares whole blocks of a prompt among its samples; what follows the last one is read again by every sample. With
blocks of 32 tokens, four samples and answers of eight tokens that is more than half of a small model's work. Here the
first sample of a prompt, the leader, reads it. The others wait until it has, get a copy of its last block, and read one
token. A leader that ends before its followers have begun is followed by one of them.
"""

import re
from dataclasses import dataclass, field
from typing import Any

import torch
from vllm.distributed.kv_transfer.kv_connector.v1 import KVConnectorBase_V1
from vllm.distributed.kv_transfer.kv_connector.v1.base import KVConnectorMetadata
from vllm.v1.core.sched.output import SchedulerOutput
from vllm.v1.request import Request, RequestStatus

from metagen_ray.serving.whole import WholeScheduler

SIBLING = re.compile(r"\d+_(.+)")  # vLLM's name of a sample: its number, then the request's
SETTINGS: dict[str, Any] = {
    "scheduler_cls": f"{__name__}.SiblingScheduler",
    "kv_transfer_config": {
        "kv_connector": "BlockCopies",
        "kv_connector_module_path": __name__,
        "kv_role": "kv_consumer",
    },
}


@dataclass
class Group:
    """The samples of one prompt that are not let in yet, and their leader where it is."""

    held: list[Request] = field(default_factory=list)
    leader: Request | None = None

    def next_leader(self) -> Request:
        """The first of those held goes ahead."""
        self.leader = self.held.pop(0)
        return self.leader


class SiblingScheduler(WholeScheduler):
    """VLLM's scheduler, with whole answers, and all samples of a prompt but one held back until that one has read it.

    Prompts are begun while there are seats for all their samples, so that a follower need not wait longer than its
    leader lives.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._new: dict[str, Group] = {}  # by request, in order of arrival
        self._begun: list[Group] = []  # a leader is let in, its followers are not
        self._seated: set[str] = set()  # samples that are let in and have not ended

    def schedule(self, *args: Any, **kwargs: Any) -> SchedulerOutput:
        """One step: first let in whoever need not wait any longer."""
        self._release()
        self._begin()
        return super().schedule(*args, **kwargs)

    def get_num_unfinished_requests(self) -> int:
        """As vLLM's, with those held back."""
        return super().get_num_unfinished_requests() + sum(len(g.held) for g in (*self._begun, *self._new.values()))

    def _enqueue_waiting_request(self, request: Request) -> None:
        parent = parent_of(request)
        if parent is None:
            super()._enqueue_waiting_request(request)
        else:
            self._new.setdefault(parent, Group()).held.append(request)

    def _free_request(self, request: Request, *args: Any, **kwargs: Any) -> Any:
        self._seated.discard(request.request_id)
        return super()._free_request(request, *args, **kwargs)

    def _release(self) -> None:
        """Let in the followers of each leader that has read its prompt; one of them follows a leader that has ended."""
        begun, self._begun = self._begun, []
        for group in begun:
            group.held = [r for r in group.held if not r.is_finished()]
            leader = group.leader
            assert leader is not None
            if has_read(leader):
                for request in reversed(group.held):  # before all others: they need a seat while their leader lives
                    self._copies.follow(request, leader)
                    self._seat(request, first=True)
            elif group.held:
                if leader.is_finished():
                    self._seat(group.next_leader(), first=True)
                self._begun.append(group)

    def _begin(self) -> None:
        """Let in a leader for each new prompt, as far as there are seats for all samples."""
        free = self.max_num_running_reqs - len(self._seated) - sum(len(g.held) for g in self._begun)
        while self._new and free > 0:
            group = self._new.pop(next(iter(self._new)))
            group.held = [r for r in group.held if not r.is_finished()]
            if group.held:
                free -= len(group.held)
                self._seat(group.next_leader(), first=False)
                self._begun.append(group)

    def _seat(self, request: Request, first: bool) -> None:
        self._seated.add(request.request_id)
        if first:
            self.waiting.prepend_request(request)
        else:
            super()._enqueue_waiting_request(request)

    @property
    def _copies(self) -> "BlockCopies":
        assert isinstance(self.connector, BlockCopies)
        return self.connector


def parent_of(request: Request) -> str | None:
    """The request that this one is a sample of; None where nothing is gained by waiting.

    A single token is sampled at once by all. Prompt log-probabilities need the prompt read by each.
    """
    found, asked = SIBLING.fullmatch(request.request_id), request.sampling_params
    alone = asked is None or asked.prompt_logprobs is not None or request.max_tokens <= 1
    return None if found is None or alone else found.group(1)


def has_read(leader: Request) -> bool:
    """Whether the keys and values of all its prompt are there, and stay through the coming step."""
    return leader.status == RequestStatus.RUNNING and leader.num_computed_tokens >= leader.num_prompt_tokens


@dataclass
class Copies(KVConnectorMetadata):
    """Blocks to copy before a step: from, to."""

    blocks: list[tuple[int, int]]


class BlockCopies(KVConnectorBase_V1):
    """Tells vLLM's scheduler that the end of a follower's prompt is at hand, and brings it: a block for a block."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._block_tokens: int = self._vllm_config.cache_config.block_size
        self._leader: dict[str, Request] = {}  # of each follower
        self._blocks: dict[str, list[int]] = {}  # of each request, as it was let in
        self._due: list[tuple[int, int]] = []
        self._caches: list[torch.Tensor] = []

    def follow(self, follower: Request, leader: Request) -> None:
        """Have a request take over the end of the prompt from another sample of it."""
        self._leader[follower.request_id] = leader

    def get_num_new_matched_tokens(self, request: Request, num_computed_tokens: int) -> tuple[int | None, bool]:
        """Prompt tokens beyond the cached ones that the leader has; the last one is read by everybody."""
        leader = self._leader.get(request.request_id)
        if leader is None or not has_read(leader):
            return 0, False
        wanted = request.num_prompt_tokens - 1
        held = len(self._blocks.get(leader.request_id, ())) * self._block_tokens
        return (max(0, wanted - num_computed_tokens) if held >= wanted else 0), False

    def update_state_after_alloc(self, request: Request, blocks: Any, num_external_tokens: int) -> None:
        """Note where the request's blocks are, and what must be copied into them."""
        own = self._blocks[request.request_id] = list(blocks.get_block_ids()[0])
        if num_external_tokens:
            source, end = self._blocks[self._leader[request.request_id].request_id], request.num_prompt_tokens - 1
            first, last = (end - num_external_tokens) // self._block_tokens, (end - 1) // self._block_tokens
            self._due += [(source[n], own[n]) for n in range(first, last + 1)]

    def build_connector_meta(self, scheduler_output: SchedulerOutput) -> KVConnectorMetadata:
        """The copies of this step."""
        due, self._due = self._due, []
        return Copies(due)

    def request_finished(self, request: Request, block_ids: list[int]) -> tuple[bool, dict[str, Any] | None]:
        """Forget a request; its blocks are vLLM's to free."""
        self._leader.pop(request.request_id, None)
        self._blocks.pop(request.request_id, None)
        return False, None

    def register_kv_caches(self, kv_caches: dict[str, torch.Tensor]) -> None:
        """The layers' caches, blocks along the first axis."""
        self._caches = list(kv_caches.values())

    def start_load_kv(self, forward_context: Any, **kwargs: Any) -> None:
        """Copy what is due; no block is both read and written in one step."""
        due = self._get_connector_metadata()
        assert isinstance(due, Copies)
        if due.blocks:
            source, target = torch.tensor(due.blocks).unbind(1)
            for cache in self._caches:
                cache.index_copy_(0, target, cache.index_select(0, source))

    def wait_for_layer_load(self, layer_name: str) -> None:
        """Nothing is loaded in the background."""

    def save_kv_layer(self, layer_name: str, kv_layer: Any, attn_metadata: Any, **kwargs: Any) -> None:
        """Nothing is saved."""

    def wait_for_save(self) -> None:
        """Nothing is saved."""
