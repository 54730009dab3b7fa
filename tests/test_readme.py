"""The README's table says what the networks are, and links lead somewhere."""

import re
import shlex
from pathlib import Path

import pytest

from nnunet_glims.architectures.complexity import count_gmac, count_parameters
from nnunet_glims.cli import build_parser
from nnunet_glims.networks import BUILT_IN

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


@pytest.mark.parametrize("network", BUILT_IN, ids=lambda network: network.name)
def test_the_table_has_what_is_counted_and_what_is_published(network):
    if network.name == "SwinUNETR":
        pytest.importorskip("monai")
    channels, classes, patch = network.published_for
    built = network.load_class()(channels, classes, patch_size=patch)
    row = next(line for line in (ROOT / "README.md").read_text().splitlines() if line.startswith(f"| {network.name} |"))
    size = "×".join(map(str, patch))
    paper = f"[{network.paper}](https://arxiv.org/abs/{network.paper.removeprefix('arXiv ')})"
    cells = [
        network.name,
        f"`{network.trainer}`",
        f"{channels} → {classes}, {size}",
        f"{count_parameters(built) / 1e6:.2f} M",
        f"{count_gmac(built, channels, patch):.1f}",
        f"{network.parameters_m} M, {network.gflops:.2f} GFLOPs",
        paper,
    ]
    assert [cell.strip() for cell in row.strip("|").split("|")] == cells


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_between_pages_lead_to_files(page):
    prose = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    for target in re.findall(r"\]\((?!https?:)([^)#]+)", prose):
        assert (page.parent / target).exists(), target


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_command_shown_has_the_options_that_the_command_has(page):
    for block in re.findall(r"```bash\n(.*?)```", page.read_text(), re.DOTALL):
        for line in block.replace("\\\n", " ").splitlines():
            for command in re.findall(r"nnunet-glims ([^;$)]+(?:\$[^;)]*)?)", re.sub(r"\s#.*", "", line)):
                build_parser().parse_args(shlex.split(command))


def test_every_target_of_make_that_is_shown_is_there():
    makefile = (ROOT / "Makefile").read_text()
    targets = set(re.findall(r"^([a-z-]+):", makefile, re.MULTILINE))
    for page in PAGES:
        for block in re.findall(r"```bash\n(.*?)```", page.read_text(), re.DOTALL):
            for line in re.findall(r"^make ([a-z -]+)", block, re.MULTILINE):
                assert targets >= set(line.split()), line
    assert set(re.findall(r"^# make ([a-z-]+)", makefile, re.MULTILINE)) == targets - {"clean"}


def test_every_override_is_in_the_docs():
    from nnunet_glims.nnunet.plans.override import override_names

    text = (ROOT / "docs/plans.md").read_text()
    assert all(f"`{name}`" in text for name in override_names())


def test_every_recipe_setting_is_in_the_docs():
    from nnunet_glims.training.recipes import Recipe

    text = (ROOT / "docs/recipes.md").read_text()
    assert [name for name in Recipe.model_fields if f"`{name}`" not in text] == []


def test_every_page_is_in_the_navigation_and_linked_from_the_readme():
    navigation, readme = (ROOT / "mkdocs.yml").read_text(), (ROOT / "README.md").read_text()
    for page in (ROOT / "docs").rglob("*.md"):
        name = page.relative_to(ROOT / "docs").as_posix()
        assert f": {name}\n" in navigation, name
        assert "/" in name or f"docs/{name}" in readme, name
