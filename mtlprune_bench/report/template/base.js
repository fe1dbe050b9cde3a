"use strict";

// What all parts use: the content, what is shown of it, and elements. Texts become text nodes, never markup.

const CONTENT = JSON.parse(document.getElementById("content").textContent);
const MISSING = "–";
const ARROWS = new Map([[true, "↑"], [false, "↓"]]);

const state = {
  setting: 0,
  hidden: new Set(), // labels of methods
  blocks: new Set(), // blocks of columns that are not shown
  text: "",
  asked: null, // one sparsity with the dense lines, or null for all
  sort: null, // {column, up}
  published: true,
  metric: null,
  cost: "passes",
  pair: null,
};

const setting = () => CONTENT.settings[state.setting];

function fill(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (typeof value === "boolean") element.toggleAttribute(name, value);
    else if (value !== null && value !== undefined) element.setAttribute(name, value);
  }
  element.append(...children.flat().filter((child) => child !== null && child !== undefined));
  return element;
}

function make(tag, attributes = {}, ...children) {
  return fill(document.createElement(tag), attributes, children);
}

function draw(tag, attributes = {}, ...children) {
  return fill(document.createElementNS("http://www.w3.org/2000/svg", tag), attributes, children);
}

function percent(fraction) {
  return fraction === null ? MISSING : String(Number((100 * fraction).toPrecision(6)));
}

function written(value, column, signed = false) {
  if (value === null || value === undefined) return MISSING;
  const text = (column.scale * value).toFixed(column.digits);
  return signed && value >= 0 ? `+${text}` : text;
}

function unitOf(column) {
  return column.unit === "fraction" ? "%" : column.unit;
}

function titleOf(column) {
  const name = column.metric.replaceAll("_", " ") + (column.definition ? ` (${column.definition})` : "");
  const unit = unitOf(column);
  const of = column.metric === "sparsity" ? column.component : column.task || column.split;
  return [of, name, unit ? `(${unit})` : "", ARROWS.get(column.higher_is_better) ?? ""].filter(Boolean).join(" ");
}

function methodOf(line) {
  return setting().methods[line.label];
}

function isDense(line) {
  return line.asked === 0;
}

function nameOf(line) {
  return line.source || methodOf(line)?.name || line.label;
}

function matches(line) {
  const words = state.text.toLowerCase().split(/\s+/).filter(Boolean);
  const text = `${line.label} ${line.paradigm} ${line.source} ${percent(line.asked)} ${line.runs.join(" ")}`.toLowerCase();
  return words.every((word) => text.includes(word));
}

function isShown(line) {
  if (line.source) return state.published && (state.asked === null || line.asked === state.asked);
  const atLevel = state.asked === null || line.asked === state.asked || isDense(line);
  return atLevel && !state.hidden.has(line.label) && matches(line);
}

function shownLines() {
  return setting().lines.filter(isShown);
}

function levels() {
  const pruned = setting().lines.filter((line) => !line.source && !isDense(line));
  return [...new Set(pruned.map((line) => line.asked))].sort((a, b) => a - b);
}

// The sparsity with the most lines, the highest of several such.
function fullestLevel() {
  const lines = (asked) => setting().lines.filter((line) => line.asked === asked).length;
  return levels().reduce((best, asked) => (best === null || lines(asked) >= lines(best) ? asked : best), null);
}

// What a method is called, its settings small.
function labelParts(text) {
  const at = text.indexOf(" (");
  return at < 0 ? [text] : [text.slice(0, at), make("span", { class: "settings-of" }, text.slice(at))];
}

// Showing what is under the pointer, or has the focus.

const tip = document.getElementById("tip");

function showTip(target, ...children) {
  tip.replaceChildren(...children);
  tip.hidden = false;
  const at = target.getBoundingClientRect();
  const own = tip.getBoundingClientRect();
  const left = Math.min(at.left + at.width / 2 - own.width / 2, innerWidth - own.width - 8);
  const below = at.bottom + 8 + own.height < innerHeight;
  tip.style.left = `${Math.max(8, left)}px`;
  tip.style.top = `${below ? at.bottom + 8 : Math.max(8, at.top - own.height - 8)}px`;
}

function hideTip() {
  tip.hidden = true;
}

function hovered(element, children) {
  const show = () => showTip(element, ...children());
  for (const event of ["pointerenter", "focus"]) element.addEventListener(event, show);
  for (const event of ["pointerleave", "blur"]) element.addEventListener(event, hideTip);
  return element;
}

function numberTip(line, index) {
  const column = setting().columns[index];
  const cell = line.cells[index];
  const seeds = (cell?.[3] ?? []).map((value, at) =>
    make("div", {}, make("span", { class: "quiet" }, seedOf(line.runs[at])), ` ${written(value, column)}`));
  return [
    make("strong", {}, nameOf(line)),
    make("div", { class: "quiet" }, `${titleOf(column)}, asked for ${percent(line.asked)} %`),
    make("div", { class: "big" }, cell ? cell[0] : MISSING),
    ...seeds,
  ];
}

function seedOf(run) {
  return `seed ${CONTENT.runs[run].seed}`;
}

function sectionOf(id, title, words, ...children) {
  return make("section", { id, "aria-labelledby": `${id}-title` },
    make("h2", { id: `${id}-title` }, title), words ? make("p", { class: "lead" }, words) : null, ...children);
}

function choice(label, values, current, choose) {
  const select = make("select", { onchange: (event) => choose(event.target.value) },
    values.map(([value, text]) => make("option", { value, selected: String(value) === String(current) }, text)));
  return make("label", { class: "choice" }, make("span", {}, label), select);
}

// A table whose columns sort. Cells are {text, sort, open}: what is shown, by what it is sorted, what a click does.

function sortable(headings, rows, label) {
  let sorted = null;
  const body = make("tbody");
  const heads = headings.map((heading, index) => make("th", { scope: "col", "aria-sort": "none" },
    make("button", { type: "button", onclick: () => sort(index) }, heading)));
  function fillBody(order) {
    body.replaceChildren(...order.map((row) => make("tr", {}, row.map((cell, index) => make(index ? "td" : "th",
      { class: typeof cell.sort === "number" ? "number" : null, scope: index ? null : "row" },
      cell.open ? make("button", { type: "button", class: "link", onclick: cell.open }, cell.text) : cell.text)))));
  }
  function sort(index) {
    sorted = { index, up: sorted?.index === index ? !sorted.up : true };
    heads.forEach((head, at) => head.setAttribute("aria-sort",
      at === index ? (sorted.up ? "ascending" : "descending") : "none"));
    fillBody([...rows].sort((a, b) => ordered(a[index].sort ?? a[index].text, b[index].sort ?? b[index].text, sorted.up)));
  }
  fillBody(rows);
  return make("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": label },
    make("table", {}, make("thead", {}, make("tr", {}, heads)), body));
}

function ordered(a, b, up) {
  const missing = (value) => value === null || value === undefined || Number.isNaN(value);
  if (missing(a) || missing(b)) return missing(a) - missing(b);
  const sign = up ? 1 : -1;
  return sign * (typeof a === "number" && typeof b === "number" ? a - b : String(a).localeCompare(String(b)));
}
