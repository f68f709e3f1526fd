"""Sampling answers: ground truth and predictions alike are models asked prompts. Owns the rows; knows no scores."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import pyarrow as pa

from metagen_ray.records import ANSWERS
from metagen_ray.serving.auth import read_token
from metagen_ray.serving.client import Client, Completion, Limits
from metagen_ray.stages.context import StudyContext
from metagen_ray.stages.plan import Ask, Plan
from metagen_ray.stages.shards import Row, run_shards
from metagen_ray.study import Study, study_from


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
    arguments = {"study": plan.study.model_dump(mode="json"), "app": asdict(app), "versions": dict(versions)}
    # Shards of one adapter stand together, so that few adapters are in use at a time.
    rows = [asdict(ask) for ask in sorted(asks, key=lambda a: (a.adapter or "", a.train_domain, a.block))]
    for row in rows:
        row["adapter"] = row["adapter"] or ""
    run_shards("answers", AnswerWorker, arguments, rows, plan.study.resources.clients, on_outcome)


class AnswerWorker:
    """Asks the app for one shard at a time."""

    def __init__(self, study: Mapping[str, Any], app: Mapping[str, str], versions: Mapping[str, str]) -> None:
        self.study: Study = study_from(study, "study")
        self.plan = Plan(StudyContext(self.study))
        self.app = AppAddress(**app)
        self.versions = dict(versions)
        self._client: Client | None = None

    @property
    def client(self) -> Client:
        """The client, made in the loop that uses it."""
        if self._client is None:
            limits = Limits(prompts_per_request=self.study.resources.prompts_per_request)
            self._client = Client(self.app.url, read_token(self.app.token_path), limits)
        return self._client

    async def do(self, row: Row) -> Mapping[str, float]:
        """Ask, and commit the answers under the shard's key."""
        ask = Ask(**{**row, "adapter": row["adapter"] or None})
        prompts = self.plan.prompts(ask)
        answers = await self.client.complete(
            self.app.model(ask.adapter),
            [tokens for *_, tokens in prompts],
            n=ask.samples,
            temperature=self.study.temperature,
            max_tokens=self.study.max_answer_tokens,
            stop_ids=[self.plan.context.renderer.end_id],
        )
        table = self._table(ask, prompts, answers)
        record = {
            "predictor": ask.predictor,
            "adapter": ask.adapter,
            "fingerprint": self.study.fingerprint(),
            "seed": self.study.seed,
            "versions": self.versions,
            "prompt_tokens": sum(len(tokens) for *_, tokens in prompts),
            "output_tokens": sum(len(a.tokens or ()) for group in answers for a in group),
        }
        self.plan.context.store.put_shard(ask.stage, ask.key, table, record)
        return {
            "answers": table.num_rows,
            "prompt_tokens": record["prompt_tokens"],
            "output_tokens": record["output_tokens"],
        }

    def _table(self, ask: Ask, prompts: Sequence[tuple], answers: Sequence[Sequence[Completion]]) -> pa.Table:
        rows = [
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
            for (domain, question, draw, _), group in zip(prompts, answers, strict=True)
            for sample, answer in enumerate(group)
        ]
        return pa.Table.from_pylist(rows, schema=ANSWERS)

    def _text(self, answer: Completion) -> str:
        """Decoded here, not by the server, so that truth and predictions of any server read alike."""
        return answer.text if answer.tokens is None else self.plan.context.renderer.decode(answer.tokens)
