"""Files that were made to do harm: to run code, to write elsewhere, to fill memory or disk, to change a page or a terminal.

Beside every scene lies a folder `outside` that no command may change, and a file that only code from an input would write.
"""

from __future__ import annotations

import io
import json
import os
import pickle
import stat
import tarfile
import zipfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from benchmarks.reliability import runner
from benchmarks.reliability.campaign import Case, scene
from benchmarks.reliability.commands import Command, named
from benchmarks.reliability.scenes import DATASET, MODEL, environment

TITLE = "Hostile files"
MEGABYTES = 3000
"""The most memory that a command may hold on a hostile input."""


class Code:
    """Writes a file when it is unpickled."""

    def __init__(self, mark: Path):
        self.mark = str(mark)

    def __reduce__(self) -> tuple:
        return (os.mkdir, (self.mark,))


def _archive(work: Path, names: Sequence[str], kind: str) -> None:
    """Add members with hostile names to the release's archive."""
    if kind == "zip":
        with zipfile.ZipFile(work / "brats.zip", "a") as packed:
            for name in names:
                packed.writestr(name, "hostile")
    else:
        with tarfile.open(work / "brats.tar", "a") as tar:
            for name in names:
                member = tarfile.TarInfo(name)
                member.size = 7
                tar.addfile(member, io.BytesIO(b"hostile"))


def _tar_member(work: Path, kind: bytes, name: str, target: str = "") -> None:
    with tarfile.open(work / "brats.tar", "a") as tar:
        member = tarfile.TarInfo(name)
        member.type, member.linkname = kind, target
        tar.addfile(member)


def _zip_link(work: Path, name: str, target: str) -> None:
    member = zipfile.ZipInfo(name)
    member.external_attr = (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(work / "brats.zip", "a") as packed:
        packed.writestr(member, target)


def _zip_bomb(work: Path) -> None:
    with (
        zipfile.ZipFile(work / "brats.zip", "a", zipfile.ZIP_DEFLATED) as packed,
        packed.open("bomb.nii", "w", force_zip64=True) as member,
    ):
        for _ in range(400):
            member.write(bytes(10 * 2**20))


def _gzip_bomb(work: Path, file: str) -> None:
    import gzip

    header = gzip.decompress((work / file).read_bytes())[:352]
    with gzip.open(work / file, "wb", compresslevel=1) as out:
        out.write(header)
        for _ in range(60):
            out.write(bytes(64 * 2**20))


def _huge_header(work: Path, file: str) -> None:
    """A NIfTI file whose header promises 32,000³ voxels."""
    import gzip

    content = bytearray(gzip.decompress((work / file).read_bytes()))
    content[40:48] = np.array([3, 32000, 32000, 32000], np.int16).tobytes()
    (work / file).write_bytes(gzip.compress(bytes(content)))


def _yaml_bomb(work: Path, file: str) -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 12)]
    (work / file).write_text("\n".join(lines) + "\n")


def _change_json(work: Path, file: str, change: Callable[[dict], object]) -> None:
    content = json.loads((work / file).read_text())
    change(content)
    (work / file).write_text(json.dumps(content))


def _pickled(work: Path, file: str) -> None:
    import torch

    content = torch.load(work / file, weights_only=False)
    content["hostile"] = Code(work.parent / "outside/ran")
    torch.save(content, work / file)


def _bare_pickle(work: Path, file: str) -> None:
    (work / file).write_bytes(pickle.dumps({"state_dict": Code(work.parent / "outside/ran")}))


def _pickled_array(work: Path, file: str) -> None:
    array = np.empty(1, object)
    array[0] = Code(work.parent / "outside/ran")
    np.savez(work / file, probabilities=array)


def _callable_in_plans(name: str, arguments: dict, work: Path) -> None:
    def change(plans: dict) -> None:
        architecture = plans["configurations"]["3d_fullres"]["architecture"]
        architecture["network_class_name"] = name
        architecture["arch_kwargs"] = json.loads(
            json.dumps(arguments).replace("MARK", str(work.parent / "outside/ran"))
        )
        architecture["_kw_requires_import"] = []

    _change_json(work, f"{MODEL}/plans.json", change)


