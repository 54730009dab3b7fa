"""`nnunet-glims compare`: a comparison of networks, from one file to its leaderboard."""

from __future__ import annotations

import argparse

from nnunet_glims.cli.output import new_console

HELP = "train and compare networks on data sets, folds and seeds, as a file says, on this machine or on SLURM"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    for name, text in (
        ("init", "write a commented comparison file"),
        ("plan", "show the jobs, and what they need"),
        ("run", "do all that is not done"),
        ("status", "what the jobs are doing"),
        ("logs", "show what a job prints"),
        ("cancel", "stop jobs; trainings save what they have"),
        ("retry", "do again what failed"),
        ("report", "the leaderboard of what is done"),
    ):
        action = actions.add_parser(name, help=text, description=text)
        action.add_argument("file", help="the comparison, a .yaml file")
        if name in ("run", "status", "cancel", "retry"):
            action.add_argument(
                "--executor", choices=("local", "slurm"), default="local", help="where the jobs run (local)"
            )
        if name in ("run", "retry"):
            action.add_argument(
                "--parallel", type=int, help="jobs at once on this machine (default: one a GPU, or one)"
            )
        if name == "run":
            action.add_argument(
                "--again", nargs="+", default=[], metavar="JOB", help="make these again; old trainings are moved aside"
            )
            action.add_argument(
                "--adopt",
                action="store_true",
                help="take results that do not say what they were made from, or whose files were only written again",
            )
        if name == "plan":
            action.add_argument("--timing", action="store_true", help="time some steps of each entry, for hours")
        if name == "status":
            action.add_argument(
                "--watch", action="store_true", help="until nothing runs or waits in the queue any more"
            )
            action.add_argument("--all", action="store_true", help="every job, not only those that run or failed")
        if name == "logs":
            action.add_argument("job", help="name of the job, as status shows it")
        if name in ("cancel", "retry"):
            action.add_argument("jobs", nargs="*", help="names of jobs (default: all that it can be done to)")


def run(options: argparse.Namespace) -> int:
    from pathlib import Path

    console = new_console(soft_wrap=True)
    path = Path(options.file)
    if options.action == "init":
        from nnunet_glims.experiments.comparison import write_template

        write_template(path)
        console.print(f"Wrote {path}. Edit it, then: nnunet-glims compare plan {path}")
        return 0

    from nnunet_glims.experiments.experiment import Experiment
    from nnunet_glims.processes import check_process_control

    if options.action in ("run", "retry", "cancel"):
        check_process_control(f"compare {options.action}")
    experiment = Experiment(path)
    return {
        "plan": _plan,
        "run": _run,
        "status": _status,
        "logs": _logs,
        "cancel": _cancel,
        "retry": _retry,
        "report": _report,
    }[options.action](experiment, options, console)


def _executor(experiment, options):
    """Return the executor that the user named."""
    if getattr(options, "executor", "local") == "slurm":
        from nnunet_glims.experiments.executors.slurm import Slurm

        return Slurm(experiment)
    from nnunet_glims.experiments.executors.local import Local

    return Local(experiment, getattr(options, "parallel", None))


def _plan(experiment, options, console) -> int:
    from rich.table import Table

    from nnunet_glims.experiments.estimate import estimate
    from nnunet_glims.experiments.experiment import KINDS
    from nnunet_glims.experiments.requirements import check_data

    layout = experiment.layout
    check_data(layout)
    for dataset in layout.dataset_names.values():
        console.print(dataset)
    table = Table("jobs", "all", "done")
    for kind in KINDS:
        jobs = [job for job in experiment.jobs.values() if job.kind == kind]
        if jobs:
            table.add_row(kind, str(len(jobs)), str(sum(experiment.is_done(job) for job in jobs)))
    console.print(table)
    for line in estimate(layout, options.timing):
        console.print(line)
    console.print(f"State, logs and report: {layout.state}")
    return 0


