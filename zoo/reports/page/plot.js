// ---- accuracy over latency, MACs or parameters

// Colours of Okabe and Ito, which readers with a colour vision deficiency can tell apart. Families
// that share a colour have different shapes.
const COLOURS = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "text"];
const SHAPES = ["circle", "square", "triangle", "diamond"];
const AXES = {
  p50_ms: { title: "median latency in ms (logarithmic)", name: "latency" },
  macs: { title: "multiply-accumulates of one image (logarithmic)", name: "MACs" },
  params: { title: "parameters (logarithmic)", name: "parameters" },
};
const FONT = 12; // px; the drawing is as wide as its place on the page, so that text keeps its size
const NAMED = 20; // a plot of at most this many models names those that are not on the front, too
const STRIP = 26; // px below the plot, for models without a published accuracy

function logTicks(low, high, most) {
  const within = (parts) => {
    const all = [];
    for (let e = Math.floor(Math.log10(low)); e <= Math.ceil(Math.log10(high)); e += 1) {
      for (const m of parts) all.push(m * 10 ** e);
    }
    return all.filter((tick) => tick >= low && tick <= high);
  };
  const choices = [[1, 1.5, 2, 3, 4, 5, 6, 7, 8, 9], [1, 2, 5], [1, 3], [1]].map(within);
  return choices.find((ticks) => ticks.length <= most && ticks.length > 1) || choices[2];
}

function steps(low, high) {
  const step = [0.1, 0.2, 0.5, 1, 2, 5, 10, 20].find((size) => (high - low) / size <= 8) || 50;
  const all = [];
  for (let i = Math.ceil(low / step); i * step <= high; i += 1) all.push(i * step);
  return all;
}

// The models that no other one beats: none has a higher accuracy at the same or a lower cost.
function paretoFront(points, value) {
  const sorted = points.slice().sort((a, b) => value(a) - value(b) || b.top1 - a.top1);
  const front = [];
  let best = -Infinity;
  for (const p of sorted) {
    const last = front[front.length - 1];
    const twin = last && value(p) === value(last) && p.top1 === last.top1;
    if (p.top1 > best || twin) front.push(p);
    best = Math.max(best, p.top1);
  }
  return front;
}

const families = [...new Set(data.rows.map((_, row) => data.families[row]))].sort();
const styleOf = (family) => {
  const i = families.indexOf(family);
  return { colour: COLOURS[i % COLOURS.length], shape: SHAPES[Math.floor(i / COLOURS.length) % SHAPES.length] };
};

function shape(parent, kind, x, y, r, attributes) {
  if (kind === "circle") return node(parent, "circle", { cx: x, cy: y, r, ...attributes });
  if (kind === "square") return node(parent, "rect", { x: x - r, y: y - r, width: 2 * r, height: 2 * r, ...attributes });
  const points = kind === "triangle" ? [[0, -1.2], [1.1, 0.9], [-1.1, 0.9]] : [[0, -1.3], [1.3, 0], [0, 1.3], [-1.3, 0]];
  return node(parent, "polygon", { points: points.map(([a, b]) => `${x + a * r},${y + b * r}`).join(" "), ...attributes });
}

const paint = (colour) => (colour === "text" ? "var(--text)" : colour);

class Plot {
  constructor(host) {
    this.host = host;
    this.marks = [];
  }

  // Draws points; those that `fits` refuses are faint and not on the front.
  draw(points, axis, fits) {
    this.host.replaceChildren();
    this.marks = [];
    const value = (p) => cell(p.row, axis);
    const known = points.filter((p) => value(p) > 0);
    if (!known.length) return;
    const rated = known.filter((p) => p.top1 !== null);
    const unrated = known.filter((p) => p.top1 === null);
    const front = paretoFront(rated.filter((p) => p.at_size && fits(p.row)), value);
    this.measure(known.map(value), rated.map((p) => p.top1), unrated.length > 0);
    const svg = node(this.host, "svg", {
      viewBox: `0 0 ${this.w} ${this.h}`, width: this.w, height: this.h, role: "group",
      "aria-label": `top-1 accuracy over ${AXES[axis].name}`,
    });
    this.svg = svg;
    this.frame(axis, unrated.length > 0);
    if (front.length) this.line(front, value);
    const order = (p) => (fits(p.row) ? 1 : 0) + (front.includes(p) ? 1 : 0);
    for (const p of known.slice().sort((a, b) => order(a) - order(b))) {
      this.mark(p, this.x(value(p)), p.top1 === null ? this.bottom + STRIP / 2 : this.y(p.top1), front.includes(p), fits(p.row), axis);
    }
    const others = known.filter((p) => fits(p.row) && !front.includes(p));
    this.label(front, others.length + front.length <= NAMED ? others : [], value);
    this.legend(new Set(known.filter((p) => fits(p.row)).map((p) => data.families[p.row])));
  }

  measure(values, tops, strip) {
    this.w = Math.max(320, Math.min(1100, Math.floor(this.host.clientWidth)));
    this.narrow = this.w < 700;
    this.left = 46;
    this.right = this.w - (this.narrow ? 10 : 170);
    this.top = 26;
    this.bottom = this.top + (this.narrow ? 300 : 400);
    this.axis = this.bottom + (strip ? STRIP : 0);
    const rows = Math.ceil(families.length / Math.max(1, Math.floor((this.w - 20) / 165)));
    this.h = this.narrow ? this.axis + 48 + 18 * rows : Math.max(this.axis + 48, 40 + 18 * families.length);
    const [low, high] = [Math.min(...values) / 1.25, Math.max(...values) * 1.25];
    const [least, most] = tops.length ? [Math.min(...tops) - 0.7, Math.max(...tops) + 0.7] : [0, 100];
    this.range = { low, high, least, most };
    this.x = (v) => this.left + (Math.log(v / low) / Math.log(high / low)) * (this.right - this.left);
    this.y = (v) => this.bottom - ((v - least) / (most - least)) * (this.bottom - this.top);
  }

  frame(axis, strip) {
    const { low, high, least, most } = this.range;
    const svg = this.svg;
    const written = (tick) => (axis === "p50_ms" ? String(Number(tick.toPrecision(2))) : format.count(tick).replace(/\.?0+(?= |$)/, ""));
    for (const tick of logTicks(low, high, this.narrow ? 6 : 12)) {
      node(svg, "line", { x1: this.x(tick), x2: this.x(tick), y1: this.top, y2: this.axis, class: "grid" });
      node(svg, "text", { x: this.x(tick), y: this.axis + 16, "text-anchor": "middle" }, written(tick));
    }
    for (const tick of steps(least, most)) {
      node(svg, "line", { x1: this.left, x2: this.right, y1: this.y(tick), y2: this.y(tick), class: "grid" });
      node(svg, "text", { x: this.left - 6, y: this.y(tick) + 4, "text-anchor": "end" }, String(Number(tick.toFixed(1))));
    }
    if (strip) {
      node(svg, "line", { x1: this.left, x2: this.right, y1: this.axis, y2: this.axis, class: "grid" });
      node(svg, "text", { x: this.left - 6, y: this.bottom + STRIP / 2 + 4, "text-anchor": "end" }, "none");
    }
    node(svg, "text", { x: 0, y: 14 }, this.narrow ? "ImageNet-1k top-1 in %" : "published top-1 accuracy on ImageNet-1k in %");
    node(svg, "text", { x: (this.left + this.right) / 2, y: this.axis + 36, "text-anchor": "middle" }, AXES[axis].title);
  }

  line(front, value) {
    const path = front.map((p, i) => (i ? `H${this.x(value(p))}V${this.y(p.top1)}` : `M${this.x(value(p))} ${this.y(p.top1)}`));
    node(this.svg, "path", { d: path.join(""), class: "front-line" });
  }

  mark(p, x, y, onFront, fits, axis) {
    const { colour, shape: kind } = styleOf(data.families[p.row]);
    const names = ["point", onFront ? "front" : "", p.at_size || p.top1 === null ? "" : "hollow", fits ? "" : "faded"];
    const text = describeRow(p.row).split("\n");
    text.splice(1, 0, p.top1 === null ? "no published top-1 on ImageNet-1k" : `top-1 ${p.top1} (${p.source})`);
    if (p.top1 !== null && !p.at_size) text.push("measured at a different image size than the accuracy");
    if (onFront) text.push(`on the Pareto front of accuracy and ${AXES[axis].name}`);
    const made = shape(this.svg, kind, x, y, onFront ? 6 : 4.5, {
      class: names.filter(Boolean).join(" "), style: `--colour: ${paint(colour)}`, tabindex: 0, role: "img",
      "aria-label": text.join(", "), "data-model": cell(p.row, "model"), "data-family": data.families[p.row],
    });
    hover(made, text.join("\n"));
    made.addEventListener("click", () => chooseLayers(cell(p.row, "model")));
    this.marks.push({ made, x, y, fits });
  }

