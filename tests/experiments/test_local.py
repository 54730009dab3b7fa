"""Running on one machine: order, failures, interruption, and nothing twice."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from nnunet_glims.cli import main
from nnunet_glims.experiments.jobs import Plan
from nnunet_glims.experiments.local import run_local
from nnunet_glims.experiments.status import status_of
from nnunet_glims.experiments.step import Step, StepFailed, ask_to_save, read_log

GLIMS0 = "train_D007_GLIMS_fold0"


def lines(path):
    return path.read_text().splitlines() if path.exists() else []


def states(plan):
    return {status.job.name: status.state for status in status_of(plan)}


def test_all_jobs_are_done_once_and_in_order(plan, stand_ins, started):
    told = []
    assert run_local(plan, told.append) == []
    assert all(plan.is_done(job) for job in plan.jobs.values())
    assert [line.split(":")[0] for line in told if line.endswith(": done")] == list(plan.jobs)
    assert len(lines(started)) == len(plan.jobs)
    assert set(states(plan).values()) == {"done"}
    assert run_local(plan, told.append) == []
    assert len(lines(started)) == len(plan.jobs), "a second run does nothing"


def test_only_what_is_missing_is_done(plan, stand_ins, started):
    run_local(plan, str)
    (plan.fold(plan.jobs[GLIMS0]) / "checkpoint_final.pth").unlink()
    before = len(lines(started))
    run_local(plan, str)
    # the training, and what was made of it
    assert len(lines(started)) - before == 3


def test_several_at_a_time(plan, stand_ins):
    seconds, _ = stand_ins
    seconds.update(dict.fromkeys((name for name in plan.jobs if name.startswith("train")), 2))
    began = time.monotonic()
    assert run_local(plan, str, parallel=4) == []
    taken = time.monotonic() - began
    times = [read_log(plan.log(job)).started for job in plan.jobs.values() if job.kind == "train"]
    assert max(times) - min(times) <= 3, f"together, in {taken:.0f} s"


def test_jobs_at_the_same_time_share_the_cores(plan, monkeypatch):
    code = "import os; print(os.environ['OMP_NUM_THREADS'], os.environ['nnUNet_n_proc_DA'])"
    monkeypatch.setattr(Plan, "commands", lambda plan, job: [[sys.executable, "-c", code]])
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setenv("nnUNet_n_proc_DA", "7")
    run_local(plan, str, chosen={"prepare_D007"}, parallel=2)
    share = max(1, len(os.sched_getaffinity(0)) // 2)
    assert read_log(plan.log(plan.jobs["prepare_D007"])).last == f"{share} 7", "what the user has set stays"


def test_a_failure_is_told_with_the_last_line_and_stops_only_what_needs_it(plan, stand_ins):
    _, codes = stand_ins
    codes[GLIMS0] = 3
    told = []
    assert set(run_local(plan, told.append)) == {GLIMS0, "evaluate_D007_GLIMS", "report_D007"}
    (line,) = [line for line in told if line.startswith(f"{GLIMS0}: failed")]
    assert "exit code 3: working" in line and str(plan.log(plan.jobs[GLIMS0])) in line
    assert states(plan) == {
        **dict.fromkeys(plan.jobs, "done"),
        GLIMS0: "failed",
        "evaluate_D007_GLIMS": "waiting",
        "report_D007": "waiting",
    }
    assert main(["compare", "status", str(plan.path), "--watch"]) == 0, "nothing runs, so there is nothing to wait for"
    codes.clear()
    assert main(["compare", "retry", str(plan.path)]) == 0
    assert set(states(plan).values()) == {"done"}


def test_a_killed_command_is_started_again(plan, stand_ins, started):
    job = plan.jobs[GLIMS0]
    seconds, _ = stand_ins
    seconds[GLIMS0] = 3
    killed = []

    def tell(text):
        if text == f"{GLIMS0}: started" and not killed:
            wait_until(lambda: (end := read_log(plan.log(job))) is not None and end.last)
            killed.append(read_log(plan.log(job)).pid)
            os.kill(killed[0], signal.SIGKILL)

    assert run_local(plan, tell) == []
    assert killed and lines(started).count(str(plan.fold(job))) == 2


def test_a_training_outlives_the_worker_that_started_it(plan, stand_ins, started):
    job = plan.jobs[GLIMS0]
    seconds, _ = stand_ins
    seconds[GLIMS0] = 3

    def tell(text):
        if text == f"{GLIMS0}: started":
            wait_until(lambda: (end := read_log(plan.log(job))) is not None and end.last)
            status = Path(f"/proc/{read_log(plan.log(job)).pid}/status").read_text()
            os.kill(int(status.partition("PPid:")[2].split()[0]), signal.SIGKILL)

    assert run_local(plan, tell) == []
    assert lines(started).count(str(plan.fold(job))) == 1


def wait_until(reached, seconds=30):
    for _ in range(10 * seconds):
        if reached():
            return
        time.sleep(0.1)
    raise AssertionError("waited in vain")


RUNNER = """
import sys
from nnunet_glims.cli import main
from nnunet_glims.experiments.jobs import Plan
from tests.experiments.conftest import made
script, started, slow, path = sys.argv[1:]
Plan.commands = lambda plan, job: [
    [sys.executable, script, started, "6" if job.name == slow else "0", "0", *made(plan, job)]
]
sys.exit(main(["compare", "run", path]))
"""


@pytest.fixture
def runner(plan, stand_ins, started, folders):
    """A run in a process of its own, in the middle of its first training, which takes 6 s."""
    command = [sys.executable, "-c", RUNNER, str(folders / "stand_in.py"), str(started), GLIMS0, str(plan.path)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    wait_until(lambda: (end := read_log(plan.log(plan.jobs[GLIMS0]))) is not None and end.last == "working", 60)
    yield process
    process.kill()


@pytest.mark.slow
def test_the_runner_may_be_killed(plan, stand_ins, started, runner):
    runner.send_signal(signal.SIGKILL)
    runner.wait()
    told = []
    assert run_local(plan, told.append) == []
    assert f"{GLIMS0}: was started before and is still running" in told
    assert lines(started).count(str(plan.fold(plan.jobs[GLIMS0]))) == 1, "nothing is trained twice"
    assert all(plan.is_done(job) for job in plan.jobs.values())


@pytest.mark.slow
def test_a_second_run_attaches_to_the_first(plan, stand_ins, started, runner, capsys):
    assert main(["compare", "run", str(plan.path)]) == 0
    out = capsys.readouterr().out
    assert f"Another run of this comparison is at work (process {runner.pid})" in out
    assert runner.wait(60) == 0
    assert len(lines(started)) == len(plan.jobs)


@pytest.mark.slow
def test_ctrl_c_lets_the_training_save_and_the_next_run_goes_on(plan, stand_ins, started, runner):
    runner.send_signal(signal.SIGINT)
    assert runner.wait(30) == 130
    end = read_log(plan.log(plan.jobs[GLIMS0]))
    assert not end.running and end.stopped
    assert len(lines(started)) == 2, "prepared, and the training was not started again"
    assert run_local(plan, str) == []


@pytest.mark.slow
def test_cancel(plan, runner, capsys):
    assert main(["compare", "cancel", str(plan.path), GLIMS0]) == 0
    assert f"cancelled 1 jobs: {GLIMS0}" in capsys.readouterr().out
    assert runner.wait(60) == 1
    assert states(plan)[GLIMS0] == "waiting"
    assert states(plan)["train_D007_nnU-Net_fold0"] == "done"


RANKS = """
import os, signal, sys, time
from torch import multiprocessing

