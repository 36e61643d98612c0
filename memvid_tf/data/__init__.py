"""Data sets: the synthetic videos, readers of real layouts, sharded clip records, sampling.

Importing the package is cheap; the modules that need TensorFlow import it themselves.
"""
