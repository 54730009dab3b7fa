"""The comparison file: what it may say, and what is said where it is wrong."""

import pytest

from nnunet_glims.cli import main
from nnunet_glims.errors import UsageError
from nnunet_glims.experiments.comparison import TEMPLATE, plans_name, read_comparison


def read(tmp_path, text):
    path = tmp_path / "comparison.yaml"
    path.write_text(text)
    return read_comparison(path)


def test_init_writes_a_file_that_is_valid_and_never_replaces_one(tmp_path, capsys):
    path = tmp_path / "new.yaml"
    assert main(["compare", "init", str(path)]) == 0
    assert [entry.name for entry in read_comparison(path).entries] == ["GLIMS", "LATUP-Net", "nnU-Net"]
    assert main(["compare", "init", str(path)]) == 2
    assert "is there already" in capsys.readouterr().err
    assert main(["compare", "init", str(tmp_path / "none/new.yaml")]) == 2
    assert f"{tmp_path / 'none'}: there is no such folder" in capsys.readouterr().err


def test_what_the_template_has_as_comments_is_valid_too(tmp_path):
    lines = []
    for line in TEMPLATE.splitlines():
        start, mark, rest = line.partition("# ")
        is_setting = (
            mark and not start.strip() and rest.split(":")[0].replace("_", "").strip().isalpha() and ":" in rest
        )
        is_nested = mark and not start.strip() and rest.startswith("  ")
        lines.append(start + rest if is_setting or is_nested else line)
    text = "\n".join(lines).replace("A comparison: every", "# A comparison: every")
    text = text.replace("  - name: nnU-Net\n    trainer: nnUNetTrainer\n", "")  # follows no seeds
    comparison = read(tmp_path, text)
    assert comparison.seeds == [1, 2, 3] and comparison.parallel == 2
    assert comparison.ensembles == [["GLIMS", "LATUP-Net"]]
    assert comparison.slurm.partition == "gpu" and comparison.entries[0].override == "glims_brats"


MINIMAL = "datasets: [7]\nentries:\n  - name: GLIMS\n    trainer: nnUNetTrainerGLIMS\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (MINIMAL.replace("datasets: [7]", "datasets: [7, 7]"), ":1: datasets: 7 is there twice"),
        (MINIMAL + "fold: [0]\n", ":5: fold: unknown key; did you mean 'folds'?"),
        (MINIMAL.replace("trainer:", "trainr:"), ":4: entries.0.trainr: unknown key; did you mean 'trainer'?"),
        (MINIMAL + "folds: [0, 5]\n", ":5: folds.1: "),
        (MINIMAL + "resources:\n  cpus: 4\n  hours: none\n", ":7: resources.hours: "),
        (
            MINIMAL + "    override: glims_brat\n",
            ":5: entries.0.override: entry GLIMS: plans override 'glims_brat' is unknown",
        ),
        (
            MINIMAL + "    training: {epoch: 3}\n",
            ":5: entries.0.training: entry GLIMS: training: epoch: unknown key; did you mean 'epochs'?",
        ),
        (
            MINIMAL.replace("nnUNetTrainerGLIMS", "nnUNetTrainer") + "seeds: [1]\n",
            ":5: seeds: nnUNetTrainer follows no recipe",
        ),
        (
            MINIMAL.replace("nnUNetTrainerGLIMS", "nnUNetTrainer") + "    training: {epochs: 3}\n",
            ":5: entries.0.training: nnUNetTrainer follows no recipe",
        ),
        (MINIMAL + MINIMAL.split("entries:\n")[1], ":2: entries: 'GLIMS' is there twice"),
        (MINIMAL + "ensembles: [[GLIMS, other]]\n", ":5: ensembles: there is no entry 'other'"),
        (MINIMAL + "ensembles: [[GLIMS, GLIMS]]\n", ":5: ensembles: 'GLIMS' is there twice in one ensemble"),
        (
            MINIMAL + "  - {name: B, trainer: nnUNetTrainer}\nensembles: [[GLIMS, B], [B, GLIMS]]\n",
            ":6: ensembles: the ensemble of B and GLIMS is there twice",
        ),
        (
            MINIMAL + "  - {name: glims, trainer: nnUNetTrainer}\n",
            ":5: entries.1.name: entry glims: its files would have the names of those of entry GLIMS",
        ),
        (
            MINIMAL + "  - name: other\n    trainer: nnUNetTrainerGLIMS\n",
            ":6: entries.1.trainer: entry other: it would share the model folder "
            "nnUNetTrainerGLIMS__nnUNetPlans__3d_fullres with entry GLIMS",
        ),
        (
            MINIMAL + "  - {name: GLIMS_seed1, trainer: nnUNetTrainerGLIMS, training: {epochs: 3}}\nseeds: [null, 1]\n",
            ":5: entries.1.name: entry GLIMS_seed1: its files would have the names of those of entry GLIMS with seed 1",
        ),
        (MINIMAL + "evaluation: brats2023\n", ":5: evaluation: preset 'brats2023' is unknown"),
        (MINIMAL + "folds: [0]\nfolds: [1]\n", ":6: folds: this key stands in line 5 already"),
        (MINIMAL + "published: [GLIM]\n", ":5: published: network 'GLIM' is unknown: did you mean 'GLIMS'?"),
        ("entries: [\n", "this is not YAML"),
        ("", "the file: "),
    ],
)
def test_errors_name_line_and_key(tmp_path, text, message):
    with pytest.raises(UsageError) as error:
        read(tmp_path, text)
    assert str(tmp_path / "comparison.yaml") in str(error.value)
    assert message in str(error.value)


def test_all_problems_are_listed(tmp_path):
    with pytest.raises(UsageError) as error:
        read(tmp_path, MINIMAL + "folds: [9]\ndevice: gpu\n")
    assert len(str(error.value).splitlines()) == 2


OVERRIDE = '{"description": "mine", "source": "ours", "batch_size": %d}'


def test_overrides_of_one_name_and_other_content_are_refused(tmp_path):
    for number, folder in enumerate(("a", "b"), 1):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "mine.json").write_text(OVERRIDE % number)
    second = "  - name: other\n    trainer: nnUNetTrainer\n    override: b/mine.json\n"
    with pytest.raises(UsageError) as error:
        read(tmp_path, MINIMAL + "    override: a/mine.json\n" + second)
    assert ":8: entries.1.override: entry other: its plans would be nnUNetPlans_mine" in str(error.value)


def test_one_override_serves_two_base_plans_and_two_configurations(tmp_path):
    (tmp_path / "mine.json").write_text(OVERRIDE % 1)
    override = "override: mine.json, trainer: nnUNetTrainer"
    comparison = read(
        tmp_path,
        f"datasets: [7]\nentries:\n  - {{name: A, {override}}}\n  - {{name: B, {override}, configuration: 3d_lowres}}\n"
        f"  - {{name: C, {override}, plans: nnUNetResEncUNetLPlans}}\n",
    )
    names = [plans_name(tmp_path / "comparison.yaml", entry, None) for entry in comparison.entries]
    assert names == ["nnUNetPlans_mine", "nnUNetPlans_mine", "nnUNetResEncUNetLPlans_mine"]
