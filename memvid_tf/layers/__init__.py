"""Layers every model of the zoo is composed of. Nothing here knows about models, data or flags."""
