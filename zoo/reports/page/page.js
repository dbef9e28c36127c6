"use strict";
// Text from records is inserted only as text, never as HTML.
const data = JSON.parse(document.getElementById("data").textContent);
const byId = (id) => document.getElementById(id);

function node(parent, tag, attributes = {}, text = null) {
  const svg = parent.namespaceURI === "http://www.w3.org/2000/svg" || tag === "svg";
  const made = svg ? document.createElementNS("http://www.w3.org/2000/svg", tag) : document.createElement(tag);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  if (text !== null) made.textContent = text;
  parent.appendChild(made);
  return made;
}

// ---- number formats

function scaled(value, units, base, unit = "") {
  let i = 0;
  while (i < units.length - 1 && Math.abs(value) >= base) { value /= base; i += 1; }
  const digits = i === 0 && Number.isInteger(value) ? 0 : value >= 100 ? 1 : 2;
  return `${value.toFixed(digits)} ${units[i]}${unit}`.trim();
}

const format = {
  text: (value) => String(value),
  number: (value) => (Number.isInteger(value) ? String(value) : value.toFixed(Math.abs(value) < 10 ? 2 : 1)),
  rate: (value) => value.toFixed(1),
  percent: (value) => value.toFixed(1),
  count: (value) => scaled(value, ["", "k", "M", "G", "T"], 1000),
  bytes: (value) => scaled(value, ["B", "KiB", "MiB", "GiB"], 1024),
  joules: (value) => (value < 1 ? `${(1000 * value).toFixed(1)} mJ` : `${value.toFixed(2)} J`),
  ms: (value) => value.toFixed(value >= 1 ? 2 : 4),
  ratio: (value) => value.toFixed(3),
};
const formatCell = (column, value) => (value === null || value === undefined ? "" : format[column.kind](value));

// ---- tables that sort and filter

class Grid {
  constructor(table, columns, rows, decorate = () => {}) {
    this.columns = columns;
    this.table = table;
    table.replaceChildren();
    this.head = node(node(table, "thead"), "tr");
    columns.forEach((column, i) => {
      const cell = node(this.head, "th", { scope: "col", class: column.kind, "aria-sort": "none", title: column.help || "" });
      node(cell, "button", { type: "button" }, column.title).addEventListener("click", () => this.sort(i));
    });
    this.body = node(table, "tbody");
    this.lines = rows.map((values, index) => {
      const line = node(this.body, "tr");
      columns.forEach((column, i) => {
        decorate(node(line, "td", { class: column.kind }, formatCell(column, values[i])), column, index);
      });
      const text = values.filter((v) => v !== null).join(" ").toLowerCase();
      return { values, line, index, text };
    });
  }

  sort(i) {
    const cells = [...this.head.children];
    const down = cells[i].getAttribute("aria-sort") === "ascending";
    cells.forEach((cell, j) => cell.setAttribute("aria-sort", j !== i ? "none" : down ? "descending" : "ascending"));
    const sign = down ? -1 : 1;
    const empty = (v) => v === null || v === undefined;
    this.lines.sort((a, b) => {
      const [x, y] = [a.values[i], b.values[i]];
      if (empty(x) || empty(y)) return empty(x) - empty(y) || a.index - b.index; // empty cells stay last
      const order = typeof x === "number" ? x - y : String(x).localeCompare(String(y), "en", { numeric: true });
      return sign * order || a.index - b.index;
    });
    this.body.append(...this.lines.map((entry) => entry.line));
  }

  filter(words) {
    let shown = 0;
    for (const entry of this.lines) {
      const fits = words.every((word) => entry.text.includes(word));
      entry.line.hidden = !fits;
      shown += fits;
    }
    return shown;
  }
}

// ---- tooltip

