"""Sampling answers: ground truth and predictions alike are models asked prompts. Owns the rows; knows no scores."""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import pyarrow as pa

from metagen_ray.records import ANSWERS
from metagen_ray.serving.auth import read_token
from metagen_ray.serving.client import Client, Completion, Limits
from metagen_ray.stages.context import StudyContext
from metagen_ray.stages.growth import Asked, Note, answered_domains, take_answers
from metagen_ray.stages.plan import Ask, Plan, Prompt
from metagen_ray.stages.shards import Row, run_shards
from metagen_ray.study import Study, study_from

IN_FLIGHT = 4  # requests of one shard


@dataclass(frozen=True)
class AppAddress:
    """Where the app answers. The token is read from its file on the node, never sent along."""

    url: str
    token_path: str
    base_name: str

    def model(self, adapter: str | None) -> str:
        """Model name of the base or of an adapter, by content key."""
        return self.base_name if adapter is None else f"{self.base_name}:{adapter}"


def run_asks(
    plan: Plan, asks: Sequence[Ask], app: AppAddress, versions: Mapping[str, str], on_outcome: Callable[[Row], None]
) -> None:
    """Have the app answer every shard and commit it."""
    arguments, rows = ask_work(plan, asks, app, versions)
    run_shards("answers", AnswerWorker, arguments, rows, plan.study.resources, on_outcome)


def ask_work(
    plan: Plan, asks: Sequence[Ask], app: AppAddress, versions: Mapping[str, str]
) -> tuple[dict[str, Any], list[Row]]:
    """Arguments of AnswerWorker and a row for every shard; one listing of a stage finds what is not asked again."""
    present = {stage: plan.context.store.keys(stage) for stage in {a.stage for a in asks}}
    arguments = worker_arguments(plan, app, versions, answered_domains(plan, asks, present))
    rows = [asdict(a) for a in in_turns(asks, plan.study.resources.asked_at_once)]
    for row in rows:
        row["adapter"] = row["adapter"] or ""
    return arguments, rows


def in_turns(asks: Sequence[Ask], at_once: int) -> list[Ask]:
    """The order of asking: as many models and shown examples side by side as shards, block after block.

    So few adapters are in use at a time, a prefix comes back while it is cached and is read by nobody else meanwhile,
    and different replicas have different ones to keep.
    """

    def family(ask: Ask) -> tuple[str, str, int]:
        return ask.adapter or "", ask.shown, ask.k

    number = {f: n for n, f in enumerate(sorted({family(a) for a in asks}))}
    return sorted(asks, key=lambda a: (number[family(a)] // at_once, a.block, number[family(a)], a.train_domain))


def worker_arguments(
    plan: Plan, app: AppAddress, versions: Mapping[str, str], earlier: Mapping[str, Any]
) -> dict[str, Any]:
    """What a worker is made of, wherever it runs."""
    return {
        "study": plan.study.model_dump(mode="json"),
        "app": asdict(app),
        "versions": dict(versions),
        "earlier": dict(earlier),
        "given_up": plan.given_up,
    }


class AnswerWorker:
    """Asks the app for shards, several at a time in one event loop.

    `earlier`: shard key -> what others in the pool hold of it, as `growth` tells it.
    """

    def __init__(
        self,
        study: Mapping[str, Any],
        app: Mapping[str, str],
        versions: Mapping[str, str],
        earlier: Mapping[str, Any],
        given_up: frozenset[str] = frozenset(),
    ) -> None:
        self.study: Study = study_from(study, "study")
        self.plan = Plan(StudyContext(self.study, joins=True), given_up)
        self.app = AppAddress(**app)
        self.versions = dict(versions)
        self.earlier = dict(earlier)
        self._client: Client | None = None

    @property
    def client(self) -> Client:
        """The client, made in the loop that uses it."""
        if self._client is None:
            resources = self.study.resources
            limits = Limits(resources.prompts_per_request, in_flight=IN_FLIGHT * resources.shards_at_once)
            self._client = Client(self.app.url, read_token(self.app.token_path), limits)
        return self._client

    async def do(self, row: Row) -> Mapping[str, float]:
        """Take over what is there, ask the rest, and commit all answers under the shard's key."""
        ask = Ask(**{**row, "adapter": row["adapter"] or None})
        prompts = self.plan.prompts(ask)
        taken, note = take_answers(self.plan, ask, self.earlier.get(ask.key, 0))
        left = [p for p in prompts if _asked(p) not in taken]
        answers = await self.client.complete(
            self.app.model(ask.adapter),
            [tokens for *_, tokens in left],
            n=ask.samples,
            temperature=self.study.temperature,
            max_tokens=self.study.max_answer_tokens,
            stop_ids=[self.plan.context.renderer.end_id],
        )
        fresh = self._rows(ask, left, answers)
        found = taken | fresh
        table = pa.Table.from_pylist([row for p in prompts for row in found[_asked(p)]], schema=ANSWERS)
        figures = {
            "answers": sum(map(len, fresh.values())),
            "taken": sum(map(len, taken.values())),
            "prompt_tokens": sum(len(tokens) for *_, tokens in left),
            "output_tokens": sum(len(a.tokens or ()) for group in answers for a in group),
        }
        await asyncio.to_thread(
            self.plan.context.store.put_shard, ask.stage, ask.key, table, self._record(ask, note, figures)
        )
        return figures | self._served()

    def _record(self, ask: Ask, taken: Note, figures: Mapping[str, int]) -> dict[str, Any]:
        """What stands beside the rows; the tokens are those of what was asked, not of what was taken over."""
        return {
            "predictor": ask.predictor,
            "adapter": ask.adapter,
            "fingerprint": self.study.fingerprint(),
            "seed": self.study.seed,
            "versions": self.versions,
            "prompt_tokens": figures["prompt_tokens"],
            "output_tokens": figures["output_tokens"],
            "taken": taken,
        }

    def _rows(
        self, ask: Ask, prompts: Sequence[Prompt], answers: Sequence[Sequence[Completion]]
    ) -> dict[Asked, list[Row]]:
        """Rows of the answers to prompts, by what was asked."""
        return {
            (domain.id, question): [
                {
                    "train_domain": ask.train_domain,
                    "eval_domain": domain.id,
                    "question": question,
                    "draw": draw,
                    "sample": sample,
                    "answer": self._text(answer),
                    "tokens": list(answer.tokens or ()),
                    "finish": answer.finish,
                }
                for sample, answer in enumerate(group)
            ]
            for (domain, question, draw, _), group in zip(prompts, answers, strict=True)
        }

    def _served(self) -> dict[str, int]:
        """For the ledger: requests answered meanwhile by each node, and prompt tokens found in prefix caches."""
        served, cached = self.client.take_served()
        return {"cached_tokens": cached, **{f"requests to {node}": count for node, count in served.items()}}

    def _text(self, answer: Completion) -> str:
        """Decoded here, not by the server, so that truth and predictions of any server read alike."""
        return answer.text if answer.tokens is None else self.plan.context.renderer.decode(answer.tokens)


def _asked(prompt: Prompt) -> Asked:
    return prompt[0].id, prompt[1]
