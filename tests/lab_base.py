"""A base of the lab's shape and tokenizer with random weights: for tests in which what it says is beside the point."""

from pathlib import Path

import torch

from metagen_ray.lab.pretrain import PretrainConfig, make_model
from metagen_ray.lab.tokenizer import save_tokenizer
from metagen_ray.lab.world import world


def make_random_base(directory: Path) -> Path:
    """Write the model directory."""
    torch.manual_seed(0)
    tokenizer = save_tokenizer(world(), directory)
    make_model(PretrainConfig(rho=0.5, hidden=32, layers=1), tokenizer).save_pretrained(directory)
    return directory
