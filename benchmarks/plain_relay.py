"""The relay to compare with: what one writes in an afternoon with aiosmtpd in front and aiosmtplib behind.

    python benchmarks/plain_relay.py PORT NEXT_PORT [--pooled]

It takes a whole message and passes it on before it answers. Each message gets a connection of its own to the next
hop; with --pooled, connections are kept for the next message. Host names are given, as both libraries would ask the
resolver for ours at each connection.
"""

from __future__ import annotations

import argparse
import asyncio

from aiosmtpd.smtp import SMTP, Envelope, Session
from aiosmtplib import SMTP as Client
from aiosmtplib import SMTPException, SMTPResponseException

HOST = "127.0.0.1"
NAME = "relay.example"


class Relay:
    def __init__(self, next_port: int, pooled: bool) -> None:
        self._next_port = next_port
        self._pooled = pooled
        self._idle: list[Client] = []

    async def handle_DATA(self, server: SMTP, session: Session, envelope: Envelope) -> str:
        assert envelope.mail_from is not None and isinstance(envelope.content, bytes)
        try:
            client = await self._client()
            _, reply = await client.sendmail(envelope.mail_from, envelope.rcpt_tos, envelope.content)
        except SMTPResponseException as error:
            return f"{error.code} {error.message}"
        except (SMTPException, OSError):
            return "451 4.4.1 Next server cannot be reached"
        if self._pooled:
            self._idle.append(client)
        else:
            await client.quit()
        return f"250 {reply}"

    async def _client(self) -> Client:
        while self._idle:
            if (client := self._idle.pop()).is_connected:
                return client
        client = Client(hostname=HOST, port=self._next_port, local_hostname=NAME, start_tls=False)
        await client.connect()
        return client


async def serve(port: int, relay: Relay) -> None:
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: SMTP(relay, hostname=NAME, loop=loop), HOST, port, backlog=1024)
    await server.serve_forever()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("port", type=int)
    parser.add_argument("next_port", type=int)
    parser.add_argument("--pooled", action="store_true", help="keep connections to the next hop")
    options = parser.parse_args()
    asyncio.run(serve(options.port, Relay(options.next_port, options.pooled)))