def _callable_as_argument(work: Path) -> None:
    def change(plans: dict) -> None:
        architecture = plans["configurations"]["3d_fullres"]["architecture"]
        architecture["arch_kwargs"]["norm_op"] = "os.system"
        architecture["arch_kwargs"]["norm_op_kwargs"] = {"command": f"touch {work.parent / 'outside/ran'}"}

    _change_json(work, f"{MODEL}/plans.json", change)


def _renamed_case(work: Path, name: str) -> None:
    """The case `case_a` gets a hostile name, before evaluation."""
    for folder in ("truth", "first", "second"):
        for ending in (".nii.gz", ".npz"):
            if (work / folder / f"case_a{ending}").exists():
                (work / folder / f"case_a{ending}").rename(work / folder / f"{name}{ending}")


def _fifo(work: Path, file: str) -> None:
    (work / file).unlink()
    os.mkfifo(work / file)


def _device(work: Path, file: str) -> None:
    (work / file).unlink()
    (work / file).symlink_to("/dev/zero")


def _loop(work: Path, file: str) -> None:
    (work / file).unlink()
    (work / file).symlink_to(Path(file).name)


TOUCHED = {"args": "touch MARK"}
INPUTS: tuple[tuple[str, str, Callable[[Path], object]], ...] = (
    # command, what, how; each is refused, or read without harm
    *(
        (f"convert .{kind}", f"{kind}: member {name!r}", partial(_archive, names=[name], kind=kind))
        for kind in ("zip", "tar")
        for name in (
            "../../outside/x.nii.gz",
            "/tmp/reliability_hostile/x",
            "a/../../../outside/y",
            "C:\\x.nii",
            "..\\..\\z",
            "\x1b[31m.nii",
        )
    ),
    (
        "convert .tar",
        "tar: link to a folder outside",
        partial(_tar_member, kind=tarfile.SYMTYPE, name="in", target="../../outside"),
    ),
    (
        "convert .tar",
        "tar: hard link to a file outside",
        partial(_tar_member, kind=tarfile.LNKTYPE, name="x.nii", target="/etc/passwd"),
    ),
    ("convert .tar", "tar: a device", partial(_tar_member, kind=tarfile.CHRTYPE, name="x.nii")),
    ("convert .tar", "tar: a pipe", partial(_tar_member, kind=tarfile.FIFOTYPE, name="x.nii")),
    ("convert .zip", "zip: link to a folder outside", partial(_zip_link, name="in", target="../../outside")),
    ("convert .zip", "zip: 4 GB of zeros", _zip_bomb),
    (
        "convert a folder",
        "image of 32,000³ voxels",
        partial(_huge_header, file="brats/BraTS2021_00000/BraTS2021_00000_t1.nii.gz"),
    ),
    ("evaluate", "image of 32,000³ voxels", partial(_huge_header, file="first/case_a.nii.gz")),
    ("evaluate", "image with 4 GB of zeros after its voxels", partial(_gzip_bomb, file="first/case_a.nii.gz")),
    ("submit", "image of 32,000³ voxels", partial(_huge_header, file="first/case_a.nii.gz")),
    ("predict-onnx", "image of 32,000³ voxels", partial(_huge_header, file="images/case_a_0000.nii.gz")),
    ("leaderboard", "YAML bomb", partial(_yaml_bomb, file="board.yaml")),
    ("compare plan", "YAML bomb", partial(_yaml_bomb, file="comparison.yaml")),
    ("evaluate", "a pipe as label map", partial(_fifo, file="truth/case_a.nii.gz")),
    ("evaluate", "/dev/zero as label map", partial(_device, file="truth/case_a.nii.gz")),
    ("evaluate", "a link to itself as label map", partial(_loop, file="truth/case_a.nii.gz")),
    ("evaluate", "a pipe as dataset.json", partial(_fifo, file="first/dataset.json")),
    ("evaluate", "/dev/zero as dataset.json", partial(_device, file="first/dataset.json")),
    ("plans apply", "/dev/zero as override", partial(_device, file="override.json")),
    ("postprocess", "/dev/zero as rules", partial(_device, file="rules.json")),
    ("convert .tar", "/dev/zero as archive", partial(_device, file="brats.tar")),
    ("explain", "code in a checkpoint", partial(_pickled, file=f"{MODEL}/fold_0/checkpoint_final.pth")),
    ("export", "code in a checkpoint", partial(_pickled, file=f"{MODEL}/fold_0/checkpoint_final.pth")),
    ("import-released", "code in a checkpoint", partial(_bare_pickle, file="model.pt")),
    ("postprocess", "code in probabilities", partial(_pickled_array, file="first/case_a.npz")),
    ("postprocess-fit", "code in probabilities", partial(_pickled_array, file=f"{MODEL}/fold_0/validation/case_a.npz")),
    *(
        (command, f"plans that call {name}", partial(_callable_in_plans, name, arguments))
        for command in ("explain", "export")
        for name, arguments in (
            ("os.system", {"command": "mkdir MARK"}),
            ("os.mkdir", {"path": "MARK"}),
            ("logging.basicConfig", {"filename": "MARK", "filemode": "w"}),
            ("subprocess.Popen", TOUCHED),
            ("torch.hub.load", {"repo_or_dir": "MARK", "model": "x", "source": "local"}),
            ("shutil.rmtree", {"path": "../outside"}),
            ("builtins.exec", {"source": "import os; os.mkdir('MARK')"}),
        )
    ),
    ("explain", "plans with a command as layer", _callable_as_argument),
    ("export", "plans with a command as layer", _callable_as_argument),
    (
        "predict-onnx",
        "model.json that names a file outside",
        lambda work: _change_json(
            work, "exported/model.json", lambda model: _first_file(model, "../../outside/kept.txt")
        ),
    ),
    (
        "predict-onnx",
        "model.json that names an absolute file",
        lambda work: _change_json(work, "exported/model.json", lambda model: _first_file(model, "/etc/passwd")),
    ),
    (
        "plans apply",
        "plans with a data identifier outside",
        lambda work: _change_json(
            work,
            f"preprocessed/{DATASET}/nnUNetPlans.json",
            lambda plans: plans["configurations"]["3d_fullres"].update(data_identifier="../../../outside"),
        ),
    ),
)
NAMES = (
    "<img src=x onerror=alert(1)>",
    "javascript:alert(1)",
    "=HYPERLINK(1)",
    "+1+1",
    "@SUM(1)",
    "\x1b[2J",
    "a|b",
    "[b](c)",
)
"""Names of cases that a page, a table or a terminal might take for something else."""


