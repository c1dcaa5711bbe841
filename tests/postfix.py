"""A private Postfix: its own queue, its own ports, a Maildir for example.net; all else it discards."""

from __future__ import annotations

import os
import pwd
import re
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.servers import Box, listens, private_folder, until

PROGRAMS = ("postfix", "postconf", "postqueue", "smtp-source", "smtp-sink", "swaks")

_MAIN = """
compatibility_level = 3.6
queue_directory = {folder}/queue
data_directory = {folder}/data
maillog_file = {folder}/maillog
maillog_file_prefixes = {folder}
myhostname = front.example
mydestination =
inet_interfaces = 127.0.0.1
inet_protocols = ipv4
alias_maps =
local_recipient_maps =
mynetworks = 127.0.0.0/8
virtual_mailbox_domains = example.net
virtual_mailbox_base = {folder}/mail
virtual_mailbox_maps = static:box/
virtual_uid_maps = static:{uid}
virtual_gid_maps = static:{gid}
virtual_minimum_uid = 1
default_transport = discard
smtpd_client_connection_count_limit = 0
smtpd_recipient_restrictions = permit_mynetworks, reject
"""

_SERVICES = """
pickup    unix n - n 60 1 pickup
cleanup   unix n - n - 0 cleanup
qmgr      unix n - n 300 1 qmgr
rewrite   unix - - n - - trivial-rewrite
bounce    unix - - n - 0 bounce
defer     unix - - n - 0 bounce
trace     unix - - n - 0 bounce
flush     unix n - n 1000? 0 flush
showq     unix n - n - - showq
proxymap  unix - - n - - proxymap
smtp      unix - - n - - smtp
lmtp      unix - - n - - lmtp
error     unix - - n - - error
retry     unix - - n - - error
discard   unix - - n - - discard
virtual   unix - n n - - virtual
anvil     unix - - n - 1 anvil
scache    unix - - n - 1 scache
postlog   unix-dgram n - n - 1 postlogd
"""


class Postfix:
    """`main` and `master` are the lines to add; without an entry of its own for it, `front` is a plain listener."""

    def __init__(self, folder: Path, front: int, main: str, master: str) -> None:
        self.folder = folder
        self.front = front
        self.box = Box(folder / "mail/box")
        self._conf = folder / "conf"
        self._write(main, master)
        self._run("postfix", "-c", str(self._conf), "check")
        daemons = self._run("postconf", "-h", "daemon_directory").strip()
        self._master = subprocess.Popen([f"{daemons}/master", "-c", str(self._conf), "-d"])

    def _write(self, main: str, master: str) -> None:
        user = pwd.getpwnam("postfix")
        for name in ("conf", "queue", "data", "mail"):
            (self.folder / name).mkdir()
        for name in ("data", "mail"):
            os.chown(self.folder / name, user.pw_uid, user.pw_gid)
        main = _MAIN.format(folder=self.folder, uid=user.pw_uid, gid=user.pw_gid) + main
        if f"127.0.0.1:{self.front} " not in master:
            master = f"127.0.0.1:{self.front} inet n - n - - smtpd\n{master}"
        (self._conf / "main.cf").write_text(main)
        # The chroot of a page's entry ("y") would need a copy of /etc in the private queue.
        master = re.sub(r"^(\S+ +(?:inet|unix) +\S+ +\S+ +)y ", r"\1n ", master, flags=re.MULTILINE)
        (self._conf / "master.cf").write_text(_SERVICES + master)

    @staticmethod
    def _run(*command: str) -> str:
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def stop(self) -> None:
        self._master.terminate()
        self._master.wait(60)

    @property
    def log(self) -> str:
        return (self.folder / "maillog").read_text()

    def queued(self) -> list[Path]:
        folders = ("incoming", "active", "deferred", "hold", "maildrop")
        return [path for name in folders for path in (self.folder / "queue" / name).rglob("*") if path.is_file()]

    def deferred(self) -> list[Path]:
        return [path for path in (self.folder / "queue/deferred").rglob("*") if path.is_file()]

    def flush(self) -> None:
        self._run("postqueue", "-c", str(self._conf), "-f")


@contextmanager
def private_postfix(front: int, main: str = "", master: str = "") -> Iterator[Postfix]:
    with private_folder("postfix") as folder:
        postfix = Postfix(folder, front, main, master)
        try:
            until(lambda: listens(front))
            yield postfix
        finally:
            postfix.stop()
