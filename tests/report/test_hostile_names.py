"""Names that would be commands: in pages, in Markdown, LaTeX and CSV, and damaged or hostile files of an evaluation."""

import csv
import json
import re
from html.parser import HTMLParser
from importlib.resources import files

import numpy as np
import pytest
import SimpleITK as sitk
from jinja2 import Environment

from nnunet_glims.cli import main
from nnunet_glims.evaluation.protocol import Protocol
from nnunet_glims.evaluation.results import Settings
from nnunet_glims.report import escaping

CASES = (
    "javascript:alert(1)",
    "=1+1",
    "<img src=x onerror=alert(1)>",
    "@cmd",
    "[click](javascript:alert(1))",
    "case_5",
)
ENTRY = "=[<b>50%</b>](javascript:x) & B_1 #{x} ~^\\ |*"


def write_evaluation(folder, cases=CASES, region="<script>alert(1)</script>", confusion=(1, 0, 0, 1)):
    """Write an evaluation as a stranger may have made it, with all values of its metrics equal."""
    folder.mkdir(parents=True, exist_ok=True)
    values = dict.fromkeys((metric.name for metric in Protocol().metrics), 0.5)
    lines = [
        {
            "key": case,
            "case": case,
            "fold": None,
            "truth": "/nowhere/truth.nii.gz",
            "prediction": "/nowhere/prediction.nii.gz",
            "regions": {region: values},
            "confusion": np.reshape(confusion, (2, 2)).tolist(),
        }
        for case in cases
    ]
    summary = {**Settings({region: (1,)}, Protocol()).as_json(), "nnunet_glims": "0.2.0", "cases": len(lines)}
    (folder / "cases.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "summary.json").write_text(json.dumps({**summary, "statistics": {}}))
    return folder


class Page(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.tags, self.links, self.handlers = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.links += [value for name, value in attrs if name in ("href", "src")]
        self.handlers += [name for name, _ in attrs if name.startswith("on")]


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hostile")
    entries = [f"{ENTRY.replace('=', '', 1)}={write_evaluation(folder / 'a')}", f"b={write_evaluation(folder / 'b')}"]
    note = "<script>alert(2)</script> [x](javascript:y)"
    arguments = [*entries, "-o", str(folder / "out"), "--title", "<i>\\input{/etc/passwd}</i>", "--note", note]
    assert main(["leaderboard", *arguments]) == 0
    return folder / "out"


def test_no_name_is_html(written):
    page = Page((written / "leaderboard.html").read_text())
    assert page.tags.count("script") == 2 and "b" not in page.tags and "i" not in page.tags and page.handlers == []
    assert all(link.startswith(("data:", "https://")) for link in page.links)


def test_no_name_is_markdown(written):
    text = (written / "leaderboard.md").read_text()
    assert not re.search(r"<(?!/?br)", text)
    assert not re.search(r"(?<!\\)\[[^]]*\]\(", text), "no links"


def test_no_name_is_a_command_of_latex(written):
    lines = (written / "leaderboard.tex").read_text().splitlines()
    outside = [line for line in lines if not line.startswith("%")]
    commands = set(re.findall(r"\\([a-zA-Z]+)", "\n".join(outside)))
    assert commands <= {
        "begin", "end", "toprule", "midrule", "bottomrule", "multicolumn", "textbf", "textbackslash", "textasciitilde",
        "textasciicircum", "textless", "textgreater", "textbar", "pm",
    }  # fmt: skip
    assert len(lines) == len([line for line in lines if line.startswith("%")]) + 5 + 2 + 2


@pytest.mark.parametrize("name", ["leaderboard.csv", "comparisons.csv"])
def test_no_text_is_a_formula(written, name):
    with (written / name).open(newline="") as file:
        for row in csv.reader(file):
            for cell in row:
                assert cell[:1] not in ("=", "@", "+", "\t") and (cell[:1] != "-" or float(cell) <= 0)


@pytest.mark.parametrize(
    ("text", "latex", "markdown"),
    [
        ("a_b", r"a\_b", "a_b"),
        ("_a_", r"\_a\_", r"\_a\_"),
        ("[2cm]*", "{[}2cm{]}{*}", r"\[2cm\]\*"),
        ("50% & $x$", r"50\% \& \$x\$", "50% &amp; $x$"),
        ("a\n\\end", r"a \textbackslash{}end", r"a \\end"),
        ("x\x1b[31m", "x�{[}31m", r"x�\[31m"),
    ],
)
def test_escaping(text, latex, markdown):
    assert (escaping.latex(text), escaping.markdown(text)) == (latex, markdown)


def test_the_tables_of_an_evaluation_have_no_formulas(tmp_path):
    labels = np.zeros((4, 6, 6), np.uint8)
    labels[1:3, 2:4, 2:4] = 1
    for folder in ("truth", "predicted"):
        (tmp_path / folder).mkdir()
        sitk.WriteImage(sitk.GetImageFromArray(labels), str(tmp_path / folder / "=HYPERLINK(1).nrrd"))
    (tmp_path / "regions.json").write_text('{"+organ": 1}')
    command = [
        "evaluate",
        str(tmp_path / "truth"),
        str(tmp_path / "predicted"),
        "--regions",
        str(tmp_path / "regions.json"),
    ]
    assert main([*command, "--workers", "1"]) == 0
    with (tmp_path / "predicted/evaluation/metrics.csv").open() as file:
        (row,) = csv.DictReader(file)
    assert (row["case"], row["region"], float(row["dice"])) == ("'=HYPERLINK(1)", "'+organ", 1)


def changed(path, change):
    lines = path.read_text().splitlines()
    content = json.loads(lines[0])
    change(content)
    path.write_text("\n".join([json.dumps(content), *lines[1:]]) + "\n")


@pytest.mark.parametrize("command", ["leaderboard", "confusion"])
@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("cases.jsonl", lambda line: line.update(case=3)),
        ("cases.jsonl", lambda line: line.update(case="\x1b[2Jx")),
        ("cases.jsonl", lambda line: line.update(fold="0")),
        ("cases.jsonl", lambda line: line.update(fold=True)),
        ("cases.jsonl", lambda line: line.update(truth=None)),
        ("cases.jsonl", lambda line: line.update(truth="\0")),
        ("cases.jsonl", lambda line: next(iter(line["regions"].values())).update(hd95=1e300)),
        ("cases.jsonl", lambda line: line.pop("prediction")),
        ("cases.jsonl", lambda line: line.update(prediction=[])),
        ("cases.jsonl", lambda line: line.update(regions={})),
        ("cases.jsonl", lambda line: line.update(regions={"other": {"dice": 1.0}})),
        ("cases.jsonl", lambda line: line.update(regions=[1])),
        ("cases.jsonl", lambda line: line["regions"].update({"<script>alert(1)</script>": {"dice": 1.0}})),
        ("cases.jsonl", lambda line: next(iter(line["regions"].values())).update(dice="0.9")),
        ("cases.jsonl", lambda line: next(iter(line["regions"].values())).update(dice=float("nan"))),
        ("cases.jsonl", lambda line: next(iter(line["regions"].values())).update(hd95=float("inf"))),
        ("cases.jsonl", lambda line: line.update(confusion=[[1, 2], [3]])),
        ("cases.jsonl", lambda line: line.update(confusion=[[1, -2], [3, 4]])),
        ("cases.jsonl", lambda line: line.update(confusion=[["1", 2], [3, 4]])),
        ("cases.jsonl", lambda line: line.update(confusion=[])),
        ("cases.jsonl", lambda line: line.update(confusion=[[2**70, 2], [3, 4]])),
        ("cases.jsonl", lambda line: line.update(case="case_5", key="other")),
        ("cases.jsonl", lambda line: line.update(stamps=[1, 2])),
        ("summary.json", lambda summary: summary.update(regions=[])),
        ("summary.json", lambda summary: summary.update(regions={})),
        ("summary.json", lambda summary: summary.update(regions={"\x1b[2J": [1]})),
        ("summary.json", lambda summary: summary.update(regions={"<script>alert(1)</script>": ["1"]})),
        ("summary.json", lambda summary: summary.update(regions={"<script>alert(1)</script>": [-1]})),
        ("summary.json", lambda summary: summary.update(protocol=None)),
        ("summary.json", lambda summary: summary.update(protocol={})),
        ("summary.json", lambda summary: summary["protocol"].update(surface="others")),
        ("summary.json", lambda summary: summary["protocol"].update(lesions=3)),
        ("summary.json", lambda summary: summary["protocol"].update(tolerance_mm="1")),
        ("summary.json", lambda summary: summary.update(cases="6")),
        ("summary.json", lambda summary: summary.update(cases=5)),
        ("summary.json", lambda summary: summary.pop("cases")),
        ("summary.json", lambda summary: summary.update(failed=3)),
        ("summary.json", lambda summary: summary.update(failed=[["a", "b"]])),
        ("summary.json", lambda summary: summary.update(statistics=3)),
        ("summary.json", lambda summary: summary.update(model=["x"])),
        ("summary.json", lambda summary: summary.update(ignored_label="x")),
        ("summary.json", lambda summary: summary.update(method_version="1")),
        ("summary.json", lambda summary: summary.update(folds=[1])),
        ("summary.json", lambda summary: summary.update(folders="x")),
        ("summary.json", lambda summary: summary.update(remarks=[3])),
    ],
)
def test_files_of_other_types_are_named(tmp_path, capsys, command, name, change):
    folder = write_evaluation(tmp_path / "a")
    changed(folder / name, change)
    assert main([command, f"a={folder}", f"b={write_evaluation(tmp_path / 'b')}", "-o", str(tmp_path / "out")]) in (
        1,
        2,
    )
    message = capsys.readouterr().err
    assert re.search(r"(cases\.jsonl|summary\.json)\b", message) and "Error" not in message
    assert "\x1b" not in message
    assert not (tmp_path / "out").exists()


