// htmx with our rules: a soft form (`hx-boost`) changes `#main` in place; an answer that belongs to another page goes
// there instead; a morph leaves alone what a person folded out.
import htmx from "htmx.org/dist/htmx.esm.js";

htmx.registerExtension("docklet", {
  htmx_before_morph_attr(element, { attrName }) {
    if (attrName === "open" && element.tagName === "DETAILS") return false;
    // Set by scripts, unknown to the server.
    if (attrName === "data-state" || attrName === "hidden" && element.hasAttribute("data-live-note")) return false;
    return true;
  },
  htmx_before_response(element, { ctx }) {
    // A part asks for its own content, from wherever the page is.
    if (element.closest?.("[data-part]")) return true;
    const url = new URL(ctx.response.raw.url || location.href, location.href);
    if (url.pathname === location.pathname) return true;
    // A refused form answers at its own address with the page it stands on.
    if (!ctx.response.raw.redirected && ctx.response.status === 422) return true;
    location.assign(url);
    return false;
  },
});

document.addEventListener("htmx:after:swap", ({ target }) => {
  // Whoever types in another field stays there.
  if (target.closest?.("[data-part]")) return;
  document.querySelector("#main [aria-invalid=true]")?.focus();
  target.dispatchEvent?.(new CustomEvent("docklet:changed", { bubbles: true }));
});

document.addEventListener("htmx:error", () => {
  const note = document.querySelector("[data-offline]") ?? document.createElement("div");
  note.className = "note note-bad";
  note.dataset.offline = "";
  note.setAttribute("role", "alert");
  note.textContent = "No connection to Docklet. Nothing was changed; try again in a moment.";
  document.getElementById("main")?.prepend(note);
});

/** Puts `html` in the place of `element`, changing only what differs. */
export function morph(element, html) {
  return htmx.swap({ text: html, target: element, sourceElement: element, swap: "outerMorph" });
}
