// What stands beside the table: facts of the setting, paired comparisons, masks, published numbers, failures, runs.

function settingHead() {
  const own = setting();
  const names = { dataset: "dataset", data: "data", model: "model", protocol: "protocol", recipe: "recipe", finetune: "fine-tuning" };
  const facts = Object.entries(names).filter(([key]) => own.facts[key]).map(([key, name]) => make("div", {},
    make("dt", {}, name), make("dd", {}, own.facts[key])));
  return make("section", { id: "setting", "aria-label": "setting" },
    own.facts.stand_in ? make("p", { class: "loud", role: "note" },
      make("strong", {}, "Stand-in data. "), `These are not results on ${own.facts.dataset}: its files were not there, and ${own.facts.data} took their place.`) : null,
    make("dl", { class: "card" }, facts));
}

// Paired comparisons

function pairedSection() {
  const { levels: found, reason } = setting().pairs;
  const columns = setting().paired_columns;
  if (!columns.length) return sectionOf("paired", "Paired comparisons", reason || "No two runs have a seed in common.");
  const usual = columns.findIndex((column) => column.metric === "delta");
  const index = columns.findIndex((column) => column.key === state.pair);
  const at = index >= 0 ? index : Math.max(usual, 0);
  const wanted = found.filter((level) => state.asked === null || level.sparsity === state.asked);
  return sectionOf("paired", `Paired comparisons with ${found[0].reference}`,
    "Runs of the same seed are compared: the difference is the mean over seeds, method minus reference.",
    make("div", { class: "choices" }, choice("Metric", columns.map((column) => [column.key, titleOf(column)]), columns[at].key,
      (value) => { state.pair = value; redraw(); })),
    reason ? make("p", { class: "quiet" }, reason) : null,
    wanted.map((level) => pairedTable(level, columns[at], at)));
}

function pairedTable(level, column, at) {
  const effects = level.effects.filter((effect) => effect.column === at && !state.hidden.has(effect.method) && effect.difference !== null
    && effect.method.toLowerCase().includes(state.text.toLowerCase()));
  const sign = column.higher_is_better === true ? -1 : 1;
  effects.sort((a, b) => sign * (a.difference - b.difference));
  const ends = effects.flatMap((effect) => [effect.low ?? effect.difference, effect.high ?? effect.difference, 0]);
  const x = scaleOf(ends, 4, 176, 0.02);
  const mean = (values) => values.reduce((sum, value) => sum + value, 0) / values.length;
  const p = (value) => value === null ? MISSING : value < 0.001 ? "<0.001" : value.toFixed(3);
  const rows = effects.map((effect) => [
    { text: make("span", { class: "name" }, setting().methods[effect.method] ? swatch(effect.method) : null, make("span", { title: effect.method }, labelParts(setting().methods[effect.method]?.name ?? effect.method))), sort: effect.method, open: () => openEffect(effect, column, level) },
    { text: written(mean(effect.reference_values), column), sort: mean(effect.reference_values) },
    { text: written(mean(effect.values), column), sort: mean(effect.values) },
    { text: `${written(effect.difference, column, true)} ${effect.verdict}`, sort: effect.difference },
    { text: intervalPicture(effect, x), sort: effect.difference },
    { text: effect.low === null ? MISSING : `${written(effect.low, column, true)} to ${written(effect.high, column, true)}`, sort: effect.low },
    { text: effect.p === null ? "not enough seeds" : p(effect.p), sort: effect.p },
    { text: p(effect.p_holm), sort: effect.p_holm },
    { text: String(effect.seeds.length), sort: effect.seeds.length },
  ]);
  return make("div", {}, make("h3", {}, `at sparsity ${percent(level.sparsity)} %`),
    rows.length ? sortable(["method", "reference", "mean", "difference", "0 is the dashed line", "95 % interval", "p", "Holm", "n"], rows, "paired comparisons") : null,
    notesOf(level.notes));
}