def rank(number):
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(75))
    print(f"rank {number} works", flush=True)
    time.sleep(60)

if __name__ == "__main__":
    multiprocessing.spawn(rank, nprocs=2)
"""


@pytest.mark.slow
def test_on_several_gpus_the_workers_are_asked_to_save(tmp_path):
    (tmp_path / "ranks.py").write_text(RANKS)
    log = tmp_path / "job.log"
    step = Step([[sys.executable, str(tmp_path / "ranks.py"), "-num_gpus", "2"]], log, {}, tmp_path / "no")

    def stop():
        wait_until(lambda: log.exists() and log.read_text().count(" works") == 2)
        ask_to_save(read_log(log).pid)

    stopping = threading.Thread(target=stop)
    stopping.start()
    with pytest.raises(StepFailed):
        step()
    stopping.join()
    wait_until(lambda: not read_log(log).running)  # what the workers have started takes a moment to end
    assert read_log(log).stopped


def test_what_a_killed_command_started_is_ended_with_it(tmp_path):
    worker = "import time; time.sleep(60)"
    start = f"print(subprocess.Popen([sys.executable, '-c', {worker!r}]).pid, flush=True)"
    code = f"import os, subprocess, sys; {start}; os.abort()"
    log = tmp_path / "job.log"
    with pytest.raises(StepFailed):
        Step([[sys.executable, "-c", code]], log, {}, tmp_path / "no")()
    started = [int(line) for line in log.read_text().splitlines() if line.isdigit()]
    assert len(started) == 3, "one for each start"
    wait_until(lambda: not any(is_running(pid) for pid in started))


def is_running(pid):
    """Whether the process is there and not just waiting to be collected."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_one_job_never_runs_in_two_processes(plan, tmp_path):
    log = tmp_path / "job.log"
    first = Step(
        [[sys.executable, "-c", "import time; print('in', flush=True); time.sleep(3)"]], log, {}, tmp_path / "no"
    )
    code = f"import pickle, sys; pickle.load(open({str(tmp_path / 'step.pkl')!r}, 'rb'))()"
    import pickle

    (tmp_path / "step.pkl").write_bytes(pickle.dumps(first))
    process = subprocess.Popen([sys.executable, "-c", code])
    wait_until(lambda: log.exists() and "in" in log.read_text())
    with pytest.raises(StepFailed, match="another process runs this job"):
        first()
    assert process.wait(30) == 0
    assert read_log(log).failed is None


def test_a_folder_that_cannot_be_written_is_named(plan, stand_ins, capsys):
    plan.state.mkdir()
    (plan.state / "logs").write_text("a file where the folder should be")
    assert main(["compare", "run", str(plan.path)]) == 1
    assert str(plan.state / "logs") in capsys.readouterr().err


def test_logs_shows_what_a_job_printed(plan, stand_ins, capsys):
    run_local(plan, str)
    assert main(["compare", "logs", str(plan.path), GLIMS0]) == 0
    assert "working" in capsys.readouterr().out
    assert main(["compare", "logs", str(plan.path), "train_D007_GLIMS_fold9"]) == 2
    assert "did you mean" in capsys.readouterr().err


def test_a_plan_of_its_own_is_made_by_every_command(plan):
    assert Plan(plan.path).jobs == plan.jobs
