"""Tells systemd how we are, where it asks to be told (sd_notify, as Type=notify wants it)."""

from __future__ import annotations

import os
import socket
import time


def notify(*lines: str) -> None:
    """Send one datagram to $NOTIFY_SOCKET; do nothing without it, and nothing if it cannot be reached."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address.startswith(("/", "@")):
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
        sender.setblocking(False)
        try:
            sender.connect("\0" + address[1:] if address.startswith("@") else address)
            sender.send("\n".join(lines).encode())
        except OSError:
            return


def reloading() -> None:
    """systemd 253 and later want the clock in the same datagram."""
    notify("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}", "STATUS=Reloading")
