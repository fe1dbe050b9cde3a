// The table of a setting: lines against columns, sorted by a click, with the runs' own values under the pointer.

function shownColumns() {
  return setting().columns.map((column, index) => [column, index]).filter(([column]) => !state.blocks.has(column.block));
}

function tableSection() {
  const holder = make("div", { class: "scroll tall", tabindex: "0", role: "region", "aria-label": "results" });
  holder.append(resultTable());
  return sectionOf("results", "Results", [
    "A click on a heading sorts, a click on a number shows where it is from. Bold is the best of a sparsity, underlined the second. ",
    make("span", { id: "count", role: "status" })], holder, notesOf(setting().notes));
}

function notesOf(notes) {
  return notes.length ? make("ul", { class: "notes" }, notes.map((note) => make("li", {}, note))) : null;
}

function resultTable() {
  const columns = shownColumns();
  const lines = sortedLines(shownLines());
  const table = make("table", { class: "results" },
    make("caption", {}, setting().caption), tableHead(columns), tableBody(lines, columns));
  table.addEventListener("click", (event) => {
    const cell = event.target.closest("td[data-column]");
    if (cell) openNumber(lineAt(lines, cell), Number(cell.dataset.column));
  });
  table.addEventListener("keydown", moveByArrows);
  for (const event of ["pointerover", "focusin"]) {
    table.addEventListener(event, ({ target }) => {
      const cell = target.closest("td[data-column]");
      if (cell) showTip(cell, ...numberTip(lineAt(lines, cell), Number(cell.dataset.column))); else hideTip();
    });
  }
  for (const event of ["pointerleave", "focusout"]) table.addEventListener(event, hideTip);
  return table;
}

function lineAt(lines, cell) {
  const line = lines[Number(cell.dataset.line)];
  return cell.dataset.printed ? line.published[Number(cell.dataset.printed)] : line;
}

function tableHead(columns) {
  const blocks = [];
  for (const [column] of columns) {
    if (blocks.at(-1)?.[0] === column.block) blocks.at(-1)[1] += 1; else blocks.push([column.block, 1]);
  }
  return make("thead", {},
    make("tr", { class: "blocks" }, make("th", { colspan: 3 }),
      blocks.map(([block, wide]) => make("th", { colspan: wide, scope: "colgroup" }, block))),
    make("tr", {}, sortHead("method", "method"), sortHead("asked", "asked %"), sortHead("seeds", "seeds"),
      columns.map(([column, index]) => sortHead(index, headingOf(column)))));
}

function headingOf(column) {
  const of = column.metric === "sparsity" ? column.component : column.split && !column.task ? column.split : "";
  const unit = unitOf(column);
  const name = column.metric === "sparsity" ? column.component : [of, column.metric.replaceAll("_", " ")].filter(Boolean).join(" ");
  return [name, unit, ARROWS.get(column.higher_is_better)].filter(Boolean).join(" ");
}

function sortHead(key, text) {
  const sorted = state.sort?.key === key ? (state.sort.up ? "ascending" : "descending") : "none";
  return make("th", { scope: "col", "aria-sort": sorted, "data-key": key },
    make("button", { type: "button", onclick: () => sortBy(key) }, text));
}

function sortBy(key) {
  const first = setting().columns[key]?.higher_is_better !== true; // the best first
  if (state.sort?.key !== key) state.sort = { key, up: first };
  else if (state.sort.up === first) state.sort.up = !first;
  else state.sort = null;
  redrawTable();
  document.querySelector(`#results th[data-key="${key}"] button`).focus();
}

function sortedLines(lines) {
  if (state.sort === null) return lines;
  const { key, up } = state.sort;
  const value = {
    method: (line) => nameOf(line),
    asked: (line) => line.asked,
    seeds: (line) => line.seeds.length,
  }[key] ?? ((line) => line.cells[key]?.[1]);
  return [...lines].sort((a, b) => ordered(value(a), value(b), up));
}

function tableBody(lines, columns) {
  const body = make("tbody");
  let before = null;
  lines.forEach((line, number) => {
    const group = `${line.asked} ${line.paradigm}`;
    if (state.sort === null && group !== before && line.paradigm) {
      const asked = line.asked ? ` at ${percent(line.asked)} %` : "";
      body.append(make("tr", { class: "group" }, make("th", { scope: "rowgroup", colspan: 3 }, `${line.paradigm}${asked}`),
        make("td", { colspan: columns.length })));
    }
    before = group;
    body.append(tableRow(line, columns, number, null));
    if (state.published) line.published.forEach((printed, at) => body.append(tableRow(printed, columns, number, at)));
  });
  if (!lines.length) body.append(make("tr", {}, make("td", { colspan: columns.length + 3 }, "Nothing is left by what was chosen.")));
  body.querySelector("td[data-column]")?.setAttribute("tabindex", "0");
  return body;
}

function tableRow(line, columns, number, printed) {
  const name = line.source ? line.source : make("button", { type: "button", class: "link", title: line.label, onclick: () => openLine(line) }, labelParts(nameOf(line)));
  const head = make("th", { scope: "row" }, make("span", { class: "name" }, line.source ? null : swatch(line.label), name));
  const marks = ["", "best", "second"];
  const cells = columns.map(([, index]) => {
    const cell = line.cells[index];
    if (cell === null) return make("td", { class: "number quiet" }, MISSING);
    const [mean, spread] = cell[0].split(" ± ");
    return make("td", {
      class: `number ${marks[cell[4]]}`, tabindex: "-1", "data-line": number, "data-column": index, "data-printed": printed,
    }, make("span", { class: "mean" }, mean), spread ? make("span", { class: "spread" }, ` ± ${spread}`) : null);
  });
  return make("tr", { class: line.source ? "printed" : line.competes ? null : "missed" }, head,
    make("td", { class: "number" }, percent(line.asked)),
    make("td", { class: "number" }, line.source ? MISSING : String(line.seeds.length)), cells);
}

function moveByArrows(event) {
  const cell = event.target.closest("td[data-column]");
  if (!cell) return;
  if (event.key === "Enter" || event.key === " ") { event.preventDefault(); cell.click(); return; }
  const step = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] }[event.key];
  if (!step) return;
  event.preventDefault();
  const rows = [...cell.closest("tbody").querySelectorAll("tr:not(.group)")];
  const row = rows[rows.indexOf(cell.parentElement) + step[0]];
  const next = row?.children[cell.cellIndex + step[1]];
  if (next?.dataset.column === undefined) return;
  cell.setAttribute("tabindex", "-1");
  next.setAttribute("tabindex", "0");
  next.focus();
}

function redrawTable() {
  hideTip();
  const [all, shown] = [setting().lines, shownLines()];
  document.getElementById("count").textContent = shown.length < all.length ? `${shown.length} of ${all.length} lines are shown.` : "";
  document.querySelector("#results .scroll").replaceChildren(resultTable());
}
