"""Which addresses processes listen on, as the kernel says."""

import contextlib
import ipaddress
from pathlib import Path


def listening(folder: str, of: str = "") -> list[ipaddress.IPv4Address | ipaddress.IPv6Address]:
    """Addresses that the living processes which name `folder` in their environment, and are called `of`, listen on."""
    addresses = {}
    for table, size in (("tcp", 4), ("tcp6", 16)):
        for line in Path("/proc/net", table).read_text().splitlines()[1:]:
            _, local, _, state, *_, inode = line.split()[:10]
            if state == "0A":
                words = bytes.fromhex(local.partition(":")[0])
                packed = b"".join(words[i : i + 4][::-1] for i in range(0, size, 4))
                address = ipaddress.ip_address(packed)
                addresses[f"socket:[{inode}]"] = getattr(address, "ipv4_mapped", None) or address
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            is_meant = of.encode() in (process / "cmdline").read_bytes()
            if is_meant and folder.encode() in (process / "environ").read_bytes():
                links = {str(link.readlink()) for link in (process / "fd").iterdir()}
                found += [addresses[link] for link in links if link in addresses]
    return found
