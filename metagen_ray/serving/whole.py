"""Answers leave the engine's process whole. Owns what of an answer is held back, on the CPU engine.

vLLM sends each new token to the process that speaks HTTP, which keeps it until the answer has ended: two dozen
messages an answer, and both processes share the cores with the model. Nobody here reads a half answer.
"""

from typing import Any

from vllm.sampling_params import RequestOutputKind
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.engine import EngineCoreOutput, EngineCoreOutputs
from vllm.v1.request import Request


class WholeScheduler(Scheduler):
    """VLLM's scheduler, with an answer's tokens held back until it has ended."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._begun_answers: dict[str, EngineCoreOutput] = {}  # by request, what it has said so far

    def update_from_output(self, *args: Any, **kwargs: Any) -> dict[int, EngineCoreOutputs]:
        """What leaves after a step: whole answers, and all that is no answer."""
        by_client = super().update_from_output(*args, **kwargs)
        for part in by_client.values():
            part.outputs = [output for output in part.outputs if self._ends(output)]
        return {n: p for n, p in by_client.items() if p.outputs or p.finished_requests or p.scheduler_stats}

    def finish_requests(self, *args: Any, **kwargs: Any) -> list[Request]:
        """As vLLM's; what the requests have said is dropped."""
        given_up = super().finish_requests(*args, **kwargs)
        for request in given_up:
            self._begun_answers.pop(request.request_id, None)
        return given_up

    def _ends(self, output: EngineCoreOutput) -> bool:
        """Whether an output leaves now, with what was held back of it; holds it back otherwise."""
        begun = self._begun_answers.get(output.request_id)
        if begun is not None:
            begun.new_token_ids += output.new_token_ids
        if output.finish_reason is None:
            if begun is None and _is_read_whole(self.requests[output.request_id]):
                output.new_token_ids = [*output.new_token_ids]  # grows from now on
                self._begun_answers[output.request_id] = output
                return False
            return begun is None
        if begun is not None:
            del self._begun_answers[output.request_id]
            output.new_token_ids, output.prefill_stats = begun.new_token_ids, begun.prefill_stats
        return True


def _is_read_whole(request: Request) -> bool:
    """Whether its reader waits for the end: it looks for no stop strings and gets no log-probabilities on the way."""
    asked = request.sampling_params
    if asked is None or asked.output_kind != RequestOutputKind.FINAL_ONLY:
        return False
    return not asked.stop and asked.num_logprobs is None and asked.prompt_logprobs is None
