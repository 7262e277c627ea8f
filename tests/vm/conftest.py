"""Fixtures of the tests that boot a machine."""

from tests.guest_image import guest_image

__all__ = ["guest_image"]
