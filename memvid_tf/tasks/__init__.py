"""Training and evaluation tasks on `official.core`, and their configuration."""
