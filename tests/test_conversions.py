"""What would happen to a conversion that held on to memory: the measurement says so.

That conversions do not is tested in test_convert.py.
"""

import numpy as np
import pytest

from benchmarks import conversions

CALLS, WARM_UP = 14, 2


def test_memory_that_is_kept_is_seen():
    kept = []

    def leaks():
        kept.append(np.ones(conversions.MIB // 8))  # 1 MiB, as much as a copy of the weights
        return b"flatbuffer"

    found = conversions.measure(leaks, CALLS)
    assert conversions.growth_mib(found["held_mib"], WARM_UP) == pytest.approx(1, rel=0.2)


def test_memory_that_is_given_back_is_not():
    def frees():
        return bytes(np.ones(conversions.MIB // 2))

    found = conversions.measure(frees, CALLS)
    assert abs(conversions.growth_mib(found["held_mib"], WARM_UP)) < 0.2
    assert found["bytes"] == 4 * conversions.MIB
    assert len(found["resident_mib"]) == len(found["held_mib"]) == len(found["seconds"]) == CALLS
