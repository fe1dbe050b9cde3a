// Charts, drawn as SVG from the lines that are shown, in the colours and with the markers of all figures.

const LETTER = 6.2; // the width of a letter, about
const COSTS = { passes: "forward and backward passes", steps: "optimizer steps", seconds: "seconds" };
const CORNERS = { "^": [3, 0], v: [3, 180], "<": [3, -90], ">": [3, 90], s: [4, 45], D: [4, 0], p: [5, 0], h: [6, 0] };

function colourOf(label) {
  const colour = setting().methods[label]?.colour;
  return colour === null || colour === undefined ? "ink" : `c${colour}`;
}

function polygon(points) {
  return `M${points.map(([x, y]) => `${x.toFixed(2)} ${y.toFixed(2)}`).join("L")}Z`;
}

function around(count, turn, radius) {
  return Array.from({ length: count }, (_, at) => {
    const angle = (Math.PI / 180) * (turn - 90) + (2 * Math.PI * at) / count;
    return [radius(at) * Math.cos(angle), radius(at) * Math.sin(angle)];
  });
}

function markerPath(marker, size) {
  if (marker === "*") return polygon(around(10, 0, (at) => size * (at % 2 ? 0.5 : 1.3)));
  if (marker === "P" || marker === "X") {
    const arm = size * 1.1, half = size * 0.38;
    const cross = [[-half, -arm], [half, -arm], [half, -half], [arm, -half], [arm, half], [half, half], [half, arm],
      [-half, arm], [-half, half], [-arm, half], [-arm, -half], [-half, -half]];
    const turned = (Math.sqrt(2) / 2) * (marker === "X");
    return polygon(turned ? cross.map(([x, y]) => [(x - y) * turned, (x + y) * turned]) : cross);
  }
  const [count, turn] = CORNERS[marker] ?? [24, 0];
  return polygon(around(count, turn, () => size * (count < 5 ? 1.25 : 1.05)));
}

function symbol(label, x, y, size = 4.2) {
  const method = setting().methods[label];
  return draw("path", {
    class: `symbol ${colourOf(label)}${method?.hollow ? " hollow" : ""}`,
    d: markerPath(method?.marker || "o", size), transform: `translate(${x.toFixed(2)} ${y.toFixed(2)})`,
  });
}

function dashOf(label) {
  return setting().methods[label].dash.map((length) => 1.6 * length).join(" ") || null;
}

function symbolLine(label) {
  const line = draw("line", { class: "stroke", x1: 1, x2: 29, y1: 6, y2: 6, "stroke-dasharray": dashOf(label) });
  return !setting().methods[label].marker ? [line] : [line, symbol(label, 15, 6, 3.6)];
}

// The share of a chart's width that names of rows may take; longer ones are cut.
function nameShare(wide) {
  return wide > 700 ? 0.36 : 0.46;
}

// Axes

function ticksOf(low, high, wanted) {
  const raw = (high - low) / wanted || 1;
  const power = 10 ** Math.floor(Math.log10(raw));
  const step = power * [1, 2, 5, 10].find((factor) => factor * power >= raw);
  const ticks = [];
  for (let at = Math.ceil(low / step - 1e-9) * step; at <= high + step * 1e-9; at += step) ticks.push(Number(at.toPrecision(12)));
  return ticks;
}

function scaleOf(values, from, to, room = 0.06) {
  let low = Math.min(...values), high = Math.max(...values);
  if (!Number.isFinite(low)) [low, high] = [0, 1];
  const more = room * (high - low || Math.abs(high) || 1);
  [low, high] = [low - more, high + more];
  const scale = (value) => from + ((value - low) / (high - low)) * (to - from);
  return Object.assign(scale, { low, high, from, to });
}

function shortNumber(value) {
  return Math.abs(value) >= 10000 ? `${Number((value / 1000).toPrecision(4))}k` : String(value);
}

function bottomAxis(x, top, bottom, title) {
  return draw("g", { class: "axis" },
    ticksOf(x.low, x.high, Math.max(4, Math.round((x.to - x.from) / 80))).map((tick) => [
      draw("line", { class: "grid", x1: x(tick), x2: x(tick), y1: top, y2: bottom }),
      draw("text", { x: x(tick), y: bottom + 15, "text-anchor": "middle" }, shortNumber(tick))]).flat(),
    draw("text", { class: "title", x: (x.from + x.to) / 2, y: bottom + 33, "text-anchor": "middle" }, title));
}

function leftAxis(y, left, right) {
  return draw("g", { class: "axis" }, ticksOf(y.low, y.high, 6).map((tick) => [
    draw("line", { class: "grid", x1: left, x2: right, y1: y(tick), y2: y(tick) }),
    draw("text", { x: left - 7, y: y(tick) + 4, "text-anchor": "end" }, shortNumber(tick))]).flat());
}