function hover(target, text) {
  const tip = byId("tip");
  const show = (x, y) => {
    tip.textContent = text;
    tip.hidden = false;
    const box = tip.getBoundingClientRect();
    tip.style.left = `${Math.max(4, Math.min(x + 14, innerWidth - box.width - 4))}px`;
    tip.style.top = `${y + 18 + box.height > innerHeight ? y - box.height - 10 : y + 18}px`;
  };
  target.addEventListener("mousemove", (event) => show(event.clientX, event.clientY));
  target.addEventListener("focus", () => { const box = target.getBoundingClientRect(); show(box.right, box.bottom); });
  for (const event of ["mouseleave", "blur"]) target.addEventListener(event, () => { tip.hidden = true; });
}

const columnOf = Object.fromEntries(data.columns.map((column, i) => [column.key, i]));
const cell = (row, key) => (key in columnOf ? data.rows[row][columnOf[key]] : null);

function describeRow(row) {
  const column = (key) => data.columns[columnOf[key]];
  const keys = ["p50_ms", "low_ms", "high_ms", "p90_ms", "p99_ms", "params", "macs", "peak_memory_bytes"];
  const figures = keys.filter((key) => cell(row, key) !== null).map((key) => `${column(key).title} ${formatCell(column(key), cell(row, key))}`);
  return [`${cell(row, "model")}, ${cell(row, "variant")}, ${cell(row, "image")}`, ...figures].join("\n");
}

// ---- accuracy and latency

const W = 1000, H = 460, LEFT = 60, RIGHT = 20, TOP = 15, BOTTOM = 45;

function logTicks(low, high) {
  const within = (parts) => {
    const all = [];
    for (let e = Math.floor(Math.log10(low)); e <= Math.ceil(Math.log10(high)); e += 1) {
      for (const m of parts) all.push(m * 10 ** e);
    }
    return all.filter((tick) => tick >= low && tick <= high);
  };
  const few = within([1, 2, 5]);
  return few.length > 3 ? few : within([1, 1.5, 2, 3, 4, 5, 6, 7, 8, 9]);
}

function steps(low, high) {
  const step = [0.1, 0.2, 0.5, 1, 2, 5, 10, 20].find((size) => (high - low) / size <= 8) || 50;
  const all = [];
  for (let i = Math.ceil(low / step); i * step <= high; i += 1) all.push(i * step);
  return all;
}

function drawPlot(points) {
  const host = byId("points");
  host.replaceChildren();
  if (!points) return;
  const ms = points.map((p) => cell(p.row, "p50_ms"));
  const tops = points.map((p) => p.top1);
  const [low, high] = [Math.min(...ms) / 1.25, Math.max(...ms) * 1.4];
  const [bottom, top] = [Math.min(...tops) - 0.7, Math.max(...tops) + 0.7];
  const x = (value) => LEFT + (Math.log(value / low) / Math.log(high / low)) * (W - LEFT - RIGHT);
  const y = (value) => H - BOTTOM - ((value - bottom) / (top - bottom)) * (H - TOP - BOTTOM);
  const svg = node(host, "svg", { viewBox: `0 0 ${W} ${H}`, role: "group", "aria-label": "top-1 accuracy against latency" });
  for (const tick of logTicks(low, high)) {
    node(svg, "line", { x1: x(tick), x2: x(tick), y1: TOP, y2: H - BOTTOM, class: "grid" });
    node(svg, "text", { x: x(tick), y: H - BOTTOM + 18, "text-anchor": "middle" }, String(Number(tick.toPrecision(2))));
  }
  for (const tick of steps(bottom, top)) {
    node(svg, "line", { x1: LEFT, x2: W - RIGHT, y1: y(tick), y2: y(tick), class: "grid" });
    node(svg, "text", { x: LEFT - 8, y: y(tick) + 4, "text-anchor": "end" }, String(Number(tick.toFixed(1))));
  }
  node(svg, "text", { x: (LEFT + W - RIGHT) / 2, y: H - 6, "text-anchor": "middle" }, "median latency in ms (logarithmic)");
  node(svg, "text", { transform: `translate(14 ${(H - BOTTOM) / 2}) rotate(-90)`, "text-anchor": "middle" }, "published top-1 accuracy on ImageNet-1k in %");
  const front = points.filter((p) => p.front).sort((a, b) => cell(a.row, "p50_ms") - cell(b.row, "p50_ms"));
  const path = front.map((p, i) => (i ? `H${x(cell(p.row, "p50_ms"))}V${y(p.top1)}` : `M${x(cell(p.row, "p50_ms"))} ${y(p.top1)}`));
  if (front.length) node(svg, "path", { d: path.join(""), class: "front-line" });
  const marks = points.slice().sort((a, b) => a.front - b.front).map((p) => mark(svg, p, x(cell(p.row, "p50_ms")), y(p.top1)));
  label(svg, front, x, y);
  fade(marks);
  return marks;
}

