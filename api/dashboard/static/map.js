// The bit map: one stop of the Tab key for the whole map, arrow keys within it, and the unit under the pointer or the focus
// told in the panel beside it. Without this script every cell is a link to the same facts.
export function mapKeys(root) {
  for (const map of root.querySelectorAll("[data-map]:not([data-ready])")) {
    map.dataset.ready = "";
    const cells = [...map.querySelectorAll("a.cell")];
    for (const cell of cells) {
      cell.tabIndex = -1;
      cell.removeAttribute("title"); // the panel says it, so the browser's own tip would stand in the way
    }
    if (cells.length) cells[0].tabIndex = 0;
    map.addEventListener("mouseover", ({ target }) => target.matches("a.cell") && tell(target));
    map.addEventListener("focusin", ({ target }) => {
      if (!target.matches("a.cell")) return;
      for (const cell of map.querySelectorAll("a.cell[tabindex='0']")) cell.tabIndex = -1;
      target.tabIndex = 0;
      tell(target);
    });
    map.addEventListener("click", (event) => {
      if (!event.target.matches("a.cell") || event.ctrlKey || event.metaKey) return;
      event.preventDefault();
      event.target.focus();
      tell(event.target);
    });
    map.addEventListener("keydown", (event) => {
      if (!event.target.matches("a.cell")) return;
      const next = neighbour(cells, event.target, event.key);
      if (!next) return;
      event.preventDefault();
      next.focus();
    });
  }
}

// The next cell in a direction: by where cells lie on the page, which is right for experts and several stacks as well.
function neighbour(cells, from, key) {
  const here = cells.indexOf(from);
  if (key === "Home") return cells[0];
  if (key === "End") return cells.at(-1);
  if (key === "ArrowLeft" || key === "ArrowRight") return beside(cells, from, key === "ArrowRight" ? 1 : -1) ?? null;
  if (key === "ArrowUp" || key === "ArrowDown") return below(cells, from, here, key === "ArrowDown" ? 1 : -1);
  return null;
}

function beside(cells, from, step) {
  const box = from.getBoundingClientRect();
  const row = cells.filter((cell) => Math.abs(cell.getBoundingClientRect().top - box.top) < 3);
  return row[row.indexOf(from) + step];
}

function below(cells, from, here, step) {
  const box = from.getBoundingClientRect();
  let best = null;
  let distance = Infinity;
  for (const cell of cells) {
    const other = cell.getBoundingClientRect();
    const down = (other.top - box.top) * step;
    if (down < 3) continue;
    const far = down * 1000 + Math.abs(other.left - box.left);
    if (far < distance) [best, distance] = [cell, far];
  }
  return best;
}

function tell(cell) {
  const panel = document.querySelector("[data-unit-panel]");
  if (!panel) return;
  const { unit, format, loss, bytes, tied, next, saves, costs, price } = cell.dataset;
  const say = (field, text) => (panel.querySelector(`[data-field=${field}]`).textContent = text);
  say("unit", unit);
  say("format", `${format}, ${cell.dataset.bits} bits`);
  say("loss", loss);
  say("bytes", tied ? `${bytes}, with ${tied} tied` : bytes);
  say("next", next ? `${next}: saves ${saves} for ${costs} more` : "none that saves anything");
  say("price", price ? `${price} a MiB` : "–");
}