function chart(title, wide, high, ...parts) {
  return make("figure", {}, make("figcaption", {}, title),
    make("div", { class: "scroll" }, draw("svg", {
      class: "chart", width: wide, height: high, viewBox: `0 0 ${wide} ${high}`, role: "img", "aria-label": title,
    }, ...parts)));
}

function nothing(title) {
  return make("figure", {}, make("figcaption", {}, title), make("p", { class: "quiet" }, "Nothing to draw by what was chosen."));
}

function roomFor(parts = 1) {
  const wide = document.getElementById("main").clientWidth - 34;
  return parts === 1 || wide < 760 ? Math.max(wide, 300) : Math.floor((wide - 24) / parts);
}

// What is drawn: the cells of one column.

function drawable() {
  return setting().columns.map((column, index) => [column, index])
    .filter(([column]) => !["sparsity", "cost"].includes(column.block));
}

function chosenMetric() {
  const columns = drawable();
  const known = columns.find(([column]) => column.key === state.metric) ?? columns.find(([column]) => column.metric === "delta");
  return known ?? columns[0];
}

function valueOf(line, [column, index]) {
  const cell = line.cells[index];
  return cell && cell[1] !== null ? column.scale * cell[1] : null;
}

function spreadOf(line, [column, index]) {
  const cell = line.cells[index];
  return cell && cell[2] !== null ? column.scale * cell[2] : 0;
}

function pointOf(line, metric, x, y) {
  const point = draw("g", { class: "point", tabindex: "0", role: "button", "aria-label": `${nameOf(line)} ${line.cells[metric[1]][0]}` },
    draw("circle", { class: "target", cx: x, cy: y, r: 9 }), symbol(line.label, x, y));
  point.addEventListener("click", () => openNumber(line, metric[1]));
  point.addEventListener("keydown", (event) => { if (event.key === "Enter") openNumber(line, metric[1]); });
  return hovered(point, () => numberTip(line, metric[1]));
}

function measuredLines(metric) {
  return shownLines().filter((line) => !line.source && valueOf(line, metric) !== null);
}

function rankingChart(metric) {
  const title = `${titleOf(metric[0])}: ${metric[0].metric === "delta" ? "dashed is dense" : "mean, standard deviation and single seeds; dashed are dense networks"}`;
  const best = metric[0].higher_is_better === true ? -1 : 1;
  const lines = measuredLines(metric).sort((a, b) => best * (valueOf(a, metric) - valueOf(b, metric)));
  if (!lines.length) return nothing(title);
  const several = state.asked === null && levels().length > 1;
  const names = lines.map((line) => nameOf(line) + (several && line.asked ? ` at ${percent(line.asked)} %` : ""));
  const wide = roomFor();
  const left = Math.min(Math.max(...names.map((name) => name.length)) * LETTER + 14, wide * nameShare(wide));
  const bottom = 8 + 18 * lines.length;
  const seeds = (line) => line.cells[metric[1]][3].filter((value) => value !== null).map((value) => value * metric[0].scale);
  const values = lines.flatMap((line) => [valueOf(line, metric) - spreadOf(line, metric), valueOf(line, metric) + spreadOf(line, metric), ...seeds(line)]);
  const delta = metric[0].metric === "delta"; // from dense, which is 0
  if (delta) values.push(0);
  const x = scaleOf(values, left, wide - 12, 0.03);
  const rows = lines.map((line, at) => {
    const y = 17 + 18 * at;
    const mean = valueOf(line, metric), spread = spreadOf(line, metric), kind = colourOf(line.label);
    const room = Math.floor((left - 12) / LETTER);
    const name = names[at].length > room ? `${names[at].slice(0, room - 1)}…` : names[at];
    return draw("g", { class: "row" },
      draw("text", { class: isDense(line) ? "strong" : null, x: left - 8, y: y + 4, "text-anchor": "end" }, draw("title", {}, names[at]), name),
      draw("line", { class: `stroke ${kind}`, x1: x(mean - spread), x2: x(mean + spread), y1: y, y2: y }),
      seeds(line).map((value) => draw("circle", { class: `seed ${kind}`, cx: x(value), cy: y, r: 2 })),
      pointOf(line, metric, x(mean), y));
  });
  const base = (delta ? [0] : lines.filter((line) => isDense(line)).map((line) => valueOf(line, metric))).map((value) => draw("line",
    { class: "reference", x1: x(value), x2: x(value), y1: 6, y2: bottom, "stroke-dasharray": "5 3" }));
  return chart(title, wide, bottom + 42, bottomAxis(x, 6, bottom, titleOf(metric[0])), base, rows);
}

