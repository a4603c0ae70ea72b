// <copy-line><code>…</code></copy-line>: a command with a button that copies it.

class CopyLine extends HTMLElement {
  connectedCallback() {
    if (this.querySelector("button")) return;
    const button = document.createElement("button");
    button.type = "button";
    button.className = "copy-button";
    button.textContent = "Copy";
    button.setAttribute("aria-label", `Copy: ${this.textContent.trim()}`);
    button.addEventListener("click", async () => {
      const text = this.querySelector("code").textContent;
      try {
        await navigator.clipboard.writeText(text);
        button.textContent = "Copied";
      } catch {
        // Without a secure context there is no clipboard: select it, so that Ctrl+C does it.
        getSelection().selectAllChildren(this.querySelector("code"));
        button.textContent = "Press Ctrl+C";
      }
      setTimeout(() => { button.textContent = "Copy"; }, 2000);
    });
    this.append(button);
  }
}

customElements.define("copy-line", CopyLine);
