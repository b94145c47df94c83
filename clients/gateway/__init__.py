"""A REST gateway in front of a DetServe server, and its web page."""

from gateway.app import make_app
from gateway.settings import Settings

__all__ = ["Settings", "make_app"]
