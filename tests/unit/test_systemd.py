"""The units that ship, and the drop-in of our page, as systemd itself reads them."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.servers import ROOT, documented

pytestmark = pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="not installed: systemd-analyze")


def complaints(folder: Path, unit: str, *options: str) -> str:
    """What systemd says of a unit of ours, whose program need not be installed here."""
    text = (ROOT / "systemd" / unit).read_text()
    assert "ExecStart=/opt/spamguard/bin/spamguard" in text
    (folder / unit).write_text(text.replace("ExecStart=/opt/spamguard/bin/spamguard", "ExecStart=/bin/true"))
    done = subprocess.run(
        ["systemd-analyze", *options, "verify", str(folder / unit)],
        capture_output=True,
        text=True,
        timeout=60,
        env=os.environ | {"XDG_RUNTIME_DIR": str(folder)},
    )
    return done.stderr + ("" if done.returncode == 0 else f"exit code {done.returncode}")


@pytest.mark.parametrize(("unit", "options"), [("spamguard.service", []), ("spamguard-user.service", ["--user"])])
def test_a_unit_holds_nothing_that_systemd_does_not_know(tmp_path: Path, unit: str, options: list[str]) -> None:
    assert complaints(tmp_path, unit, *options) == ""


def test_so_does_the_drop_in_for_maildirs_of_one_owner(tmp_path: Path) -> None:
    drop_in = next(block for block in documented("docs/maildir.md", "Permissions", {}) if "[Service]" in block)
    folder = tmp_path / "spamguard.service.d"
    folder.mkdir()
    (folder / "override.conf").write_text(drop_in.replace("#ProtectHome", "ProtectHome"))
    assert complaints(tmp_path, "spamguard.service") == ""
    (folder / "override.conf").write_text(drop_in.replace("ReadWritePaths", "ReadWritePlaces"))
    assert "ReadWritePlaces" in complaints(tmp_path, "spamguard.service")
