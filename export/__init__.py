"""From a checkpoint to a bundle: graphs, conversion, the gate, verification. Run from the checkout
as `python -m export…`; the wheel does not contain it."""
