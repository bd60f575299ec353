// The list of plans: two of them can be compared, so a third pick lets go of the oldest one.
export function pickTwo(root) {
  for (const form of root.querySelectorAll("[data-compare]:not([data-ready])")) {
    form.dataset.ready = "";
    const button = form.querySelector("[data-compare-button]");
    const say = form.querySelector("[data-compare-say]");
    const picked = [...form.querySelectorAll("input[name=plan]:checked")];
    const show = () => {
      button.setAttribute("aria-disabled", picked.length !== 2);
      say.textContent = ["", "Pick one more to compare.", ""][picked.length];
    };
    form.addEventListener("change", ({ target }) => {
      if (target.name !== "plan") return;
      if (target.checked) picked.push(target);
      else picked.splice(picked.indexOf(target), 1);
      while (picked.length > 2) picked.shift().checked = false;
      show();
    });
    form.addEventListener("submit", (event) => {
      if (picked.length === 2) return;
      event.preventDefault();
      say.textContent = "Pick two plans to compare them.";
    });
    show();
  }
}
