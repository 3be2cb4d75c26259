"""Variables without a host: scenarios that hosts pass, too, and features for tests of adapters."""

from __future__ import annotations

import pytest

from snakepit_bridge import VariableNotFoundError
from snakepit_bridge.testing import ToolTester, call_tool
from state_checks import CHECKS
from state_tools import StateTools


@pytest.mark.parametrize("name", CHECKS)
def test_the_tester_behaves_like_a_host(name: str) -> None:
    call_tool(StateTools, "check", name=name)


def test_variables_and_programs_need_a_session() -> None:
    variables, programs = call_tool(StateTools, "without_session", session_id="")
    assert "no session, which variables belong to; call the tool with one" in variables
    assert "no session, which programs belong to" in programs
    assert "global_programs" in programs


def test_tests_can_prepare_and_read_the_session() -> None:
    with ToolTester(StateTools) as tester:
        tester.context["n"] = 1
        tester.call("count_up", name="n", times=3)
        assert tester.context["n"] == 4
        tester.call("check", name="sessions")
        with pytest.raises(VariableNotFoundError):
            tester.context["n"]
    assert "n" not in ToolTester(StateTools).context


def test_a_stored_watch_ends_with_its_call() -> None:
    with ToolTester(StateTools) as tester:
        # Three times the limit of a session.
        for _ in range(30):
            tester.call("keep_watches", count=100)
        assert tester.call("read_kept_watches") == 0


@pytest.mark.parametrize("name", ["relay", "relay_async"])
def test_tools_can_stream_updates(name: str) -> None:
    with ToolTester(StateTools) as tester:
        tester.context["n"] = 1
        first = tester.stream(name, {"name": "n"}, limit=1)[0]
        assert first.data == {"kind": "initial", "value": 1, "lost": 0}
