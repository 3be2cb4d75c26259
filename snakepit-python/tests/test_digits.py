"""The digits workflow: training, and the model as a program of the session."""

from __future__ import annotations

import pickle

import pytest

from snakepit_bridge.adapters.showcase import digits
from snakepit_bridge.adapters.showcase.showcase_adapter import ShowcaseAdapter
from snakepit_bridge.testing import ToolFailed, ToolTester

pytestmark = pytest.mark.demo


def score(predicted: list[int], expected: list[int]) -> float:
    return sum(p == e for p, e in zip(predicted, expected, strict=True)) / len(expected)


def test_training_in_one_call_predicts_in_another() -> None:
    with ToolTester(ShowcaseAdapter, session_id="s", host_tools={"score_predictions": score}) as tester:
        info = tester.call("digits_info")
        steps = [chunk.data for chunk in tester.stream("train_digits", epochs=5)]
        assert steps[-1]["done"]
        assert [s["step"] for s in steps[:-1]] == list(range(1, steps[0]["steps"] + 1))
        assert steps[-2]["loss"] < steps[0]["loss"]
        answer = tester.call("predict_digits", start=0, count=info["held_out"])
        assert answer["score"] > 0.9
        assert answer["score"] == score(answer["predicted"], answer["expected"])
        with pytest.raises(ToolFailed, match="held out"):
            tester.call("predict_digits", start=0, count=info["held_out"] + 1)
        with pytest.raises(ToolFailed, match="epochs is 0"):
            tester.stream("train_digits", epochs=0)


def test_a_model_is_never_unpickled() -> None:
    training = digits.Training(1)
    training.step()
    model = digits.Model.from_bytes(training.model.to_bytes())
    assert (model.weights == training.model.weights).all()
    with pytest.raises(ValueError, match=r"pickle|zip|allow"):
        digits.Model.from_bytes(pickle.dumps({"weights": []}))
