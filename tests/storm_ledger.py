"""What was delivered, what the user did and what the watcher made of it: whether they agree, message by message."""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from spamguard.featurestore import content_hash
from spamguard.verdict import Label

from .storm_delivery import Delivery
from .storm_mail import Mail, compose, name_of
from .storm_user import GONE, INBOX, JUNK, TRASH, Act

SLACK_S = 5.0  # what a loaded machine may take, beyond the quiet time, to believe a move


@dataclass(frozen=True, slots=True)
class Found:
    """A file in a Maildir at the end; mtime in nanoseconds."""

    maildir: str
    folder: str
    place: str
    name: str
    sha256: str
    inode: int
    mode: int
    mtime: int

    @property
    def base(self) -> str:
        return self.name.partition(":")[0]


@dataclass(frozen=True, slots=True)
class Row:
    """What the watcher remembers of a message that it judged at `at`."""

    maildir: str
    content: str
    label: str
    at: float


@dataclass(frozen=True, slots=True)
class Life:
    """From ready to the end of one run of the watcher, and how often its scorer was asked about each number."""

    began: float
    ended: float
    scored: Counter[int]


@dataclass(frozen=True)
class Evidence:
    """`labels` are those of users, by content; `lag_s` is how late they came when there were many. At the end all was
    quiet for long, and no label was outstanding.
    """

    load: Sequence[Mail]
    deliveries: Iterable[Delivery]
    acts: Sequence[Act]
    found: Iterable[Found]
    rows: Sequence[Row]
    labels: Mapping[str, str]
    lives: Sequence[Life]
    quiet_s: float
    lag_s: float = 0

    @cached_property
    def caught_up(self) -> float:
        """When all was judged; until then a move waits behind mail to be looked at."""
        return max((row.at for row in self.rows), default=0.0)


@dataclass
class Judgement:
    """`faults` by kind, with the numbers of the messages; all else is only counted."""

    faults: defaultdict[str, list[object]] = field(default_factory=lambda: defaultdict(list))
    counts: Counter[str] = field(default_factory=Counter)
    delays: list[float] = field(default_factory=list)
    delays_up: list[float] = field(default_factory=list)
    seconds: float = 0  # from the first delivery to the last verdict

    @property
    def complaints(self) -> list[str]:
        return [f"{kind}: {len(which)}, as {which[:5]}" for kind, which in self.faults.items() if which]


# The kinds of fault.
LOST, DOUBLED, ALTERED, STRANGE, RETURNED = "lost", "doubled", "altered", "file of nobody", "expunged and there"
UNJUDGED, TWICE, UNSENT, WRONG = "not judged", "judged twice in one life", "judged what nobody sent", "wrong verdict"
MISPLACED, RENAMED, OLD = "in the wrong folder", "flags or name changed", "judged, though there before the start"
MISSING_LABEL, WRONG_LABEL = "label missing", "label that the user did not give"
# What is counted.
AGAIN, TAKEN = "scored again after a kill", "taken away by the user before it was judged"
MOVED, LABELLED, ACTS = "moved to Junk", "labels", "acts of the user"


def judge(evidence: Evidence) -> Judgement:
    judgement = Judgement()
    counts, faults = judgement.counts, judgement.faults
    by_content = {content_hash(raw): mail for mail, raw in ((mail, compose(mail)) for mail in evidence.load)}
    contents = {mail.number: content for content, mail in by_content.items()}
    delivered = {one.number: one for one in evidence.deliveries}
    acts: defaultdict[int, list[Act]] = defaultdict(list)
    for act in evidence.acts:
        acts[act.number].append(act)
    rows: dict[int, Row] = {}
    for row in evidence.rows:
        mail = by_content.get(row.content)
        if mail is None or row.maildir != mail.maildir:
            faults[UNSENT].append(row)
        elif mail.number in rows:
            faults[TWICE].append(mail.number)
        else:
            rows[mail.number] = row
    by_base = {one.base: number for number, one in delivered.items()}
    there: defaultdict[int, list[Found]] = defaultdict(list)
    for file in evidence.found:
        if file.base in by_base:
            there[by_base[file.base]].append(file)
        else:
            faults[STRANGE].append(f"{file.maildir}/{file.folder}/{file.place}/{file.name}")
    _scorings(evidence, judgement)
    if rows:
        first = min(delivered[mail.number].at for mail in evidence.load if not mail.old)
        judgement.seconds = max(row.at for row in rows.values()) - first
    counts[ACTS] = len(evidence.acts)
    for mail in evidence.load:
        one = _Message(mail, delivered[mail.number], acts[mail.number], rows.get(mail.number))
        _file(one, there[mail.number], judgement)
        _verdict(one, judgement, evidence.lives)
        _label(one, evidence.labels.get(contents[mail.number]), judgement, evidence)
    for content in evidence.labels.keys() - by_content.keys():
        faults[UNSENT].append(content)
    return judgement


