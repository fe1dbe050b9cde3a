// Drawing: all of it once, and what changes when something is chosen.

const DRAWN = { charts: chartSection, paired: pairedSection, masks: maskSection };

function redraw() {
  redrawTable();
  for (const [id, section] of Object.entries(DRAWN)) document.getElementById(id)?.replaceWith(section() ?? "");
}

function showSetting(number) {
  Object.assign(state, { setting: number, asked: null, sort: null, metric: null, pair: null });
  state.asked = fullestLevel();
  state.hidden.clear();
  state.blocks.clear();
  document.getElementById("controls").replaceChildren(...controls());
  document.getElementById("main").replaceChildren(...mainSections());
  redraw(); // now that charts know how wide they are
}

function mainSections() {
  const parts = [
    settingHead(), tableSection(), make("section", { id: "charts" }), make("section", { id: "paired" }),
    make("section", { id: "masks" }), publishedSection(), failureSection(), runSection(),
  ];
  return parts.filter((part) => part !== null);
}

let width = innerWidth;
addEventListener("resize", () => {
  if (innerWidth !== width) redraw();
  width = innerWidth;
});
addEventListener("scroll", hideTip, { passive: true });
addEventListener("keydown", (event) => { if (event.key === "Escape") hideTip(); });

document.getElementById("top").replaceChildren(...pageHead().filter((part) => part !== null));
showSetting(0);
document.documentElement.dataset.ready = "yes";
