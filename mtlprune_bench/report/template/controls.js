// The head of the page, and the controls: what is shown of the setting that was chosen.

const THEMES = ["auto", "light", "dark"];

function themeSwitch() {
  const button = make("button", { type: "button", id: "theme" });
  function set(theme) {
    document.documentElement.dataset.theme = theme;
    button.textContent = `Colours: ${theme}`;
  }
  button.addEventListener("click", () => {
    set(THEMES[(THEMES.indexOf(document.documentElement.dataset.theme) + 1) % THEMES.length]);
  });
  set("auto");
  return button;
}

function counted(number, word) {
  return `${number} ${word}${number === 1 ? "" : "s"}`;
}

function pageHead() {
  const runs = Object.values(CONTENT.runs);
  const failed = runs.filter((run) => run.status !== "finished").length;
  const days = runs.flatMap((run) => run.sessions.map((session) => session.started.slice(0, 10))).filter(Boolean).sort();
  const methods = new Set(runs.map((run) => run.method));
  const seeds = new Set(runs.map((run) => run.seed));
  const parts = [
    counted(methods.size, "method"), counted(runs.length, "run"), counted(seeds.size, "seed"),
    `${failed || "none"} failed`,
    ...(CONTENT.unfinished.length ? [`${CONTENT.unfinished.length} not finished`] : []),
    ...(days.length ? [days[0] === days.at(-1) ? days[0] : `${days[0]} to ${days.at(-1)}`] : []),
    `store ${CONTENT.store}`, `mtlprune-bench ${CONTENT.version}`,
    ...CONTENT.filters.map((filter) => `filter ${filter}`),
  ];
  const datasets = [...new Set(CONTENT.settings.map((each) => each.facts.dataset))];
  document.title = `mtlbench report: ${datasets.join(", ")}`;
  return [
    make("div", { class: "title" }, make("h1", {}, `Pruned multitask networks on ${datasets.join(", ")}`), themeSwitch()),
    make("p", { class: "facts" }, parts.map((part) => make("span", {}, part))),
    CONTENT.settings.length > 1 ? settingChooser() : null,
  ];
}

function settingChooser() {
  const values = CONTENT.settings.map((each, index) => [index, `${index + 1}. ${each.caption}`]);
  return make("div", { class: "settings" },
    choice("Setting", values, state.setting, (value) => showSetting(Number(value))),
    make("p", { class: "quiet" }, CONTENT.differing));
}

function controls() {
  const level = levels();
  const details = make("details", { open: innerWidth > 800 }, make("summary", {}, "What is shown"),
    make("label", { class: "choice" }, make("span", {}, "Find"), make("input", {
      type: "search", id: "find", placeholder: "method, setting, run …", value: state.text,
      oninput: (event) => { state.text = event.target.value; redraw(); },
    })),
    level.length > 1 ? make("fieldset", {}, make("legend", {}, "Sparsity asked for"),
      [null, ...level].map((asked) => make("button", {
        type: "button", class: "chip", "aria-pressed": String(asked === state.asked),
        onclick: (event) => { state.asked = asked; pressOnly(event.currentTarget); redraw(); },
      }, asked === null ? "all" : `${percent(asked)} %`))) : null,
    make("fieldset", {}, make("legend", {}, "Columns"),
      [...new Set(setting().columns.map((column) => column.block))].map((block) => toggle(block, state.blocks, block))),
    setting().lines.some((line) => line.source || line.published.length)
      ? make("label", { class: "method" }, make("input", {
        type: "checkbox", checked: state.published,
        onchange: (event) => { state.published = event.target.checked; redraw(); },
      }), "published numbers") : null,
    methodList());
  return [details];
}

function pressOnly(button) {
  for (const other of button.parentElement.querySelectorAll("button")) other.setAttribute("aria-pressed", String(other === button));
}

function toggle(text, hidden, key) {
  return make("button", {
    type: "button", class: "chip", "aria-pressed": String(!hidden.has(key)),
    onclick: (event) => {
      if (!hidden.delete(key)) hidden.add(key);
      event.currentTarget.setAttribute("aria-pressed", String(!hidden.has(key)));
      redraw();
    },
  }, text);
}

function methodList() {
  const methods = Object.entries(setting().methods);
  const groups = new Map();
  for (const [label, method] of methods) groups.set(method.paradigm, [...(groups.get(method.paradigm) ?? []), label]);
  const boxes = new Map();
  function show(labels, wanted) {
    for (const label of labels) {
      if (wanted) state.hidden.delete(label); else state.hidden.add(label);
      boxes.get(label).checked = wanted;
    }
    redraw();
  }
  const all = methods.map(([label]) => label);
  const button = (text, action) => make("button", { type: "button", class: "link", onclick: action }, text);
  const plain = methods.filter(([, method]) => method.plain).map(([label]) => label);
  const buttons = [
    button("all", () => show(all, true)), button("none", () => show(all, false)),
    plain.length < all.length ? button("as registered", () => { show(all, false); show(plain, true); }) : null,
  ];
  const list = [...groups].map(([paradigm, labels]) => make("div", {},
    make("button", {
      type: "button", class: "link group",
      onclick: () => show(labels, labels.some((label) => state.hidden.has(label))),
    }, paradigm || "methods"),
    labels.map((label) => {
      const box = make("input", { type: "checkbox", checked: !state.hidden.has(label), onchange: () => show([label], box.checked) });
      boxes.set(label, box);
      return make("label", { class: "method", title: label }, box, swatch(label), make("span", {}, setting().methods[label].name));
    })));
  return make("fieldset", { class: "methods" }, make("legend", {}, "Methods ", buttons), list);
}

function swatch(label) {
  return draw("svg", { class: `swatch ${colourOf(label)}`, width: 30, height: 12, "aria-hidden": "true" }, ...symbolLine(label));
}
