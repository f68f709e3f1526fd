"""Predicts what a fine-tune will do before it is run: stages of a Ray job over one study, one store, one report."""
