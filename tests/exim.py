"""A private Exim: in front of us by the lines of our page, behind us on another port, delivering into a Maildir."""

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

PROGRAMS = ("exim4", "smtp-source", "swaks")

# `exim_path`: where Postfix is installed as well, Debian refuses Exim's package, and the binary lies elsewhere.
_CONFIGURATION = """
{interfaces}
exim_path = {exim}
keep_environment =
primary_hostname = exim.example
spool_directory = {folder}/spool
log_file_path = {folder}/spool/%slog
pid_file_path = {folder}/spool/exim.pid
tls_advertise_hosts =
deliver_drop_privilege = true
smtp_accept_max = 0
smtp_accept_queue_per_connection = 0
remote_max_parallel = 10
domainlist local_domains = example.net
hostlist relay_from_hosts = 127.0.0.1
acl_smtp_rcpt = acl_rcpt
begin acl
acl_rcpt:
  deny local_parts = refused
       message = nobody of that name
  accept hosts = +relay_from_hosts
begin routers
{router}
box:
  driver = accept
  domains = +local_domains
  transport = box
begin transports
{transport}
box:
  driver = appendfile
  maildir_format
  directory = {folder}/mail/box
  delivery_date_add
  envelope_to_add
  return_path_add
begin retry
* * F,1h,1m
"""


class Exim:
    def __init__(self, folder: Path, front: int, back: int, filter_: int) -> None:
        self.folder = folder
        self.box = Box(folder / "mail/box")
        user = pwd.getpwnam("Debian-exim")
        for name in ("mail", "spool"):
            (folder / name).mkdir()
            os.chown(folder / name, user.pw_uid, user.pw_gid)
        interfaces, router, transport = documented(
            "docs/mail-servers.md", "Exim", {"0.0.0.0.25": f"127.0.0.1.{front}", "10025": filter_, "10026": back}
        )
        self._file = folder / "exim.conf"
        self._exim = shutil.which("exim4")
        self._file.write_text(
            _CONFIGURATION.format(
                folder=folder, exim=self._exim, interfaces=interfaces, router=router, transport=transport
            )
        )
        command = [str(self._exim), "-C", str(self._file)]
        subprocess.run([*command, "-bV"], check=True, stdout=subprocess.DEVNULL, timeout=60)
        self._process = subprocess.Popen([*command, "-bdf"], start_new_session=True)

    def stop(self) -> None:
        os.killpg(self._process.pid, signal.SIGTERM)
        self._process.wait(60)

    @property
    def log(self) -> str:
        return (self.folder / "spool/mainlog").read_text()

    def queued(self) -> list[Path]:
        return [path for path in (self.folder / "spool/input").rglob("*") if path.is_file()]

    def flush(self) -> None:
        """Try everything in the queue again, whenever its next time would be."""
        command = [str(self._exim), "-C", str(self._file), "-qff"]
        subprocess.run(command, check=True, capture_output=True, timeout=60)


@contextmanager
def private_exim(front: int, back: int, filter_: int) -> Iterator[Exim]:
    with private_folder("exim") as folder:
        exim = Exim(folder, front, back, filter_)
        try:
            until(lambda: listens(front) and listens(back))
            yield exim
        finally:
            exim.stop()
