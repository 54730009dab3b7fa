"""The leaderboard's page in a real browser: it is sorted, looked through, and says nothing in the console."""

import json
import re
import shutil
import subprocess
from html import escape, unescape

import pytest

from tests.report.test_leaderboard import board  # noqa: F401  the page to open

PROBE = """
<script>
const errors = [];
window.addEventListener("error", (event) => errors.push(event.message));
window.addEventListener("unhandledrejection", (event) => errors.push(String(event.reason)));
const rows = () => [...document.querySelectorAll("#board tbody tr")].map((row) => row.cells[0].textContent.trim());
const press = (column) => document.querySelectorAll("#board thead button")[column].click();
const until = async (reached) => {
  for (let turn = 0; turn < 2500 && !reached(); turn++) await new Promise((resolve) => setTimeout(resolve, 20));
};
const pixels = (canvas) => canvas.toDataURL();
(async () => {
  const seen = { start: rows() };
  press(0); seen.byName = rows();
  press(0); seen.byNameDown = rows();
  press(3); seen.byDistance = rows();
  press(1); seen.byDice = rows();
  seen.sorted = document.querySelectorAll("#board thead th")[1].getAttribute("aria-sort");
  const viewer = document.querySelector(".viewer");
  viewer.scrollIntoView();
  const canvas = viewer.querySelector("canvas");
  const slider = viewer.querySelector("input[type=range]");
  await until(() => canvas.dataset.slice);
  seen.truth = { ...canvas.dataset, pixels: pixels(canvas) };
  viewer.querySelector("input[type=radio][value='0']").click();
  await until(() => canvas.dataset.labels === "0");
  seen.poor = { ...canvas.dataset, pixels: pixels(canvas) };
  slider.value = 2;
  slider.dispatchEvent(new Event("input", { bubbles: true }));
  await until(() => canvas.dataset.slice === "5");
  seen.moved = { ...canvas.dataset, pixels: pixels(canvas), text: slider.getAttribute("aria-valuetext") };
  seen.width = window.innerWidth;
  seen.wide = document.documentElement.scrollWidth - window.innerWidth;
  seen.errors = errors;
  window.parent.document.getElementById("seen").textContent = JSON.stringify(seen);
})();
</script>
</body>"""


def browser():
    found = next(
        (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
    )
    if found is None:
        pytest.skip("no Chromium here (Debian: apt install chromium)")
    return found


@pytest.mark.browser
@pytest.mark.parametrize("width", [1280, 390])
def test_sorting_and_slices(board, tmp_path, width):  # noqa: F811
    # In a frame, since a window of the browser is never as narrow as a phone.
    content = escape((board / "leaderboard.html").read_text().replace("</body>", PROBE))
    page = tmp_path / "page.html"
    page.write_text(
        f'<pre id="seen"></pre><iframe style="width: {width}px; height: 800px" srcdoc="{content}"></iframe>'
    )
    command = [
        browser(), "--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking",
        "--disable-component-update", "--no-first-run", f"--user-data-dir={tmp_path / 'profile'}", "--enable-logging=stderr",
        "--window-size=1400,900", "--virtual-time-budget=60000", "--dump-dom", page.as_uri(),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    match = re.search('<pre id="seen">({.*?})</pre>', done.stdout)
    assert match, done.stderr[-3000:]
    seen = json.loads(unescape(match[1]))
    assert seen["width"] == width
    assert seen["start"] == ["good", "fair", "poor"]
    assert seen["byName"] == ["fair", "good", "poor"]
    assert seen["byNameDown"] == ["poor", "good", "fair"]
    assert seen["byDistance"] == ["good", "fair", "poor"] and seen["sorted"] == "descending"
    assert seen["byDice"] == ["good", "fair", "poor"], "the best first"
    assert seen["truth"]["labels"] == "truth" and seen["poor"]["labels"] == "0"
    assert seen["truth"]["slice"] == seen["poor"]["slice"] == "3"
    assert seen["moved"]["slice"] == "5" and seen["moved"]["text"] == "slice 5"
    assert len({seen[name]["pixels"] for name in ("truth", "poor", "moved")}) == 3
    assert seen["wide"] <= 0, "the page is wider than the window"
    assert seen["errors"] == []
    assert [line for line in done.stderr.splitlines() if "CONSOLE" in line] == []
