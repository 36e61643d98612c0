"""Metrics. The modules are NumPy only, so that a checkpoint and a bundle share one evaluator."""
