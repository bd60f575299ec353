// Plots: the page's Vega-Lite documents, drawn in the page's own colours and drawn anew when the colour scheme changes.
// Expressions run in the interpreter (ast), since the page's policy lets nothing be evaluated.
const AXIS = {
  labelColor: "var(--soft)", titleColor: "var(--soft)", gridColor: "var(--line)", domainColor: "var(--line)", tickColor: "var(--line)",
  titleFontWeight: "normal", labelFontSize: 11, titleFontSize: 12, titlePadding: 8,
};
const CONFIG = {
  font: "system-ui, -apple-system, 'Segoe UI', sans-serif",
  axis: AXIS,
  legend: { labelColor: "var(--ink)", titleColor: "var(--soft)", symbolStrokeWidth: 0 },
  view: { stroke: null },
};
const views = new Map(); // the place on the page -> its plot
const lowest = new Map(); // and the loss at its lower edge

for (const place of document.querySelectorAll("[data-spec]")) draw(place);
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
  for (const place of document.querySelectorAll("[data-spec]")) draw(place);
});
document.addEventListener("bitplan:here", ({ detail }) => {
  for (const [place, view] of views) view.data("here", [{ mib: detail.mib, loss: detail.loss || lowest.get(place) }]).runAsync();
});

async function draw(place) {
  const style = getComputedStyle(document.documentElement);
  const colour = (text) => text.replace(/var\((--[\w-]+)\)/g, (_, name) => style.getPropertyValue(name).trim());
  const spec = JSON.parse(colour(document.getElementById(place.dataset.spec).textContent));
  spec.config = JSON.parse(colour(JSON.stringify(CONFIG)));
  spec.background = null;
  place.querySelector(".drawing")?.remove();
  const drawing = place.appendChild(document.createElement("div"));
  drawing.className = "drawing";
  place.classList.add("drawn"); // before drawing, so that the width is that of the place itself
  try {
    const options = { actions: false, ast: true, renderer: "svg", defaultStyle: false, tooltip: { disableDefaultStyle: true } };
    const { view } = await vegaEmbed(drawing, spec, options);
    views.set(place, view);
    lowest.set(place, spec.usermeta?.lowest);
    place.dataset.ready = "";
  } catch (error) {
    place.classList.remove("drawn");
    console.error(error);
  }
}
