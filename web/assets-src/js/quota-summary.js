// <quota-summary>: what the form asks for, beside what is used and allowed, before the click.

const gib = (mib) => mib < 1024 ? `${mib} MiB` : `${(mib / 1024).toFixed(mib % 1024 ? 1 : 0)} GiB`;
const number = (n) => String(Math.round(n * 1000) / 1000);

class QuotaSummary extends HTMLElement {
  connectedCallback() {
    this.form = document.getElementById(this.dataset.form);
    if (!this.form) return;
    this.textContent = "";
    this.rows = [
      this.#row("Nodes", "nodes", number, (f) => f.nodes),
      this.#row("CPU", "cpu", number, (f) => f.nodes * f.cpu),
      this.#row("Memory", "memory", gib, (f) => f.nodes * f.memory),
    ];
    this.disk = document.createElement("p");
    this.verdict = document.createElement("p");
    this.verdict.className = "verdict";
    this.verdict.setAttribute("role", "status");
    this.append(this.disk, this.verdict);
    this.disk.className = "sub";
    this.form.addEventListener("input", () => this.#update());
    this.#update();
  }

  #row(label, key, show, asked) {
    const row = document.createElement("div");
    row.className = "ask-row";
    row.innerHTML = '<div class="meter-text"><span></span><span class="num"></span></div><div class="meter-track" aria-hidden="true"><div class="meter-fill"></div><div class="meter-more"></div></div>';
    row.querySelector("span").textContent = label;
    this.append(row);
    const used = Number(this.dataset[`used${key[0].toUpperCase()}${key.slice(1)}`]);
    const max = Number(this.dataset[`max${key[0].toUpperCase()}${key.slice(1)}`] ?? NaN);
    return { row, label, used, max, show, asked };
  }

  #update() {
    const value = (name) => Math.max(0, Number(this.form.elements[name].value) || 0);
    const fields = { nodes: value("nodes"), cpu: value("cpu"), memory: value("memory_mib") };
    const over = [];
    for (const { row, label, used, max, show, asked } of this.rows) {
      const more = asked(fields);
      const [, text] = row.querySelectorAll("span");
      const [fill, extra] = row.querySelectorAll(".meter-track > div");
      const capped = !Number.isNaN(max);
      text.textContent = capped ? `${show(used)} + ${show(more)} of ${show(max)}` : `+ ${show(more)}`;
      row.querySelector(".meter-track").hidden = !capped;
      if (!capped) continue;
      const share = (n) => `${Math.min(100, n / max * 100)}%`;
      fill.style.width = share(used);
      extra.style.width = share(Math.min(more, Math.max(0, max - used)));
      const tooMuch = used + more > max + 1e-9;
      row.classList.toggle("ask-over", tooMuch);
      if (tooMuch) over.push(label);
    }
    const disk = fields.nodes * value("disk_mib");
    this.disk.textContent = `Up to ${gib(disk)} of disk in all.`;
    this.verdict.className = over.length ? "verdict verdict-bad" : "verdict verdict-ok";
    const words = over.map((label) => label === "CPU" ? label : label.toLowerCase());
    this.verdict.textContent = over.length ? `More than your quota: ${words.join(", ")}.` : "Fits your quota now.";
    this.verdict.hidden = this.rows.every(({ max }) => Number.isNaN(max));
  }
}

// Once the form after it was read.
addEventListener("DOMContentLoaded", () => customElements.define("quota-summary", QuotaSummary));