function intervalPicture(effect, x) {
  const kind = colourOf(effect.method);
  return draw("svg", { width: 180, height: 16, class: "interval", "aria-hidden": "true" },
    draw("line", { class: "reference", x1: x(0), x2: x(0), y1: 0, y2: 16, "stroke-dasharray": "3 2" }),
    effect.low === null ? null : draw("line", { class: `stroke ${kind}`, x1: x(effect.low), x2: x(effect.high), y1: 8, y2: 8 }),
    effect.values.map((value, at) => draw("circle", { class: `seed ${kind}`, cx: x(value - effect.reference_values[at]), cy: 8, r: 1.6 })),
    draw("circle", { class: `symbol ${kind}`, cx: x(effect.difference), cy: 8, r: 3.6 }));
}

// Masks

function maskSection() {
  const lines = shownLines().filter((line) => !line.source && !isDense(line));
  const parts = setting().columns.map((column, index) => [column, index]).filter(([column]) => column.metric === "sparsity");
  if (!parts.length || !lines.length) return make("section", { id: "masks", hidden: true });
  return sectionOf("masks", "Masks", "What was removed of the weights that all tasks share, and of each task's own, beside what was asked for.",
    componentChart(lines, parts), setting().layers ? layerChart(lines) : make("p", { class: "quiet" }, "mtlbench report --masks adds the density of each layer."));
}

function rowNames(lines) {
  const several = new Set(lines.map((line) => line.asked)).size > 1;
  return lines.map((line) => nameOf(line) + (several ? ` at ${percent(line.asked)} %` : ""));
}

function rowName(text, left, y) {
  const room = Math.floor((left - 12) / LETTER);
  return draw("text", { x: left - 8, y: y + 4, "text-anchor": "end" }, draw("title", {}, text), text.length > room ? `${text.slice(0, room - 1)}…` : text);
}

function componentChart(lines, parts) {
  const names = rowNames(lines), wide = roomFor();
  const left = Math.min(Math.max(...names.map((name) => name.length)) * LETTER + 14, wide * nameShare(wide)), bottom = 8 + 18 * lines.length;
  const values = lines.flatMap((line) => [100 * line.asked, ...parts.map((part) => valueOf(line, part)).filter((value) => value !== null)]);
  const x = scaleOf(values, left, wide - 12, 0.04);
  const shapes = ["s", "o", "^", "D", "v", "P", "X", "p"];
  const rows = lines.map((line, row) => {
    const y = 17 + 18 * row;
    const asked = draw("line", { class: "asked", x1: x(100 * line.asked), x2: x(100 * line.asked), y1: y - 8, y2: y + 8 });
    return draw("g", { class: "row" }, rowName(names[row], left, y), asked, parts.map((part, at) => {
      const value = valueOf(line, part);
      if (value === null) return null;
      const point = draw("path", {
        class: `symbol point c${at % 8}${part[0].component === "whole" ? " ink hollow" : ""}`, d: markerPath(shapes[at % shapes.length], 4),
        transform: `translate(${x(value).toFixed(2)} ${y})`, tabindex: "0", role: "button", "aria-label": `${names[row]}, ${part[0].component}: ${line.cells[part[1]][0]} %`,
      });
      point.addEventListener("click", () => openNumber(line, part[1]));
      point.addEventListener("keydown", (event) => { if (event.key === "Enter") openNumber(line, part[1]); });
      return hovered(point, () => numberTip(line, part[1]));
    }));
  });
  const key = make("p", { class: "key" }, parts.map(([column], at) => make("span", {},
    draw("svg", { width: 12, height: 12, "aria-hidden": "true" }, draw("path", {
      class: `symbol c${at % 8}${column.component === "whole" ? " ink hollow" : ""}`, d: markerPath(shapes[at % shapes.length], 4), transform: "translate(6 6)",
    })), column.component)), make("span", {}, draw("svg", { width: 6, height: 12, "aria-hidden": "true" }, draw("line", { class: "asked", x1: 3, x2: 3, y1: 0, y2: 12 })), "asked for"));
  return make("div", {}, key, chart("Sparsity reached by component", wide, bottom + 42, bottomAxis(x, 6, bottom, "sparsity (%)"), rows));
}

