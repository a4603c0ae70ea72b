// The palette (Ctrl+K or ⌘K): jump to any page, cluster or terminal by a few letters of its name.

const mac = /Mac|iPhone|iPad/.test(navigator.platform);

/** Letters of `query` in order in `text`; runs and word beginnings count more. -1 where they are not. */
export function score(query, text) {
  let at = -1;
  let points = 0;
  for (const letter of query.toLowerCase()) {
    const next = text.toLowerCase().indexOf(letter, at + 1);
    if (next < 0) return -1;
    points += next === at + 1 ? 3 : 1;
    if (next === 0 || /[\s/-]/.test(text[next - 1])) points += 2;
    at = next;
  }
  return points - text.length / 100;
}

class Palette {
  #dialog = null;
  #items = [];
  #shown = [];
  #active = 0;

  #build() {
    const dialog = document.createElement("dialog");
    dialog.className = "palette";
    dialog.setAttribute("aria-label", "Jump to");
    dialog.innerHTML = '<input class="palette-input" type="text" role="combobox" aria-expanded="true" aria-controls="palette-list" aria-autocomplete="list" aria-label="Jump to" placeholder="Jump to a cluster, terminal or page" autocomplete="off" spellcheck="false"><ul class="palette-list" id="palette-list" role="listbox" aria-label="Results"></ul><p class="palette-none" role="status" hidden>Nothing has that name.</p>';
    document.body.append(dialog);
    this.#dialog = dialog;
    this.input = dialog.querySelector("input");
    this.list = dialog.querySelector("ul");
    this.input.addEventListener("input", () => this.#filter());
    this.input.addEventListener("keydown", (event) => this.#key(event));
    dialog.addEventListener("click", (event) => {
      const option = event.target.closest("[role=option]");
      if (option) this.#go(Number(option.dataset.index));
      else if (event.target === dialog) dialog.close();
    });
  }

  async open() {
    if (!this.#dialog) this.#build();
    if (this.#dialog.open) return this.#dialog.close();
    this.#items = [...document.querySelectorAll(".menu a")].map((a) => ({ text: a.textContent.trim(), kind: "Page", url: a.getAttribute("href") }));
    this.#items.push({ text: "New cluster", kind: "Action", url: "/vclusters/new" });
    this.input.value = "";
    this.#dialog.showModal();
    this.#filter();
    try {
      const answer = await fetch("/api/v1/vclusters", { headers: { Accept: "application/json" } });
      if (!answer.ok) return;
      const me = document.querySelector(".menu-name")?.lastChild.textContent.trim();
      const list = await answer.json();
      for (const { name, owner } of list.items ?? list) {
        const base = `/vclusters/${encodeURIComponent(name)}`;
        const query = owner && owner !== me ? `owner=${encodeURIComponent(owner)}` : "";
        const label = query ? `${owner}/${name}` : name;
        this.#items.push({ text: label, kind: "Cluster", url: query ? `${base}?${query}` : base });
        this.#items.push({ text: `${label} terminal`, kind: "Terminal", url: `${base}/terminal?${query ? `${query}&` : ""}node=node1` });
      }
      this.#filter();
    } catch {
      // The pages are there all the same.
    }
  }

  #filter() {
    const query = this.input.value.trim();
    this.#shown = this.#items
      .map((item) => ({ item, points: query ? score(query, item.text) : 0 }))
      .filter(({ points }) => points >= 0)
      .sort((a, b) => b.points - a.points)
      .slice(0, 12)
      .map(({ item }) => item);
    this.#active = 0;
    this.list.replaceChildren(...this.#shown.map((item, index) => {
      const option = document.createElement("li");
      option.id = `palette-${index}`;
      option.dataset.index = index;
      option.setAttribute("role", "option");
      const text = document.createElement("span");
      text.textContent = item.text;
      const kind = document.createElement("span");
      kind.className = "palette-kind";
      kind.textContent = item.kind;
      option.append(text, kind);
      return option;
    }));
    this.#dialog.querySelector(".palette-none").hidden = this.#shown.length > 0;
    this.list.hidden = this.#shown.length === 0;
    this.#mark();
  }

  #mark() {
    for (const [index, option] of [...this.list.children].entries()) {
      option.setAttribute("aria-selected", String(index === this.#active));
      if (index === this.#active) option.scrollIntoView({ block: "nearest" });
    }
    this.input.setAttribute("aria-activedescendant", this.#shown.length ? `palette-${this.#active}` : "");
  }

  #key(event) {
    const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
    if (step && this.#shown.length) {
      event.preventDefault();
      this.#active = (this.#active + step + this.#shown.length) % this.#shown.length;
      this.#mark();
    } else if (event.key === "Enter") {
      event.preventDefault();
      this.#go(this.#active);
    }
  }

  #go(index) {
    const item = this.#shown[index];
    if (item) location.assign(item.url);
  }
}

const palette = new Palette();

document.addEventListener("keydown", (event) => {
  if (event.key.toLowerCase() === "k" && (mac ? event.metaKey : event.ctrlKey) && !event.shiftKey && !event.altKey) {
    // In a terminal Ctrl+K belongs to the shell.
    if (!document.querySelector(".menu") || event.target.closest?.(".xterm")) return;
    event.preventDefault();
    palette.open();
  }
});

addEventListener("DOMContentLoaded", () => {
  const button = document.querySelector("[data-palette]");
  if (!button) return;
  if (mac) button.querySelector("kbd").textContent = "⌘K";
  button.addEventListener("click", () => palette.open());
});