@dataclass(frozen=True, slots=True)
class _Message:
    mail: Mail
    delivery: Delivery
    acts: Sequence[Act]
    row: Row | None

    @property
    def number(self) -> int:
        return self.mail.number

    @property
    def moves(self) -> Sequence[Act]:
        return [act for act in self.acts if act.moved]

    @property
    def judged_spam(self) -> bool:
        return self.row is not None and self.row.label == Label.SPAM.value

    def folders(self) -> set[str]:
        """Where it may lie: where the user put it last, else where its verdict puts it."""
        ours = JUNK if self.judged_spam else INBOX
        if not self.moves:
            return {ours}
        last = self.moves[-1]
        # The user may have had it in Junk and back before we came to judge it.
        late = self.row is not None and last.folder == INBOX and self.row.at > last.began
        return {last.folder, ours} if late else {last.folder}


def _file(one: _Message, there: Sequence[Found], judgement: Judgement) -> None:
    """It is there once, and nothing of it has changed but the folder."""
    last = one.acts[-1] if one.acts else None
    if last and last.folder == GONE:
        judgement.faults[RETURNED] += [one.number] * bool(there)
        return
    if len(there) != 1:
        judgement.faults[DOUBLED if there else LOST].append(one.number)
    mail = one.mail
    where = (last.place, last.name) if last else (mail.place, name_of(one.delivery.base, mail.place, mail.flags))
    for file in there:
        judgement.counts[MOVED] += file.folder == JUNK and not one.moves
        if file.folder not in one.folders() or file.maildir != mail.maildir:
            judgement.faults[MISPLACED].append(one.number)
        if (file.place, file.name) != where:
            judgement.faults[RENAMED].append(f"{where} is {file.place}/{file.name}")
        as_delivered = hashlib.sha256(compose(mail)).hexdigest(), one.delivery.inode, mail.mode, mail.mtime
        if (file.sha256, file.inode, file.mode, file.mtime) != as_delivered:
            judgement.faults[ALTERED].append(one.number)


def _verdict(one: _Message, judgement: Judgement, lives: Sequence[Life]) -> None:
    if one.mail.old:
        if one.row is not None:
            judgement.faults[OLD].append(one.number)
    elif one.row is not None:
        if one.row.label != one.mail.label.value:
            judgement.faults[WRONG].append(one.number)
        delay = one.row.at - one.delivery.at
        judgement.delays.append(delay)
        if any(life.began <= one.delivery.at <= life.ended for life in lives):
            judgement.delays_up.append(delay)
    elif one.moves and one.moves[0].source == INBOX:
        judgement.counts[TAKEN] += 1
    else:
        judgement.faults[UNJUDGED].append(one.number)


def _scorings(evidence: Evidence, judgement: Judgement) -> None:
    total: Counter[int] = Counter()
    for life in evidence.lives:
        judgement.faults[TWICE] += [number for number, times in life.scored.items() if times > 1]
        total.update(life.scored.keys())
    judgement.counts[AGAIN] = sum(times - 1 for times in total.values())
    known = {mail.number for mail in evidence.load if not mail.old}
    judgement.faults[UNSENT] += sorted(total.keys() - known)


def _label(one: _Message, label: str | None, judgement: Judgement, evidence: Evidence) -> None:
    possible = possible_labels(one.moves, one.row, evidence)
    judgement.counts[LABELLED] += label is not None
    if label not in possible:
        kind = MISSING_LABEL if label is None else WRONG_LABEL
        judgement.faults[kind].append((one.number, label, [act.folder for act in one.moves]))


def possible_labels(moves: Sequence[Act], row: Row | None, evidence: Evidence) -> set[str | None]:
    """The labels that these moves may leave behind. More than one where the watcher could not know better: it was
    killed meanwhile, or the user moved the message before it was judged.
    """
    if not moves:
        return {None}
    crossings = {_crossing(_side(move.source), _side(move.folder)) for move in moves}
    if row is None or moves[0].began < row.at:
        return {None, *crossings}
    spam = row.label == Label.SPAM.value
    possible: set[tuple[str, str | None]] = {(_side(moves[0].source), None)}
    if spam and moves[0].source == INBOX:  # the user was quicker than our rename, and a kill may have hidden it
        possible.add((JUNK, None))
    for number, move in enumerate(moves):
        until = moves[number + 1].began if number + 1 < len(moves) else None
        stays = {(side, label) for side, label in possible}
        after = {(_side(move.folder), _crossing(side, _side(move.folder)) or label) for side, label in possible}
        if until is None or _stood(move.ended, until, evidence):
            possible = after
        elif until - move.ended < evidence.quiet_s:
            possible = stays
        else:
            possible = stays | after
    return {label for _, label in possible}


def _side(folder: str) -> str:
    return folder if folder in (JUNK, TRASH, GONE) else INBOX


def _crossing(before: str, after: str) -> str | None:
    return {(INBOX, JUNK): Label.SPAM.value, (JUNK, INBOX): Label.HAM.value}.get((before, after))


def _stood(began: float, ended: float, evidence: Evidence) -> bool:
    """Whether a watcher was there to see it stand still for long enough, when it had caught up with the mail."""
    needed, began = evidence.quiet_s + evidence.lag_s + SLACK_S, max(began, evidence.caught_up)
    return any(min(life.ended, ended) - max(life.began, began) >= needed for life in evidence.lives)
