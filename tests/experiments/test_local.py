"""Running on one machine: order, failures, interruption, and nothing twice."""

import os
import pickle
import re
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from nnunet_glims.cli import compare, main
from nnunet_glims.experiments.executors import local
from nnunet_glims.experiments.executors.local import Local
from nnunet_glims.experiments.executors.step import Step, StepFailed, ask_to_save
from nnunet_glims.experiments.jobs.prepare import Prepare
from nnunet_glims.experiments.jobs.train import Train
from nnunet_glims.experiments.state import TrainingRecord
from nnunet_glims.experiments.status import status_of
from nnunet_glims.locks import LockHeld, lock
from nnunet_glims.nnunet.training_log import TRAINING_LOCK
from tests.experiments.conftest import run_local
from tests.waiting import is_running, wait_until

GLIMS0 = "train_D007_GLIMS_fold0"


def lines(path):
    return path.read_text().splitlines() if path.exists() else []


def states(experiment):
    return {status.job.name: status.state for status in status_of(Local(experiment))}


def test_all_jobs_are_done_once_and_in_order(experiment, stand_ins, started):
    told = []
    assert run_local(experiment, told.append) == []
    assert all(experiment.is_done(job) for job in experiment.jobs.values())
    assert [line.split(":")[0] for line in told if line.endswith(": done")] == list(experiment.jobs)
    assert len(lines(started)) == len(experiment.jobs)
    assert set(states(experiment).values()) == {"done"}
    assert run_local(experiment, told.append) == []
    assert len(lines(started)) == len(experiment.jobs), "a second run does nothing"


def test_only_what_is_missing_is_done(experiment, stand_ins, started):
    run_local(experiment, str)
    (experiment.jobs[GLIMS0].fold_folder / "checkpoint_final.pth").unlink()
    before = len(lines(started))
    run_local(experiment, str)
    # the training, and what was made of it
    assert len(lines(started)) - before == 3


def test_several_at_a_time(experiment, stand_ins, folders):
    held, _ = stand_ins
    trainings = [job for job in experiment.jobs.values() if job.kind == "train"]
    held.update(dict.fromkeys((job.name for job in trainings), folders / "go on"))
    told = []

    def tell(text):
        told.append(text)
        if (
            sum(line.endswith("fold0: started") or line.endswith("fold1: started") for line in told)
            == len(trainings)
            == 4
        ):
            (folders / "go on").touch()

    assert run_local(experiment, tell, parallel=4) == []


