"""The filter itself: pure and synchronous; no sockets, no event loops."""

__version__ = "0.1.0"