function mark(svg, p, x, y) {
  const kind = `point${p.front ? " front" : ""}${p.at_size ? "" : " hollow"}`;
  const fused = cell(p.row, "variant") === "fused";
  const shape = fused ? { cx: x, cy: y, r: 6 } : { x: x - 5, y: y - 5, width: 10, height: 10 };
  const text = describeRow(p.row).split("\n");
  text.splice(1, 0, `top-1 ${p.top1} (${p.source})`);
  if (!p.at_size) text.push("latency measured at a different image size than the accuracy");
  if (p.front) text.push("on the Pareto front");
  const made = node(svg, fused ? "circle" : "rect", { ...shape, class: kind, tabindex: 0, role: "img", "aria-label": text.join(", "), "data-model": cell(p.row, "model") });
  hover(made, text.join("\n"));
  made.addEventListener("click", () => chooseLayers(cell(p.row, "model")));
  return { made, row: p.row };
}

// Each name is placed left or right of its point; a name that would overlap others is left out.
function label(svg, front, x, y) {
  const taken = [];
  for (const p of front) {
    const [cx, cy] = [x(cell(p.row, "p50_ms")), y(p.top1)];
    const candidates = [[cx - 9, cy - 7, "end"], [cx + 9, cy - 7, "start"], [cx + 9, cy + 17, "start"], [cx - 9, cy + 17, "end"]];
    const text = node(svg, "text", {}, cell(p.row, "model"));
    const fits = candidates.some(([left, top, anchor]) => {
      text.setAttribute("x", left);
      text.setAttribute("y", top);
      text.setAttribute("text-anchor", anchor);
      const box = text.getBBox();
      const overlaps = (b) => box.x < b.x + b.width && b.x < box.x + box.width && box.y < b.y + b.height && b.y < box.y + box.height;
      if (box.x < LEFT || box.x + box.width > W - RIGHT || box.y < 0 || taken.some(overlaps)) return false;
      taken.push(box);
      return true;
    });
    if (!fits) text.remove();
  }
}

let marks = [];
let words = [];

function fade(drawn) {
  for (const { made, row } of drawn) {
    const text = main.lines.find((entry) => entry.index === row).text;
    made.classList.toggle("faded", !words.every((word) => text.includes(word)));
  }
}

function setUpPlot() {
  const names = Object.keys(data.points);
  for (const name of names) node(byId("setting"), "option", { value: name }, name);
  const draw = () => {
    const points = data.points[byId("setting").value];
    marks = drawPlot(points) || [];
    const missing = data.rows.length - Object.values(data.points).reduce((sum, list) => sum + list.length, 0);
    const parts = ["Circles are fused models, squares unfused models. The line connects the models on the Pareto front."];
    if (points && points.some((p) => !p.at_size)) parts.push("Hollow points were measured at a different image size than the published accuracy and are not on the front.");
    if (missing) parts.push(`${missing} of ${data.rows.length} measurements have no published top-1 accuracy on ImageNet-1k and are not shown.`);
    byId("plot-notes").textContent = parts.join(" ");
  };
  byId("setting").addEventListener("change", draw);
  if (names.length === 0) byId("setting").parentElement.hidden = true;
  draw();
  if (names.length === 0) byId("plot-notes").textContent = "None of these models has a published top-1 accuracy on ImageNet-1k.";
}

