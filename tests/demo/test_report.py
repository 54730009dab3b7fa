import base64
import re
from html.parser import HTMLParser

import nibabel
import numpy as np
import pytest

from nnunet_glims.demo import report
from nnunet_glims.demo.phantom import REGIONS
from nnunet_glims.demo.report import CaseImages, DemoResults, NetworkResult, write_report
from nnunet_glims.errors import UsageError

VOID = {"meta", "link", "img", "br"}


class _Page(HTMLParser):
    """Collects what a test asks for, and fails on a tag that is closed out of turn."""

    def __init__(self, text: str):
        super().__init__()
        self.open, self.images, self.links, self.rows, self.captions = [], [], [], [], []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.links += [attrs[name] for name in ("src", "href", "srcset", "data") if name in attrs]
        if tag == "img":
            self.images.append(attrs)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th") and self.rows:
            self.rows[-1].append("")
        if tag == "figcaption":
            self.captions.append("")
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if {"td", "th"} & set(self.open):
            self.rows[-1][-1] += data
        if "figcaption" in self.open:
            self.captions[-1] += data


def _save(path, array, affine=None):
    nibabel.save(nibabel.Nifti1Image(array, np.eye(4) if affine is None else affine), path)
    return path


def _labels(shape=(20, 24, 16)):
    labels = np.zeros(shape, dtype=np.uint8)
    labels[5:15, 6:18, 4:12] = 2
    labels[7:13, 8:16, 6:10] = 3
    labels[9:11, 10:14, 7:9] = 1
    return labels


@pytest.fixture
def results(tmp_path):
    labels = _labels()
    image = (100 * (1 + labels)).astype(np.int16)
    cases, predictions = [], {}
    for name in ("head_a", "head_b"):
        channels = {channel: _save(tmp_path / f"{name}_{channel}.nii.gz", image) for channel in ("FLAIR", "T1ce")}
        cases.append(CaseImages(name, channels, _save(tmp_path / f"{name}.nii.gz", labels)))
        predictions[name] = _save(tmp_path / f"{name}_predicted.nii.gz", np.roll(labels, 1, axis=0))
    curves = {"train_losses": [0.2, -0.3], "val_losses": [0.1, -0.2], "mean_fg_dice": [0.1, 0.5]}
    dice = {
        "head_a": {"whole_tumor": 0.9, "tumor_core": 0.8, "enhancing_tumor": 0.7},
        "head_b": {"whole_tumor": 0.8, "tumor_core": float("nan"), "enhancing_tumor": None},
    }
    networks = [
        NetworkResult("GLIMS", "nnUNetTrainerGLIMS", 10_300_000, 70.24, 4.25, curves, dice, predictions),
        NetworkResult("Unfinished", "nnUNetTrainerUnfinished"),
    ]
    return DemoResults(
        "Demo of <networks>", "Two networks.", "1 core", "demo -x 2 & more", dict(REGIONS), networks, cases
    )


def test_page_is_well_formed_and_names_everything(results, tmp_path):
    path = write_report(tmp_path / "new" / "report.html", results)
    assert path == tmp_path / "new" / "report.html"
    text = path.read_text(encoding="utf-8")
    page = _Page(text)
    for network in results.networks:
        assert network.name in text and network.trainer in text
    assert len(page.images) == 1 + len(results.cases)
    for case, image in zip(results.cases, page.images[1:]):
        assert case.name in image["alt"]
        assert all(network.name in image["alt"] for network in results.networks)
    assert "<title>Demo of &lt;networks&gt;</title>" in text
    assert "demo -x 2 &amp; more" in text
    assert "Two networks." in text and "1 core" in text


def test_page_loads_nothing_from_elsewhere(results, tmp_path):
    text = write_report(tmp_path / "report.html", results).read_text(encoding="utf-8")
    assert all(link.startswith("data:") for link in _Page(text).links)
    assert not re.search(r"https?://|@import|url\(|<script", text)
    for image in _Page(text).images:
        assert image["alt"]
        assert base64.b64decode(image["src"].split(",")[1]).startswith(b"\x89PNG")


def test_table_has_means_and_a_dash_for_what_is_missing(results, tmp_path):
    page = _Page(write_report(tmp_path / "report.html", results).read_text(encoding="utf-8"))
    head, glims, unfinished = page.rows
    assert head == ["Network", "Parameters", "GMAC", "Training", "Epochs", "Dice WT", "Dice TC", "Dice ET"]
    assert glims[1:] == ["10.30 M", "70.2", "4.2 min", "2", "0.850", "0.800", "0.700"]
    assert unfinished[1:] == ["–"] * 7
    caption_b = page.captions[2]
    assert "GLIMS WT 0.800, TC –, ET –" in caption_b
    assert "Unfinished WT –, TC –, ET –" in caption_b


