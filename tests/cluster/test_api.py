"""The same tests as against one process (`tests/e2e/test_stock_sdk.py`), against two replicas."""

from tests.e2e.test_stock_sdk import *  # noqa: F403 - all of its tests, and its marks

MODEL = "base"
