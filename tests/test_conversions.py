"""Conversions do not hold on to memory, and the measurement would say so if they did."""

import numpy as np
import pytest

from benchmarks import conversions

CALLS = conversions.WARM_UP + 10
WEIGHTS_MIB = 4.5


def test_memory_that_is_kept_is_seen():
    kept = []

    def leaks():
        kept.append(np.ones(conversions.MIB // 2))  # 4 MiB
        return b"flatbuffer"

    assert conversions.measure(leaks, CALLS)["growth_mib"] == pytest.approx(4, rel=0.1)


def test_memory_that_is_given_back_is_not():
    def frees():
        return bytes(np.ones(conversions.MIB // 2))

    assert abs(conversions.measure(frees, CALLS)["growth_mib"]) < 0.2


@pytest.mark.slow
def test_a_conversion_keeps_no_copy_of_its_weights():
    found = conversions.measure(conversions.conversion(), CALLS)
    assert 1.1 * conversions.MIB < found["bytes"] < 1.5 * conversions.MIB
    # A quarter of one copy of the float weights; 0.03 is measured over 200 calls.
    assert found["growth_mib"] < WEIGHTS_MIB / 4
    assert len(found["held_mib"]) == len(found["seconds"]) == CALLS