def _run(experiment, options, console, chosen=None) -> int:
    from contextlib import ExitStack

    from nnunet_glims.errors import UsageError
    from nnunet_glims.experiments.requirements import check_data, check_machine
    from nnunet_glims.files import remove_leftovers_below
    from nnunet_glims.locks import LockHeld, lock

    if options.parallel is not None and options.parallel < 1:
        raise UsageError(f"--parallel {options.parallel}: at least one job at a time is needed")
    check_machine(experiment.layout, options.executor)
    check_data(experiment.layout)
    jobs = [job for job in experiment.jobs.values() if chosen is None or job.name in chosen]
    executor = _executor(experiment, options)
    again, adopt = getattr(options, "again", []), getattr(options, "adopt", False)
    with ExitStack() as held:
        try:
            held.enter_context(lock(experiment.layout.lock, f"running {experiment.layout.path}"))
        except LockHeld as other:
            if again or adopt:
                raise
            console.print(
                f"Another run of this comparison is at work ({other.holder}). Here is what it does; Ctrl-C leaves it alone."
            )
            return _watch(experiment, options, console)
        remove_leftovers_below(experiment.layout.state)
        experiment.settle(jobs, again, adopt, console.print)
        failed = executor.submit(jobs, console.print)
    if executor.waits:
        _print_reports(experiment, console)
    if failed:
        console.print(f"{len(failed)} jobs failed: {', '.join(failed[:10])}")
    return 1 if failed else 0


def _print_reports(experiment, console) -> None:
    for job in experiment.reports:
        if job.page.exists():
            console.print(f"Report: {job.page}")


def _statuses(experiment, options):
    from nnunet_glims.experiments.status import status_of

    return status_of(_executor(experiment, options))


def _table(statuses, every: bool, most: int = 40):
    from rich.console import Group
    from rich.table import Table

    from nnunet_glims.experiments.status import count

    shown = [
        status for status in statuses if every or status.state in ("running", "failed", "refused") or status.detail
    ]
    table = Table("job", "state", "")
    for status in shown if every else shown[:most]:
        table.add_row(status.job.name, status.state, status.detail)
    more = [f"and {len(shown) - most} more that run or failed"] if not every and len(shown) > most else []
    return Group(count(statuses), *([table] if shown else []), *more)


def _status(experiment, options, console) -> int:
    if options.watch:
        return _watch(experiment, options, console)
    console.print(_table(_statuses(experiment, options), options.all))
    _print_reports(experiment, console)
    return 0


def _watch(experiment, options, console) -> int:
    import time

    from rich.live import Live

    from nnunet_glims.locks import holder_of

    every = getattr(options, "all", False)
    statuses = _statuses(experiment, options)
    with Live(_table(statuses, every), console=console, refresh_per_second=1) as live:
        while holder_of(experiment.layout.lock) or any(status.state in ("running", "queued") for status in statuses):
            time.sleep(2)
            statuses = _statuses(experiment, options)
            live.update(_table(statuses, every))
    _print_reports(experiment, console)
    return 0


def _logs(experiment, options, console) -> int:
    import sys

    from nnunet_glims.experiments.executors.slurm import Slurm

    job = experiment.job_named(options.job)
    log = Slurm(experiment).output(job)
    if log is None:
        console.print(f"{job.name} was not started yet")
        return 0
    with log.open(encoding="utf-8", errors="replace") as lines:
        sys.stdout.writelines(lines)
    return 0


def _chosen(experiment, options, states, console):
    """Named jobs, or all in some states."""
    found = [status.job for status in _statuses(experiment, options) if status.state in states]
    if not options.jobs:
        return found
    named = [experiment.job_named(name) for name in options.jobs]
    for job in named:
        if job not in found:
            console.print(f"{job.name}: is not {' or '.join(states)}, and is left alone")
    return [job for job in named if job in found]


def _cancel(experiment, options, console) -> int:
    jobs = _chosen(experiment, options, ("running", "queued"), console)
    _executor(experiment, options).cancel(jobs, console.print)
    console.print(f"cancelled {len(jobs)} jobs" + (f": {', '.join(job.name for job in jobs[:10])}" if jobs else ""))
    return 0


def _retry(experiment, options, console) -> int:
    jobs = {job.name for job in _chosen(experiment, options, ("failed", "cancelled"), console)}
    if not jobs:
        console.print("nothing failed")
        return 0
    for job in experiment.jobs.values():  # and what needs them
        if jobs & set(job.needs):
            jobs.add(job.name)
    return _run(experiment, options, console, jobs)


def _report(experiment, options, console) -> int:
    from nnunet_glims.experiments.interim_report import report

    for page in report(experiment, console.print):
        console.print(f"Report: {page}")
    return 0
