"""A campaign: cases that are tried one after another, a table, and a JSON file of what survived."""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks.reliability import runner
from benchmarks.reliability.scenes import SCENES, build

RESULTS = Path(__file__).parent / "results"
SHIM = Path(__file__).parent / "shim.c"


@dataclass(frozen=True)
class Case:
    """One attempt.

    Attributes:
        group: the row of the table that it counts in.
        name: what is done, in a few words; unique in the campaign.
        attempt: function of an empty folder. It returns an empty text if the attempt was survived, else what went wrong.
            A text that begins with "unclear" says that the outcome is right and its message is not; one that begins with
            "fine" is a remark on an attempt that was survived.
    """

    group: str
    name: str
    attempt: Callable[[Path], str]


@dataclass(frozen=True)
class Trial:
    """The result of a case, with the seconds that it took."""

    group: str
    name: str
    wrong: str
    seconds: float

    @property
    def survived(self) -> bool:
        """Whether nothing was wrong."""
        return not self.wrong or self.wrong.startswith("fine")


def _try(number: int) -> Trial:
    case = _cases[number]
    started = time.monotonic()
    folder = Path(tempfile.mkdtemp(prefix="trial", dir=os.environ["RELIABILITY_SCRATCH"]))
    os.environ["RELIABILITY_PRINTED"] = str(folder)
    work = folder / "work"
    work.mkdir()
    try:
        wrong = case.attempt(work)
    except Exception:
        wrong = f"the attempt itself failed: {traceback.format_exc(limit=-3)}"
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return Trial(case.group, case.name, _without_places(wrong, work), round(time.monotonic() - started, 2))


def _without_places(text: str, work: Path) -> str:
    """Return a text without the folders of this machine, so that results can be compared with those of another one."""
    folders = {str(work): ".", str(runner.ROOT): "ROOT", sys.prefix: "PYTHON", sys.base_prefix: "PYTHON"}
    for folder in sorted(folders, key=len, reverse=True):
        text = text.replace(folder, folders[folder])
    return text


_cases: Sequence[Case] = ()


def try_all(cases: Sequence[Case], processes: int) -> list[Trial]:
    """Try the cases in so many forked processes."""
    global _cases
    _cases = cases
    if processes == 1:
        return [_shown(_try(number)) for number in range(len(cases))]
    context = multiprocessing.get_context("fork")
    with ProcessPoolExecutor(processes, mp_context=context) as pool:
        return [_shown(trial) for trial in pool.map(_try, range(len(cases)))]


def scene(name: str, folder: Path | None = None) -> Path:
    """Return the folder of a scene, which must not be changed; or a copy of it in the folder given."""
    built = Path(os.environ["RELIABILITY_SCRATCH"], "scenes")
    if not (built / name).is_dir():
        runner.in_child(lambda: build(name, built), Path.cwd())
    if folder is None:
        return built / name
    return Path(shutil.copytree(built / name, folder / "scene"))


def leftovers(folder: Path) -> list[str]:
    """Return the files and folders below a folder that only an unfinished command may have, sorted.

    The file of a lock is none of them: it stays, because removing it would let two processes hold the lock.
    """
    kinds = re.compile(r"^\.(?!.*\.lock$)|\.(tmp|new|replaced|unfinished|part|holder)$|^tmp\w{6,}$")
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if kinds.search(path.name))


def _shown(trial: Trial) -> Trial:
    if not trial.survived:
        print(f"{trial.group}: {trial.name}: {trial.wrong}", file=sys.stderr, flush=True)
    return trial


def table(trials: Iterable[Trial]) -> str:
    """Return a table in Markdown: for each group how many were tried and survived, with remarks, and with what time."""
    groups: dict[str, list[Trial]] = {}
    for trial in trials:
        groups.setdefault(trial.group, []).append(trial)
    everything = [trial for group in groups.values() for trial in group]
    lines = ["| | tried | survived | with a remark | unclear message | slowest |", "|---|---|---|---|---|---|"]
    for name, group in [*groups.items(), ("all", everything)]:
        unclear, remarks = (sum(trial.wrong.startswith(word) for trial in group) for word in ("unclear", "fine"))
        survived = sum(trial.survived for trial in group)
        slowest = max((trial.seconds for trial in group), default=0)
        lines.append(f"| {name} | {len(group)} | {survived} | {remarks} | {unclear} | {slowest:.1f} s |")
    return "\n".join(lines)


def write(name: str, title: str, seed: int, trials: Sequence[Trial], out: Path) -> None:
    """Write the results of a campaign to NAME.json in a folder."""
    out.mkdir(parents=True, exist_ok=True)
    content = {
        "campaign": title,
        "seed": seed,
        "tried": len(trials),
        "survived": sum(trial.survived for trial in trials),
        "survived with a remark": sum(trial.survived and bool(trial.wrong) for trial in trials),
        "not survived": [asdict(trial) for trial in trials if not trial.survived],
        "groups": {
            group: [
                sum(trial.group == group for trial in trials),
                sum(trial.group == group and trial.survived for trial in trials),
            ]
            for group in dict.fromkeys(trial.group for trial in trials)
        },
    }
    (out / f"{name}.json").write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n")


def summary(out: Path, names: Sequence[str]) -> str:
    """Return a table in Markdown of the campaigns whose results lie in a folder."""
    lines = ["| campaign | tried | survived |", "|---|---|---|"]
    for name in names:
        if (out / f"{name}.json").exists():
            found = json.loads((out / f"{name}.json").read_text())
            lines.append(f"| {found['campaign']} | {found['tried']} | {found['survived']} |")
    return "\n".join(lines)


def campaign(name: str, title: str, make: Callable[[int], Sequence[Case]], options: argparse.Namespace) -> None:
    """Try the cases of one campaign, print its table and write its results."""
    started = time.monotonic()
    for scene_name in SCENES:
        scene(scene_name)
    chosen = [case for case in make(options.seed) if options.only in f"{case.group}: {case.name}"]
    trials = try_all(chosen[:: options.every], options.processes)
    print(f"\n{title} (seed {options.seed}, {time.monotonic() - started:.0f} s)\n\n{table(trials)}", flush=True)
    if not options.only and options.every == 1:
        write(name, title, options.seed, trials, options.out)


def with_faults(arguments: Sequence[str]) -> None:
    """Start this program again with the library of faults, if it is not loaded yet; end where there is no C compiler."""
    if "RELIABILITY_SCRATCH" in os.environ:
        return
    scratch = tempfile.mkdtemp(prefix="reliability")
    library = Path(scratch, "shim.so")
    try:
        subprocess.run(["cc", "-O1", "-shared", "-fPIC", str(SHIM), "-o", str(library), "-ldl"], check=True)
        environment = {**os.environ, **runner.THREADS, "LD_PRELOAD": str(library), "RELIABILITY_SCRATCH": scratch}
        command = [sys.executable, "-m", "benchmarks.reliability", *arguments]
        sys.exit(subprocess.run(command, env=environment, cwd=runner.ROOT, check=False).returncode)
    except FileNotFoundError:
        sys.exit("the campaigns need a C compiler, cc, for the library that makes disks fail")
    finally:
        subprocess.run(["umount", "--quiet", "--recursive", scratch], check=False, capture_output=True)
        shutil.rmtree(scratch, ignore_errors=True)
