"""Network interfaces of this machine, and messages to other machines to see which links work. Knows nothing of Ray."""

import asyncio
import contextlib
import fcntl
import os
import socket
import struct
import threading
from collections.abc import Sequence
from dataclasses import dataclass

SIOCGIFADDR = 0x8915  # netdevice(7): the IPv4 address of a network interface
LINK_TIMEOUT_S = 5.0  # TCP repeats a lost first packet after 1 s and after 3 s
LISTEN_S = 30.0
MESSAGE_BYTES = 1 << 16  # many packets of full size: of networks with unequal MTUs only the small ones arrive


@dataclass(frozen=True)
class Endpoint:
    """The network of one worker: its machine's name, the chosen interface, and that one's address."""

    host: str
    address: str
    interface: str | None
    problem: str = ""


@dataclass(frozen=True)
class BadLink:
    """A link on which messages from one machine to another do not come back, and why."""

    own: Endpoint
    peer: Endpoint
    reason: str

    def __str__(self) -> str:
        interface = f" ({self.peer.interface})" if self.peer.interface else ""
        return f"{self.own.host} cannot reach {self.peer.host} at {self.peer.address}{interface}: {self.reason}"


def addresses_of_interfaces() -> dict[str, str]:
    """Return the IPv4 address of each network interface of this machine that has one, by its name."""
    addresses = {}
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        for _, name in socket.if_nameindex():
            with contextlib.suppress(OSError):  # it has no IPv4 address
                reply = fcntl.ioctl(control, SIOCGIFADDR, struct.pack("256s", name.encode()))
                addresses[name] = socket.inet_ntoa(reply[20:24])
    return addresses


def matching_interfaces(setting: str, names: Sequence[str], prefixes: bool) -> list[str]:
    """Return the interfaces that a value of GLOO_SOCKET_IFNAME or NCCL_SOCKET_IFNAME selects.

    Args:
        setting: Names, separated by commas; for NCCL prefixes of names, unless it begins with `=`. What follows `^` is
            what not to use.
        names: The interfaces of the machine.
        prefixes: Whether it is NCCL's.
    """
    if not prefixes:
        return [name for name in names if name in setting.split(",")]
    excluding, setting = setting.startswith("^"), setting.removeprefix("^")
    exact, parts = setting.startswith("="), [part for part in setting.removeprefix("=").split(",") if part]
    return [
        name for name in names if excluding != any(name == part if exact else name.startswith(part) for part in parts)
    ]


def listen(own: Endpoint, nonce: bytes, peers: int) -> int:
    """Send back what `peers` machines send here, in the background, and return the port."""
    listener = socket.create_server((own.address, 0), backlog=max(peers, 1))
    threading.Thread(target=lambda: asyncio.run(_answer(listener, nonce, peers)), name="links", daemon=True).start()
    return int(listener.getsockname()[1])


def reach(own: Endpoint, peers: Sequence[tuple[Endpoint, int]], nonce: bytes) -> list[BadLink]:
    """Return the links to those of the peers, each with its port, that cannot be reached from here."""

    async def reach_all() -> list[BadLink | None]:
        return await asyncio.gather(*(_exchange(own, peer, port, nonce) for peer, port in peers))

    return [link for link in asyncio.run(reach_all()) if link is not None]


async def _answer(listener: socket.socket, nonce: bytes, peers: int) -> None:
    answered = asyncio.Semaphore(0)

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            message = await reader.readexactly(MESSAGE_BYTES)
            if message.startswith(nonce):  # not a stranger's
                writer.write(message)
                await writer.drain()
                answered.release()
                await reader.read()  # until the other side has it all
        writer.close()

    async with await asyncio.start_server(answer, sock=listener, limit=MESSAGE_BYTES):
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LISTEN_S):
                for _ in range(peers):
                    await answered.acquire()


async def _exchange(own: Endpoint, peer: Endpoint, port: int, nonce: bytes) -> BadLink | None:
    """Send a message to `peer`, and return None if it comes back."""
    writer, reason = None, ""
    try:
        async with asyncio.timeout(LINK_TIMEOUT_S):
            reader, writer = await asyncio.open_connection(peer.address, port, local_addr=(own.address, 0))
            message = nonce + bytes(MESSAGE_BYTES - len(nonce))
            writer.write(message)
            await reader.readexactly(len(message))
    except TimeoutError:
        reason = f"no answer within {LINK_TIMEOUT_S:g} s"
        if writer is not None:
            reason = f"it connects, but a message of {MESSAGE_BYTES >> 10} KiB does not pass; compare the MTUs"
    except asyncio.IncompleteReadError:
        reason = "something else answers there"
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else str(error)
    finally:
        if writer is not None:
            writer.close()
    return BadLink(own, peer, reason) if reason else None