def test_page_without_cases_or_dice_is_written(tmp_path):
    results = DemoResults("T", "D.", "M", "C", REGIONS, [NetworkResult("A", "nnUNetTrainerA")])
    page = _Page(write_report(tmp_path / "report.html", results).read_text(encoding="utf-8"))
    assert len(page.images) == 1


def test_overlay_shows_the_slice_with_most_tumour_and_the_prediction_in_it():
    truth = np.zeros((20, 20, 10), dtype=int)
    truth[8:12, 8:12, 6] = 2
    image = np.full(truth.shape, 50.0)
    wrong = np.zeros_like(truth)
    wrong[2:5, 2:5, 6] = 3
    figure = report._overlay_figure({"a": image, "b": image}, truth, {"A": wrong, "B": None}, 1.0, REGIONS)
    plain, true, predicted, missing = (axes.images[0].get_array() for axes in figure.axes[:4])
    panels = (plain, true, predicted, missing)
    coloured = [np.argwhere(np.ptp(np.asarray(panel), axis=2) > 0) for panel in panels]
    assert [len(pixels) for pixels in coloured] == [0, 16, 9, 0]
    assert coloured[1].min() == 8 and coloured[2].min() == 2
    assert "no prediction" in [text.get_text() for text in figure.axes[3].texts]


def test_images_are_turned_to_one_orientation(tmp_path):
    labels = _labels()
    flipped = _save(tmp_path / "las.nii.gz", labels[::-1], np.diag([-1.0, 1, 1, 1]))
    assert np.array_equal(report._load(flipped, "truth")[0], labels)


def test_aspect_is_height_over_width_of_a_voxel(tmp_path):
    path = _save(tmp_path / "thick.nii.gz", _labels(), np.diag([1.0, 2.0, 5.0, 1.0]))
    assert report._load(path, "truth")[1] == 2.0


def test_missing_prediction_file_is_named_and_the_old_page_stays(results, tmp_path):
    path = write_report(tmp_path / "report.html", results)
    before = path.read_bytes()
    gone = results.networks[0].predictions["head_b"]
    gone.unlink()
    with pytest.raises(UsageError, match=f"prediction of GLIMS for case head_b is not at {gone}"):
        write_report(path, results)
    assert path.read_bytes() == before


def test_crash_while_writing_leaves_the_old_page_and_no_rest(results, tmp_path, monkeypatch):
    path = write_report(tmp_path / "report.html", results)
    before, files = path.read_bytes(), set(tmp_path.iterdir())

    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr("nnunet_glims.files.os.replace", fail)
    with pytest.raises(OSError, match="disk full"):
        write_report(path, results)
    assert path.read_bytes() == before and set(tmp_path.iterdir()) == files


def test_prediction_on_another_grid_is_refused(results, tmp_path):
    _save(results.networks[0].predictions["head_a"], np.zeros((4, 4, 4), dtype=np.uint8))
    message = r"GLIMS for case head_a has shape \(4, 4, 4\), the truth \(20, 24, 16\)"
    with pytest.raises(UsageError, match=message):
        write_report(tmp_path / "report.html", results)


def test_other_data_show_their_first_two_channels_and_their_own_labels(results, tmp_path):
    for case in results.cases:
        case.channels = {"CT": case.channels["FLAIR"], "PET": case.channels["T1ce"], "MR": case.channels["T1ce"]}
    results.regions = {"liver": (1,), "spleen": (2,)}
    text = write_report(tmp_path / "report.html", results).read_text(encoding="utf-8")
    page = _Page(text)
    assert "CT and PET of case head_a" in page.images[1]["alt"]
    assert "MR" not in page.images[1]["alt"]
    assert page.rows[0][5:] == ["Dice liver", "Dice spleen"]
    assert "label 2: spleen" in text
    assert "solid liver" in text


@pytest.mark.parametrize("names", [[], ["A", "A"]])
def test_networks_need_names_of_their_own(tmp_path, names):
    networks = [NetworkResult(name, "nnUNetTrainerA") for name in names]
    with pytest.raises(UsageError, match="each with its own name"):
        write_report(tmp_path / "report.html", DemoResults("T", "D.", "M", "C", REGIONS, networks))