// ---- layers

function chooseLayers(model) {
  const index = data.layers.findIndex((entry) => cell(entry.row, "model") === model);
  if (index < 0) return;
  byId("model").value = String(index);
  drawLayers();
  byId("layers").scrollIntoView();
}

// Returns the tree of modules; the time of a module includes that of its submodules.
function treeOf(entry) {
  const root = { name: "", parts: new Map(), ms: 0, own: 0, layer: null };
  entry.name.forEach((name, i) => {
    let at = root;
    at.ms += entry.ms[i];
    for (const part of name === "" ? [] : name.split(".")) {
      if (!at.parts.has(part)) at.parts.set(part, { name: at.name ? `${at.name}.${part}` : part, parts: new Map(), ms: 0, own: 0, layer: null });
      at = at.parts.get(part);
      at.ms += entry.ms[i];
    }
    at.layer = i;
    at.own += entry.ms[i];
  });
  return root;
}

function depthOf(tree) {
  return 1 + Math.max(0, ...[...tree.parts.values()].map(depthOf));
}

function drawFlame(entry) {
  const host = byId("flame");
  host.replaceChildren();
  const tree = treeOf(entry);
  const width = 1400, line = 22;
  const svg = node(host, "svg", { viewBox: `0 0 ${width} ${line * depthOf(tree)}` });
  const drawPart = (part, x, level, short) => {
    const w = (part.ms / tree.ms) * width;
    if (w < 0.5) return;
    const leaf = part.parts.size === 0 && part.layer !== null;
    const bound = leaf ? data.bounds[entry.bound[part.layer]] : "module";
    const box = node(svg, "rect", { x, y: level * line, width: w, height: line - 1, class: bound, "data-name": part.name });
    hover(box, leaf ? layerText(entry, part.layer) : `${part.name || "model"}\n${part.ms.toFixed(3)} ms, ${((100 * part.ms) / tree.ms).toFixed(1)} %`);
    if (w > 9 * short.length) node(svg, "text", { x: x + 4, y: level * line + 15, class: leaf ? "leaf" : "" }, short);
    let at = x;
    for (const [key, inner] of part.parts) { drawPart(inner, at, level + 1, key); at += (inner.ms / tree.ms) * width; }
  };
  drawPart(tree, 0, 0, cell(entry.row, "model"));
}

const layerColumns = [
  { key: "name", title: "layer", kind: "text", help: "Name of the module." },
  { key: "type", title: "type", kind: "text" },
  { key: "ms", title: "ms", kind: "ms", help: "Time of the module without its submodules." },
  { key: "share", title: "share", kind: "percent", help: "Percent of the time of all layers." },
  { key: "macs", title: "MACs", kind: "count" },
  { key: "params", title: "params", kind: "count" },
  { key: "bytes", title: "bytes", kind: "bytes", help: "Bytes read and written." },
  { key: "gmacs", title: "GMACs/s", kind: "rate" },
  { key: "gbytes", title: "GB/s", kind: "rate" },
  { key: "bound", title: "bound by", kind: "text", help: "What limits the speed: compute (MACs), memory (bytes) or overhead." },
];

function layerText(entry, i) {
  const [macs, bytes] = [format.count(entry.macs[i]), format.bytes(entry.bytes[i])];
  const bound = data.bounds[entry.bound[i]];
  return `${entry.name[i] || "model"}\n${data.types[entry.type[i]]}\n${entry.ms[i].toFixed(3)} ms, ${macs} MACs, ${bytes}, bound by ${bound}`;
}