def _first_file(model: dict, name: str) -> None:
    fold = model["folds"][0]
    key = next(key for key in fold if str(fold[key]).endswith(".onnx")) if isinstance(fold, dict) else 0
    (fold if isinstance(fold, dict) else model["folds"])[key] = name


def _outside(folder: Path) -> Path:
    place = folder / "outside"
    place.mkdir()
    (place / "kept.txt").write_text("kept")
    return place


def harmless(command: Command, prepare: Callable[[Path], object], folder: Path) -> str:
    """Run a command on a hostile input: nothing outside changes, no code runs, memory stays small, the answer comes in time."""
    outside = _outside(folder)
    work = scene(command.scene, folder)
    runner.in_child(lambda: prepare(work) and 0, work)
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}
    outcome = runner.run(command.arguments, work, **environment(work))
    if sorted(outside.rglob("*")) != [outside / "kept.txt"] or (outside / "kept.txt").read_text() != "kept":
        return f"changed what lies outside: {[path.name for path in outside.rglob('*')]}"
    if Path("/tmp/reliability_hostile").exists():
        return "wrote to /tmp/reliability_hostile"
    if gone := [path for path in before if not path.exists()]:
        return f"removed {gone[0]}"
    if outcome.code is None or outcome.code < 0:
        return f"no answer in {outcome.seconds:.0f} s" if outcome.code is None else f"ended by signal {-outcome.code}"
    if outcome.megabytes > MEGABYTES:
        return f"held {outcome.megabytes:.0f} MB"
    if "\x1b[31m" in outcome.text or "\x1b[2J" in outcome.text:
        return "printed an escape sequence of the input"
    return f"unclear: {outcome.last_line[:300]}" if outcome.is_unexplained else ("" if outcome.code else "fine: read")


