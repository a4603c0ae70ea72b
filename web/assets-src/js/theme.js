// Loaded before anything is painted: "auto" follows the system, also when that changes while the page is open.
const root = document.documentElement;
const dark = matchMedia("(prefers-color-scheme: dark)");

function apply() {
  if (root.dataset.theme === "auto") root.dataset.bsTheme = dark.matches ? "dark" : "light";
}

apply();
dark.addEventListener("change", apply);
root.classList.add("js");