function drawLayers() {
  const entry = data.layers[Number(byId("model").value)];
  if (!entry) return;
  const sum = entry.ms.reduce((a, b) => a + b, 0) || 1;
  const rows = entry.name.map((name, i) => {
    const rate = (amount) => (entry.ms[i] ? Number((amount / entry.ms[i] / 1e6).toPrecision(3)) : null);
    return [name || "(model)", data.types[entry.type[i]], entry.ms[i], (100 * entry.ms[i]) / sum, entry.macs[i], entry.params[i], entry.bytes[i], rate(entry.macs[i]), rate(entry.bytes[i]), data.bounds[entry.bound[i]]];
  });
  drawFlame(entry);
  const slowest = Math.max(...entry.ms);
  const grid = new Grid(byId("layer-rows"), layerColumns, rows, (made, column, i) => {
    if (column.key === "ms") {
      const bar = node(made, "span", { class: `bar ${rows[i][9]}` });
      bar.style.width = `${(80 * entry.ms[i]) / slowest}px`;
      bar.style.marginLeft = "6px";
    }
  });
  grid.sort(2);
  grid.sort(2);
  const notes = byId("layers-notes");
  notes.textContent = `${entry.name.length} layers, ${format.ms(sum)} ms in total. Share of time by limit: `;
  data.bounds.forEach((bound, b) => {
    const share = entry.ms.reduce((all, ms, i) => all + (entry.bound[i] === b ? ms : 0), 0) / sum;
    node(notes, "span", { class: `swatch ${bound}` });
    node(notes, "span", {}, `${bound} ${(100 * share).toFixed(0)} %  `);
  });
  const { gmacs_per_s: macs, gbytes_per_s: bytes } = entry.roofline || {};
  if (macs && bytes) node(notes, "span", {}, `Limits of the machine: ${format.rate(macs)} GMACs/s, ${format.rate(bytes)} GB/s.`);
}

function setUpLayers() {
  data.layers.forEach((entry, i) => node(byId("model"), "option", { value: i }, `${cell(entry.row, "model")}, ${cell(entry.row, "variant")}, ${entry.input}`));
  byId("model").addEventListener("change", drawLayers);
  if (data.layers.length === 0) {
    byId("model").parentElement.hidden = true;
    byId("layers-notes").textContent = "These records contain no layers; measure with profile.layers=true.";
  }
  if (data.omitted) {
    const note = node(byId("layers"), "p", { class: "notes" });
    note.textContent = `The layers of ${data.omitted} more records are omitted to keep the page small; they are in the JSON Lines file.`;
  }
  drawLayers();
}

// ---- the page

const withLayers = new Set(data.layers.map((entry) => cell(entry.row, "model")));
const main = new Grid(byId("rows"), data.columns, data.rows, (made, column, row) => {
  if (column.key !== "model" || !withLayers.has(cell(row, "model"))) return;
  made.textContent = "";
  node(made, "button", { type: "button", title: "Show the layers" }, cell(row, "model")).addEventListener("click", () => chooseLayers(cell(row, "model")));
});
const pairs = data.pairs.length ? new Grid(byId("pairs"), data.pair_columns, data.pairs) : null;
if (!pairs) byId("fusing").querySelector("p").textContent = "No model was measured unfused and fused; measure with profile.fused=both.";

function filter() {
  words = byId("filter").value.toLowerCase().split(/\s+/).filter(Boolean);
  const shown = main.filter(words);
  if (pairs) pairs.filter(words);
  fade(marks);
  byId("shown").textContent = `${shown} of ${data.rows.length} measurements`;
}

byId("summary").textContent = data.summary;
byId("shared").textContent = data.shared;
setUpPlot();
setUpLayers();
byId("filter").addEventListener("input", filter);
filter();
data.environments.forEach((lines, i) => {
  const table = node(byId("environments"), "table");
  if (data.environments.length > 1) node(table, "caption", {}, `machine ${i + 1}`);
  for (const [name, value] of lines) {
    const line = node(table, "tr");
    node(line, "td", { class: "text" }, name);
    node(line, "td", { class: "text" }, value);
  }
});
for (const command of data.commands) node(byId("commands"), "li", {}, command);
