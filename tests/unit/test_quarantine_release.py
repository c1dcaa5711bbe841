"""Release: once, to those it came for, past the filter; half done it is finished later, refused it is still held."""

from __future__ import annotations

import asyncio
import errno
import os
import threading

import pytest

from service import release
from service.envelope import Envelope
from service.envelope import Path as Mailbox
from service.release import Outcome, WayOut
from spamguard import released
from spamguard.config import Config
from spamguard.errors import DeliveryError, QuarantineError
from tests.fakes import DROP, END_OF_DATA, FakeNextHop
from tests.held_mail import CLEAN, ID, RAW
from tests.unit.test_starttls import Certificates


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return Certificates(tmp_path_factory.mktemp("certificates"))


# --- The next hop ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["smtp", "lmtp", "unix"])
def test_it_goes_to_the_next_hop_as_it_came(store, hop, tmp_path, kind):
    behind = hop(lmtp=kind == "lmtp", unix=tmp_path / "hop" if kind == "unix" else None)
    done = store.release()
    assert (done.state, done.taken, done.refused, store.state) == (
        "released", ("bob@example.net", '"a b"@example.net', "eve@x"), (), "released",
    )  # fmt: skip
    (got,) = behind.messages
    mark, _, rest = got.data.partition(b"From: ann")
    assert got.mail == (
        b"MAIL FROM:<bounce+x@example.org> BODY=8BITMIME RET=HDRS ENVID=a+20b SIZE=%d" % (len(got.data) - 2)
    )
    assert got.rcpt == [
        b"RCPT TO:<bob@example.net> NOTIFY=FAILURE ORCPT=rfc822;bob@example.net",
        b'RCPT TO:<"a b"@example.net>',
        b"RCPT TO:<eve@x>",
    ]
    assert b"From: ann" + rest == CLEAN + b"\r\n"
    assert mark.startswith(b"X-Spamguard: released; id=0123456789ab\r\nX-Spamguard-Released: id=0123456789ab;")
    assert released.is_ours(got.data, store.key) == ID


def test_only_parameters_that_are_offered_are_said(store, hop):
    behind = hop(EHLO=b"250-next.example\r\n250 8BITMIME")
    assert store.release().state == "released"
    assert behind.messages[0].mail == b"MAIL FROM:<bounce+x@example.org> BODY=8BITMIME"
    assert behind.messages[0].rcpt[0] == b"RCPT TO:<bob@example.net>"


@pytest.mark.parametrize("tls", ["verify", "require", "may"])
def test_it_is_encrypted_as_configured(store, hop, certificates, tls):
    behind = hop({"tls": tls, "tls_ca": str(certificates.ca), "tls_name": "next.example"}, tls=certificates.server)
    assert store.release().state == "released"
    assert b"STARTTLS" in behind.lines and len(behind.messages) == 1


def test_a_wrong_certificate_leaves_it_held(store, hop, certificates):
    behind = hop({"tls": "verify", "tls_ca": str(certificates.ca)}, tls=certificates.server)
    with pytest.raises(DeliveryError, match="certificate"):
        store.release()
    assert (store.state, behind.messages) == ("held", [])


def test_the_null_sender_stays_one(store, hop, tmp_path):
    behind = hop(EHLO=b"250 next.example")
    store.quarantine.delete(ID)
    store.hold(envelope=Envelope(sender=Mailbox(b"<>"), recipients=[Mailbox(b"<b@x>")]))
    store.release()
    assert behind.messages[0].mail == b"MAIL FROM:<>"


def test_released_twice_it_goes_once(store, hop):
    behind = hop()
    store.release()
    again = store.release()
    assert (again.state, again.taken, again.content, len(behind.messages)) == ("already", (), RAW, 1)


def test_to_replaces_the_recipients(store, hop):
    behind = hop()
    assert store.release("carol@example.net", "dörte@example.net").taken == ("carol@example.net", "dörte@example.net")
    assert behind.messages[0].rcpt == [b"RCPT TO:<carol@example.net>", "RCPT TO:<dörte@example.net>".encode()]
    assert behind.messages[0].mail.endswith(b" SMTPUTF8 SIZE=%d" % (len(behind.messages[0].data) - 2))