function sparsityChart(metric) {
  const title = `${titleOf(metric[0])} against sparsity`;
  const asked = state.asked;
  state.asked = null; // this axis has all of them
  const lines = measuredLines(metric);
  state.asked = asked;
  const pruned = lines.filter((line) => !isDense(line));
  if (!pruned.length) return nothing(title);
  const wide = roomFor(2), high = 340, left = 58, bottom = high - 42;
  const place = (line) => 100 * (line.reached ?? line.asked);
  const edges = lines.flatMap((line) => [valueOf(line, metric) - spreadOf(line, metric), valueOf(line, metric) + spreadOf(line, metric)]);
  const x = scaleOf(pruned.map(place), left, wide - 12), y = scaleOf(edges, bottom, 10);
  const dense = lines.filter((line) => isDense(line)).map((line) => hovered(draw("line", {
    class: "reference", x1: left, x2: wide - 12, y1: y(valueOf(line, metric)), y2: y(valueOf(line, metric)), "stroke-dasharray": dashOf(line.label) ?? "5 3",
  }), () => numberTip(line, metric[1])));
  const drawn = [...grouped(pruned).values()].map((own) => curve(own.sort((a, b) => place(a) - place(b)), metric, (line) => x(place(line)), y));
  return chart(title, wide, high, bottomAxis(x, 10, bottom, "sparsity reached (%)"), leftAxis(y, left, wide - 12), dense, drawn);
}

function grouped(lines) {
  const groups = new Map();
  for (const line of lines) groups.set(line.label, [...(groups.get(line.label) ?? []), line]);
  return groups;
}

function curve(own, metric, x, y) {
  const kind = colourOf(own[0].label);
  const at = (line, sign) => [x(line), y(valueOf(line, metric) + sign * spreadOf(line, metric))];
  const path = own.map((line, number) => `${number ? "L" : "M"}${at(line, 0).map((value) => value.toFixed(2)).join(" ")}`).join("");
  const band = polygon([...own.map((line) => at(line, 1)), ...[...own].reverse().map((line) => at(line, -1))]);
  return draw("g", { class: "curve" },
    own.length > 1 ? draw("path", { class: `band ${kind}`, d: band }) : null,
    own.length > 1 ? draw("path", { class: `stroke ${kind}`, d: path, "stroke-dasharray": dashOf(own[0].label) }) : null,
    own.map((line) => pointOf(line, metric, ...at(line, 0))));
}

function costOf(line) {
  const mean = (name) => line.cells[setting().columns.findIndex((column) => column.metric === name && column.block === "cost")]?.[1] ?? null;
  if (state.cost !== "passes") return mean(state.cost);
  const [forward, backward] = [mean("forward"), mean("backward")];
  return forward === null || backward === null ? null : forward + backward;
}

function costChart(metric) {
  const title = `${titleOf(metric[0])} against ${COSTS[state.cost]}`;
  const lines = measuredLines(metric).filter((line) => costOf(line) !== null);
  if (!lines.length) return nothing(title);
  const wide = roomFor(2), high = 340, left = 58, bottom = high - 42;
  const x = scaleOf(lines.map(costOf), left, wide - 12), y = scaleOf(lines.map((line) => valueOf(line, metric)), bottom, 10);
  const sign = metric[0].higher_is_better === true ? 1 : -1;
  const front = [];
  const compete = lines.filter((line) => line.competes && !isDense(line));
  for (const line of compete.sort((a, b) => costOf(a) - costOf(b) || sign * (valueOf(b, metric) - valueOf(a, metric)))) {
    if (!front.length || sign * valueOf(line, metric) > sign * valueOf(front.at(-1), metric)) front.push(line);
  }
  const steps = front.map((line, at) => at
    ? `H${x(costOf(line)).toFixed(2)}V${y(valueOf(line, metric)).toFixed(2)}`
    : `M${x(costOf(line)).toFixed(2)} ${y(valueOf(line, metric)).toFixed(2)}`).join("");
  return chart(`${title}; the grey line is the Pareto front of pruned networks`, wide, high,
    bottomAxis(x, 10, bottom, COSTS[state.cost]), leftAxis(y, left, wide - 12),
    steps ? draw("path", { class: "front", d: steps }) : null,
    lines.map((line) => pointOf(line, metric, x(costOf(line)), y(valueOf(line, metric)))));
}

function chartSection() {
  const metric = chosenMetric();
  if (!metric) return make("section", { id: "charts", hidden: true });
  const metrics = drawable().map(([column]) => [column.key, titleOf(column)]);
  return sectionOf("charts", "Charts", null,
    make("div", { class: "choices" },
      choice("Metric", metrics, metric[0].key, (value) => { state.metric = value; redraw(); }),
      choice("Cost", Object.entries(COSTS), state.cost, (value) => { state.cost = value; redraw(); })),
    rankingChart(metric),
    make("div", { class: "pair" }, sparsityChart(metric), costChart(metric)));
}
