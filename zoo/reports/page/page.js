// ---- filters and the plot

let words = [];
const limits = { top1: null, ms: null, params: null, image: "" };

// Whether a row fits the filters; an unknown figure does not fit a limit.
function fitsLimits(row) {
  const beyond = (key, limit, sign) => limit !== null && !(cell(row, key) !== null && sign * cell(row, key) <= sign * limit);
  if (beyond("top1", limits.top1, -1) || beyond("p50_ms", limits.ms, 1)) return false;
  if (beyond("params", limits.params === null ? null : limits.params * 1e6, 1)) return false;
  return !limits.image || cell(row, "image") === limits.image;
}

const fitsAll = (row) => fitsLimits(row) && words.every((word) => main.texts[row].includes(word));

const plot = new Plot(byId("points"));

function drawPlot() {
  const variant = byId("variant").value;
  const points = (data.points[byId("setting").value] || []).filter((p) => !variant || cell(p.row, "variant") === variant);
  plot.draw(points, byId("axis").value, fitsAll);
  const parts = ["Colour and shape show the family. The line connects the models on the Pareto front of those that fit the filters."];
  if (points.some((p) => p.top1 !== null && !p.at_size)) parts.push("Hollow points were measured at a different image size than the published accuracy and are not on the front.");
  const unrated = points.filter((p) => p.top1 === null).length;
  if (!points.some((p) => p.top1 !== null)) parts.push("None of these models has a published top-1 accuracy on ImageNet-1k.");
  else if (unrated) parts.push(`${unrated} of ${points.length} have no published top-1 accuracy on ImageNet-1k and are in the strip at the bottom.`);
  byId("plot-notes").textContent = parts.join(" ");
}

function setUpPlot() {
  for (const name of Object.keys(data.points)) node(byId("setting"), "option", { value: name }, name);
  const variants = [...new Set(data.rows.map((_, row) => cell(row, "variant")))];
  for (const name of variants.length > 1 ? [...variants, ""] : variants) node(byId("variant"), "option", { value: name }, name || "all");
  if (variants.includes("fused")) byId("variant").value = "fused";
  for (const key of ["p50_ms", "macs", "params"].filter((key) => key in columnOf)) node(byId("axis"), "option", { value: key }, AXES[key].name);
  for (const id of ["setting", "variant", "axis"]) byId(id).addEventListener("change", drawPlot);
  for (const [id, start] of [["svg", saveSvg], ["png", savePng]]) byId(id).addEventListener("click", () => start(plot, data.title));
  let width = 0;
  new ResizeObserver(() => { if (byId("points").clientWidth !== width) { width = byId("points").clientWidth; drawPlot(); } }).observe(byId("points"));
  drawPlot();
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
    if (!(w >= 0.5)) return;
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
  { key: "type", title: "type", kind: "text", minor: true },
  { key: "ms", title: "ms", kind: "ms", help: "Time of the module without its submodules." },
  { key: "share", title: "share", kind: "percent", help: "Percent of the time of all layers." },
  { key: "macs", title: "MACs", kind: "count", minor: true },
  { key: "params", title: "params", kind: "count", minor: true },
  { key: "bytes", title: "bytes", kind: "bytes", minor: true, help: "Bytes read and written." },
  { key: "gmacs", title: "GMACs/s", kind: "rate", minor: true },
  { key: "gbytes", title: "GB/s", kind: "rate", minor: true },
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
main.texts = main.lines.map((entry) => entry.text);
const pairs = data.pairs.length ? new Grid(byId("pairs"), data.pair_columns, data.pairs, (made, column) => {
  if (column.key === "verdict") made.classList.add(made.textContent.split(" ")[0]);
}) : null;
if (!pairs) byId("fusing").querySelector("p").textContent = "No model was measured unfused and fused; measure with profile.fused=both.";

function filter() {
  words = byId("filter").value.toLowerCase().split(/\s+/).filter(Boolean);
  for (const key of ["top1", "ms", "params"]) limits[key] = byId(`limit-${key}`).value === "" ? null : Number(byId(`limit-${key}`).value);
  limits.image = byId("image").value;
  const shown = main.filter(words, fitsLimits);
  if (pairs) pairs.filter(words);
  drawPlot();
  byId("shown").textContent = `${shown} of ${data.rows.length} measurements`;
}

byId("summary").textContent = data.summary;
const header = document.querySelector("header");
new ResizeObserver(() => {
  const covers = getComputedStyle(header).position === "sticky";
  document.documentElement.style.scrollPaddingTop = `${covers ? header.offsetHeight + 8 : 8}px`;
}).observe(header);
byId("shared").textContent = data.shared;
setUpPlot();
setUpLayers();
for (const size of [...new Set(data.rows.map((_, row) => cell(row, "image")))]) node(byId("image"), "option", { value: size }, size);
for (const id of ["filter", "limit-top1", "limit-ms", "limit-params", "image"]) byId(id).addEventListener("input", filter);
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
