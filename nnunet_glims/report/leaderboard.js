"use strict";

// Sorts the table by the column whose heading was pressed; pressed again, the other way round. What has no value comes last.
const table = document.getElementById("board");
const headings = [...table.tHead.rows[0].cells];
for (const [column, heading] of headings.entries()) {
  heading.querySelector("button").addEventListener("click", () => {
    const first = heading.dataset.first ?? "ascending";
    const other = first === "ascending" ? "descending" : "ascending";
    const direction = heading.getAttribute("aria-sort") === first ? other : first;
    headings.forEach((one) => one.removeAttribute("aria-sort"));
    heading.setAttribute("aria-sort", direction);
    const sign = direction === "ascending" ? 1 : -1;
    const key = (row) => row.cells[column].dataset.sort;
    const compare = (one, other) => {
      const [a, b] = [key(one), key(other)];
      if (a === "" || b === "") return (a === "") - (b === "");
      return sign * (column === 0 ? a.localeCompare(b) : Number(a) - Number(b));
    };
    table.tBodies[0].append(...[...table.tBodies[0].rows].sort(compare));
  });
}

// A viewer draws one slice out of pictures that hold all slices of a case. It loads them when it comes into view.
const stacks = JSON.parse(document.getElementById("stacks").textContent);

function load(source) {
  return new Promise((resolve, reject) => {
    const picture = new Image();
    picture.onload = () => resolve(picture);
    picture.onerror = () => reject(new Error("a picture of this page is damaged"));
    picture.src = source;
  });
}

function show(viewer) {
  const stack = stacks[Number(viewer.dataset.case)];
  const slider = viewer.querySelector("input[type=range]");
  const output = viewer.querySelector("output");
  const canvas = viewer.querySelector("canvas");
  const context = canvas.getContext("2d");
  const loaded = new Map();
  const picture = (source) => {
    if (!loaded.has(source)) loaded.set(source, load(source));
    return loaded.get(source);
  };
  let wanted = 0;
  const draw = async () => {
    const turn = ++wanted;
    const chosen = viewer.querySelector("input[type=radio]:checked").value;
    const slice = Number(slider.value);
    const layers = [[stack.image, 1]];
    if (chosen === "truth") layers.push([stack.truth, 0.55]);
    else if (chosen !== "nothing") layers.push([stack.entries[Number(chosen)].labels, 0.55], [stack.outline, 1]);
    const pictures = await Promise.all(layers.map(([source]) => picture(source)));
    if (turn !== wanted) return;
    const left = (slice % stack.across) * stack.width;
    const top = Math.floor(slice / stack.across) * stack.height;
    context.clearRect(0, 0, canvas.width, canvas.height);
    pictures.forEach((drawn, index) => {
      context.globalAlpha = layers[index][1];
      context.drawImage(drawn, left, top, stack.width, stack.height, 0, 0, stack.width, stack.height);
    });
    output.textContent = `slice ${stack.slices[slice]}`;
    slider.setAttribute("aria-valuetext", output.textContent);
    canvas.dataset.slice = stack.slices[slice];
    canvas.dataset.labels = chosen;
  };
  slider.addEventListener("input", draw);
  viewer.addEventListener("change", draw);
  draw();
}

const watcher = new IntersectionObserver((seen) => {
  for (const entry of seen.filter((one) => one.isIntersecting)) {
    watcher.unobserve(entry.target);
    show(entry.target);
  }
}, { rootMargin: "400px" });
document.querySelectorAll(".viewer").forEach((viewer) => watcher.observe(viewer));
