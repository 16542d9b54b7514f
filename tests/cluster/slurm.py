"""A real Slurm of several nodes on this machine, for the length of a `with` block; root only."""

import contextlib
import getpass
import os
import secrets
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

DEVICES = ("/dev/null", "/dev/zero")
# No cgroups: containers in which tests run seldom have them to give.
CONFIGURATION = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
CryptoType=crypto/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
ProctrackType=proctrack/linuxproc
SlurmdParameters=config_overrides
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SwitchType=switch/none
MpiDefault=none
ReturnToService=2
SchedulerParameters=sched_interval=1,sched_min_interval=100000
KillWait=5
MailProg=/bin/true
GresTypes=gpu
{nodes}
PartitionName=test Nodes=n[1-{count}] Default=YES MaxTime=INFINITE State=UP OverSubscribe=NO
"""


class Slurm:
    """The cluster's commands."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.environment = os.environ | {"SLURM_CONF": str(folder / "slurm.conf")}

    def run(self, *command: object) -> str:
        """Run one of Slurm's commands and return what it says."""
        done = subprocess.run(
            [*map(str, command)],
            env=self.environment, cwd=self.folder, capture_output=True, text=True, timeout=30, check=False,
        )  # fmt: skip
        assert done.returncode == 0, f"{command}: {done.stderr}\n{self.logs()}"
        return done.stdout.strip()

    def submit(self, script: Path, *options: object) -> str:
        """Submit a job and return its ID."""
        return self.run("sbatch", "--parsable", *options, script)

    def state(self, job: str) -> dict[str, str]:
        """Return Slurm's record of a job, field by field."""
        return dict(field.split("=", 1) for field in self.run("scontrol", "show", "job", job).split() if "=" in field)

    def wait(self, job: str, *states: str, seconds: float = 180) -> dict[str, str]:
        """Wait until a job is in one of the states."""
        end = time.monotonic() + seconds
        while (state := self.state(job))["JobState"] not in states:
            assert time.monotonic() < end, f"{state}\n{self.logs()}"
            time.sleep(0.5)
        return state

    def logs(self) -> str:
        """The ends of all the logs, for a test that fails."""
        files = sorted(self.folder.glob("*.log")) + sorted(self.folder.glob("storage/slurm/*/*.log"))
        return "\n".join(f"--- {file}\n{file.read_text(errors='replace')[-3000:]}" for file in files)


@contextlib.contextmanager
def slurm(count: int, cpus: int) -> Iterator[Slurm]:
    """Start munged, slurmctld and `count` slurmd with `cpus` cores each, claimed rather than real."""
    missing = [name for name in ("munged", "slurmctld", "slurmd", "sbatch") if shutil.which(name) is None]
    assert not missing, f"not installed: {', '.join(missing)}; on Debian: apt-get install slurm-wlm munge"
    assert getpass.getuser() == "root", "this Slurm starts jobs as others do, so it must run as root"
    with tempfile.TemporaryDirectory(prefix="slurm-") as name, contextlib.ExitStack() as daemons:
        folder = Path(name)
        (folder / "state").mkdir()
        (folder / "munge.key").write_bytes(secrets.token_bytes(128))
        (folder / "munge.key").chmod(0o600)
        ports = free_ports(1 + count)
        nodes = "\n".join(
            f"NodeName=n{i} NodeHostname={socket.gethostname()} NodeAddr=127.0.0.1 Port={ports[i]} CPUs={cpus} "
            f"RealMemory=64000 Gres=gpu:{len(DEVICES)} State=UNKNOWN"
            for i in range(1, count + 1)
        )
        text = CONFIGURATION.format(host=socket.gethostname(), folder=folder, ports=ports, nodes=nodes, count=count)
        (folder / "slurm.conf").write_text(text)
        # Any devices will do: Slurm counts them, and so does Ray where it is told how many there are.
        (folder / "gres.conf").write_text("".join(f"Name=gpu File={device}\n" for device in DEVICES))
        cluster = Slurm(folder)
        munge = [
            f"--{kind}={folder}/munge.{kind.split('-')[0]}" for kind in ("socket", "key-file", "log-file", "pid-file")
        ]
        munge.append(f"--seed-file={folder}/munge.seed")
        daemons.enter_context(_daemon(cluster, "munged", "--foreground", "--force", *munge))
        _until((folder / "munge.socket").exists, cluster)
        daemons.enter_context(_daemon(cluster, "slurmctld", "-D"))
        for i in range(1, count + 1):
            (folder / f"spool-n{i}").mkdir()
            daemons.enter_context(_daemon(cluster, "slurmd", "-D", "-N", f"n{i}"))
        _until(lambda: cluster.run("sinfo", "--noheader", "--format=%T %D") == f"idle {count}", cluster)
        yield cluster
        for job in cluster.run("squeue", "--noheader", "--format=%i").split():
            cluster.run("scancel", "--signal=KILL", "--full", job)


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


@contextlib.contextmanager
def _daemon(cluster: Slurm, *command: str) -> Iterator[None]:
    with (cluster.folder / f"{command[0]}-{command[-1].rpartition('/')[2]}.out.log").open("w") as log:
        process = subprocess.Popen(command, env=cluster.environment, stdout=log, stderr=log)
    try:
        yield
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _until(true: Callable[[], bool], cluster: Slurm, seconds: float = 30) -> None:
    end = time.monotonic() + seconds
    while True:
        with contextlib.suppress(AssertionError):
            if true():
                return
        assert time.monotonic() < end, cluster.logs()
        time.sleep(0.2)
