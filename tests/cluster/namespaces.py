"""Simulated machines: each with its own network, address, name, processes and mounts; root only.

Linux namespaces make them, `unshare` opens them and a first process holds them open. The switch
between them lives in one too, so that nothing of this machine's own network is touched, and all of
it, mounts and processes included, is gone as soon as those first processes are, however the test ends.
"""

import contextlib
import os
import secrets
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

NEEDED = ("ip", "unshare", "nsenter", "setpriv", "mount")
REAP = "trap : TERM; while :; do sleep 3600 & wait; done"  # a machine's first process inherits every orphan
PORT = 6379


def missing_requirement() -> str:
    """Return why this machine cannot simulate others, or ''."""
    missing = [name for name in NEEDED if shutil.which(name) is None]
    if missing:
        return f"not installed: {', '.join(missing)}; on Debian: apt-get install iproute2 util-linux"
    if os.geteuid() != 0:
        return "only root may make network namespaces"
    attempt = subprocess.run(
        ["unshare", "--net", "--mount", "--pid", "--uts", "--fork", "--mount-proc", "ip", "link", "add", "try", "type",
         "bridge"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    return f"no network namespaces here: {attempt.stderr.strip()}" if attempt.returncode else ""


@dataclass
class Machine:
    """One machine: `pid` is its first process as seen from here; None while it is off."""

    number: int
    name: str
    address: str
    folder: Path
    holder: "subprocess.Popen[bytes] | None" = None
    pid: int | None = None


class Machines:
    """The machines, the first of which is the head of a Ray cluster, if they have Ray; the others have a core each."""

    def __init__(self, count: int, folder: Path, ray: bool = True) -> None:
        self.folder, self.ray = folder, ray
        self.token = folder / "token"
        self.token.write_text(secrets.token_hex(32))
        self.token.chmod(0o600)
        self.switch = Machine(0, "switch", "10.77.0.254", folder / "switch")
        self.disk = folder / "disk"
        self.all = [
            Machine(number, f"machine-{number}", f"10.77.0.{number + 1}", folder / str(number))
            for number in range(count)
        ]

    def start(self) -> None:
        """Switch everything on: the head first, then the others at once."""
        _hold(self.switch, None)
        self.disk.mkdir()
        self.mount_small(self.switch, self.disk, "64m")
        self._ip(self.switch, "link", "add", "bridge", "type", "bridge")
        self._ip(self.switch, "address", "add", f"{self.switch.address}/24", "dev", "bridge")
        self._ip(self.switch, "link", "set", "bridge", "up")
        self.boot(*self.all[:1])
        self.boot(*self.all[1:])

    def boot(self, *machines: Machine, without: Path | None = None) -> None:
        """Switch machines on and let them join the cluster; `without` a folder that the others share."""
        for machine in machines:
            _hold(machine, self.switch)
            wire = f"wire-{machine.number}"
            self._ip(
                self.switch, "link", "add", wire, "type", "veth", "peer", "name", "eth0", "netns", str(machine.pid)
            )
            self._ip(self.switch, "link", "set", wire, "master", "bridge", "up")
            self._ip(machine, "link", "set", "lo", "up")
            self._ip(machine, "address", "add", f"{machine.address}/24", "dev", "eth0")
            self._ip(machine, "link", "set", "eth0", "up")
            self._ip(machine, "route", "add", "default", "via", self.switch.address)
            self.check(machine, "hostname", machine.name)
            hosts = machine.folder / "hosts"
            hosts.write_text(f"127.0.0.1 localhost\n127.0.1.1 {machine.name}\n")  # as Debian has it
            self.check(machine, "mount", "--bind", str(hosts), "/etc/hosts")
            if without is not None:
                self.mount_small(machine, without, "1m")
        starting = [(machine, self._start_ray(machine)) for machine in machines if self.ray]
        for machine, process in starting:
            code = process.wait(120)
            assert code == 0, f"{machine.name}: {(machine.folder / 'start.log').read_text()}"

    def _start_ray(self, machine: Machine) -> "subprocess.Popen[bytes]":
        head = self.all[0]
        join = ["--head", f"--port={PORT}", "--num-cpus=0", "--no-monitor", "--dashboard-host=127.0.0.1"]
        if machine is not head:
            join = [f"--address={head.address}:{PORT}", "--num-cpus=1"]
        command = [
            sys.executable, "-m", "ray.scripts.scripts", "start", *join, f"--node-ip-address={machine.address}",
            f"--temp-dir={machine.folder}/ray",  # by default it is the head's, which others lack
            "--num-gpus=0", "--object-store-memory=100000000", "--include-log-monitor=False", "--disable-usage-stats",
        ]  # fmt: skip
        with (machine.folder / "start.log").open("wb") as log:
            return subprocess.Popen(
                self._within(machine, command), env=self.environment(machine), stdout=log, stderr=log
            )

    def environment(self, machine: Machine) -> dict[str, str]:
        """Return the environment of its programs, with Ray's files and token of the machine, not of this user."""
        rest = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
        return rest | {
            "RAY_TMPDIR": str(machine.folder),
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(self.token),
        }

    def run(self, machine: Machine, command: list[str], **options: Any) -> "subprocess.Popen[str]":
        """Run a command on a machine; `communicate` with what is returned."""
        return subprocess.Popen(
            self._within(machine, command), env=self.environment(machine) | options.pop("env", {}),
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options,
        )  # fmt: skip

    def check(self, machine: Machine, *command: str) -> str:
        """Run a short command on a machine, which must succeed, and return what it says."""
        done = subprocess.run(
            self._within(machine, list(command)), capture_output=True, text=True, timeout=30, check=False
        )
        assert done.returncode == 0, f"{machine.name}: {command}: {done.stderr}"
        return done.stdout

    def bytes_sent(self, machine: Machine) -> int:
        """Return the bytes that a machine has sent over the network since it was switched on."""
        lines = Path(f"/proc/{machine.pid}/net/dev").read_text().splitlines()
        (line,) = (line for line in lines if line.strip().startswith("eth0:"))
        return int(line.partition(":")[2].split()[8])

    def cut(self, machine: Machine) -> None:
        """Pull a machine's network cable."""
        self._ip(self.switch, "link", "set", f"wire-{machine.number}", "down")

    def heal(self, machine: Machine) -> None:
        """Plug it in again."""
        self._ip(self.switch, "link", "set", f"wire-{machine.number}", "up")

    def drop(self, machine: Machine, other: Machine) -> None:
        """Lose every packet from one machine to another: it goes to a network card that nobody has."""
        self._ip(
            machine,
            "neighbor",
            "replace",
            other.address,
            "lladdr",
            "02:00:00:00:00:01",
            "dev",
            "eth0",
            "nud",
            "permanent",
        )

    def restore(self, machine: Machine, other: Machine) -> None:
        """Deliver them again."""
        self._ip(machine, "neighbor", "delete", other.address, "dev", "eth0")

    def kill(self, machine: Machine) -> None:
        """Pull a machine's power cable: no process of it, and no packet, says goodbye."""
        if machine.holder is not None:
            # The cable first, or dying processes would close their connections.
            self._ip(self.switch, "link", "delete", f"wire-{machine.number}")
            _let_go(machine)

    def replace(self, machine: Machine, without: Path | None = None) -> None:
        """Put another machine of the same name and address in its place."""
        self.kill(machine)
        shutil.rmtree(machine.folder)
        self.boot(machine, without=without)

    def host_path(self, path: Path) -> Path:
        """Return the path under which this test sees the machines' `path`, whose disk it does not share by itself."""
        return Path(f"/proc/{self.switch.pid}/root{path}")

    def mount_small(self, machine: Machine, folder: Path, size: str) -> None:
        """Lay a small disk over a folder, on one machine only."""
        self.check(machine, "mount", "-t", "tmpfs", "-o", f"size={size}", "none", str(folder))

    def resize(self, machine: Machine, folder: Path, size: str) -> None:
        """Make such a disk larger."""
        self.check(machine, "mount", "-o", f"remount,size={size}", str(folder))

    def unmount(self, machine: Machine, folder: Path) -> None:
        """Take it away, with what is on it."""
        self.check(machine, "umount", "--lazy", str(folder))

    def stop(self) -> None:
        """Switch everything off."""
        for machine in [*self.all, self.switch]:
            if machine.holder is not None:
                machine.holder.kill()  # all at once: the end of each takes seconds
        for machine in [*self.all, self.switch]:
            _let_go(machine)

    def _within(self, machine: Machine, command: list[str]) -> list[str]:
        assert machine.pid is not None, f"{machine.name} is off"
        return ["nsenter", f"--target={machine.pid}", "--net", "--mount", "--pid", "--uts", "--wd=.", *command]

    def _ip(self, machine: Machine, *arguments: str) -> None:
        """Change a machine's network, seen from here: within it the other machines' processes have no numbers."""
        command = ["nsenter", f"--target={machine.pid}", "--net", "ip", *arguments]
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
        assert done.returncode == 0, f"{machine.name}: {arguments}: {done.stderr}"


def _hold(machine: Machine, switch: Machine | None) -> None:
    """Open a machine's namespaces; they end with their first process, and that one with this test.

    A machine begins with the mounts of the switch: what is mounted there before is a disk they share.
    """
    machine.folder.mkdir()
    guard = ["setpriv", "--pdeathsig=KILL"]
    alone = ["--pid", "--uts", "--fork", "--mount-proc", "--kill-child=KILL"] if switch else []
    begin = ["nsenter", f"--target={switch.pid}", "--mount"] if switch else []
    command = [*begin, *guard, "unshare", "--net", "--mount", *alone, "bash", "-c", REAP]
    machine.holder = subprocess.Popen(command, stdin=subprocess.DEVNULL)
    end = time.monotonic() + 10
    while machine.pid is None:
        pids = [machine.holder.pid] if switch is None else _children(machine.holder.pid)
        if pids and Path(f"/proc/{pids[0]}/comm").read_text() == "bash\n":
            machine.pid = pids[0]
        assert time.monotonic() < end, f"{machine.name} does not start"
        time.sleep(0.01)


def _children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def _let_go(machine: Machine) -> None:
    if machine.holder is not None:
        machine.holder.kill()
        machine.holder.wait()
        while machine.pid is not None and Path(f"/proc/{machine.pid}").exists():
            time.sleep(0.01)
    machine.holder = machine.pid = None


@contextlib.contextmanager
def machines(count: int, ray: bool = True) -> Iterator[Machines]:
    """Switch on `count` machines, by default with Ray on them, for the length of a `with` block."""
    folder = Path(tempfile.mkdtemp(prefix="m-", dir="/tmp"))  # short: paths of sockets may have 107 characters
    simulated = Machines(count, folder, ray)
    try:
        simulated.start()
        yield simulated
    finally:
        simulated.stop()
        shutil.rmtree(folder, ignore_errors=True)
