"""A private Dovecot that speaks LMTP, on a port and on a Unix socket, and delivers into Maildirs."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.servers import Box, documented, listens, private_folder, until

PROGRAMS = ("dovecot", "doveconf")

_CONFIGURATION = """
base_dir = {folder}/run
state_dir = {folder}/state
log_path = {folder}/log
instance_name = spamguard-test
protocols = lmtp
ssl = no
hostname = dovecot.example
first_valid_uid = 1
mail_location = maildir:{folder}/mail/%u
mail_plugins = quota
plugin {{
  quota = maildir:storage
}}
passdb {{
  driver = static
  args = nopassword=y
}}
userdb {{
  driver = passwd-file
  args = {folder}/users
}}
service lmtp {{
  unix_listener lmtp {{
    mode = 0666
  }}
}}
"""


class Dovecot:
    """Has the users b, c and full at example.net; the last has a quota of 1 KB. Nobody else is known."""

    def __init__(self, folder: Path, port: int) -> None:
        self.folder = folder
        self.port = port
        self.socket = folder / "run/lmtp"
        user = pwd.getpwnam("mail")
        for name in ("run", "state", "mail"):
            (folder / name).mkdir()
        os.chown(folder / "mail", user.pw_uid, user.pw_gid)
        quotas = {"b": "*:storage=0", "c": "*:storage=0", "full": "*:storage=1K"}
        (folder / "users").write_text(
            "".join(
                f"{name}@example.net::{user.pw_uid}:{user.pw_gid}::{folder}/mail::userdb_quota_rule={quota}\n"
                for name, quota in quotas.items()
            )
        )
        _, _, lmtp = documented(
            "docs/mail-servers.md", "LMTP between Postfix and Dovecot", {"port = 24": f"port = {port}"}
        )
        file = folder / "dovecot.conf"
        file.write_text(_CONFIGURATION.format(folder=folder) + lmtp)
        done = subprocess.run(["doveconf", "-n", "-c", str(file)], capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr
        self._process = subprocess.Popen([shutil.which("dovecot") or "", "-F", "-c", str(file)])

    def box(self, user: str) -> Box:
        return Box(self.folder / f"mail/{user}@example.net")

    @property
    def log(self) -> str:
        return (self.folder / "log").read_text()

    def stop(self) -> None:
        self._process.send_signal(signal.SIGTERM)
        self._process.wait(60)


@contextmanager
def private_dovecot(port: int) -> Iterator[Dovecot]:
    with private_folder("dovecot") as folder:
        dovecot = Dovecot(folder, port)
        try:
            until(lambda: listens(port) and dovecot.socket.exists())
            yield dovecot
        finally:
            dovecot.stop()
