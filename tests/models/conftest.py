"""The tiny policy of the training tests."""

from tests.training.conftest import one_thread, tiny_policy

__all__ = ("one_thread", "tiny_policy")
