"""Teacher-forced log-likelihoods in bulk: the same packs as in training, without gradients. Knows no optimizer."""

from collections.abc import Sequence

import torch

from metagen_ray.training.base import AdaptedModel
from metagen_ray.training.rows import Tree, pack


def score(model: AdaptedModel, trees: Sequence[Tree]) -> list[list[float]]:
    """The log-likelihood in nats of every branch's completion, in the order of the trees and their branches."""
    scores: dict[int, list[float]] = {}
    was_training = model.training
    model.eval()
    with torch.inference_mode():
        for group in model.groups(list(trees)):
            summed = iter(_branch_sums(model, group))
            for tree in group:
                scores[id(tree)] = [next(summed) for _ in tree.branches]
    model.train(was_training)
    return [scores[id(tree)] for tree in trees]


def mean_loss(model: AdaptedModel, trees: Sequence[Tree]) -> float:
    """Mean negative log-likelihood per completion token; ValueError without any."""
    tokens = sum(tree.completion_tokens() for tree in trees)
    if not tokens:
        raise ValueError("no completion tokens to measure a loss on")
    return -sum(sum(branches) for branches in score(model, trees)) / tokens


def _branch_sums(model: AdaptedModel, trees: list[Tree]) -> list[float]:
    laid = pack(trees)
    loss_C = model(laid).double().cpu()
    sums = torch.zeros(sum(len(tree.branches) for tree in trees), dtype=torch.float64)
    return (-sums.index_add_(0, laid.branch_C, loss_C)).tolist()
