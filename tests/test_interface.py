"""The Python interface: the names of the package, imported when they are used, and the examples of its page."""

import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

import nnunet_glims
from nnunet_glims.evaluation.voxels import VoxelCounts

PAGE = Path(__file__).parent.with_name("docs") / "python.md"


@pytest.mark.parametrize("name", nnunet_glims.__all__)
def test_every_public_name_is_there_with_a_docstring(name):
    assert getattr(nnunet_glims, name).__doc__
    assert name in dir(nnunet_glims)


def test_names_are_listed_for_type_checkers_and_at_run_time_alike():
    text = Path(nnunet_glims.__file__).read_text()
    block = text.partition("if TYPE_CHECKING:")[2].partition("__version__")[0]
    imported = [
        part.split(" as ")[-1] for line in block.split("import ")[1:] for part in line.split("\n")[0].split(", ")
    ]
    assert sorted(imported) == sorted(nnunet_glims.__all__) == sorted(nnunet_glims._PLACES)


def test_unknown_names_are_attribute_errors():
    with pytest.raises(AttributeError, match="has no attribute 'GLIMSS'"):
        nnunet_glims.GLIMSS  # noqa: B018


def test_importing_and_listing_the_package_imports_nothing_else():
    program = "import sys; before = set(sys.modules); import nnunet_glims; dir(nnunet_glims); print(set(sys.modules) - before)"
    result = subprocess.run(
        [sys.executable, "-S", "-c", program], cwd=PAGE.parent.parent, capture_output=True, text=True
    )
    assert result.stdout.strip() == "{'nnunet_glims'}", result.stderr


def test_the_examples_of_the_page_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for variable in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        monkeypatch.delenv(variable, raising=False)
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert len(blocks) == 5
    exec(compile("\n".join(blocks), str(PAGE), "exec"), {"__name__": "page"})


def test_the_example_of_a_metric_counts_voxels():
    page = {"__name__": "page"}
    (block,) = re.findall(r"```python\n(.*?)```", PAGE.with_name("contributing.md").read_text(), re.DOTALL)
    exec(compile(block, "contributing.md", "exec"), page)
    masks = SimpleNamespace(voxels=VoxelCounts(tp=5, fp=3, fn=0, tn=9), voxel_ml=0.5)
    metric = page["FalsePositiveVolume"]()
    assert metric.value_if_empty(masks.voxels, 100.0) is None
    assert metric.compute(masks) == 1.5 and metric.higher_is_better is False
