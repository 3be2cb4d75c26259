"""The adapters and the test in docs/python.md and docs/hints.md."""

from __future__ import annotations

import numpy as np

from orders import Orders
from snakepit_bridge.testing import ToolTester, call_tool
from tuning import Tuning


def test_items_are_added() -> None:
    assert call_tool(Orders, "total", items=[{"name": "tea", "price": 9.99, "count": 2}]) == "19.98"


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
