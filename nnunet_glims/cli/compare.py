"""`nnunet-glims compare`: a comparison of networks, from one file to its leaderboard."""

from __future__ import annotations

import argparse

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

    from rich.console import Console

    from nnunet_glims.errors import UsageError

    console = Console(highlight=False, markup=False, soft_wrap=True)
    path = Path(options.file)
    if options.action == "init":
        from nnunet_glims.experiments.comparison import TEMPLATE
        from nnunet_glims.files import write_text

        if path.exists():
            raise UsageError(f"{path}: this file is there already")
        write_text(path, TEMPLATE)
        console.print(f"Wrote {path}. Edit it, then: nnunet-glims compare plan {path}")
        return 0

    from nnunet_glims.experiments.jobs import Plan
    from nnunet_glims.processes import check_process_groups

    if options.action in ("run", "retry", "cancel"):
        check_process_groups(f"compare {options.action}")
    plan = Plan(path)
    return {
        "plan": _plan,
        "run": _run,
        "status": _status,
        "logs": _logs,
        "cancel": _cancel,
        "retry": _retry,
        "report": _report,
    }[options.action](plan, options, console)


def _plan(plan, options, console) -> int:
    from rich.table import Table

    from nnunet_glims.experiments.estimate import estimate
    from nnunet_glims.experiments.jobs import KINDS

    for dataset in plan.dataset_names.values():
        console.print(dataset)
    table = Table("jobs", "all", "done")
    for kind in KINDS:
        jobs = [job for job in plan.jobs.values() if job.kind == kind]
        if jobs:
            table.add_row(kind, str(len(jobs)), str(sum(plan.is_done(job) for job in jobs)))
    console.print(table)
    for line in estimate(plan, options.timing):
        console.print(line)
    console.print(f"State, logs and report: {plan.state}")
    return 0


def _run(plan, options, console, chosen=None) -> int:
    from nnunet_glims.errors import UsageError
    from nnunet_glims.experiments.lock import Busy, locked

    if getattr(options, "parallel", None) is not None and options.parallel < 1:
        raise UsageError(f"--parallel {options.parallel}: at least one job at a time is needed")
    try:
        with locked(plan.state):
            if options.executor == "slurm":
                from nnunet_glims.experiments import slurm

                slurm.submit(plan, console.print, chosen)
                console.print(f"See: nnunet-glims compare status {plan.path} --executor slurm")
                return 0
            from nnunet_glims.experiments.local import run_local

            failed = run_local(plan, console.print, chosen, options.parallel)
    except Busy as busy:
        console.print(f"{busy}. Here is what it does; Ctrl-C leaves it alone.")
        return _watch(plan, options, console)
    _tell_reports(plan, console)
    if failed:
        console.print(f"{len(failed)} jobs failed: {', '.join(failed[:10])}")
    return 1 if failed else 0


def _tell_reports(plan, console) -> None:
    for number in plan.comparison.datasets:
        page = plan.report(number) / "leaderboard.html"
        if page.exists():
            console.print(f"Report: {page}")


def _statuses(plan, options):
    from nnunet_glims.experiments.status import status_of

    if options.executor == "slurm":
        from nnunet_glims.experiments import slurm

        queued = slurm.in_queue(plan)
        return status_of(plan, queued, slurm.lost(plan, queued))
    return status_of(plan)


def _table(statuses, every: bool, most: int = 40):
    from rich.console import Group
    from rich.table import Table

    from nnunet_glims.experiments.status import count

    told = [status for status in statuses if every or status.state in ("running", "failed") or status.detail]
    table = Table("job", "state", "")
    for status in told if every else told[:most]:
        table.add_row(status.job.name, status.state, status.detail)
    more = [f"and {len(told) - most} more that run or failed"] if not every and len(told) > most else []
    return Group(count(statuses), *([table] if told else []), *more)


def _status(plan, options, console) -> int:
    if options.watch:
        return _watch(plan, options, console)
    console.print(_table(_statuses(plan, options), options.all))
    _tell_reports(plan, console)
    return 0


def _watch(plan, options, console) -> int:
    import time

    from rich.live import Live

    from nnunet_glims.experiments.lock import is_at_work

    every = getattr(options, "all", False)
    statuses = _statuses(plan, options)
    with Live(_table(statuses, every), console=console, refresh_per_second=1) as live:
        while is_at_work(plan.state) or any(status.state in ("running", "queued") for status in statuses):
            time.sleep(2)
            statuses = _statuses(plan, options)
            live.update(_table(statuses, every))
    _tell_reports(plan, console)
    return 0


def _logs(plan, options, console) -> int:
    from nnunet_glims.experiments import slurm

    job = plan.job_named(options.job)
    log = plan.log(job)
    if not log.exists():
        log = slurm.output(plan, job)
    if log is None:
        console.print(f"{job.name} was not started yet")
        return 0
    print(log.read_text(errors="replace"), end="")
    return 0


def _chosen(plan, options, states):
    """Named jobs, or all in some states."""
    found = [status.job for status in _statuses(plan, options) if status.state in states]
    if not options.jobs:
        return found
    named = [plan.job_named(name) for name in options.jobs]
    return [job for job in named if job in found]


def _cancel(plan, options, console) -> int:
    jobs = _chosen(plan, options, ("running", "queued"))
    if options.executor == "slurm":
        from nnunet_glims.experiments import slurm

        slurm.cancel(plan, jobs)
    else:
        from nnunet_glims.experiments.local import stop

        for job in jobs:
            plan.mark_cancelled(job)
        stop(jobs, plan)
    console.print(f"cancelled {len(jobs)} jobs" + (f": {', '.join(job.name for job in jobs[:10])}" if jobs else ""))
    return 0


def _retry(plan, options, console) -> int:
    jobs = {job.name for job in _chosen(plan, options, ("failed",))}
    if not jobs:
        console.print("nothing failed")
        return 0
    for job in plan.jobs.values():  # and what needs them
        if jobs & set(job.needs):
            jobs.add(job.name)
    return _run(plan, options, console, jobs)


def _report(plan, options, console) -> int:
    from nnunet_glims.experiments.partial import report

    for page in report(plan, console.print):
        console.print(f"Report: {page}")
    return 0
