"""Errors a person can act on. Owns the exit codes; knows nothing of what failed.

A message says what is wrong, where, and what to do. The CLI prints it as one line and exits with the class's code.
"""

from collections.abc import Mapping


class UserError(Exception):
    """Base of all errors that are shown without a traceback."""

    exit_code = 1


class Terminated(BaseException):
    """SIGTERM has come; Ray gives a job 3 s from here. Nothing waits any longer."""

    exit_code = 143


class InputError(UserError):
    """The study, the suite, an argument or a file of the user is wrong."""

    exit_code = 2


class StoreError(UserError):
    """The store cannot be used, or something in it is damaged."""

    exit_code = 3


class MachineError(UserError):
    """The machine, the cluster or an installed version does not fit the plan."""

    exit_code = 4


class StageError(UserError):
    """A stage ran and failed."""

    exit_code = 5


class ShardsFailed(StageError):
    """Some shards of a pass failed, all others are done. `reasons` by key."""

    def __init__(self, what: str, reasons: Mapping[str, str], total: int) -> None:
        self.reasons = dict(reasons)
        key, reason = next(iter(reasons.items()))
        super().__init__(
            f"{what}: {len(reasons)} of {total} failed; the first, {key[:12]}: {reason}. "
            "What was done is kept; run again to do the rest"
        )


class PartialError(UserError):
    """The study has its report, but some shards were given up."""

    exit_code = 6


class LeaseError(UserError):
    """Another driver holds what this one needs."""

    exit_code = 7
