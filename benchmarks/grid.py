"""Row 3: answers of the grid, from the served app as a study asks it, against two other ways to get them.

Sixteen adapters, each asked 80 questions with 2 samples of at most 24 tokens: a shard of a study. One process asks two
replicas, where a study has a process for each. One peer is stock transformers and PEFT: `set_adapter`, then `generate`
on left-padded batches of the size that is fastest here. The other is the same app with a request for every question, 64
of them in flight; it is asked a part of the grid, since HTTP alone takes it minutes.
"""

import asyncio
import statistics
import tempfile
from collections.abc import Callable, Coroutine, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import ray
import torch

from benchmarks import workload
from benchmarks.bases import Base, make_base
from benchmarks.measure import ROOT, Options, Row, compared, fastest, interleave, rates
from benchmarks.ours import Ours
from benchmarks.peak import decoder_of, forward_flops, peak_rate, share
from metagen_ray.cost.work import Reads
from metagen_ray.prompts import Renderer
from metagen_ray.serving.app import App, ServingSpec, deploy, undeploy
from metagen_ray.serving.auth import read_token
from metagen_ray.serving.client import Client, Completion, Limits
from metagen_ray.stages.answers import IN_FLIGHT
from metagen_ray.store import content_key, open_store
from metagen_ray.study import Recipe, Resources
from metagen_ray.training.lora import Adapter

ADAPTERS, EVAL_DOMAINS, SAMPLES, ANSWER_TOKENS = 16, 20, 2, 24
REPLICAS = 2  # of one thread each, as `pocket_full` has them on two cores; the peer in torch has both cores, too
RESOURCES = Resources(replicas=REPLICAS)
SINGLE_IN_FLIGHT = 64
SINGLE_SHARE = 4  # of the adapters, one in so many is asked question by question
BATCHES = (16, 40, 80)
PROBED = 8  # candidate tokens of the parity check


@dataclass(frozen=True)
class Grid:
    """What is asked of whom. Adapters by their key in the store."""

    adapters: Mapping[str, Adapter]
    prompts: Sequence[list[int]]
    end_id: int

    @property
    def answers(self) -> int:
        """Answers in all."""
        return len(self.adapters) * len(self.prompts) * SAMPLES


def rows(options: Options) -> list[Row]:
    """Both peers at every size."""
    with tempfile.TemporaryDirectory(prefix="b", dir="/tmp", ignore_cleanup_errors=True) as room, ExitStack() as undo:
        environment = {"env_vars": {"PYTHONPATH": str(ROOT)}}
        ray.init(include_dashboard=False, _temp_dir=room, runtime_env=environment, log_to_driver=False)
        undo.callback(ray.shutdown)
        return [row for size in options.sizes for row in _size(make_base(size, Path(room)), Path(room), options)]


def _size(base: Base, room: Path, options: Options) -> list[Row]:
    grid = _grid(base, room / f"store-{base.size}", options)
    spec = ServingSpec(
        str(base.directory),
        "base",
        str(room / f"store-{base.size}"),
        requests_per_replica=2 * SINGLE_IN_FLIGHT,  # a study's 6 would hold back the peer that sends single questions
        replicas=REPLICAS,
        cpus_per_replica=0.9,
        threads=1,
    )
    app = deploy(spec, room / "token")
    try:
        return _compare(base, grid, app, options)
    finally:
        undeploy()


def _grid(base: Base, store: Path, options: Options) -> Grid:
    """Adapters trained for one epoch and committed as a study commits them."""
    count, eval_domains = (2, 2) if options.quick else (ADAPTERS, EVAL_DOMAINS)
    recipe = Recipe(epochs=1)
    ours = Ours(base, recipe, count)
    ours.train([(trees, n) for n, trees in enumerate(workload.fine_tunes(base, count))])
    keyed = {}
    for number, adapter in enumerate(ours.adapters):
        key = content_key({"benchmark": "grid", "size": base.size, "number": number})
        open_store(str(store)).put_files("object_sft", key, ours.model.slots[number].files(adapter), {})
        keyed[key] = adapter
    return Grid(keyed, workload.grid_prompts(base, eval_domains), Renderer(base.tokenizer()).end_id)


def _compare(base: Base, grid: Grid, app: App, options: Options) -> list[Row]:
    peer = Transformers(base, grid)
    sizes = sorted({min(size, len(grid.prompts)) for size in BATCHES})
    once = {str(size): partial(peer.answer, size, 1) for size in sizes}
    batch = int(fastest(once))
    said: dict[str, list] = {}

    def keep(name: str, work: Callable[[], Coroutine[Any, Any, list]]) -> None:
        said[name] = asyncio.run(work())

    single = "the same app, one request for every question"
    by_name = {
        f"transformers generate + PEFT set_adapter, batches of {batch}": partial(peer.answer, batch),
        single: partial(keep, "single", partial(_single, app, grid)),
    }
    sides = {"ours": partial(keep, "ours", partial(_served, app, grid)), **by_name}
    seconds = interleave(sides, options.rounds)
    tokens = [len(a.tokens or ()) for shard in said["ours"] for group in shard for a in group]
    aims = ({"1M": 5.0, "10M": 3.0}.get(base.size), 1.5)
    asked = {name: grid.answers for name in by_name}
    asked[single] = len(_single_keys(grid)) * len(grid.prompts) * SAMPLES
    gap = _parity(app, grid, peer)
    of_peak = _share_of_peak(base, grid, sum(tokens), seconds["ours"])
    return [
        compared(
            3,
            base.size,
            f"grid of {len(grid.adapters)} adapters x {len(grid.prompts)} questions x {SAMPLES}",
            name,
            "answers/s",
            rates(seconds["ours"], grid.answers),
            rates(seconds[name], asked[name]),
            parity=gap,
            parity_of="largest difference of a next token's log-probability, served against transformers, nats",
            peak_share=of_peak,
            aim=aim,
            answer_tokens=statistics.mean(tokens),
        )
        for name, aim in zip(by_name, aims, strict=True)
    ]


