"""What is trained on: trees of token rows, and the packs a model reads. Knows nothing of models, recipes or stages.

A tree is a prefix that is read once and branches that each continue it; a plain fine-tuning row is a tree with an empty
prefix and one branch. A pack lays trees one after the other into one sequence. A token sees its tree's prefix, its own
branch and nothing else; a branch's positions restart at the prefix's end, so every number equals that of the row alone.
Branches of one tree with the same prompt (answers to one question) share that prompt as well.

Axes: S token of the pack, C completion token of the pack.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from itertools import groupby

import torch

PREFIX = -1  # the group and the leaf of a token that all branches of its tree see
FILLED = -2  # the tree, the group and the leaf of a token that fills a pack up


@dataclass(frozen=True, slots=True)
class Branch:
    """One continuation of a prefix; the loss is on `completion` alone."""

    prompt: list[int]
    completion: list[int]


@dataclass(frozen=True, slots=True)
class Tree:
    """A prefix and what follows it; the completion of every branch has at least one token before it.

    `slot` says which adapter of a bank it trains, `number` its place in that adapter's step, `first` which branch of
    the whole tree comes first where this is a piece of one.
    """

    prefix: list[int]
    branches: tuple[Branch, ...]
    slot: int = 0
    number: int = 0
    first: int = 0

    def completion_tokens(self) -> int:
        """Tokens under the loss."""
        return sum(len(b.completion) for b in self.branches)

    def read_tokens(self) -> int:
        """Tokens a model reads: shared prompts once, never the last token of a completion, which predicts nothing."""
        prompts = {tuple(b.prompt) for b in self.branches}
        return len(self.prefix) + sum(map(len, prompts)) + sum(len(b.completion) - 1 for b in self.branches)

    def cut(self) -> "list[Tree]":
        """The tree as two pieces under the same prefix; itself if it has one branch."""
        middle = len(self.branches) // 2
        if not middle:
            return [self]
        left, right = self.branches[:middle], self.branches[middle:]
        return [replace(self, branches=left), replace(self, branches=right, first=self.first + middle)]


def plain_row(prompt: list[int], completion: list[int]) -> Tree:
    """An ordinary fine-tuning row as a tree."""
    return Tree([], (Branch(prompt, completion),))


@dataclass(frozen=True, slots=True)
class Span:
    """Where a tree lies in a pack: start:fork are its prefix, fork:end its branches; one of one branch is straight."""

    start: int
    fork: int
    end: int
    straight: bool


@dataclass(frozen=True, slots=True)
class Pack:
    """One sequence a model reads, and what it must predict. tree_S, group_S and leaf_S decide who sees whom.

    `mark_S` names a token by its place in its adapter's step, whatever pack it is read in.
    """

    token_S: torch.Tensor
    position_S: torch.Tensor
    tree_S: torch.Tensor
    group_S: torch.Tensor
    leaf_S: torch.Tensor
    mark_S: torch.Tensor
    source_C: torch.Tensor
    label_C: torch.Tensor
    branch_C: torch.Tensor
    slot_C: torch.Tensor
    spans: tuple[Span, ...]
    segments: tuple[tuple[int, int, int], ...]  # (slot, first token, end) in order
    weight: float = 1.0

    @property
    def even(self) -> bool:
        """Several adapters with as many tokens each."""
        return len({end - start for _, start, end in self.segments}) == 1 < len(self.segments)

    @property
    def is_straight(self) -> bool:
        """One straight row: ordinary causal attention serves."""
        return len(self.spans) == 1 and self.spans[0].straight

    def visible_SS(self) -> torch.Tensor:
        """Boolean [reader, read]: earlier tokens of the same tree that lie on the reader's path."""
        order = torch.arange(len(self.token_S), device=self.token_S.device)
        seen = (self.tree_S[:, None] == self.tree_S[None]) & (order[:, None] >= order[None])
        seen &= (self.group_S[None] == PREFIX) | (self.group_S[:, None] == self.group_S[None])
        return seen & ((self.leaf_S[None] == PREFIX) | (self.leaf_S[:, None] == self.leaf_S[None]))

    def to(self, device: torch.device) -> "Pack":
        """The same pack on another device."""
        if device == self.token_S.device:
            return self
        tensors = {f.name: getattr(self, f.name) for f in fields(self) if f.name.endswith(("_S", "_C"))}
        return replace(self, **{name: tensor.to(device, non_blocking=True) for name, tensor in tensors.items()})


def pack(trees: Sequence[Tree], weight: float = 1.0) -> Pack:
    """Lay trees into one sequence, those of one adapter together, branches numbered through all of them.

    ValueError if a completion has no context.
    """
    columns = _Columns()
    for tree_id, tree in enumerate(sorted(trees, key=lambda t: t.slot)):
        columns.add_tree(tree_id, tree)
    long = [torch.tensor(c, dtype=torch.long) for c in columns.as_lists()]
    return Pack(*long, spans=tuple(columns.spans), segments=columns.segments(), weight=weight)