def test_jobs_at_the_same_time_share_the_cores(experiment, monkeypatch):
    code = "import os; print(os.environ['OMP_NUM_THREADS'], os.environ['nnUNet_n_proc_DA'])"
    monkeypatch.setattr(Prepare, "commands", lambda job: [[sys.executable, "-c", code]])
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setenv("nnUNet_n_proc_DA", "7")
    run_local(experiment, str, chosen={"prepare_D007"}, parallel=2)
    share = max(1, len(os.sched_getaffinity(0)) // 2)
    assert experiment.jobs["prepare_D007"].folder.last_line() == f"{share} 7", "what the user has set stays"


def test_a_failure_is_told_with_the_last_line_and_stops_only_what_needs_it(experiment, stand_ins):
    _, codes = stand_ins
    codes[GLIMS0] = 3
    told = []
    assert set(run_local(experiment, told.append)) == {GLIMS0, "evaluate_D007_GLIMS", "report_D007"}
    (line,) = [line for line in told if line.startswith(f"{GLIMS0}: failed")]
    assert "exit code 3: working" in line and str(experiment.jobs[GLIMS0].folder.log) in line
    assert states(experiment) == {
        **dict.fromkeys(experiment.jobs, "done"),
        GLIMS0: "failed",
        "evaluate_D007_GLIMS": "waiting",
        "report_D007": "waiting",
    }
    assert main(["compare", "status", str(experiment.layout.path), "--watch"]) == 0, (
        "nothing runs, so there is nothing to wait for"
    )
    codes.clear()
    assert main(["compare", "retry", str(experiment.layout.path)]) == 0
    assert set(states(experiment).values()) == {"done"}


def test_a_killed_command_is_started_again(experiment, stand_ins, started, folders):
    job = experiment.jobs[GLIMS0]
    held, _ = stand_ins
    held[GLIMS0] = folders / "go on"
    killed = []

    def tell(text):
        if text == f"{GLIMS0}: started" and not killed:
            wait_until(lambda: job.folder.last_line())
            killed.append(job.folder.read().child.pid)
            os.kill(killed[0], signal.SIGKILL)
            (folders / "go on").touch()

    assert run_local(experiment, tell) == []
    assert killed and lines(started).count(str(job.fold_folder)) == 2


def test_a_training_outlives_the_worker_that_started_it(experiment, stand_ins, started, folders, monkeypatch):
    job = experiment.jobs[GLIMS0]
    held, _ = stand_ins
    held[GLIMS0] = folders / "go on"
    killed, looks, look = [], [], local._Run._start_what_can_be

    def tell(text):
        if text == f"{GLIMS0}: started":
            wait_until(lambda: job.folder.last_line())
            status = Path(f"/proc/{job.folder.read().child.pid}/status").read_text()
            killed.append(int(status.partition("PPid:")[2].split()[0]))
            os.kill(killed[0], signal.SIGKILL)
            wait_until(lambda: not is_running(killed[0]))

    def counted_look(run):
        look(run)
        looks.extend(killed)
        if len(looks) == 8:  # the run has seen several times that the worker is gone
            (folders / "go on").touch()

    monkeypatch.setattr(local._Run, "_start_what_can_be", counted_look)

    assert run_local(experiment, tell) == []
    assert lines(started).count(str(job.fold_folder)) == 1


RUNNER = """
import sys
from nnunet_glims.cli import compare, main
from tests.experiments.conftest import KINDS, stand_in_commands
script, started, job, until, path = sys.argv[1:]
for kind in KINDS:
    kind.commands = stand_in_commands(script, started, {job: until}, {})
sys.exit(main(["compare", "run", path]))
"""


@pytest.fixture
def runner(experiment, stand_ins, started, folders):
    """A run in a process of its own, in the middle of its first training, which ends when there is a file "go on"."""
    stand_ins[0][GLIMS0] = folders / "go on"  # the same command here as there
    command = [
        sys.executable,
        "-c",
        RUNNER,
        str(folders / "stand_in.py"),
        str(started),
        GLIMS0,
        str(folders / "go on"),
        str(experiment.layout.path),
    ]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    wait_until(lambda: experiment.jobs[GLIMS0].folder.last_line() == "working")
    yield process
    process.kill()
    process.wait()
    process.stdout.close()
    (folders / "go on").touch()  # for a training that outlives the run


@pytest.mark.slow
def test_the_runner_may_be_killed(experiment, stand_ins, started, runner, folders):
    runner.send_signal(signal.SIGKILL)
    runner.wait()
    told = []

    def tell(text):
        told.append(text)
        if text == f"{GLIMS0}: was started before and is still running":
            (folders / "go on").touch()

    assert run_local(experiment, tell) == []
    assert f"{GLIMS0}: was started before and is still running" in told
    assert lines(started).count(str(experiment.jobs[GLIMS0].fold_folder)) == 1, "nothing is trained twice"
    assert all(experiment.is_done(job) for job in experiment.jobs.values())


@pytest.mark.slow
def test_a_second_run_attaches_to_the_first(experiment, stand_ins, started, runner, folders, capsys, monkeypatch):
    watch = compare._watch
    monkeypatch.setattr(compare, "_watch", lambda *given: ((folders / "go on").touch(), watch(*given))[1])
    assert main(["compare", "run", str(experiment.layout.path)]) == 0
    out = capsys.readouterr().out
    assert f", process {runner.pid} on " in out.partition("Another run of this comparison is at work (")[2]
    assert runner.wait(300) == 0
    assert len(lines(started)) == len(experiment.jobs)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP])  # Ctrl-C, and a terminal that is closed
