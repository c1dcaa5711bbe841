"""The keys of the one TOML file as frozen models, with their defaults, bounds and meanings."""

from __future__ import annotations

import re
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

HamAction = Literal["tag", "pass"]
UnsureAction = Literal["tag", "pass", "quarantine"]
SpamAction = Literal["tag", "pass", "quarantine", "reject"]
Network = IPv4Network | IPv6Network

INBOX = "INBOX"


class Table(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=False, allow_inf_nan=False)


class EncoderTable(Table):
    """Which BERT reads the mail, and how."""

    model: str = Field("embedded", description="`embedded`, a folder with a BERT-family checkpoint, or a hub name")
    device: str = Field("auto", description="`auto`, `cpu`, `cuda`, `cuda:1` or `mps`")
    layers: tuple[Annotated[int, Field(ge=0)], ...] = Field(
        (), description="hidden states to pool, 0 is the embedding layer; empty: first, middle and last"
    )
    pooling: Literal["mean", "cls"] = Field("mean", description="mean over the tokens, or the [CLS] state alone")
    max_tokens: int = Field(256, ge=8, le=8192, description="tokens of a message that the encoder reads")
    threads: int = Field(0, ge=0, description="CPU threads of the encoder; 0 leaves it to torch")
    allow_download: bool = Field(False, description="a hub name may be fetched from the network")


class HeadTable(Table):
    """Which head judges, and from which probabilities on."""

    path: Path | None = Field(
        None, description="a head's folder; unset: the last retrained one, else the shipped one"
    )
    spam: float | None = Field(None, gt=0, le=1, description="cut-off for `spam`; unset: the head's own")
    unsure: float | None = Field(None, gt=0, le=1, description="cut-off for `unsure`; unset: the head's own")

    @model_validator(mode="after")
    def _in_order(self) -> HeadTable:
        if self.spam is not None and self.unsure is not None and self.unsure > self.spam:
            raise ValueError(f"unsure = {self.unsure} must not be above spam = {self.spam}")
        return self


class RecipientTable(Table):
    """What is done otherwise for one recipient, or with `"@example.net"` for a domain; else as in `[policy]`."""

    ham: HamAction | None = Field(None, description="in place of `policy.ham`")
    unsure: UnsureAction | None = Field(None, description="in place of `policy.unsure`")
    spam: SpamAction | None = Field(
        None, description="in place of `policy.spam`; `reject` is `quarantine` where others take the same message"
    )


class PolicyTable(Table):
    """What is done: `tag` (our headers), `pass` (unchanged), `quarantine` (held here), `reject` (550)."""

    ham: HamAction = Field("tag", description="what is done with ham")
    unsure: UnsureAction = Field("tag", description="what is done with mail in the band between")
    spam: SpamAction = Field("tag", description="what is done with spam; `reject` only before the queue")
    subject_tag: str = Field(
        "",
        description='put before the Subject of tagged spam, as `"[SPAM] "`; this breaks a DKIM signature over it',
    )
    on_failure: Literal["pass", "tempfail"] = Field(
        "pass", description="mail that could not be scored: pass it marked as unscored, or answer 451"
    )
    recipients: dict[str, RecipientTable] = Field(
        {}, description="other actions for some recipients, see below", examples=["bob@example.net"]
    )

    @field_validator("subject_tag")
    @classmethod
    def _harmless(cls, value: str) -> str:
        if value and not re.fullmatch(r"[!-~][ -~]{0,63}", value):
            raise ValueError("should be at most 64 printable ASCII characters, the first no blank")
        return value

    @field_validator("recipients")
    @classmethod
    def _addresses(cls, value: dict[str, RecipientTable]) -> dict[str, RecipientTable]:
        found: dict[str, RecipientTable] = {}
        for address, table in value.items():
            if not re.fullmatch(r"[^\x00-\x1f\x7f<>]*@[^@\s<>]+", address):
                raise ValueError(f"{address!r} is neither an address nor a domain such as '@example.net'")
            if address.lower() in found:
                raise ValueError(f"{address!r} stands here twice")
            found[address.lower()] = table
        return found


class QuarantineTable(Table):
    """Where mail is held that a policy quarantines."""

    path: Path | None = Field(None, description="the folder; unset: `quarantine` in the state folder")
    keep_days: float = Field(30, gt=0, description="what is older is deleted, by the daemon or `quarantine expire`")
    keep_messages: int = Field(100_000, ge=0, description="of more the oldest are deleted; 0: no limit")
    keep_bytes: int = Field(10_737_418_240, ge=0, description="of more the oldest are deleted; 0: no limit")