function layerChart(all) {
  const lines = all.filter((line) => line.densities);
  const layers = setting().layers;
  if (!lines.length) return nothing("Density by layer");
  const names = rowNames(lines);
  const left = Math.min(Math.max(...names.map((name) => name.length)) * LETTER + 14, roomFor() * nameShare(roomFor()));
  const cell = Math.max(13, Math.min(34, Math.floor((roomFor() - left - 12) / layers.length)));
  const longest = Math.max(...layers.map(([name]) => name.length)), bottom = 24 + 18 * lines.length;
  const wide = left + cell * layers.length + 12;
  const rows = lines.map((line, row) => draw("g", { class: "row" }, rowName(names[row], left, 33 + 18 * row), line.densities.map((density, at) => {
    if (density === null) return null;
    const box = draw("g", {}, draw("rect", { class: "under", x: left + cell * at, y: 24 + 18 * row, width: cell - 1, height: 17 }),
      draw("rect", { class: density ? "density" : "emptied", x: left + cell * at, y: 24 + 18 * row, width: cell - 1, height: 17, "fill-opacity": density ? Math.sqrt(density).toFixed(3) : null }));
    return hovered(box, () => [make("strong", {}, names[row]), make("div", { class: "quiet" }, layers[at].filter(Boolean).join(", ")),
      make("div", { class: "big" }, `${(100 * density).toFixed(2)} % kept`)]);
  })));
  const heads = layers.map(([name, component], at) => [
    component && component !== layers[at - 1]?.[1] ? draw("text", { x: left + cell * at, y: 16, class: "strong" }, component) : null,
    component && at && component !== layers[at - 1][1] ? draw("line", { class: "asked", x1: left + cell * at - 1, x2: left + cell * at - 1, y1: 4, y2: bottom }) : null,
    draw("text", { "text-anchor": "end", transform: `translate(${left + cell * (at + 0.5) + 4} ${bottom + 6}) rotate(-90)` }, name.replace(/\.weight$/, ""))]).flat();
  return chart("Density by layer, mean over runs: the stronger the colour, the more is kept; red is nothing", wide, bottom + longest * 5.6 + 10, rows, heads);
}

// Published numbers, failures, runs

function publishedSection() {
  return setting().published.length ? sectionOf("published", "Published numbers", null, notesOf(setting().published)) : null;
}

function failureSection() {
  const failures = setting().failures;
  if (!failures.length) return null;
  const rows = failures.map((name) => {
    const run = CONTENT.runs[name];
    return [{ text: name, open: () => openRun(name) }, { text: run.status }, { text: run.method },
      { text: `${percent(run.sparsity)} %`, sort: run.sparsity }, { text: String(run.seed), sort: run.seed }, { text: run.reason }];
  });
  return sectionOf("failures", `Failed runs (${failures.length})`, null, sortable(["run", "status", "method", "asked", "seed", "reason"], rows, "failed runs"));
}

function runSection() {
  const names = [...new Set([...setting().lines.flatMap((line) => line.runs), ...setting().failures])];
  const details = make("details", {}, make("summary", {}, `${counted(names.length, "run")} of this setting`));
  details.addEventListener("toggle", () => {
    if (details.querySelector("table")) return;
    details.append(sortable(["run", "status", "method", "asked", "seed", "started", "commit"], names.map(runCells), "runs"));
  });
  const waiting = CONTENT.unfinished;
  return sectionOf("runs", "Runs", null, details, waiting.length ? make("details", {},
    make("summary", {}, `${counted(waiting.length, "run")} of the store without results yet`), make("ul", {}, waiting.map((name) => make("li", {}, name)))) : null);
}

function runCells(name) {
  const run = CONTENT.runs[name], last = run.sessions.at(-1);
  const commit = last ? Object.fromEntries(CONTENT.machines[last.machine]).commit ?? "" : "";
  return [{ text: name, open: () => openRun(name) }, { text: run.status }, { text: run.method }, { text: `${percent(run.sparsity)} %`, sort: run.sparsity },
    { text: String(run.seed), sort: run.seed }, { text: last?.started.replace("T", " ").slice(0, 16) ?? "" }, { text: commit.slice(0, 8) }];
}