def test_a_signal_lets_the_training_save_and_the_next_run_goes_on(
    experiment, stand_ins, started, runner, folders, number
):
    runner.stdout.close()
    runner.send_signal(number)
    assert runner.wait(300) == 130
    assert experiment.jobs[GLIMS0].folder.read().ending == "stopped"
    assert len(lines(started)) == 2, "prepared, and the training was not started again"
    (folders / "go on").touch()
    assert run_local(experiment, str) == []


@pytest.mark.slow
def test_cancel(experiment, runner, capsys):
    assert main(["compare", "cancel", str(experiment.layout.path), GLIMS0]) == 0
    assert f"cancelled 1 jobs: {GLIMS0}" in capsys.readouterr().out
    assert runner.wait(300) == 1
    assert states(experiment)[GLIMS0] == "cancelled"
    assert states(experiment)["train_D007_nnU-Net_fold0"] == "done"


RANKS = """
import os, signal, sys, time
from torch import multiprocessing

def rank(number):
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(75))
    print(f"rank {number} works", flush=True)
    time.sleep(3600)

if __name__ == "__main__":
    multiprocessing.spawn(rank, nprocs=2)
"""


LONG = 'for _ in range(2500): print("x" * 80000)'


@pytest.mark.slow
def test_on_several_gpus_the_workers_are_asked_to_save(experiment, tmp_path):
    (tmp_path / "ranks.py").write_text(RANKS)
    job = experiment.jobs["report_D007"]
    step = Step(job, "local", [[sys.executable, str(tmp_path / "ranks.py"), "-num_gpus", "2"]])
    log = job.folder.log

    def stop():
        wait_until(lambda: log.exists() and log.read_text().count(" works") == 2)
        ask_to_save(job.folder.read().child.pid)

    stopping = threading.Thread(target=stop)
    stopping.start()
    with pytest.raises(StepFailed):
        step()
    stopping.join()
    assert job.folder.read().ending == "stopped"


def test_after_200_mib_of_log_a_job_is_cancelled_all_the_same(experiment, stand_ins, capsys):
    job = experiment.jobs["report_D007"]
    code = f"import time\n{LONG}\nprint('working', flush=True)\ntime.sleep(3600)"
    step = Step(job, "local", [[sys.executable, "-c", code]])
    failures = []

    def run():
        try:
            step()
        except StepFailed as error:
            failures.append(str(error))

    running = threading.Thread(target=run)
    running.start()
    wait_until(lambda: job.folder.last_line() == "working")
    assert job.folder.log.stat().st_size > 190 * 2**20
    assert states(experiment)[job.name] == "running"
    assert main(["compare", "cancel", str(experiment.layout.path), job.name]) == 0
    assert f"cancelled 1 jobs: {job.name}" in capsys.readouterr().out
    running.join(300)
    assert not running.is_alive() and job.folder.read().ending == "cancelled"
    assert failures and "was cancelled" in failures[0]
    job.folder.log.unlink()


def test_what_a_killed_command_started_is_ended_with_it(experiment):
    worker = "import time; time.sleep(3600)"
    start = f"print(subprocess.Popen([sys.executable, '-c', {worker!r}]).pid, flush=True)"
    code = f"import os, subprocess, sys; {start}; os.abort()"
    job = experiment.jobs["report_D007"]
    with pytest.raises(StepFailed, match="was killed by SIGABRT"):
        Step(job, "local", [[sys.executable, "-c", code]])()
    started = [int(line) for line in job.folder.log.read_text().splitlines() if line.isdigit()]
    assert len(started) == 3, "one for each start"
    wait_until(lambda: not any(is_running(pid) for pid in started))
    attempts = job.folder.read().attempts
    assert [attempt.code for attempt in attempts] == [-signal.SIGABRT] * 3
    assert all(attempt.ended >= attempt.began for attempt in attempts)


def test_one_job_never_runs_in_two_processes(experiment, tmp_path):
    job = experiment.jobs["report_D007"]
    wait = f"import os, time\nprint('in', flush=True)\nwhile not os.path.exists({str(tmp_path / 'go on')!r}): time.sleep(0.02)"
    first = Step(job, "local", [[sys.executable, "-c", wait]])
    code = f"import pickle, sys; pickle.load(open({str(tmp_path / 'step.pkl')!r}, 'rb'))()"
    (tmp_path / "step.pkl").write_bytes(pickle.dumps(first))
    process = subprocess.Popen([sys.executable, "-c", code])
    wait_until(lambda: job.folder.last_line() == "in")
    with pytest.raises(
        LockHeld, match=rf"job report_D007: another process does this already .user .*, process {process.pid} on "
    ):
        first()
    (tmp_path / "go on").touch()
    assert process.wait(300) == 0
    assert job.folder.read().ending == "done"


