"""Cores and memory follow what a process may use, not what the machine has; control groups are made-up files."""

import os
import signal

import pytest

from nnunet_glims import processes
from nnunet_glims.errors import ProcessingError, UsageError
from nnunet_glims.processes import available_cores, available_memory, find_program, workers_or_default

GIB = 2**30
SLURM = ("SLURM_CPUS_PER_TASK", "SLURM_CPUS_ON_NODE", "SLURM_MEM_PER_NODE", "SLURM_MEM_PER_CPU")


@pytest.fixture(autouse=True)
def machine(monkeypatch):
    """A machine of 64 cores and 256 GiB, outside of SLURM."""
    for name in SLURM:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(64), raising=False)
    real, memory = os.sysconf, {"SC_PAGE_SIZE": 4096, "SC_PHYS_PAGES": 2**26}
    monkeypatch.setattr(os, "sysconf", lambda name: memory[name] if name in memory else real(name))


def write(root, files):
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(content)


GROUPS = "sys/fs/cgroup"
VERSION_2 = {
    "proc/self/cgroup": "0::/user.slice/job\n",
    f"{GROUPS}/cpu.max": "max 100000\n",
    f"{GROUPS}/user.slice/cpu.max": "800000 100000\n",
    f"{GROUPS}/user.slice/memory.max": f"{48 * GIB}\n",
    f"{GROUPS}/user.slice/job/cpu.max": "max 100000\n",
    f"{GROUPS}/user.slice/job/memory.max": "max\n",
}
VERSION_1 = {
    "proc/self/cgroup": "11:memory:/docker/a\n4:cpu,cpuacct:/docker/a\n1:name=systemd:/docker/a\n",
    f"{GROUPS}/memory/memory.limit_in_bytes": "9223372036854771712\n",
    f"{GROUPS}/memory/docker/a/memory.limit_in_bytes": f"{6 * GIB}\n",
    f"{GROUPS}/cpu,cpuacct/docker/a/cpu.cfs_quota_us": "150000\n",
    f"{GROUPS}/cpu,cpuacct/docker/a/cpu.cfs_period_us": "100000\n",
}


@pytest.mark.parametrize(
    ("files", "cores", "memory"),
    [
        ({}, 64, 256),
        (VERSION_2, 8, 48),  # the limits of a group above the process' own
        (VERSION_1, 2, 6),  # a part of a core counts as one
        ({**VERSION_1, f"{GROUPS}/cpu,cpuacct/docker/a/cpu.cfs_quota_us": "-1\n"}, 64, 6),
        # A container that sees the machine's group names, but has only its own group mounted:
        ({"proc/self/cgroup": "0::/docker/b\n", f"{GROUPS}/cpu.max": "300000 100000", f"{GROUPS}/memory.max": f"{GIB}"}, 3, 1),
        # Both versions side by side, version 2 without limits:
        ({**VERSION_1, "proc/self/cgroup": VERSION_1["proc/self/cgroup"] + "0::/\n", f"{GROUPS}/unified/cpu.max": "max 1"},
         2, 6),
        ({"proc/self/cgroup": "nonsense\n:::\n0::/x\n", f"{GROUPS}/x/cpu.max": "many", f"{GROUPS}/x/memory.max": ""}, 64, 256),
        ({"proc/self/cgroup": "0::/\n", f"{GROUPS}/cpu.max": "0 0", f"{GROUPS}/other/memory.max": "1"}, 64, 256),
    ],
)  # fmt: skip
def test_control_groups_limit_cores_and_memory(tmp_path, files, cores, memory):
    write(tmp_path, files)
    assert available_cores(tmp_path) == cores
    assert available_memory(tmp_path) == memory * GIB


@pytest.mark.parametrize(
    ("variables", "cores", "memory"),
    [
        ({"SLURM_CPUS_PER_TASK": "12", "SLURM_CPUS_ON_NODE": "24"}, 12, 256),
        ({"SLURM_CPUS_ON_NODE": "24"}, 24, 256),
        ({"SLURM_MEM_PER_NODE": "65536"}, 64, 64),
        ({"SLURM_MEM_PER_NODE": "0"}, 64, 256),  # all of the node's
        ({"SLURM_MEM_PER_CPU": "2048", "SLURM_CPUS_ON_NODE": "4", "SLURM_CPUS_PER_TASK": "2"}, 2, 8),
        ({"SLURM_MEM_PER_CPU": "2048", "SLURM_CPUS_PER_TASK": "3"}, 3, 6),
        ({"SLURM_CPUS_PER_TASK": "128"}, 64, 256),  # no more than the process is bound to
        ({"SLURM_CPUS_PER_TASK": "four", "SLURM_MEM_PER_NODE": "-1"}, 64, 256),
    ],
)
def test_slurm_limits_cores_and_memory(tmp_path, monkeypatch, variables, cores, memory):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert available_cores(tmp_path) == cores
    assert available_memory(tmp_path) == memory * GIB


def test_systems_without_these_calls_say_what_they_know(tmp_path, monkeypatch):
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.delattr(os, "sysconf")
    monkeypatch.setattr(os, "cpu_count", lambda: 10)
    assert available_cores(tmp_path) == 10
    assert available_memory(tmp_path) == float("inf")
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert available_cores(tmp_path) == 1


@pytest.mark.parametrize(
    ("cores", "memory", "workers"), [(64, 256, 8), (3, 256, 3), (64, 2.5, 2), (64, 0.5, 1), (4, float("inf"), 4)]
)
def test_workers_follow_cores_and_memory(monkeypatch, cores, memory, workers):
    monkeypatch.setattr(processes, "available_cores", lambda: cores)
    monkeypatch.setattr(processes, "available_memory", lambda: memory * GIB)
    assert workers_or_default(None) == workers
    assert workers_or_default(30) == 30  # what was asked for
    with pytest.raises(UsageError, match="--workers 0"):
        workers_or_default(0)


def test_no_other_module_counts_the_machines_cores():
    package = processes.Path(processes.__file__).parent
    counting = [file.name for file in package.rglob("*.py") if "cpu_count(" in file.read_text()]
    assert counting == ["processes.py"]


def test_a_program_is_found_beside_the_running_python(tmp_path, monkeypatch):
    program = tmp_path / "nnUNetv2_something"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", "")
    assert find_program(program.name) == program.name
    monkeypatch.setattr(processes.sysconfig, "get_path", lambda _: str(tmp_path))
    assert find_program(program.name) == str(program)


def end(_):
    os._exit(9)


def test_a_killed_worker_is_a_failure_not_wrong_use():
    with pytest.raises(ProcessingError, match="--workers") as raised, processes.processes(2) as apply:
        list(apply(end, [1, 2]))
    assert raised.value.exit_code == 1


def interrupt_and_answer(number):
    os.kill(os.getpid(), signal.SIGINT)
    return number


@pytest.mark.skipif(not hasattr(signal, "pthread_sigmask"), reason="POSIX")
def test_workers_never_get_ctrl_c_not_even_while_they_start(monkeypatch):
    """Without the function that a worker calls first, as in the seconds before it is called."""
    monkeypatch.setattr(processes, "_follow_parent", print)
    with processes.processes(2) as apply:
        assert list(apply(interrupt_and_answer, [1, 2])) == [1, 2]
    assert signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, ())


def test_workers_leave_ctrl_c_to_the_parent():
    """A terminal sends it to all of them, and a worker that waits for work would show a traceback."""
    with processes.processes(2) as apply:
        assert list(apply(signal.getsignal, [signal.SIGINT] * 2)) == [signal.SIG_IGN] * 2