class ListenTable(Table):
    """Where the proxy listens, and whom it lets in."""

    protocol: Literal["smtp", "lmtp", "off"] = Field(
        "smtp", description="what is spoken; LMTP answers for each recipient; `off`: nobody is let in, see `[watch]`"
    )
    host: str = Field("127.0.0.1", description="address to listen on; `::` takes IPv4 as well")
    port: int = Field(10025, ge=0, le=65535, description="port to listen on; 0 lets the system choose")
    socket: Path | None = Field(None, description="Unix socket to listen on, in place of host and port")
    socket_mode: str = Field("0660", pattern="^0?[0-7]{3}$", description="permissions of the Unix socket, octal")
    hostname: str = Field("", description="our name in greeting and EHLO; empty: the machine's")
    allow_from: tuple[Network, ...] = Field(
        (), description="networks that may connect; required when host is not loopback"
    )
    proxy_from: tuple[Network, ...] = Field(
        (), description="load balancers: must begin with a PROXY header (v1, v2), and allow_from is for those behind"
    )
    xclient_from: tuple[Network, ...] = Field((), description="networks that may name another client by XCLIENT")
    xforward_from: tuple[Network, ...] = Field(
        (), description="networks that may name the client by XFORWARD; loopback and Unix sockets always may"
    )
    tls: Literal["off", "may", "require"] = Field("off", description="STARTTLS: not offered, offered, or demanded")
    tls_certificate: Path | None = Field(None, description="PEM file with our certificate and its chain")
    tls_key: Path | None = Field(None, description="PEM file with its key; unset: it is in `tls_certificate`")
    stray_line_ends: Literal["normalize", "reject"] = Field(
        "normalize", description="CR or LF alone in a message: LF becomes CRLF and CR a blank, or 550"
    )

    @field_validator("host")
    @classmethod
    def _address(cls, value: str) -> str:
        host = "127.0.0.1" if value == "localhost" else value
        ip_address(host)
        return host

    @field_validator("allow_from", "proxy_from", "xclient_from", "xforward_from", mode="before")
    @classmethod
    def _networks(cls, value: Any) -> Any:
        if not isinstance(value, list | tuple):
            return value
        if any(isinstance(item, int) for item in value):  # Python would read 5 as 0.0.0.5
            raise ValueError('every item should be a network such as "192.0.2.0/24"')
        return tuple(ip_network(item, strict=False) for item in value)

    @model_validator(mode="after")
    def _no_open_relay(self) -> ListenTable:
        if self.socket is None and not ip_address(self.host).is_loopback and not self.allow_from:
            raise ValueError(f"host = {self.host!r} is not loopback: allow_from must list who may connect")
        if self.tls != "off" and self.tls_certificate is None:
            raise ValueError(f'tls = "{self.tls}" needs tls_certificate')
        return self


class NextHopTable(Table):
    """The server that takes the mail from us. Without one, mail goes into the Maildir below."""

    protocol: Literal["smtp", "lmtp"] = Field("smtp", description="what it speaks")
    host: str = Field("", description="next hop; empty, and no socket: deliver into `maildir.path`")
    port: int = Field(10026, ge=1, le=65535, description="port of the next hop")
    socket: Path | None = Field(None, description="Unix socket of the next hop, in place of host and port")
    tls: Literal["off", "may", "require", "verify"] = Field(
        "off",
        description="STARTTLS: never, where offered, always, or always and with a certificate that is checked",
    )
    tls_ca: Path | None = Field(None, description="PEM file with the authorities to trust; unset: the system's")
    tls_name: str = Field("", description="name that the certificate must have; empty: `host`")
    idle_connections: int = Field(20, ge=1, description="connections kept open for the next message")
    idle_s: float = Field(30, gt=0, description="how long they are kept")
    connect_timeout_s: float = Field(30, gt=0, description="time to connect")
    reply_timeout_s: float = Field(100, gt=0, description="time to wait for the reply to a command")
    data_timeout_s: float = Field(300, gt=0, description="time to wait for the reply to the final dot")

    @property
    def exists(self) -> bool:
        return bool(self.host or self.socket)

    @model_validator(mode="after")
    def _name_to_verify(self) -> NextHopTable:
        if self.tls == "verify" and not (self.host or self.tls_name):
            raise ValueError('tls = "verify" needs tls_name, the name in the certificate')
        return self


class MaildirTable(Table):
    """The Maildir that takes the mail when no next hop is set."""

    path: Path | None = Field(None, description="the Maildir; unset: `Maildir` in the state folder")
    junk: str = Field(".Junk", description="folder for spam, created when missing; empty: everything into the inbox")

    @field_validator("junk")
    @classmethod
    def _maildir_folder(cls, value: str) -> str:
        return _folder_name(value) if value else value


class WatchTable(Table):
    """Maildirs whose new mail is judged where it lies, and where what the user moves is a label."""

    maildirs: tuple[Path, ...] = Field(
        (), description='Maildirs, with all their folders; `*` stands for any name: `"/var/mail/*/Maildir"`'
    )
    folders: tuple[str, ...] = Field(
        ("INBOX",), description='folders whose new mail is judged, as `".Lists"`; `INBOX` is the Maildir itself'
    )
    junk: str = Field(".Junk", description="folder that spam is moved to; empty: spam stays, it is only logged")
    create_junk: bool = Field(True, description="create that folder when missing; else it is an error")
    trash: tuple[str, ...] = Field(
        (".Trash", ".Deleted Items", ".Deleted Messages"), description="what is moved here says nothing"
    )
    tag: bool = Field(False, description="put our headers into mail that is still in `new/`, as a new file")
    quiet_s: float = Field(60, ge=0, description="how long a message must stay where the user put it to be a label")
    rescan_s: float = Field(300, gt=0, description="time between two looks at everything, for what no event told")
    poll_s: float = Field(0, ge=0, description="look so often in place of waiting for events, as on NFS; 0: events")
    concurrency: int = Field(16, ge=1, le=1000, description="messages judged at once")

    @field_validator("junk", "folders", "trash")
    @classmethod
    def _maildir_folders(cls, value: str | tuple[str, ...]) -> str | tuple[str, ...]:
        for name in (value,) if isinstance(value, str) else value:
            if name != INBOX and (name or not isinstance(value, str)):
                _folder_name(name)
        return value

    @model_validator(mode="after")
    def _apart(self) -> WatchTable:
        if self.junk == INBOX or self.junk in self.folders or self.junk in self.trash:
            raise ValueError(f"junk = {self.junk!r} must be none of folders and trash")
        return self


def _folder_name(value: str) -> str:
    if not value.startswith(".") or "/" in value or "\0" in value or value in {".", ".."}:
        raise ValueError(f"{value!r} is no Maildir++ folder: it must begin with a dot and hold no slash")
    return value


class LearningTable(Table):
    """When labels that users gave lead to a new head, what folders' names say, and what is kept."""

    refit: Literal["off", "suggest", "on"] = Field(
        "suggest", description="`suggest`: the log says when it is time; `on`: the daemon runs `spamguard retrain`"
    )
    after: int = Field(20, ge=1, description="new labels after which it is time")
    hour: int | None = Field(None, ge=0, le=23, description="hour of the day at which one new label is enough")
    headers: bool = Field(
        True,
        description="learn the words of headers too (sender, mail program); off if spam and ham come from two places",
    )
    spam_rate: float = Field(0.001, gt=0, le=0.1, description="share of ham that a new head may call spam")
    unsure_rate: float = Field(0.02, gt=0, le=0.5, description="share of ham that it may call unsure or spam")
    keep_days: float = Field(
        14,
        ge=0,
        description="how long is kept what the head saw of a message it judged, without its text; 0: not at all",
    )
    keep_messages: int = Field(10_000, ge=1, description="of more judged mail the oldest is not kept")
    report_private: bool = Field(False, description="the report of a retrain names no files and folders")
    spam_folders: tuple[str, ...] = Field(
        (),
        description="folders of spam, beside Junk, Spam and the like in other languages; as on the disk or as you "
        "see them (`.Lists.Junk`, `Lists/Junk`), a last name alone at any depth",
    )
    ham_folders: tuple[str, ...] = Field((), description="folders of ham, whatever their names would say")
    sent_folders: tuple[str, ...] = Field(
        (), description="folders of what you sent, beside the usual ones: ham of little weight"
    )
    ignored_folders: tuple[str, ...] = Field(
        (), description="folders that say nothing, beside trash, drafts, outbox and templates"
    )

    @model_validator(mode="after")
    def _one_kind(self) -> LearningTable:
        names = (*self.spam_folders, *self.ham_folders, *self.sent_folders, *self.ignored_folders)
        if any(not name.strip("./ ") or names.count(name) > 1 for name in names):
            raise ValueError(
                "a folder of spam_folders, ham_folders, sent_folders, ignored_folders is named twice or ''"
            )
        return self