def test_a_number_that_another_process_has_now_is_not_taken_for_the_job(experiment):
    job = experiment.jobs["report_D007"]
    Step(job, "local", [[sys.executable, "-c", ""]])()
    record = job.folder.read()
    record.ending = record.attempts[-1].code = None
    record.runner.pid = record.attempts[-1].process.pid = os.getpid()
    record.runner.started = record.attempts[-1].process.started = "1"
    job.folder.write(record)
    assert states(experiment)[job.name] == "failed", "interrupted"
    assert Local(experiment).states() == {}


def test_programs_are_found_in_an_environment_that_is_not_activated(experiment, monkeypatch):
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    job = experiment.jobs["report_D007"]
    Step(job, "local", [["nnunet-glims", "--version"]])()
    assert job.folder.last_line().startswith("nnunet-glims ")


def test_a_fold_that_nnunets_own_command_trains_is_left_alone(experiment, stand_ins, started):
    """The trainer holds a lock of its own, also when no comparison started it."""
    fold = experiment.jobs[GLIMS0].fold_folder
    told = []
    chosen = {"prepare_D007", GLIMS0}
    with lock(fold / TRAINING_LOCK, "training"):
        assert run_local(experiment, told.append, chosen=chosen) == [GLIMS0]
        line = next(line for line in told if line.startswith(f"{GLIMS0}: failed"))
        assert re.search(
            rf"another process does this already \(user .*, process {os.getpid()} on \S+, since 2\d+-", line
        )
        assert str(fold) not in lines(started)
        assert TrainingRecord.read(fold) is None, "nothing says that this comparison has trained it"
    assert run_local(experiment, str, chosen=chosen) == []


def test_the_error_of_a_trainer_is_told_without_its_class(experiment, stand_ins, monkeypatch):
    error = "case a of /data cannot be loaded: OSError: cut off"
    code = f"import sys; print('Traceback'); sys.exit('nnunet_glims.errors.ProcessingError: {error}')"
    monkeypatch.setattr(Train, "commands", lambda job: [[sys.executable, "-c", code]])
    told = []
    assert run_local(experiment, told.append, chosen={"prepare_D007", GLIMS0}) == [GLIMS0]
    assert any(f"exit code 1: {error}\n" in line for line in told)


def test_what_runs_that_failed_have_left_of_submitits_is_removed(experiment, stand_ins):
    chosen = {"prepare_D007", GLIMS0}
    stand_ins[1][GLIMS0] = 1
    assert run_local(experiment, str, chosen=chosen) == [GLIMS0]
    (experiment.layout.submitit / "77_0_log.out").touch()  # of SLURM
    assert len(list(experiment.layout.submitit.iterdir())) == 2
    stand_ins[1].clear()
    assert run_local(experiment, str, chosen=chosen) == []
    assert [path.name for path in experiment.layout.submitit.iterdir()] == ["77_0_log.out"]


def test_a_folder_that_cannot_be_written_is_named(experiment, stand_ins, capsys):
    experiment.layout.state.mkdir()
    (experiment.layout.state / "jobs").write_text("a file where the folder should be")
    assert main(["compare", "run", str(experiment.layout.path)]) == 1
    output = capsys.readouterr()
    assert str(experiment.layout.state / "jobs") in output.err + output.out


def test_logs_shows_what_a_job_printed(experiment, stand_ins, capsys):
    run_local(experiment, str, chosen={"prepare_D007", GLIMS0})
    assert main(["compare", "logs", str(experiment.layout.path), GLIMS0]) == 0
    assert "working" in capsys.readouterr().out
    assert main(["compare", "logs", str(experiment.layout.path), "train_D007_GLIMS_fold9"]) == 2
    assert "did you mean" in capsys.readouterr().err