@pytest.mark.parametrize(
    "wrong", ["a@x> SIZE=1", "a@x\r\nRCPT TO:<b@x", "a b@x", "", "a@x\0", "<a@x>", '"a@x', "a@x,b@x >", "a@x\x7f"]
)
def test_an_address_that_is_none_changes_nothing(store, hop, wrong):
    behind = hop()
    with pytest.raises(QuarantineError, match="is no address") as caught:
        store.release(wrong)
    assert str(caught.value).isprintable()
    assert (store.state, behind.lines) == ("held", [])


def test_no_line_that_could_be_read_as_two_is_sent(store, hop):
    behind = hop()
    store.quarantine.delete(ID)
    store.hold(envelope=Envelope(sender=Mailbox(b"<a@x>\r\nRSET"), recipients=[Mailbox(b"<b@x>")]))
    with pytest.raises(DeliveryError, match="two commands"):
        store.release()
    assert (store.state, behind.messages) == ("held", []) and b"RSET" not in behind.lines


def test_who_is_refused_is_named_and_the_message_still_held_for_him(store, hop):
    behind = hop(RCPT=[b"250 ok", b"550 5.1.1 no such user", b"250 ok", b"250 ok"])
    first = store.release()
    assert (first.state, first.taken) == ("held", ("bob@example.net", "eve@x"))
    assert first.refused == (('"a b"@example.net', b"550 5.1.1 no such user"),)
    assert store.state == "held"
    second = store.release()
    assert (second.state, second.refused, store.state) == ("released", (), "released")
    assert [len(got.rcpt) for got in behind.messages] == [2, 1]
    assert behind.messages[1].rcpt == [b'RCPT TO:<"a b"@example.net>']


def test_lmtp_answers_for_each(store, hop):
    behind = hop(lmtp=True, **{END_OF_DATA: [b"250 ok", b"452 4.2.2 full", b"250 ok", b"250 ok"]})
    first = store.release()
    assert (first.state, first.refused) == ("held", (('"a b"@example.net', b"452 4.2.2 full"),))
    assert store.release().state == "released"
    assert [got.rcpt for got in behind.messages][1] == [b'RCPT TO:<"a b"@example.net>']


@pytest.mark.parametrize("step", ["MAIL", "RCPT", "DATA", END_OF_DATA])
def test_a_refusal_is_handed_on_and_it_is_still_held(store, hop, step):
    behind = hop(**{step: [b"554 5.7.1 not wanted"] * 3 + [b"250 ok"] if step == "RCPT" else b"554 5.7.1 not wanted"})
    done = store.release()
    assert {reply for _, reply in done.refused} == {b"554 5.7.1 not wanted"} and len(done.refused) == 3
    assert (done.state, store.state, behind.messages) == ("held", "held", [])
    assert b'"taken": []' in (store.quarantine.path(ID) / "release.json").read_bytes()


@pytest.mark.parametrize("step", ["greeting", "MAIL", "RCPT", "DATA", END_OF_DATA])
def test_a_connection_that_is_lost_leaves_it_held(store, hop, step):
    hop(**{step: DROP})
    with pytest.raises(DeliveryError) as caught:
        store.release()
    assert "\n" not in str(caught.value) and store.state == "held"


def test_nobody_there_is_one_line(store, hop, loop_thread):
    behind = hop()
    loop_thread.run(behind.stop())
    with pytest.raises(DeliveryError, match="connect"):
        store.release()
    loop_thread.run(behind.start())
    assert store.state == "held"


def test_a_message_of_nobody_for_nobody(store, hop):
    hop()
    store.quarantine.delete(ID)
    store.hold(envelope=Envelope())
    with pytest.raises(QuarantineError, match="names no recipient"):
        store.release()
    assert store.release("bob@x").state == "released"


