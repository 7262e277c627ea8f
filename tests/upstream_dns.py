"""A name server for tests, run in an engine's network namespace as the machine's own would be.

usage: python -m tests.upstream_dns ADDRESS...

Answers over UDP and TCP at port 53 of each address: ``outside.example`` has an address,
``big.example`` more than a UDP answer holds, ``silent.example`` gets no answer, ``broken.example``
a failure; nothing else exists. Prints ``ready``, then each question it is asked.
"""

from __future__ import annotations

import signal
import socketserver
import struct
import sys
import threading

from dnslib import QTYPE, RCODE, RR, TXT, A, DNSRecord

LINES = 60


def answer(packet: bytes, *, over_tcp: bool) -> bytes | None:
    question = DNSRecord.parse(packet)
    name = str(question.q.qname).rstrip(".").lower()
    print(name, QTYPE[question.q.qtype], "tcp" if over_tcp else "udp", flush=True)
    reply = question.reply()
    if name == "silent.example":
        return None
    if name == "outside.example":
        if question.q.qtype == QTYPE.A:
            reply.add_answer(RR(question.q.qname, QTYPE.A, ttl=60, rdata=A("192.0.2.7")))
    elif name == "big.example":
        for number in range(LINES):
            rdata = TXT(f"{number:03}" + "x" * 100)
            reply.add_answer(RR(question.q.qname, QTYPE.TXT, ttl=60, rdata=rdata))
        if not over_tcp:
            return bytes(reply.truncate().pack())
    elif name == "broken.example":
        reply.header.rcode = RCODE.SERVFAIL
    else:
        reply.header.rcode = RCODE.NXDOMAIN
    return bytes(reply.pack())


class Udp(socketserver.BaseRequestHandler):
    def handle(self) -> None:
        packet, socket = self.request
        found = answer(packet, over_tcp=False)
        if found is not None:
            socket.sendto(found, self.client_address)


class Tcp(socketserver.StreamRequestHandler):
    def handle(self) -> None:
        while head := self.rfile.read(2):
            found = answer(self.rfile.read(struct.unpack("!H", head)[0]), over_tcp=True)
            if found is not None:
                self.wfile.write(struct.pack("!H", len(found)) + found)


def main() -> None:
    for address in sys.argv[1:]:
        for server in (
            socketserver.ThreadingUDPServer((address, 53), Udp),
            socketserver.ThreadingTCPServer((address, 53), Tcp),
        ):
            server.daemon_threads = True
            threading.Thread(target=server.serve_forever, daemon=True).start()
    print("ready", flush=True)
    signal.pause()


if __name__ == "__main__":
    main()
