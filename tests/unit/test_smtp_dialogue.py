from __future__ import annotations

from tests.fakes import FakeNextHop


def test_mail_reaches_the_next_hop_tagged(running_daemon):
    hop = FakeNextHop()
    running = running_daemon(hop)
    with running.client() as client:
        assert client.deliver(b"Subject: hi\r\n\r\nmeeting\r\n") == b"250 2.0.0 Ok: queued as NEXT1"
        assert client.ask(b"QUIT").startswith(b"221")
    (message,) = hop.messages
    assert message.data.endswith(b"Subject: hi\r\n\r\nmeeting\r\n")
    assert b"X-Spamguard: ham" in message.data


def test_mail_without_next_hop_goes_into_the_maildir(running_daemon, tmp_path):
    running = running_daemon()
    with running.client() as client:
        assert client.deliver(b"Subject: hi\r\n\r\nviagra\r\n").startswith(b"250 2.0.0 Ok: delivered as ")
    (file,) = (tmp_path / "Maildir/.Junk/new").iterdir()
    print(file.read_text())
    print(running.log)