NO_RESULTS = ("", "[]", "3", "null", '"x"', "{", '{"statistics": 1}', "[" * 100_000, "\x00", '{"a": 1, "a": 2}')


@pytest.mark.parametrize("content", NO_RESULTS, ids=range(len(NO_RESULTS)))
@pytest.mark.parametrize("name", ["cases.jsonl", "summary.json"])
def test_files_that_are_none_are_named(tmp_path, capsys, name, content):
    folder = write_evaluation(tmp_path / "a")
    (folder / name).write_text(content)
    assert main(["leaderboard", f"a={folder}", "-o", str(tmp_path / "out")]) in (1, 2)
    message = capsys.readouterr().err
    assert str(folder) in message and "Error" not in message and len(message) < 1500


@pytest.mark.parametrize("name", ["cases.jsonl", "summary.json"])
def test_a_folder_in_place_of_a_file(tmp_path, capsys, name):
    folder = write_evaluation(tmp_path / "a")
    (folder / name).unlink()
    (folder / name).mkdir()
    assert main(["leaderboard", f"a={folder}", "-o", str(tmp_path / "out")]) == 2
    assert "has no completed evaluation" in capsys.readouterr().err


@pytest.mark.parametrize("argument", ["a\x1b[2J={}", "a\n={}"])
def test_names_of_entries_can_be_printed(tmp_path, capsys, argument):
    folder = write_evaluation(tmp_path / "a")
    assert main(["leaderboard", argument.format(folder), "-o", str(tmp_path / "out")]) == 2
    assert "cannot be printed" in capsys.readouterr().err
    assert main(["leaderboard", f"a={folder}", "-o", str(tmp_path / "out"), "--title", "\x1b[2J"]) == 2


@pytest.mark.parametrize("path", ["x" * 300, "/proc/1/root/x", ""])
def test_paths_that_lead_nowhere_show_no_slices(tmp_path, capsys, path):
    folder = write_evaluation(tmp_path / "a")
    for name, keys in (("cases.jsonl", ("truth", "prediction")), ("summary.json", ("model",))):
        changed(folder / name, lambda content, keys=keys: content.update(dict.fromkeys(keys, path)))
    changed(folder / "summary.json", lambda summary: summary.update(folders=[path]))
    assert main(["leaderboard", f"a={folder}", "-o", str(tmp_path / "out")]) == 0
    assert "no slices are shown" in capsys.readouterr().out


def test_no_name_of_a_case_is_a_link_of_its_own():
    """Links of an explanation begin with the name of a case, in which a colon would end the name of a protocol."""
    page = (files("nnunet_glims.explanation") / "page.html").read_text(encoding="utf-8")
    links = re.findall(r'href="([^"]*)"', page)
    assert [link for link in links if "{{" in link and "urlencode" not in link] == []
    shown = Environment(autoescape=True).from_string("{{ case | urlencode }}/x").render(case=CASES[0])
    assert shown == "javascript%3Aalert%281%29/x"
