"""What every file of commands stands on: errors as one line, complaints, and the configuration."""

from __future__ import annotations

import io
import os
import pwd
import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, NoReturn

import click

from .errors import ConfigError, SpamguardError

if TYPE_CHECKING:
    from .config import Config
    from .config_file import Loaded
    from .scorer import Scorer

ERROR = 2
# A group of commands without one of them: its help is shown. Before click 8.2 there was no such error.
_NO_COMMAND = getattr(click.exceptions, "NoArgsIsHelpError", ())


class OneLineErrors(click.Group):
    """A group whose errors are one line on standard error and exit code 2, never a traceback."""

    def main(self, *args: Any, **kwargs: Any) -> NoReturn:
        kwargs["standalone_mode"] = False
        if isinstance(sys.stdout, io.TextIOWrapper):  # a terminal that knows ASCII alone is no reason to fail
            sys.stdout.reconfigure(errors="backslashreplace")
        try:
            sys.exit(super().main(*args, **kwargs) or 0)
        except click.exceptions.Exit as leaving:
            sys.exit(leaving.exit_code)
        except click.Abort:
            fail("interrupted")
        except click.ClickException as error:
            if isinstance(error, _NO_COMMAND):
                click.echo(error.format_message())
                sys.exit(0)
            fail(error.format_message())
        except SpamguardError as error:
            fail(str(error))

    def invoke(self, context: click.Context) -> Any:
        try:
            return super().invoke(context)
        except BrokenPipeError:  # `| head`; click itself would exit with 1, which says spam
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            sys.exit(ERROR)


def fail(message: str) -> NoReturn:
    click.echo(f"spamguard: {' '.join(message.split())}", err=True)
    sys.exit(ERROR)


def complain(complaints: Iterable[str]) -> None:
    for line in complaints:
        click.echo(f"spamguard: {line}", err=True)


def load_config(context: click.Context) -> Loaded:
    from .config_file import load

    return load(context.obj)


def load_scorer(context: click.Context) -> Scorer:
    from .scorer import Scorer

    return Scorer.from_config(load_config(context).config)


def as_owner(config: Config) -> Config:
    """Root becomes, for good, the user to whom the state folder belongs, so that the daemon can use what is written.

    Raises ConfigError where that user cannot enter: systemd keeps the folder of a DynamicUser below one that is shut.
    """
    folder = config.state_dir
    if os.geteuid() == 0 and folder.is_dir() and (about := folder.stat()).st_uid != 0:
        try:
            os.initgroups(pwd.getpwuid(about.st_uid).pw_name, about.st_gid)
        except KeyError:  # a user without a name
            os.setgroups([about.st_gid])
        os.setgid(about.st_gid)
        os.setuid(about.st_uid)
        if not os.access(folder, os.X_OK):
            raise ConfigError(f"state_dir: {folder} can be entered by its service only, see docs/quarantine.md")
    return config


def learning_config(context: click.Context) -> Config:
    """The configuration, for who reads mail as root: what he leaves in the state folder goes to the folder's owner.

    He may read Maildirs that the owner may not, and the daemon must be able to go on with what was learnt.
    """
    config = load_config(context).config
    context.call_on_close(lambda: _give_to_owner(config))
    return config


def _give_to_owner(config: Config) -> None:
    folder = config.state_dir
    if os.geteuid() != 0 or not folder.is_dir() or (owner := folder.stat()).st_uid == 0:
        return
    kept = [config.heads_dir, config.features_dir, config.reports_dir, folder / "tuning", folder / "encoders"]
    below = (path for top in kept for path in (top, *top.rglob("*")) if path.exists() or path.is_symlink())
    for path in (*folder.glob("*.sqlite3*"), *folder.glob("*.lock"), *below):
        about = path.lstat()
        # Not what the owner may have linked here to have it given to him.
        if about.st_uid == 0 and (about.st_nlink == 1 or path.is_dir()):
            os.chown(path, owner.st_uid, owner.st_gid, follow_symlinks=False)