def named_hostilely(name: str, folder: Path) -> str:
    """A case has a hostile name: it is refused, or shown as text on the page, in tables and on the terminal."""
    work = scene("predictions", folder)
    _renamed_case(work, name)
    printed = ""
    for entry in ("first", "second"):
        outcome = runner.run(["evaluate", "truth", entry, "--workers", "1"], work, **environment(work))
        printed += outcome.text
        if outcome.is_unexplained or outcome.code is None or outcome.code < 0:
            return f"unclear: {outcome.last_line[:300]}"
    board = runner.run(["leaderboard", "A=first", "B=second", "-o", "board", "--cases", "3"], work, **environment(work))
    printed += board.text
    file = work / f"first/{name}.nii.gz"
    file.write_bytes(file.read_bytes()[:-20])
    printed += runner.run(["evaluate", "truth", "first", "--workers", "1"], work, **environment(work)).text
    if name.startswith("\x1b") and name in printed:
        return "printed an escape sequence of the input"
    if board.is_unexplained or board.code is None or board.code < 0:
        return f"unclear: {board.last_line[:300]}"
    if board.code != 0:
        return ""
    page = "".join(path.read_text() for path in (work / "board").glob("*.html"))
    if "<img src=x" in page or 'href="javascript:' in page.lower():
        return "the page has it as markup"
    for table in (*(work / "board").glob("*.csv"), work / "first/evaluation/metrics.csv"):
        if any(
            cell.strip('"')[:1] in ("=", "+", "@")
            for line in table.read_text().splitlines()
            for cell in line.split(",")
        ):
            return f"{table.name} has it as a formula"
    return "fine: shown as text"


def damaged_library(damage: Callable[[bytes], bytes], owner: int | None, folder: Path) -> str:
    """The compiled kernels in the cache are damaged, or belong to another user: a network computes all the same."""
    cache = {"XDG_CACHE_HOME": str(folder / "cache")}
    first = runner.fork(_forward, folder, cache).wait()
    found = [path for path in (folder / "cache").rglob("*") if path.is_file() and ".so" in path.name]
    if first.code != 0 or not found:
        return f"the attempt itself failed: {first.code}, {first.last_line}"
    for path in found:
        path.write_bytes(damage(path.read_bytes()))
        if owner is not None:
            os.chown(path, owner, owner)
    again = runner.fork(_forward, folder, cache).wait()
    return "" if again.code == 0 else f"ended with {again.code}: {again.last_line[:300]}"


def _forward() -> int:
    import torch

    from nnunet_glims import LATUPNet

    torch.set_num_threads(1)
    with torch.no_grad():
        found = LATUPNet(2, 2, patch_size=(16, 16, 16), features=[16, 16, 16])(torch.randn(1, 2, 16, 16, 16))
    return int(not torch.isfinite(found[0] if isinstance(found, list) else found).all())


LIBRARIES: dict[str, tuple[Callable[[bytes], bytes], int | None]] = {
    "cut": (lambda content: content[: len(content) // 2], None),
    "empty": (lambda content: b"", None),
    "zeros at the end": (lambda content: content[:4096] + bytes(len(content) - 4096), None),
    "a flipped byte": (lambda content: content[:9000] + bytes([content[9000] ^ 255]) + content[9001:], None),
    "of another user": (lambda content: b"\x7fELF" + b"hostile" * 1000, 12345),
}


def cases(seed: int) -> Sequence[Case]:
    """All hostile inputs; the seed changes nothing."""
    found = [Case(command, what, partial(harmless, named(command), prepare)) for command, what, prepare in INPUTS]
    found += [Case("names of cases", repr(name), partial(named_hostilely, name)) for name in NAMES]
    for what, (damage, owner) in LIBRARIES.items():
        found.append(Case("kernels", f"library in the cache: {what}", partial(damaged_library, damage, owner)))
    return found
