"use strict";
const find = (id) => document.getElementById(id);
const data = JSON.parse(find("data").textContent);
const controls = find("controls");
const entries = [...document.querySelectorAll("#legend button")];
const DASHES = { validation: [], train: [2, 3], test: [8, 4] };
const MARKERS = ["circle", "square", "triangle", "diamond", "star", "hex"];
let plot = null;
let lit = null; // The legend's entry under the pointer.

// An exponential average that reaches over a share of the line's length.
function smoothed(xs, ys, share) {
  const reach = share * (xs.at(-1) - xs[0]);
  let sum = 0, weight = 0;
  return reach <= 0 ? ys : ys.map((y, i) => {
    const kept = i ? Math.exp((xs[i - 1] - xs[i]) / reach) : 0;
    [sum, weight] = [sum * kept + y, weight * kept + 1];
    return sum / weight;
  });
}

function draw() {
  const { metric, axis, smooth, each, logx, logy } = Object.fromEntries(new FormData(controls));
  const splits = new FormData(controls).getAll("split");
  const style = getComputedStyle(root);
  const rows = { bands: [], lines: [], ends: [] };
  entries.forEach((entry) => { entry.lastChild.value = ""; });
  for (const { group, name, kind, split, x: { [axis]: x }, y: { [metric]: y } } of data.lines) {
    const entry = entries[group];
    const hidden = entry.ariaPressed === "false" || kind === (each ? "mean" : "seed");
    if (hidden || !splits.includes(split) || !x || !y) continue;
    const visible = (value, log) => value !== null && (!log || value > 0);
    const kept = [...x.keys()].filter((i) => visible(x[i], logx) && visible(y[0][i], logy));
    if (!kept.length) continue;
    const [xs, mean, low, high] = [x, ...y].map((column) => kept.map((i) => column[i]));
    const ys = smoothed(xs, mean, Number(smooth));
    const faded = lit !== null && lit !== group;
    const look = {
      name, split, axis, width: kind === "failed" ? 1 : lit === group ? 2.8 : 1.7,
      colour: style.getPropertyValue(`--c${group % 8}`), alpha: faded ? 0.12 : kind === "failed" ? 0.7 : 1,
      dash: splits.length === 1 ? [] : DASHES[split] ?? [1, 2], marker: MARKERS[Math.floor(group / 8) % MARKERS.length],
    };
    rows.lines.push({ ...look, xs, ys });
    rows.ends.push({ ...look, x: xs.at(-1), y: ys.at(-1) });
    if (!faded) {
      const floor = logy ? Math.min(...mean) / 10 : -Infinity; // A log scale has no zero.
      const edge = [...high, ...low.map((value) => Math.max(value, floor)).reverse()];
      rows.bands.push({ ...look, alpha: 0.14, xs: [...xs, ...xs.toReversed()], ys: edge });
    }
    if (splits.length === 1 && kind !== "seed" && kind !== "failed") {
      entry.lastChild.value = Number(ys.at(-1).toPrecision(4));
    }
  }
  if (rows.lines.length > 12 && lit === null) rows.bands = []; // They would hide each other.
  for (const { name, data_source: source } of plot.renderers.filter((renderer) => renderer.name)) {
    const columns = Object.keys(source.data);
    source.data = Object.fromEntries(columns.map((column) => [column, rows[name].map((row) => row[column])]));
  }
}

function setAxes() {
  const linear = ["LinearScale", "BasicTicker", "BasicTickFormatter"];
  const log = ["LogScale", "LogTicker", "LogTickFormatter"];
  const { elements } = controls;
  for (const [side, guide, chosen] of [["x", plot.below[0], "axis"], ["y", plot.left[0], "metric"]]) {
    const names = elements[`log${side}`].checked ? log : linear;
    const [scale, ticker, formatter] = names.map((name) => new (Bokeh.Models.get(name))());
    plot[`${side}_scale`] = scale;
    guide.setv({ ticker, formatter, axis_label: elements[chosen].selectedOptions[0].text });
  }
  draw();
  plot.reset.emit();
}

if (controls) {
  const press = (buttons, on) => {
    buttons.forEach((button) => { button.ariaPressed = String(on); });
    draw();
  };
  const light = (group) => () => { lit = group; draw(); };
  entries.forEach((entry, group) => {
    entry.onclick = () => press([entry], entry.ariaPressed === "false");
    entry.onpointerenter = light(group);
    entry.onpointerleave = light(null);
  });
  find("all").onclick = () => press(entries, true);
  find("none").onclick = () => press(entries, false);
  Bokeh.set_log_level("error");
  Bokeh.embed.embed_item(data.plot, "plot").then(() => {
    plot = Bokeh.documents[0].roots()[0];
    // A finger that drags scrolls the page.
    if (matchMedia("(pointer: coarse)").matches) plot.toolbar.tools[0].active = false;
    controls.oninput = setAxes;
    setAxes();
  });
}
find("theme").onclick = () => {
  root.dataset.theme = root.dataset.theme === "dark" ? "light" : "dark";
  if (plot) draw();
};
for (const table of document.querySelectorAll("table")) {
  table.tHead.onclick = ({ target }) => {
    const head = target.closest("th");
    const down = head.ariaSort === "ascending";
    for (const other of head.parentNode.cells) other.ariaSort = null;
    head.ariaSort = down ? "descending" : "ascending";
    const key = ({ cells: { [head.cellIndex]: cell } }) => cell.dataset.key ?? cell.textContent;
    const compare = (a, b) => (Number.isNaN(a - b) ? a.localeCompare(b) : a - b) * (down ? -1 : 1);
    const sorted = [...table.tBodies[0].rows].sort((a, b) =>
      (key(a) === "") - (key(b) === "") || compare(key(a), key(b)));
    table.tBodies[0].append(...sorted);
  };
}
