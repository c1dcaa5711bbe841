"""A private Dovecot: LMTP on a port and a socket, IMAP on a port, Maildirs, and the imapsieve files that we ship."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from imaplib import IMAP4
from pathlib import Path

from tests.servers import ROOT, Box, documented, listens, private_folder, until

PROGRAMS = ("dovecot", "doveconf", "sievec", "/usr/lib/dovecot/lmtp", "/usr/lib/dovecot/imap")
# Mailboxes belong to this user of Debian's, who owns nothing else.
OWNER = "mail"
USERS = ("b", "c", "full", "anna", "ben", "carl", "dora")

_CONFIGURATION = """
base_dir = {folder}/run
state_dir = {folder}/state
log_path = {folder}/log
instance_name = spamguard-test
protocols = lmtp imap
ssl = no
disable_plaintext_auth = no
hostname = dovecot.example
first_valid_uid = 1
mail_location = maildir:{folder}/mail/%u
mail_plugins = quota
plugin {{
  quota = maildir:storage
}}
namespace inbox {{
  inbox = yes
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
service imap-login {{
  inet_listener imap {{
    address = 127.0.0.1
    port = {imap}
  }}
  inet_listener imaps {{
    port = 0
  }}
}}
!include_try {folder}/conf.d/*.conf
"""


class Dovecot:
    """Has the USERS at example.net; `full` has a quota of 1 KB. Nobody else is known.

    With `imapsieve` it reports what they move; `bin` is then in the place of /opt/spamguard/bin.
    """

    def __init__(self, folder: Path, port: int, imap: int, imapsieve: bool = False) -> None:
        self.folder = folder
        self.port = port
        self.imap_port = imap
        self.socket = folder / "run/lmtp"
        self.bin = folder / "bin"
        owner = pwd.getpwnam(OWNER)
        for name in ("run", "state", "mail", "bin", "tmp"):
            (folder / name).mkdir()
        os.chown(folder / "mail", owner.pw_uid, owner.pw_gid)
        (folder / "tmp").chmod(0o1777)
        quotas = dict.fromkeys(USERS, "*:storage=0") | {"full": "*:storage=1K"}
        (folder / "users").write_text(
            "".join(
                f"{name}@example.net::{owner.pw_uid}:{owner.pw_gid}::{folder}/mail::userdb_quota_rule={quota}\n"
                for name, quota in quotas.items()
            )
        )
        _, _, lmtp = documented(
            "docs/mail-servers.md", "LMTP between Postfix and Dovecot", {"port = 24": f"port = {port}"}
        )
        file = folder / "dovecot.conf"
        file.write_text(_CONFIGURATION.format(folder=folder, imap=imap) + lmtp)
        if imapsieve:
            self._install_imapsieve(file)
        done = subprocess.run(["doveconf", "-n", "-c", str(file)], capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr
        self._process = subprocess.Popen([shutil.which("dovecot") or "", "-F", "-c", str(file)])

    def _install_imapsieve(self, file: Path) -> None:
        """What our page has an administrator do, with folders of ours in place of the system's."""
        for name in ("conf.d", "sieve"):
            (self.folder / name).mkdir()
        ours = {"/etc/dovecot/spamguard": self.folder / "sieve", "/etc/dovecot/conf.d": self.folder / "conf.d"}
        lines, *_ = documented(
            "docs/maildir.md", "Labels over IMAP, without the watcher", ours | {"sievec ": f"sievec -c {file} "}
        )
        subprocess.run(["sh", "-ec", lines], check=True, cwd=ROOT, timeout=60)
        for installed, words in {
            "conf.d/90-spamguard-imapsieve.conf": {"/etc/dovecot/spamguard": self.folder / "sieve"},
            "sieve/spamguard-report": {
                "=/opt/spamguard/bin:": f"={self.bin}:",
                "reports=/tmp/": f"reports={self.folder}/tmp/",
            },
        }.items():
            text = (self.folder / installed).read_text()
            for word, other in words.items():
                assert word in text, word
                text = text.replace(word, str(other))
            (self.folder / installed).write_text(text)

    def box(self, user: str) -> Box:
        return Box(self.folder / f"mail/{user}@example.net")

    def client(self, user: str) -> IMAP4:
        """An IMAP client that has logged in."""
        client = IMAP4("127.0.0.1", self.imap_port, timeout=60)
        client.login(f"{user}@example.net", "any")
        return client

    @property
    def log(self) -> str:
        return (self.folder / "log").read_text()

    def stop(self) -> None:
        self._process.send_signal(signal.SIGTERM)
        self._process.wait(60)


@contextmanager
def private_dovecot(port: int, imap: int, imapsieve: bool = False) -> Iterator[Dovecot]:
    with private_folder("dovecot") as folder:
        dovecot = Dovecot(folder, port, imap, imapsieve)
        try:
            until(lambda: listens(port) and listens(imap) and dovecot.socket.exists())
            yield dovecot
        finally:
            dovecot.stop()
