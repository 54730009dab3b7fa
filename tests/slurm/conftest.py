"""A SLURM cluster of one node on this machine, for the tests of this folder."""

import os
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path

import pytest

NEEDED = "NNUNET_GLIMS_NEEDS_SLURM"
"""A variable that makes these tests fail where they would be skipped."""
PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "squeue", "scancel", "scontrol")
PATH = f"{os.environ['PATH']}:/usr/sbin:/sbin"
CONFIGURATION = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
CredType=cred/munge
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerParameters=sched_interval=2,bf_interval=2
MpiDefault=none
ReturnToService=2
JobRequeue=1
KillWait=30
MinJobAge=3600
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
NodeName={host} NodeAddr=127.0.0.1 CPUs={cpus} RealMemory={memory} State=UNKNOWN
PartitionName=test Nodes={host} Default=YES MaxTime=INFINITE State=UP
"""


def give_up(reason):
    """Skip, or fail where the tests must run."""
    (pytest.fail if os.environ.get(NEEDED) else pytest.skip)(reason)


def free_ports(count):
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


class Cluster:
    """The daemons, started and stopped by their pid files only."""

    def __init__(self, folder: Path):
        self.folder = folder
        for name in ("state", "spool"):
            (folder / name).mkdir()
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2**20
        self.configuration = folder / "slurm.conf"
        self.configuration.write_text(
            CONFIGURATION.format(
                host=socket.gethostname().split(".")[0],
                ports=free_ports(2),
                folder=folder,
                cpus=os.cpu_count(),
                memory=memory,
            )
        )
        self.environment = {**os.environ, "PATH": PATH, "SLURM_CONF": str(self.configuration)}

    def start(self):
        key = self.folder / "munge.key"
        key.write_bytes(os.urandom(128))
        key.chmod(0o400)
        subprocess.run(
            [
                "munged", "--force", f"--key-file={key}", f"--socket={self.folder}/munge.socket",
                f"--pid-file={self.folder}/munged.pid", f"--log-file={self.folder}/munged.log",
                f"--seed-file={self.folder}/munged.seed",
            ],
            check=True,
            env=self.environment,
        )  # fmt: skip
        self.start_controller()
        subprocess.run(["slurmd", "-f", str(self.configuration)], check=True, env=self.environment)
        for _ in range(60):
            if "idle" in self.run("sinfo", "-h", "-o", "%T"):
                return
            time.sleep(0.5)
        give_up(f"SLURM's node did not come up: {self.run('sinfo', '-h')} {self.log()}")

    def start_controller(self):
        subprocess.run(["slurmctld", "-f", str(self.configuration)], check=True, env=self.environment)

    def stop_one(self, daemon):
        path = self.folder / f"{daemon}.pid"
        if not path.exists():
            return
        pid = int(path.read_text())
        os.kill(pid, signal.SIGTERM)
        for _ in range(100):
            try:
                os.kill(pid, 0)
            except ProcessLookupError:
                return
            time.sleep(0.1)
        os.kill(pid, signal.SIGKILL)

    def stop(self):
        self.run("scancel", "--user", "root")
        for daemon in ("slurmd", "slurmctld", "munged"):
            self.stop_one(daemon)

    def run(self, *command):
        done = subprocess.run(command, capture_output=True, text=True, env=self.environment, timeout=60)
        return done.stdout + done.stderr

    def signal(self, name, job):
        """Signal a job as SLURM does before its time is over. scancel itself may wait for long."""
        process = subprocess.Popen(["scancel", f"--signal={name}", job], env=self.environment)
        time.sleep(2)
        process.kill()
        process.wait()

    def log(self):
        logs = [self.folder / name for name in ("slurmctld.log", "slurmd.log", "munged.log")]
        return "\n".join(log.read_text(errors="replace")[-1500:] for log in logs if log.exists())


@pytest.fixture(scope="session")
def cluster():
    """A running cluster; skipped with a reason where there can be none."""
    missing = [name for name in PROGRAMS if shutil.which(name, path=PATH) is None]
    if missing:
        give_up(f"no {missing[0]} here (Debian: apt install slurm-wlm munge)")
    if os.geteuid() != 0:
        give_up("SLURM's daemons are started as root")
    # Sockets have short paths.
    folder = Path(subprocess.run(["mktemp", "-d", "/tmp/slurm.XXXXXX"], capture_output=True, text=True).stdout.strip())
    folder.chmod(0o755)
    cluster = Cluster(folder)
    try:
        try:
            cluster.start()
        except subprocess.CalledProcessError as error:
            give_up(f"SLURM cannot be started: {error} {cluster.log()}")
        yield cluster
    finally:
        cluster.stop()
        shutil.rmtree(folder, ignore_errors=True)
