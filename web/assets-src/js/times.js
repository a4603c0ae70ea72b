// Keeps relative times true and gives the exact one in the reader's own zone on hover; counts what still runs.

const exact = new Intl.DateTimeFormat(undefined, { dateStyle: "medium", timeStyle: "medium" });

/** The same words as the server's `html::ago`. */
export function relative(seconds) {
  let n = Math.abs(Math.trunc(seconds));
  if (seconds < 0 && n >= 60) n += n < 3600 ? 30 : n < 86400 ? 1800 : 43200;
  if (n < 5) return "just now";
  const [count, unit] = n < 60 ? [n, "s"]
    : n < 3600 ? [Math.trunc(n / 60), "min"]
    : n < 86400 ? [Math.trunc(n / 3600), "h"]
    : [Math.trunc(n / 86400), n < 172800 ? "day" : "days"];
  return seconds < 0 ? `in ${count} ${unit}` : `${count} ${unit} ago`;
}

/** The same words as the server's `html::millis`. */
export function duration(ms) {
  if (ms < 1000) return `${Math.trunc(ms)} ms`;
  if (ms < 60_000) return `${(ms / 1000).toFixed(1)} s`;
  if (ms < 3_600_000) return `${Math.trunc(ms / 60_000)} min ${Math.trunc(ms / 1000) % 60} s`;
  return `${Math.trunc(ms / 3_600_000)} h ${Math.trunc(ms / 60_000) % 60} min`;
}

function update() {
  for (const time of document.querySelectorAll("time.ago")) {
    const at = new Date(time.dateTime);
    const text = relative((Date.now() - at) / 1000);
    if (time.textContent !== text) time.textContent = text;
    const title = exact.format(at);
    if (time.title !== title) time.title = title;
  }
}

class ElapsedTime extends HTMLElement {
  connectedCallback() {
    this.timer = setInterval(() => {
      const ms = Date.now() - new Date(this.dataset.from);
      // A clock that is behind the server's would count backwards.
      if (ms > 0) this.textContent = duration(ms);
    }, 100);
  }

  disconnectedCallback() {
    clearInterval(this.timer);
  }
}

customElements.define("elapsed-time", ElapsedTime);
document.addEventListener("docklet:changed", update);
addEventListener("DOMContentLoaded", () => {
  update();
  setInterval(update, 5000);
});
