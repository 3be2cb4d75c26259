"""The adapter and the test in docs/python.md."""

from __future__ import annotations

import numpy as np

from snakepit_bridge.testing import ToolTester
from tuning import Tuning


def test_steps_change_the_session() -> None:
    with ToolTester(Tuning) as tester:
        tester.call("prepare")
        tester.call("step", loss=0.5)
        assert tester.context["rate"] == 0.05

        tester.call("step", loss=0.25)
        assert tester.context["losses"] == [0.5, 0.25]
        np.testing.assert_array_equal(tester.context["weights"], np.full((2, 3), -0.75, dtype=np.float32))
        assert tester.context["weights"].dtype == np.float32
        assert [chunk.data for chunk in tester.stream("rates", limit=1)] == [0.025]
