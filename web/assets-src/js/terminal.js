// <docklet-terminal>: a node's shell. It survives a lost connection, a reload and a restart of the master: the shell
// lives on the host, we only say which one we mean (a session id per browser tab and node).
//
// Flow: bytes are acknowledged once xterm has drawn them, so a program that prints without end waits for us instead of
// filling the browser's memory.
import { Terminal } from "@xterm/xterm";
import { FitAddon } from "@xterm/addon-fit";
import { SearchAddon } from "@xterm/addon-search";
import { UnicodeGraphemesAddon } from "@xterm/addon-unicode-graphemes";
import { WebLinksAddon } from "@xterm/addon-web-links";
import { DARK, LIGHT } from "./terminal-colours.js";

/** Acknowledge this often, in bytes. */
const ACK = 16 * 1024;
const FIRST_WAIT = 500;
const LONGEST_WAIT = 10_000;
/** A server that takes longer than this to attach is asked again. */
const ATTACH_TIMEOUT = 15_000;
const MATCHES = { matchBackground: "#7a5b00", matchOverviewRuler: "#e8b44a", activeMatchBackground: "#b3541e", activeMatchColorOverviewRuler: "#ff7a52" };

class DockletTerminal extends HTMLElement {
  #socket = null;
  #state = "connecting";
  #wait = FIRST_WAIT;
  #retryAt = 0;
  #timer = null;
  #attachTimer = null;
  #unacked = 0;