class BatchTable(Table):
    """How messages are grouped for the encoder."""

    max_tokens: int = Field(8192, ge=256, description="padded tokens in one batch")
    patience_ms: float = Field(4, ge=0, description="how long a batch waits for company")
    queue: int = Field(1000, ge=1, description="messages that may wait; more are failed as overload")
    deadline_s: float = Field(20, gt=0, description="time in which a message must be scored")
    hang_s: float = Field(60, gt=0, description="a scorer silent for longer hangs: new messages fail at once")


class LimitsTable(Table):
    """Where we stop."""

    message_bytes: int = Field(33_554_432, ge=65_536, description="largest message accepted")
    memory_bytes: int = Field(
        1_048_576,
        ge=65_536,
        description="what of a message is held in memory; the rest waits in an unnamed file",
    )
    recipients: int = Field(1000, ge=1, description="recipients of one message")
    connections: int = Field(1000, ge=1, description="connections at once")
    connections_per_peer: int = Field(
        0, ge=0, description="connections at once from one address; 0: no limit, as one MTA may have all"
    )
    errors: int = Field(20, ge=1, description="commands answered 5xx after which a client is dropped")
    idle_s: float = Field(300, gt=0, description="silence after which a client is dropped")
    data_s: float = Field(600, gt=0, description="time that one message may take to arrive")
    session_s: float = Field(3600, gt=0, description="time that a client may stay, but for a message under way")
    shutdown_s: float = Field(30, gt=0, description="time that open transactions get at shutdown")


class LogTable(Table):
    """What the daemon writes to standard error."""

    format: Literal["auto", "text", "json"] = Field("auto", description="`auto`: text on a terminal, else JSON")
    level: Literal["debug", "info", "warning", "error"] = Field("info", description="least severity written")
    addresses: bool = Field(True, description="write envelope addresses into the log")


class Config(Table):
    """The whole configuration. Relative paths are taken from the file's folder."""

    state_dir: Path = Field(Path(), description="heads and cached encoder output")
    encoder: EncoderTable = EncoderTable()
    head: HeadTable = HeadTable()
    policy: PolicyTable = PolicyTable()
    quarantine: QuarantineTable = QuarantineTable()
    listen: ListenTable = ListenTable()
    next_hop: NextHopTable = NextHopTable()
    maildir: MaildirTable = MaildirTable()
    watch: WatchTable = WatchTable()
    learning: LearningTable = LearningTable()
    batch: BatchTable = BatchTable()
    limits: LimitsTable = LimitsTable()
    log: LogTable = LogTable()

    @model_validator(mode="after")
    def _reachable(self) -> Config:
        if self.listen.protocol == "off":
            if not self.watch.maildirs:
                raise ValueError('listen.protocol = "off" and no watch.maildirs: there is nothing to do')
            return self
        if self.listen.socket is not None or self.next_hop.socket is not None:
            if self.listen.socket == self.next_hop.socket:
                raise ValueError(f"next_hop is our own listener {self.listen.socket}")
            return self
        hop = "127.0.0.1" if self.next_hop.host == "localhost" else self.next_hop.host
        ours = {self.listen.host}
        if ip_address(self.listen.host).is_unspecified:
            ours |= {"127.0.0.1", "::1", "0.0.0.0", "::"}  # noqa: S104 (compared, not listened on)
        if hop in ours and self.next_hop.port == self.listen.port:
            raise ValueError(f"next_hop is our own listener {hop}:{self.listen.port}")
        return self

    @property
    def heads_dir(self) -> Path:
        return self.state_dir / "heads"

    @property
    def reports_dir(self) -> Path:
        return self.state_dir / "reports"

    @property
    def quarantine_path(self) -> Path:
        return self.quarantine.path or self.state_dir / "quarantine"

    @property
    def maildir_path(self) -> Path:
        return self.maildir.path or self.state_dir / "Maildir"

    @property
    def release_key(self) -> Path:
        """The file of the key that marks released mail."""
        return self.state_dir / "release.key"

    @property
    def labels_file(self) -> Path:
        return self.state_dir / "labels.sqlite3"

    @property
    def watch_file(self) -> Path:
        """What the Maildir watcher remembers."""
        return self.state_dir / "watch.sqlite3"

    @property
    def features_dir(self) -> Path:
        """Where encoder output is kept."""
        return self.state_dir / "features"
