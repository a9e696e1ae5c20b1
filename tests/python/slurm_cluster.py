"""A real Slurm on this machine for the tests: munge, slurmctld and a slurmd for each pretended node.

Needs the Debian packages slurmctld, slurmd, slurm-client, munge and libpmix-dev (whose libpmix.so
Slurm opens by that name): tools/setup.sh installs them. No root, systemd, cgroups or accounting.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

DAEMONS = ("munged", "mungekey", "slurmctld", "slurmd", "sbatch", "srun")
_SBIN = "/usr/sbin:/sbin"


def missing() -> list[str]:
    """The programs that are not installed."""
    path = f"{os.environ.get('PATH', '')}:{_SBIN}"
    return [name for name in DAEMONS if shutil.which(name, path=path) is None]


class SlurmCluster:
    """Use as a context: the cluster runs from enter to exit, in a temporary folder of its own."""

    def __init__(self, nodes: int, cpus: int):
        self.nodes, self.cpus = nodes, cpus
        self._daemons: list[subprocess.Popen] = []
        # Sockets have short paths.
        self._temporary = tempfile.TemporaryDirectory(prefix="slurm-", dir="/tmp")
        self.folder = Path(self._temporary.name)
        self.environment = {
            name: value for name, value in os.environ.items() if not name.startswith("SLURM")
        }
        self.environment["PATH"] = f"{os.environ.get('PATH', '')}:{_SBIN}"
        # PMIx's shared memory now and then fails at start-up.
        self.environment["PMIX_MCA_gds"] = "hash"
        self.environment["SLURM_CONF"] = str(self.folder / "slurm.conf")

    def __enter__(self) -> SlurmCluster:
        try:
            self._start()
        except BaseException:
            self._stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._stop()

    # -- what the tests do --------------------------------------------------------------------------

    def call(self, *command: object, limit: float = 60) -> subprocess.CompletedProcess:
        """A command to its end, whatever its status."""
        return subprocess.run(
            [str(word) for word in command], env=self.environment, timeout=limit,
            stdin=subprocess.DEVNULL, capture_output=True, text=True, cwd=self.folder,
        )  # fmt: skip

    def tell(self, *command: object) -> str:
        """A command that succeeds; what it prints."""
        done = self.call(*command)
        assert done.returncode == 0, (
            f"{command}: exit {done.returncode}\n{done.stdout}{done.stderr}"
        )
        return done.stdout.strip()

    def start(self, *command: object) -> subprocess.Popen:
        return subprocess.Popen(
            [str(word) for word in command], env=self.environment, stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=self.folder,
        )  # fmt: skip

    def field(self, job: str, name: str) -> str:
        """Of `scontrol show job`: JobState, Restarts, ExitCode, ..."""
        words = self.tell("scontrol", "-o", "show", "job", job).split()
        return next(word.partition("=")[2] for word in words if word.startswith(f"{name}="))

    def wait(self, what: str, condition: Callable[[], bool], limit: float = 60) -> None:
        end = time.monotonic() + limit
        while not condition():
            assert time.monotonic() < end, f"waited {limit:g} s in vain: {what}\n{self.logs()}"
            time.sleep(0.1)

    def logs(self) -> str:
        """The last lines of the daemons' logs."""
        texts = []
        for path in sorted(self.folder.glob("*.log")):
            texts += [f"-- {path.name}", *path.read_text(errors="replace").splitlines()[-15:]]
        return "\n".join(texts)

    # -- its daemons --------------------------------------------------------------------------------

    def _start(self) -> None:
        self._configure()
        key = self.folder / "munge.key"
        self.tell("mungekey", "--create", "--keyfile", key)
        munge = [
            f"--{name}={self.folder / f'munge.{name}'}"
            for name in ("socket", "pid-file", "seed-file")
        ]
        self._daemon("munged", "--foreground", "--force", f"--key-file={key}", *munge)
        self.wait("munge", (self.folder / "munge.socket").is_socket, 10)
        self._daemon("slurmctld", "-D")
        for node in range(1, self.nodes + 1):
            self._daemon("slurmd", "-D", "-N", f"n{node}")
        self.wait("idle nodes", self._all_idle, 30)

    def _all_idle(self) -> bool:
        for daemon in self._daemons:
            assert daemon.poll() is None, f"{daemon.args[0]} ended\n{self.logs()}"
        return len(self.call("sinfo", "-hN", "-t", "idle", "-o", "%N").stdout.split()) == self.nodes

    def _daemon(self, name: str, *arguments: object) -> None:
        log = open(self.folder / f"{name}{len(self._daemons)}.log", "w")
        with log:
            self._daemons.append(
                subprocess.Popen(
                    [name, *map(str, arguments)], env=self.environment, stdin=subprocess.DEVNULL,
                    stdout=log, stderr=subprocess.STDOUT, start_new_session=True,
                )
            )  # fmt: skip

    def _stop(self) -> None:
        try:
            if len(self._daemons) > 1 and self._daemons[1].poll() is None:
                self.call("scancel", "--user", str(os.getuid()), "--full")
                self.wait("the end of all jobs", lambda: not self.call("squeue", "-h").stdout, 20)
        finally:
            for daemon in reversed(self._daemons):
                daemon.terminate()
                try:
                    daemon.wait(10)
                except subprocess.TimeoutExpired:
                    daemon.kill()
                    daemon.wait()
            self._temporary.cleanup()

    def _configure(self) -> None:
        folder, host = self.folder, socket.gethostname().partition(".")[0]
        folder.chmod(0o755)
        (folder / "state").mkdir()
        ports = _free_ports(self.nodes + 1)
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") >> 20
        user = self.tell("id", "-un")
        lines = [
            "ClusterName=test",
            f"SlurmctldHost={host}(127.0.0.1)",
            f"SlurmctldPort={ports[0]}",
            f"SlurmUser={user}",
            f"SlurmdUser={user}",
            "AuthType=auth/munge",
            # A requeued job waits until its old credential has expired: this is the least.
            f"AuthInfo=socket={folder}/munge.socket,cred_expire=5",
            f"StateSaveLocation={folder}/state",
            f"SlurmctldPidFile={folder}/slurmctld.pid",
            f"SlurmdSpoolDir={folder}/spool.%n",
            f"SlurmdPidFile={folder}/slurmd.%n.pid",
            # More CPUs than there are.
            "SlurmdParameters=config_overrides",
            f"TmpFS={folder}/tmp.%n",
            f"TaskProlog={folder}/task-prolog",
            "TaskPlugin=task/none",
            "ProctrackType=proctrack/linuxproc",
            "SwitchType=switch/none",
            "SelectType=select/cons_tres",
            "SelectTypeParameters=CR_CPU",
            "SchedulerParameters=batch_sched_delay=0,sched_interval=1,sched_min_interval=0,bf_interval=1",
            "ReturnToService=2",
            "KillWait=5",
            "MailProg=/bin/true",
        ]
        for node in range(1, self.nodes + 1):
            (folder / f"spool.n{node}").mkdir(mode=0o700)
            (folder / f"tmp.n{node}").mkdir()
            lines.append(
                f"NodeName=n{node} NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[node]} "
                f"CPUs={self.cpus} RealMemory={memory}"
            )
        lines.append("PartitionName=test Nodes=ALL Default=YES MaxTime=INFINITE")
        (folder / "slurm.conf").write_text("\n".join(lines) + "\n")
        # Nodes on one host would share Open MPI's shared memory; ranks that wait leave the cores.
        prolog = folder / "task-prolog"
        prolog.write_text(
            "#!/bin/sh\n"
            f"echo export OMPI_MCA_btl_vader_backing_directory={folder}/tmp.$SLURMD_NODENAME\n"
            "echo export OMPI_MCA_btl_tcp_if_include=lo\n"
            "echo export OMPI_MCA_mpi_yield_when_idle=1\n"
            "echo export OMP_WAIT_POLICY=passive\n"
        )
        prolog.chmod(0o755)


def _free_ports(n: int) -> list[int]:
    sockets = [socket.socket() for _ in range(n)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports
