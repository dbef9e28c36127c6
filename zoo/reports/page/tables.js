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
      if (column.minor) cell.classList.add("minor");
      node(cell, "button", { type: "button" }, column.title).addEventListener("click", () => this.sort(i));
    });
    this.body = node(table, "tbody");
    this.lines = rows.map((values, index) => {
      const line = node(this.body, "tr");
      columns.forEach((column, i) => {
        const made = node(line, "td", { class: column.kind }, formatCell(column, values[i]));
        if (column.minor) made.classList.add("minor");
        decorate(made, column, index);
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

  filter(words, also = () => true) {
    let shown = 0;
    for (const entry of this.lines) {
      const fits = words.every((word) => entry.text.includes(word)) && also(entry.index);
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
  const written = (key) => formatCell(column(key), cell(row, key));
  const figures = ["p90_ms", "p99_ms", "params", "macs", "peak_memory_bytes"].filter((key) => cell(row, key) !== null);
  const interval = cell(row, "low_ms") === null ? "" : `, 95 % interval ${written("low_ms")} to ${written("high_ms")}`;
  return [
    `${cell(row, "model")}, ${cell(row, "variant")}, ${cell(row, "image")}`,
    `median ${written("p50_ms")} ms${interval}`,
    `runtime ${cell(row, "runtime")}`,
    ...figures.map((key) => `${column(key).title} ${written(key)}`),
  ].join("\n");
}
