// <live-region src="/live/…">: one SSE stream per page. Each event is named after the element that it replaces.
// When the stream breaks it says so and tries again, sooner at first; what is shown stays.
import { morph } from "./htmx.js";

const FIRST_WAIT = 1000;
const LONGEST_WAIT = 15000;

class LiveRegion extends HTMLElement {
  #source = null;
  #timer = null;
  #wait = FIRST_WAIT;
  #known = new Set();

  connectedCallback() {
    this.onVisible = () => {
      // A hidden page needs no stream; browsers allow only six to one server.
      if (document.hidden) this.#close();
      else if (!this.#source) this.#open();
    };
    document.addEventListener("visibilitychange", this.onVisible);
    addEventListener("pagehide", this.onVisible.close = () => this.#close());
    addEventListener("pageshow", this.onVisible);
    if (!document.hidden) this.#open();
    // The app may answer by the time the page is shown.
    this.#follow(this.querySelector("[data-go]"));
  }

  #follow(element) {
    if (element?.dataset.go) location.replace(element.dataset.go);
  }

  disconnectedCallback() {
    document.removeEventListener("visibilitychange", this.onVisible);
    removeEventListener("pageshow", this.onVisible);
    removeEventListener("pagehide", this.onVisible.close);
    this.#close();
  }

  #open() {
    this.#close();
    const source = new EventSource(this.getAttribute("src"));
    this.#source = source;
    this.#known = new Set();
    source.addEventListener("open", () => {
      this.#wait = FIRST_WAIT;
      this.#say("");
    });
    source.addEventListener("error", () => {
      // An answer that is no stream closes it for good: who signed out or lost the object must know.
      if (source.readyState === EventSource.CLOSED) this.#ask();
      this.#close();
      this.#say(navigator.onLine ? "Connection lost. What you see may be old; trying again." : "You are offline. What you see may be old.");
      this.#timer = setTimeout(() => this.#open(), this.#wait);
      this.#wait = Math.min(this.#wait * 2, LONGEST_WAIT);
    });
    source.addEventListener("gone", (event) => {
      this.#close();
      location.replace(event.data || "/");
    });
    this.#listen();
  }

  /** Listens for each element with an id: any of them may be a fragment. */
  #listen() {
    for (const { id } of this.querySelectorAll("section[id], header[id]")) {
      if (this.#known.has(id)) continue;
      this.#known.add(id);
      this.#source.addEventListener(id, (event) => this.#replace(id, event.data));
    }
  }

  async #replace(id, html) {
    const element = document.getElementById(id);
    if (!element || !this.contains(element)) return;
    await morph(element, html);
    document.dispatchEvent(new CustomEvent("docklet:changed"));
    this.#follow(document.getElementById(id));
  }

  /** Whether this page would still be shown; if not, its own address says why. */
  async #ask() {
    try {
      const answer = await fetch(location.href, { redirect: "manual" });
      if (answer.type === "opaqueredirect" || [401, 403, 404].includes(answer.status)) location.reload();
    } catch {
      // No network: the stream is tried again anyhow.
    }
  }

  #close() {
    clearTimeout(this.#timer);
    this.#source?.close();
    this.#source = null;
  }

  #say(text) {
    const note = this.querySelector("[data-live-note]");
    if (!note) return;
    note.hidden = !text;
    note.textContent = text;
  }
}

customElements.define("live-region", LiveRegion);