def test_a_changed_message_is_not_released(store, hop):
    behind = hop()
    (store.quarantine.path(ID) / "message.eml").write_bytes(RAW.replace(b"end", b"END"))
    with pytest.raises(QuarantineError, match="bytes have changed"):
        store.release()
    assert behind.lines == []


def test_a_damaged_note_of_who_has_it_is_for_a_person_to_look_at(store, hop):
    behind = hop()
    (store.quarantine.path(ID) / "release.json").write_bytes(b"{")
    with pytest.raises(QuarantineError, match=r"release\.json: damaged"):
        store.release()
    assert behind.lines == []


def test_a_crash_before_it_is_settled_sends_nothing_twice(store, hop, monkeypatch):
    behind = hop()
    monkeypatch.setattr(store.quarantine, "settle", lambda folder: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        store.release()
    monkeypatch.undo()
    assert store.state == "held" and len(behind.messages) == 1
    assert store.release().state == "released" and len(behind.messages) == 1


def test_two_releases_at_once_are_one(store, hop):
    behind = hop(**{END_OF_DATA: [b"250 ok"]})
    outcomes: list[Outcome] = []
    threads = [threading.Thread(target=lambda: outcomes.append(store.release())) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(one.state for one in outcomes) == ["already"] * 3 + ["released"]
    assert len(behind.messages) == 1


@pytest.mark.parametrize("nth", range(1, 8))
def test_row_31_a_disk_that_fails_at_any_step_loses_nothing(store, hop, monkeypatch, nth):
    behind = hop()
    assert len(store.key) == 32
    calls: list[int] = []
    fsync = os.fsync

    def failing(descriptor: int) -> None:
        calls.append(descriptor)
        if len(calls) == nth:
            raise OSError(errno.ENOSPC, "No space left on device")
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", failing)
    try:
        assert store.release().state == "released"
    except OSError as error:
        assert error.errno == errno.ENOSPC
    monkeypatch.undo()
    assert store.state in ("held", "released") and store.quarantine.open(ID).content == RAW
    store.release()
    assert store.state == "released" and len(behind.messages) == 1


def test_row_31_while_nothing_can_be_noted_nothing_is_sent(store, hop, monkeypatch):
    behind = hop()
    assert len(store.key) == 32

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("service.release.replace_file", full)
    for _ in range(3):
        with pytest.raises(OSError, match="No space left"):
            store.release()
    assert (store.state, behind.messages) == ("held", [])
    monkeypatch.undo()
    assert store.release().state == "released" and len(behind.messages) == 1


# --- Past the filter, and never caught again ------------------------------------------------------------------------


def test_what_is_released_passes_the_daemon_of_the_same_key(running_daemon, store, hop, tmp_path):
    """As where a second listener of the same spamguard, or its watcher, stands behind the first."""
    behind = FakeNextHop()
    daemon = running_daemon(behind, policy={"spam": "quarantine"})
    with daemon.client() as client:
        assert b"held as" in client.deliver(b"Subject: x\r\n\r\nviagra\r\n")
    (caught,) = [one for one in store.quarantine.states() if one != ID]
    into = Config.model_validate({
        "state_dir": tmp_path, "next_hop": {"host": daemon.daemon.address[0], "port": daemon.daemon.address[1]},
    })  # fmt: skip
    done = asyncio.run(release.release(store.quarantine, caught, WayOut(into)))
    assert done.state == "released"
    (got,) = behind.messages
    assert released.is_ours(got.data, store.key) == caught
    assert got.data.startswith(b"X-Spamguard: released; id=" + caught.encode())
    line = [line for line in daemon.log if line["event"] == "message"][-1]
    assert (line["label"], line["fate"], line["released"]) == ("released", "deliver", caught)
    assert daemon.daemon.journal.counters["deliver.released"] == 1
    forged = got.data.replace(b"viagra", b"viagra!")
    with daemon.client() as client:
        assert b"held as" in client.deliver(forged)
