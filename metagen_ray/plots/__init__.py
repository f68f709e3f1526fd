"""Figures of a study, drawn from the rows of its analysis. The only user of matplotlib; computes no statistics."""
