"""Run inside a worker with the rights of a trial: tries the ways out. Arguments: a port, and addresses of the host."""

import secrets
import socket
import struct
import sys

#: Where the engine's DNS answers, and where it asks what it does not know.
ENGINE_DNS, OWN_LOOPBACK = ("127.0.0.11", 53), ("127.0.0.1", 53)
NO_ERROR, REFUSED = 0, 5


def reaches(address: str, port: int) -> bool:
    """Whether a service on the host can be connected to."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    scope = socket.if_nameindex()[-1][0] if address.startswith("fe80:") else 0
    target = (address, port, 0, scope) if family == socket.AF_INET6 else (address, port)
    with socket.socket(family) as client:
        client.settimeout(3)
        try:
            return client.connect_ex(target) == 0
        except OSError:
            return False


def answer_to(name: str) -> tuple[int, int] | None:
    """Return how the engine's DNS answers a question: its code, and the number of answers."""
    labels = b"".join(bytes([len(label)]) + label.encode() for label in name.split("."))
    question = struct.pack(">6H", 4711, 0x0100, 1, 0, 0, 0) + labels + struct.pack(">B2H", 0, 1, 1)
    with socket.socket(type=socket.SOCK_DGRAM) as client:
        client.settimeout(5)
        client.sendto(question, ENGINE_DNS)
        try:
            header = struct.unpack(">6H", client.recv(4096)[:12])
        except TimeoutError:
            return None
    return header[1] & 15, header[3]


def arrived(name: str, listener: socket.socket) -> bool:
    """Whether the question for a name has come to this container's own loopback."""
    listener.settimeout(1)
    try:
        return name.partition(".")[0].encode() in listener.recv(4096)
    except TimeoutError:
        return False


port, addresses = int(sys.argv[1]), sys.argv[2:]
assert addresses, "no address of the host was given"
reached = [address for address in addresses if reaches(address, port)]
if reached:
    raise SystemExit(f"a trial reaches services on this machine, at {', '.join(reached)}")

assert answer_to("database") == (NO_ERROR, 1), "the engine's DNS does not know the services"
with socket.socket(type=socket.SOCK_DGRAM) as listener:
    listener.bind(OWN_LOOPBACK)
    outside = f"{secrets.token_hex(8)}.example.com"
    answer = answer_to(outside)
    # an engine may refuse by itself (25.0.5, 26.0); the others ask the server that the service names
    if (answer is None or answer[0] != REFUSED) and not arrived(outside, listener):
        raise SystemExit(f"a trial's question for {outside} left through the engine; the answer was {answer}")
