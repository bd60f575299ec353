// The budget slider: the text beside it follows at once, the plan of the budget a moment later (htmx asks for it). Cells that
// changed flash, and the plot's ring moves.
const UNITS = [[2 ** 30, "GiB"], [2 ** 20, "MiB"], [2 ** 10, "KiB"]];

export function slide() {
  const form = document.querySelector("[data-slider]");
  if (!form) return;
  const range = form.querySelector("input[type=range]");
  const text = form.querySelector("[data-slider-text]");
  const show = (bytes) => {
    text.textContent = size(bytes);
    range.setAttribute("aria-valuetext", size(bytes));
  };
  range.addEventListener("input", () => show(Number(range.value)));
  let before = formats();
  document.addEventListener("htmx:after:swap", () => {
    const preview = document.getElementById("preview");
    if (!preview?.dataset.plan) return;
    const { budget, bytes, loss } = preview.dataset;
    if (document.activeElement !== range) {
      range.value = budget;
      show(Number(budget));
    }
    const now = formats();
    for (const [unit, cell] of now) if (before.get(unit)?.dataset.format !== cell.dataset.format) cell.classList.add("moved");
    before = now;
    document.dispatchEvent(new CustomEvent("bitplan:here", { detail: { mib: bytes / 2 ** 20, loss: Number(loss) } }));
  });
}

function formats() {
  return new Map([...document.querySelectorAll("#preview a.cell")].map((cell) => [cell.dataset.unit, cell]));
}

function size(bytes) {
  const [unit, name] = UNITS.find(([least]) => bytes >= least) ?? [1, "B"];
  return `${(bytes / unit).toFixed(unit === 1 ? 0 : 2)} ${name}`;
}