  connectedCallback() {
    this.#build();
    this.#terminal();
    this.#keys();
    new ResizeObserver(() => this.#fit()).observe(this.screen);
    addEventListener("online", () => this.#soon());
    document.addEventListener("visibilitychange", () => { if (!document.hidden) this.#soon(); });
    addEventListener("pageshow", (event) => { if (event.persisted) this.#soon(); });
    this.#fit();
    this.#connect();
  }

  /** Cuts the connection as a bad network would; for tests. */
  drop() {
    this.#socket?.close();
  }

  #icon(name) {
    return `<svg class="icon" aria-hidden="true" width="18" height="18"><use href="${this.dataset.icons}#${name}"></use></svg>`;
  }

  #build() {
    this.innerHTML = `
      <div class="term-tools" role="toolbar" aria-label="Terminal">
        <span class="term-state" data-state="connecting"><span class="dot" aria-hidden="true"></span><span role="status"></span><span class="term-count num"></span></span>
        <button type="button" class="term-tool" data-do="now" hidden>Reconnect now</button>
        <span class="term-space"></span>
        <form class="term-find" role="search" hidden>
          <input type="search" aria-label="Find in the terminal" placeholder="Find" autocomplete="off" spellcheck="false">
          <button type="button" class="term-tool" data-do="previous" aria-label="Previous match">${this.#icon("up")}</button>
          <button type="submit" class="term-tool" aria-label="Next match">${this.#icon("down")}</button>
        </form>
        <button type="button" class="term-tool" data-do="find" aria-keyshortcuts="Control+Shift+F" title="Find (Ctrl+Shift+F)">${this.#icon("search")}<span>Find</span></button>
        <button type="button" class="term-tool" data-do="copy" aria-keyshortcuts="Control+Shift+C" title="Copy the selection (Ctrl+Shift+C)">${this.#icon("copy")}<span>Copy</span></button>
        <button type="button" class="term-tool" data-do="paste" aria-keyshortcuts="Control+Shift+V" title="Paste (Ctrl+Shift+V)">${this.#icon("paste")}<span>Paste</span></button>
        <button type="button" class="term-tool" data-do="theme" title="Light or dark">${this.#icon("moon")}<span>Theme</span></button>
      </div>
      <div class="term-screen"></div>
      <div class="term-over" hidden></div>`;
    this.screen = this.querySelector(".term-screen");
    this.over = this.querySelector(".term-over");
    this.label = this.querySelector(".term-state");
    this.find = this.querySelector(".term-find");
    this.addEventListener("click", (event) => {
      const what = event.target.closest?.("[data-do]")?.dataset.do;
      if (what) this.#do(what);
    });
    this.find.addEventListener("submit", (event) => {
      event.preventDefault();
      this.search.findNext(this.find.querySelector("input").value, { decorations: MATCHES });
    });
    const input = this.find.querySelector("input");
    input.addEventListener("input", () => this.search.findNext(input.value, { incremental: true, decorations: MATCHES }));
    input.addEventListener("keydown", (event) => { if (event.key === "Escape") this.#do("find"); });
  }

  #terminal() {
    const open = (event, uri) => {
      // Output is anybody's; only web addresses are followed, and never with a way back to this window.
      const url = URL.parse ? URL.parse(uri) : new URL(uri);
      if (url?.protocol === "http:" || url?.protocol === "https:") window.open(url.href, "_blank", "noopener,noreferrer");
    };
    const term = new Terminal({
      allowProposedApi: true,
      cursorBlink: !matchMedia("(prefers-reduced-motion: reduce)").matches,
      fontFamily: 'ui-monospace, "SF Mono", Menlo, "Cascadia Mono", "DejaVu Sans Mono", "Liberation Mono", monospace',
      fontSize: 14,
      lineHeight: 1.2,
      scrollback: 10_000,
      minimumContrastRatio: 4.5,
      linkHandler: { activate: open, allowNonHttpProtocols: false },
      theme: this.#isLight() ? LIGHT : DARK,
    });
    this.term = term;
    this.fitter = new FitAddon();
    this.search = new SearchAddon();
    for (const addon of [this.fitter, this.search, new UnicodeGraphemesAddon(), new WebLinksAddon(open)]) term.loadAddon(addon);
    term.open(this.screen);
    this.#paint();
    const bytes = new TextEncoder();
    term.onData((text) => this.#send(bytes.encode(text)));
    term.onBinary((text) => this.#send(Uint8Array.from(text, (c) => c.charCodeAt(0))));
    term.onResize(({ cols, rows }) => this.#tell({ resize: { cols, rows } }));
    term.onTitleChange((title) => { document.title = title ? `${title} · Docklet` : `${this.dataset.node} · Docklet`; });
    term.focus();
  }

  #keys() {
    this.term.attachCustomKeyEventHandler((event) => {
      if (!event.ctrlKey || !event.shiftKey || event.altKey || event.metaKey) return true;
      const what = { KeyC: "copy", KeyF: "find" }[event.code];
      if (what) {
        event.preventDefault();
        if (event.type === "keydown") this.#do(what);
        return false;
      }
      // The browser pastes by itself.
      return event.code !== "KeyV";
    });
  }

  async #do(what) {
    switch (what) {
      case "now": return this.#connect();
      case "again": return this.#connect();
      case "fresh":
        sessionStorage.removeItem(this.#key());
        this.term.reset();
        return this.#connect();
      case "find":
        this.find.hidden = !this.find.hidden;
        if (this.find.hidden) {
          this.search.clearDecorations();
          this.term.focus();
        } else this.find.querySelector("input").select();
        return;
      case "previous":
        this.search.findPrevious(this.find.querySelector("input").value, { decorations: MATCHES });
        return;
      case "copy": {
        const text = this.term.getSelection();
        if (!text) return this.#flash("copy", "Select first");
        const done = await this.#write(text);
        this.#flash("copy", done ? "Copied" : "Not allowed");
        return this.term.focus();
      }
      case "paste":
        try {
          this.term.paste(await navigator.clipboard.readText());
        } catch {
          this.#flash("paste", "Press Ctrl+Shift+V");
        }
        return this.term.focus();
      case "theme":
        localStorage.setItem("docklet-terminal", this.#isLight() ? "dark" : "light");
        this.term.options.theme = this.#isLight() ? LIGHT : DARK;
        return this.#paint();
    }
  }

  async #write(text) {
    try {
      await navigator.clipboard.writeText(text);
      return true;
    } catch {
      // Over plain http there is no clipboard interface, but the old command works.
      const area = document.createElement("textarea");
      area.value = text;
      document.body.append(area);
      area.select();
      const done = document.execCommand("copy");
      area.remove();
      return done;
    }
  }

  #flash(what, text) {
    const span = this.querySelector(`[data-do=${what}] span`);
    const before = { copy: "Copy", paste: "Paste" }[what];
    span.textContent = text;
    setTimeout(() => { span.textContent = before; }, 1500);
  }

  #isLight() {
    return localStorage.getItem("docklet-terminal") === "light";
  }

  #paint() {
    this.classList.toggle("term-light", this.#isLight());
  }

  #fit() {
    // Hidden or not laid out yet.
    if (this.screen.clientHeight < 20) return;
    this.fitter.fit();
  }

  #key() {
    return `docklet-terminal/${this.dataset.key}`;
  }

  /** Which shell of the node this browser tab means. */
  #session() {
    let id = sessionStorage.getItem(this.#key());
    if (!id) {
      id = Array.from(crypto.getRandomValues(new Uint8Array(12)), (b) => b.toString(16).padStart(2, "0")).join("");
      sessionStorage.setItem(this.#key(), id);
    }
    return id;
  }

  #connect() {
    this.#drop();
    this.#show("connecting");
    const url = new URL(this.dataset.socket, location.href);
    url.protocol = url.protocol === "https:" ? "wss:" : "ws:";
    url.searchParams.set("session", this.#session());
    url.searchParams.set("cols", this.term.cols);
    url.searchParams.set("rows", this.term.rows);
    const socket = new WebSocket(url);
    socket.binaryType = "arraybuffer";
    this.#socket = socket;
    this.#unacked = 0;
    let attached = false;
    this.#attachTimer = setTimeout(() => { if (!attached) socket.close(); }, ATTACH_TIMEOUT);
    socket.addEventListener("message", ({ data }) => {
      if (socket !== this.#socket) return;
      if (typeof data !== "string") return this.#draw(socket, new Uint8Array(data));
      const message = JSON.parse(data);
      if (message.attached) {
        attached = true;
        this.#attached(message.attached.resumed);
      } else if (message.exit) {
        this.#ended("ended", message.exit.code);
      } else if (message.taken_over) {
        this.#ended("taken");
      }
    });
    socket.addEventListener("close", ({ code }) => {
      if (socket !== this.#socket) return;
      this.#drop();
      if (this.#state === "ended" || this.#state === "taken") return;
      if (code === 1008) this.#ended("signed-out");
      else if (attached) this.#later();
      else this.#diagnose();
    });
  }

  #drop() {
    clearTimeout(this.#timer);
    clearTimeout(this.#attachTimer);
    const socket = this.#socket;
    this.#socket = null;
    socket?.close();
  }

  #attached(resumed) {
    clearTimeout(this.#attachTimer);
    this.#wait = FIRST_WAIT;
    // What is still to be drawn of the old connection goes first; then the replay starts on a clean screen.
    if (resumed) this.term.write("", () => this.term.reset());
    this.#show("connected");
    this.#tell({ resize: { cols: this.term.cols, rows: this.term.rows } });
  }

  #draw(socket, bytes) {
    this.term.write(bytes, () => {
      if (socket !== this.#socket) return;
      this.#unacked += bytes.length;
      if (this.#unacked < ACK) return;
      this.#tell({ ack: this.#unacked });
      this.#unacked = 0;
    });
  }

  #send(bytes) {
    if (this.#state === "connected") this.#socket?.send(bytes);
  }

  #tell(message) {
    if (this.#socket?.readyState === WebSocket.OPEN) this.#socket.send(JSON.stringify(message));
  }

  /** The handshake tells a browser nothing, so ask why. */
  async #diagnose() {
    try {
      const answer = await fetch(this.dataset.nodes, { headers: { Accept: "application/json" } });
      if (answer.status === 401) return this.#ended("signed-out");
      if (answer.status === 404) return this.#ended("gone");
      if (answer.ok) {
        const list = await answer.json();
        const node = (list.items ?? list).find(({ name }) => name === this.dataset.node);
        if (!node || node.status === "deleting") return this.#ended("gone");
        if (node.status === "stopped" || node.status === "stopping") return this.#ended("stopped");
        if (node.status === "failed") return this.#ended("failed");
      }
    } catch {
      // No network: that is what trying again is for.
    }
    this.#later();
  }

  #later() {
    this.#retryAt = Date.now() + this.#wait;
    this.#wait = Math.min(this.#wait * 2, LONGEST_WAIT);
    this.#show("waiting");
    const tick = () => {
      const left = this.#retryAt - Date.now();
      if (left <= 0) return this.#connect();
      this.querySelector(".term-count").textContent = `in ${Math.ceil(left / 1000)} s`;
      this.#timer = setTimeout(tick, Math.min(left, 250));
    };
    tick();
  }

  /** The network or the reader is back: no need to wait. */
  #soon() {
    if (this.#state === "waiting") this.#connect();
  }

  #ended(state, code) {
    this.#drop();
    this.#show(state, code);
  }

  #show(state, code) {
    this.#state = state;
    const node = this.dataset.node;
    const words = {
      connecting: "Connecting",
      connected: "Connected",
      waiting: "Connection lost; reconnecting",
      ended: `Ended with exit code ${code}`,
      taken: "Opened elsewhere",
      "signed-out": "Signed out",
      gone: "Gone",
      stopped: "Stopped",
      failed: "Failed",
    };
    this.label.dataset.state = state;
    this.label.querySelector("[role=status]").textContent = words[state];
    if (state !== "waiting") this.querySelector(".term-count").textContent = "";
    this.querySelector("[data-do=now]").hidden = state !== "waiting";
    const fresh = '<button type="button" class="btn btn-primary" data-do="fresh">Start a new shell</button>';
    const back = '<a class="btn btn-plain" data-back>Back to the cluster</a>';
    const over = {
      ended: ["The shell has ended", code === 0 ? "It ended normally." : `Its exit code was ${code}.`, fresh + back],
      taken: ["This shell is open in another tab", "Only one place at a time can type into it.", '<button type="button" class="btn btn-primary" data-do="again">Use it here</button><button type="button" class="btn btn-plain" data-do="fresh">Start a new shell</button>'],
      "signed-out": ["You are signed out", "The shell goes on. Sign in again to come back to it.", '<a class="btn btn-primary" data-sign-in>Sign in</a>'],
      gone: [`${node} is gone`, "It was removed from the cluster.", back],
      stopped: [`${node} is stopped`, "Its disk is kept. Start the cluster to get a shell.", '<form method="post" data-start><button class="btn btn-primary" type="submit">Start</button></form>' + back],
      failed: [`${node} did not come up`, "The cluster’s page says why.", back],
    }[state];
    this.over.hidden = !over;
    this.over.classList.toggle("term-over-low", state === "ended");
    if (!over) {
      this.over.replaceChildren();
      if (state === "connected") this.term.focus();
      return;
    }
    const [title, text, actions] = over;
    this.over.innerHTML = `<div class="term-box"><h2></h2><p></p><div class="ask-actions">${actions}</div></div>`;
    this.over.querySelector("h2").textContent = title;
    this.over.querySelector("p").textContent = text;
    this.over.querySelector("[data-back]")?.setAttribute("href", this.dataset.vcluster);
    this.over.querySelector("[data-start]")?.setAttribute("action", this.dataset.start);
    this.over.querySelector("[data-sign-in]")?.setAttribute("href", `/sign-in?next=${encodeURIComponent(location.pathname + location.search)}`);
    this.over.querySelector("button, a")?.focus();
  }
}

customElements.define("docklet-terminal", DockletTerminal);
