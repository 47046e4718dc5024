"""The same realtime sessions as against one process (`tests/e2e/test_realtime.py`), against two replicas."""

from tests.e2e.test_realtime import *  # noqa: F403 - all of its tests, and its marks

MODEL = "base"