def evened(pack: Pack, most: float) -> Pack:
    """The pack with as many tokens for each of its adapters, itself if it would grow by more than a share of `most`.

    What is filled in stands at the end of an adapter's part as a row of its own: no other token sees it, and nothing is
    predicted from it.
    """
    sizes = [end - start for _, start, end in pack.segments]
    length, tokens = max(sizes), len(pack.token_S)
    if len(sizes) < 2 or min(sizes) == length or length * len(sizes) > (1 + most) * tokens:
        return pack
    place_S, spans = torch.empty(tokens, dtype=torch.long), []
    for number, (_, start, end) in enumerate(pack.segments):
        ahead = number * length - start
        place_S[start:end] = torch.arange(start + ahead, end + ahead)
        own = (span for span in pack.spans if start <= span.start < end)
        spans += [Span(s.start + ahead, s.fork + ahead, s.end + ahead, s.straight) for s in own]
        if end - start < length:
            spans.append(Span(end + ahead, end + ahead, (number + 1) * length, straight=True))
    laid = {name: torch.zeros(length * len(sizes), dtype=torch.long) for name in ("token_S", "position_S", "mark_S")}
    laid |= {name: torch.full_like(laid["token_S"], FILLED) for name in ("tree_S", "group_S", "leaf_S")}
    for name, column in laid.items():
        column[place_S] = getattr(pack, name)
    segments = tuple((slot, n * length, (n + 1) * length) for n, (slot, _, _) in enumerate(pack.segments))
    return replace(pack, **laid, source_C=place_S[pack.source_C], spans=tuple(spans), segments=segments)


def split_by_size(trees: Sequence[Tree], limit_tokens: int) -> list[list[Tree]]:
    """Groups whose reading fits `limit_tokens` each; a tree above the limit stands alone.

    Those of one adapter together, so that a group reads few adapters, and of these the largest trees first.
    """
    groups: list[list[Tree]] = []
    room: list[int] = []
    for tree in sorted(trees, key=lambda t: (t.slot, -t.read_tokens())):
        size = tree.read_tokens()
        at = next((i for i, free in enumerate(room) if free >= size), None)
        if at is None:
            groups.append([tree])
            room.append(limit_tokens - size)
        else:
            groups[at].append(tree)
            room[at] -= size
    return groups


def step_batches(trees: Sequence[Tree], order: Sequence[int], batch_rows: int) -> Iterator[list[Tree]]:
    """Trees in `order`, cut into optimizer steps: a step closes at `batch_rows` completions. The rest counts."""
    step: list[Tree] = []
    rows = 0
    for index in order:
        step.append(trees[index])
        rows += len(trees[index].branches)
        if rows >= batch_rows:
            yield step
            step, rows = [], 0
    if step:
        yield step


class _Columns:
    """The lists behind a Pack while it is laid."""

    def __init__(self) -> None:
        self.token: list[int] = []
        self.position: list[int] = []
        self.tree: list[int] = []
        self.group: list[int] = []
        self.leaf: list[int] = []
        self.mark: list[int] = []
        self.source: list[int] = []
        self.label: list[int] = []
        self.branch: list[int] = []
        self.slot: list[int] = []
        self.spans: list[Span] = []
        self.slots: list[int] = []  # by tree
        self.groups = self.leaves = 0

    def as_lists(self) -> tuple[list[int], ...]:
        return (
            self.token, self.position, self.tree, self.group, self.leaf, self.mark,
            self.source, self.label, self.branch, self.slot,
        )  # fmt: skip

    def segments(self) -> tuple[tuple[int, int, int], ...]:
        runs = groupby(zip(self.slots, self.spans, strict=True), key=lambda pair: pair[0])
        laid = [(slot, [span for _, span in run]) for slot, run in runs]
        return tuple((slot, spans[0].start, spans[-1].end) for slot, spans in laid)

    def add_tree(self, tree: int, rows: Tree) -> None:
        start = len(self.token)
        prefix_end = self._segment(rows.prefix, 0, tree, PREFIX, PREFIX, _mark(rows.number, 0))
        fork = len(self.token)
        by_prompt: dict[tuple[int, ...], list[tuple[int, Branch]]] = {}
        for number, branch in enumerate(rows.branches):
            by_prompt.setdefault(tuple(branch.prompt), []).append((number, branch))
        for prompt, branches in by_prompt.items():
            at = len(rows.prefix)
            mark = _mark(rows.number, 1 + rows.first + branches[0][0])
            end = self._segment(prompt, at, tree, self.groups, PREFIX, mark) if prompt else prefix_end
            for number, branch in branches:
                mark = _mark(rows.number, 1 + rows.first + number)
                self._completion(branch, at + len(prompt), end, tree, self.leaves + number, mark)
            self.groups += 1
        self.leaves += len(rows.branches)
        self.slot += [rows.slot] * rows.completion_tokens()
        self.slots.append(rows.slot)
        self.spans.append(Span(start, fork, len(self.token), len(rows.branches) == 1))

    def _segment(self, tokens: Sequence[int], position: int, tree: int, group: int, leaf: int, mark: int) -> int:
        """Append tokens; the index of the last token laid so far in this tree's path, or -1 where there is none."""
        size = len(tokens)
        self.token += tokens
        self.position += range(position, position + size)
        self.tree += [tree] * size
        self.group += [group] * size
        self.leaf += [leaf] * size
        self.mark += range(mark + position, mark + position + size)
        return len(self.token) - 1 if size else -1

    def _completion(self, branch: Branch, position: int, last_context: int, tree: int, leaf: int, mark: int) -> None:
        if last_context < 0 or not branch.completion:
            raise ValueError(
                f"branch {leaf} of the pack has an empty completion or nothing before it; nothing predicts it"
            )
        first = len(self.token)
        self._segment(branch.completion[:-1], position, tree, self.groups, leaf, mark)
        self.source += [last_context, *range(first, len(self.token))]
        self.label += branch.completion
        self.branch += [leaf] * len(branch.completion)


def _mark(number: int, path: int) -> int:
    """The mark of position 0: 2^20 positions of 2^16 paths of a tree."""
    return (number << 36) + (path << 20)