  // Names the models on the front, and then others, where there is room; with a line to the model
  // if its name is not near.
  label(front, others, value) {
    const taken = this.marks.filter((m) => m.fits).map(({ x, y }) => ({ x: x - 6, y: y - 6, width: 12, height: 12 }));
    front.forEach((p, i) => {
      const [x, y] = [this.x(value(p)), this.y(p.top1)];
      if (!i) return;
      const [px, py] = [this.x(value(front[i - 1])), this.y(front[i - 1].top1)];
      taken.push({ x: px, y: py - 1, width: x - px, height: 2 }, { x: x - 1, y, width: 2, height: py - y });
    });
    const meets = (a, b) => a.x < b.x + b.width && b.x < a.x + a.width && a.y < b.y + b.height && b.y < a.y + a.height;
    for (const p of [...front, ...others]) {
      const [cx, cy] = [this.x(value(p)), p.top1 === null ? this.bottom + STRIP / 2 : this.y(p.top1)];
      const text = node(this.svg, "text", { class: "name" }, cell(p.row, "model"));
      const { width, height } = text.getBBox();
      const found = this.places(cx, cy, width, height).find(({ box }) =>
        box.x >= this.left && box.x + box.width <= this.right && box.y >= this.top - 4 && box.y + box.height <= (p.top1 === null ? this.axis : this.bottom) && !taken.some((other) => meets(box, other)));
      if (!found) { text.remove(); continue; }
      const { box, far } = found;
      taken.push(box);
      text.setAttribute("x", box.x);
      text.setAttribute("y", box.y + height * 0.8);
      if (far) {
        const [ex, ey] = [Math.max(box.x, Math.min(cx, box.x + width)), Math.max(box.y, Math.min(cy, box.y + height))];
        this.svg.insertBefore(node(this.svg, "line", { x1: cx, y1: cy, x2: ex, y2: ey, class: "leader" }), text);
      }
    }
  }

  places(cx, cy, width, height) {
    const all = [];
    for (const d of [9, 20, 34, 50, 70, 95, 125]) {
      for (const [ax, ay] of [[-1, -1], [0, -1], [-1, 0], [1, 1], [1, 0], [0, 1], [1, -1], [-1, 1]]) {
        const [x, y] = [cx + ax * d - (ax < 0 ? width : ax ? 0 : width / 2), cy + ay * d * 0.8 - (ay < 0 ? height : ay ? 0 : height / 2)];
        all.push({ box: { x, y, width, height }, far: d > 9 });
      }
    }
    return all;
  }

  legend(used) {
    const columns = this.narrow ? Math.max(1, Math.floor((this.w - 20) / 165)) : 1;
    const [left, top] = this.narrow ? [10, this.axis + 56] : [this.right + 16, this.top + 6];
    families.filter((family) => used.has(family)).forEach((family, i) => {
      const [x, y] = [left + (i % columns) * 165, top + Math.floor(i / columns) * 18];
      const { colour, shape: kind } = styleOf(family);
      const group = node(this.svg, "g", { class: "family" });
      node(group, "rect", { x: x - 8, y: y - 9, width: 148, height: 18, fill: "transparent" });
      shape(group, kind, x, y, 4.5, { class: "key", style: `--colour: ${paint(colour)}` });
      node(group, "text", { x: x + 12, y: y + 4 }, family || "other");
      const highlight = (on) => this.marks.forEach(({ made }) => made.classList.toggle("dim", on && made.dataset.family !== family));
      group.addEventListener("mouseenter", () => highlight(true));
      group.addEventListener("mouseleave", () => highlight(false));
    });
  }

  // Returns the drawing as a file: with its title, and with the colours of the page.
  file(title) {
    const copy = this.svg.cloneNode(true);
    const extra = 26;
    copy.setAttribute("xmlns", "http://www.w3.org/2000/svg");
    copy.setAttribute("viewBox", `0 ${-extra} ${this.w} ${this.h + extra}`);
    copy.setAttribute("height", this.h + extra);
    const theme = getComputedStyle(document.documentElement);
    const rules = document.querySelector("style").textContent.match(/\/\* plot \*\/[^]*\/\* end of plot \*\//)[0];
    const variables = ["back", "line", "text", "faint", "accent"].map((name) => `--${name}: ${theme.getPropertyValue(`--${name}`)};`).join(" ");
    const style = document.createElementNS("http://www.w3.org/2000/svg", "style");
    style.textContent = `svg { ${variables} font-family: sans-serif; } ${rules}`;
    const back = document.createElementNS("http://www.w3.org/2000/svg", "rect");
    for (const [key, v] of Object.entries({ x: 0, y: -extra, width: this.w, height: this.h + extra, style: "fill: var(--back)" })) back.setAttribute(key, v);
    copy.prepend(style, back);
    node(copy, "text", { x: 0, y: -10, style: "font-weight: 600" }, title);
    return new XMLSerializer().serializeToString(copy);
  }
}

function save(name, blob) {
  const address = URL.createObjectURL(blob);
  const link = node(document.body, "a", { download: name });
  link.setAttribute("href", address);
  link.click();
  link.remove();
  setTimeout(() => URL.revokeObjectURL(address), 10000);
}

function saveSvg(plot, title) {
  save("accuracy.svg", new Blob([plot.file(title)], { type: "image/svg+xml" }));
}

function savePng(plot, title) {
  const image = new Image();
  const [width, height] = [2 * plot.w, 2 * (plot.h + 26)];
  image.addEventListener("load", () => {
    const canvas = document.createElement("canvas");
    Object.assign(canvas, { width, height });
    canvas.getContext("2d").drawImage(image, 0, 0, width, height);
    canvas.toBlob((blob) => save("accuracy.png", blob), "image/png");
  });
  image.setAttribute("src", `data:image/svg+xml;charset=utf-8,${encodeURIComponent(plot.file(title))}`);
}
