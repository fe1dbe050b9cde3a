// Where a number is from: its runs, what they were made from, by what, where and when.

const origin = document.getElementById("origin");

function openDialog(title, ...children) {
  hideTip();
  origin.replaceChildren(
    make("div", { class: "title" }, make("h2", { id: "origin-title" }, title),
      make("button", { type: "button", onclick: () => origin.close() }, "Close")),
    ...children.flat().filter((child) => child !== null));
  if (!origin.open) origin.showModal();
  origin.scrollTop = 0;
}

origin.addEventListener("click", (event) => { if (event.target === origin) origin.close(); });

function openNumber(line, index) {
  const column = setting().columns[index], cell = line.cells[index];
  if (line.source) {
    openDialog(`${titleOf(column)}: ${cell[0]}`, make("p", {}, line.difference ? "Ours minus theirs, of the number above it." : `As printed: ${line.source}.`), notesOf(setting().published));
    return;
  }
  const words = column.metric === "delta"
    ? "Taken of the means over seeds of this line and of the dense network, by the definition below the table."
    : column.metric === "mean_rank" ? "Taken of the means of all lines of this sparsity." : null;
  const single = cell[3].length ? sortable(["seed", "value", "as stored", "run"], line.runs.map((name, at) => [
    { text: String(CONTENT.runs[name].seed), sort: CONTENT.runs[name].seed },
    { text: cell[3][at] === null ? MISSING : `${written(cell[3][at], column)} ${unitOf(column)}`, sort: cell[3][at] },
    { text: cell[3][at] === null ? MISSING : String(cell[3][at]), sort: cell[3][at] },
    { text: name, open: () => openRun(name) },
  ]), "single values") : null;
  openDialog(`${titleOf(column)}: ${cell[0]}`, make("p", { class: "quiet" }, `${line.label}, asked for ${percent(line.asked)} %`),
    words ? make("p", {}, words) : null, single, line.runs.map((name, at) => runDetails(name, at === 0)));
}

function openLine(line) {
  const numbers = setting().columns.map((column, index) => [column, line.cells[index]]).filter(([, cell]) => cell);
  openDialog(`${line.label} at ${percent(line.asked)} %`, make("p", { class: "quiet" }, line.paradigm),
    line.runs.map((name, at) => runDetails(name, at === 0)),
    make("h3", {}, "Numbers"), sortable(["number", "value"], numbers.map(([column, cell]) => [{ text: titleOf(column) }, { text: cell[0], sort: cell[1] }]), "numbers"));
}

function openEffect(effect, column, level) {
  openDialog(`${effect.method} against ${level.reference}: ${titleOf(column)}`,
    make("p", { class: "quiet" }, `at sparsity ${percent(level.sparsity)} %`),
    sortable(["seed", "method", "reference", "difference"], effect.seeds.map((seed, at) => [
      { text: String(seed), sort: seed }, { text: written(effect.values[at], column), sort: effect.values[at] },
      { text: written(effect.reference_values[at], column), sort: effect.reference_values[at] },
      { text: written(effect.values[at] - effect.reference_values[at], column, true), sort: effect.values[at] - effect.reference_values[at] },
    ]), "pairs"),
    setting().lines.filter((line) => line.label === effect.method && line.asked === level.sparsity).flatMap((line) => line.runs.map((name) => runDetails(name, false))));
}

function openRun(name) {
  openDialog(name, runFacts(name));
}

function runDetails(name, open) {
  const details = make("details", { open }, make("summary", {}, name));
  const show = () => { if (details.open && !details.querySelector("dl")) details.append(...runFacts(name)); };
  details.addEventListener("toggle", show);
  show();
  return details;
}

function runFacts(name) {
  const run = CONTENT.runs[name];
  const [updates, stages] = CONTENT.plans[run.plan];
  const config = run.facts.map((number) => CONTENT.facts[number]);
  const own = differing();
  const last = run.sessions.at(-1);
  const machine = last ? CONTENT.machines[last.machine] : [];
  const packages = machine.filter(([key]) => key.startsWith("packages.")).map(([key, value]) => `${key.slice(9)} ${value}`).join(", ");
  const fact = Object.fromEntries(machine);
  const pairs = [
    ["status", run.reason ? `${run.status}: ${run.reason}` : run.status],
    ["folder", make("a", { href: `./${run.folder.split("/").map(encodeURIComponent).join("/")}/` }, run.folder)],
    ["this run again", run.command ? make("code", {}, run.command) : "not stored: the run was made by an earlier version"],
    ["made by", last?.command ? make("code", {}, last.command) : MISSING],
    ["started", run.sessions.map((session) => session.started).join(", ") || MISSING],
    ["commit", fact.commit || MISSING],
    ["device", [fact.device, fact.processor, fact.platform].filter(Boolean).join(", ") || MISSING],
    ["Python", fact.python || MISSING], ["packages", packages || MISSING],
    ["shared stages", stages.join(", ") || "none"],
    ["masks updated", updates.length ? updates.map(([step, sparsity]) => `step ${step}: ${percent(sparsity)} %`).join(", ") : "never"],
  ];
  return [list(pairs),
    make("h3", {}, "What is not the same in all runs of this setting"), list(config.filter(([key]) => own.has(key))),
    make("details", {}, make("summary", {}, "Configuration in full"), list(config))];
}

function list(pairs) {
  return make("dl", { class: "facts-list" }, pairs.map(([name, value]) => make("div", {}, make("dt", {}, name), make("dd", {}, value))));
}

const differingBySetting = new Map();

function differing() {
  if (!differingBySetting.has(state.setting)) {
    const runs = [...setting().lines.flatMap((line) => line.runs), ...setting().failures];
    const counts = new Map();
    for (const number of runs.flatMap((name) => CONTENT.runs[name].facts)) counts.set(number, (counts.get(number) ?? 0) + 1);
    const keys = [...counts].filter(([, count]) => count < runs.length).map(([number]) => CONTENT.facts[number][0]);
    differingBySetting.set(state.setting, new Set(keys));
  }
  return differingBySetting.get(state.setting);
}
