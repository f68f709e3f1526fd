"""Measurements of this project, one module each."""
