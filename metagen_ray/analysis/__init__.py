"""Quadrants, baselines and statistics of a study: numpy in, rows out. No I/O, nothing of stages, Ray or pictures."""

from metagen_ray.analysis.grid import Grid, Prediction, past_threshold
from metagen_ray.analysis.quadrants import Analysis, Options, analyse
from metagen_ray.analysis.splits import Pooled, combine

__all__ = ["Analysis", "Grid", "Options", "Pooled", "Prediction", "analyse", "combine", "past_threshold"]
