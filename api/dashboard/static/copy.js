// Buttons that copy what stands beside them. Browsers allow it on secure origins only, so elsewhere the text is selected.
export function copyButtons() {
  for (const button of document.querySelectorAll("[data-copy]")) {
    button.hidden = false;
    const label = button.firstChild;
    button.addEventListener("click", async () => {
      const source = document.getElementById(button.dataset.copy);
      try {
        await navigator.clipboard.writeText(source.textContent);
        label.data = "Copied";
      } catch {
        getSelection().selectAllChildren(source);
        label.data = "Selected";
      }
      setTimeout(() => (label.data = "Copy"), 1500);
    });
  }
}
