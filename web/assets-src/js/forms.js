// Small help for forms: presets, no second send, the theme at once.

document.addEventListener("click", ({ target }) => {
  const preset = target.closest?.("[data-set]");
  if (!preset) return;
  const field = document.getElementById(preset.dataset.set);
  field.value = preset.dataset.value;
  field.dispatchEvent(new Event("input", { bubbles: true }));
});

// A form that was sent waits for its answer; a second click must not send it again.
document.addEventListener("submit", (event) => {
  const form = event.target;
  if (form.method !== "post" || form.hasAttribute("hx-boost")) return;
  if (form.dataset.state === "sent") return event.preventDefault();
  form.dataset.state = "sent";
});

addEventListener("pageshow", () => {
  for (const form of document.querySelectorAll("form[data-state]")) delete form.dataset.state;
});

// The colours change with the click; the answer only keeps the choice.
document.addEventListener("submit", ({ target, submitter }) => {
  if (!target.matches("[data-theme-form]") || !submitter) return;
  const root = document.documentElement;
  root.dataset.theme = submitter.value;
  root.dataset.bsTheme = submitter.value === "auto"
    ? (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light")
    : submitter.value;
});