async def _served(app: App, grid: Grid) -> list[list[list[Completion]]]:
    """As a study asks: shards of one adapter each, several at a time, many prompts a request."""
    slots = asyncio.Semaphore(RESOURCES.asked_at_once)
    limits = Limits(RESOURCES.prompts_per_request, in_flight=IN_FLIGHT * RESOURCES.asked_at_once)
    async with Client(app.url, read_token(app.token_file), limits) as client:

        async def shard(key: str) -> list[list[Completion]]:
            async with slots:
                return await _ask(client, app, key, grid)

        return await asyncio.gather(*(shard(key) for key in grid.adapters))


async def _single(app: App, grid: Grid) -> list[list[list[Completion]]]:
    """A request for every question, as many as help in flight."""
    limits = Limits(prompts_per_request=1, in_flight=SINGLE_IN_FLIGHT)
    async with Client(app.url, read_token(app.token_file), limits) as client:
        return await asyncio.gather(*(_ask(client, app, key, grid) for key in _single_keys(grid)))


def _single_keys(grid: Grid) -> list[str]:
    return list(grid.adapters)[: max(1, len(grid.adapters) // SINGLE_SHARE)]


async def _ask(client: Client, app: App, key: str, grid: Grid) -> list[list[Completion]]:
    asked = {"n": SAMPLES, "max_tokens": ANSWER_TOKENS, "stop_ids": [grid.end_id]}
    return await client.complete(f"{app.model_name}:{key}", grid.prompts, **asked)


class Transformers:
    """Stock PEFT with all adapters loaded; one is set, then its questions are answered in batches."""

    def __init__(self, base: Base, grid: Grid) -> None:
        from benchmarks.peers import lora_model, set_weights

        self.grid = grid
        self.pad_id = base.tokenizer().pad_token_id
        self.model = lora_model(base.load(), Recipe()).eval()
        self.model.config.use_cache = True
        set_weights(self.model, next(iter(grid.adapters.values())))
        first, *others = grid.adapters
        self.names = {first: "default", **{key: key for key in others}}
        for key in others:
            self.model.add_adapter(key, self.model.peft_config["default"])
            self.model.set_adapter(key)
            set_weights(self.model, {n.replace(".weight", f".{key}.weight"): w for n, w in grid.adapters[key].items()})

    @torch.inference_mode()
    def answer(self, batch: int, adapters: int | None = None) -> None:
        """All answers of the first `adapters`, all of them by default."""
        for key in list(self.grid.adapters)[:adapters]:
            self.model.set_adapter(self.names[key])
            for start in range(0, len(self.grid.prompts), batch):
                ids, mask = self._left_padded(self.grid.prompts[start : start + batch])
                self.model.generate(
                    input_ids=ids,
                    attention_mask=mask,
                    do_sample=True,
                    temperature=1.0,
                    top_p=1.0,
                    top_k=0,
                    num_return_sequences=SAMPLES,
                    max_new_tokens=ANSWER_TOKENS,
                    eos_token_id=self.grid.end_id,
                    pad_token_id=self.pad_id,
                )

    @torch.inference_mode()
    def next_token_logprobs(self, key: str) -> torch.Tensor:
        """Log-probabilities of all words after each prompt."""
        self.model.set_adapter(self.names[key])
        ids, mask = self._left_padded(self.grid.prompts)
        positions = (mask.cumsum(1) - 1).clamp_(min=0)
        logits = self.model(input_ids=ids, attention_mask=mask, position_ids=positions).logits[:, -1]
        return logits.log_softmax(-1)

    def _left_padded(self, prompts: Sequence[list[int]]) -> tuple[torch.Tensor, torch.Tensor]:
        longest = max(map(len, prompts))
        ids = [[self.pad_id] * (longest - len(p)) + p for p in prompts]
        mask = [[0] * (longest - len(p)) + [1] * len(p) for p in prompts]
        return torch.tensor(ids), torch.tensor(mask)


def _parity(app: App, grid: Grid, peer: Transformers) -> float:
    """Largest gap over all adapters and prompts, on candidates that the models hold likely."""

    async def served(key: str, ids: list[int]) -> list[dict[int, float]]:
        async with Client(app.url, read_token(app.token_file)) as client:
            return await client.next_token_logprobs(f"{app.model_name}:{key}", grid.prompts, ids)

    gaps = []
    for key in grid.adapters:
        expected = peer.next_token_logprobs(key)
        ids = expected.logsumexp(0).topk(PROBED).indices.tolist()
        found = asyncio.run(served(key, ids))
        gaps += [abs(row[i] - expected[n, i].item()) for n, row in enumerate(found) for i in ids]
    return max(gaps)


def _share_of_peak(base: Base, grid: Grid, answer_tokens: int, seconds: list[float]) -> float:
    """Prompts are read once for both samples; the rate is that of a step of 256 answers."""
    prompt_tokens = len(grid.adapters) * workload.shared_tokens_once(grid.prompts)
    flops = forward_flops(decoder_of(base), Reads(prompt_tokens + answer_tokens, logits=answer_tokens))
    return share(flops, seconds, peak_rate(base, Reads(256, logits=256)))
