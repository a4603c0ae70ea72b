// The previews behind a small server with the portal's own policy, and a browser that looks at them.
//
// The previews are written by `cargo run -p docklet-web --example preview -- DIR`; DIR is $DOCKLET_PREVIEW or
// target/web-preview.

import { readFile, readdir, mkdtemp, rm } from "node:fs/promises";
import { createServer } from "node:http";
import { tmpdir } from "node:os";
import path from "node:path";
import { fileURLToPath } from "node:url";
import { chromium } from "playwright-core";

const here = path.dirname(fileURLToPath(import.meta.url));
const preview = process.env.DOCKLET_PREVIEW ?? path.join(here, "../../target/web-preview");
const FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
  "--disable-component-update", "--disable-sync"];
const TYPES = { ".html": "text/html; charset=utf-8", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml" };

/** The policy as the Rust side states it. */
async function policy() {
  const source = await readFile(path.join(here, "../src/assets.rs"), "utf8");
  const text = source.match(/CONTENT_SECURITY_POLICY: &str = "([^"]*)"/)[1];
  return text.replace(/\\\n\s*/g, "");
}

/** The names of all previews. */
export async function names() {
  return (await readdir(preview)).filter((name) => name.endsWith(".html")).map((name) => path.basename(name, ".html")).sort();
}

/** A stream on which nothing happens. */
function quiet(response) {
  response.writeHead(200, { "Content-Type": "text/event-stream" });
  response.write(": here\n\n");
}

/** Serves the previews; `routes` answer first: path → (request, response). */
export async function serve(routes = {}) {
  const csp = await policy();
  const server = createServer(async (request, response) => {
    const { pathname } = new URL(request.url, "http://localhost");
    const route = routes[`${request.method} ${pathname}`];
    if (route) return route(request, response);
    if (pathname.startsWith("/live/")) return quiet(response);
    try {
      const file = path.extname(pathname) ? pathname : `${pathname}.html`;
      const body = await readFile(path.join(preview, path.normalize(file)));
      response.writeHead(200, { "Content-Type": TYPES[path.extname(file)] ?? "application/octet-stream", "Content-Security-Policy": csp });
      response.end(body);
    } catch {
      response.writeHead(404).end();
    }
  });
  await new Promise((listening) => server.listen(0, "127.0.0.1", listening));
  return {
    url: `http://127.0.0.1:${server.address().port}`,
    html: (name) => readFile(path.join(preview, `${name}.html`), "utf8"),
    close: () => { server.closeAllConnections(); return new Promise((closed) => server.close(closed)); },
  };
}

export async function browse({ width = 1280, height = 900, scheme = "light" } = {}) {
  const profile = await mkdtemp(path.join(tmpdir(), "docklet-web-"));
  const context = await chromium.launchPersistentContext(profile, {
    executablePath: process.env.CHROMIUM ?? "/usr/bin/chromium",
    args: FLAGS, viewport: { width, height }, colorScheme: scheme,
  });
  context.setDefaultTimeout(30_000);
  return {
    context,
    page: context.pages()[0] ?? await context.newPage(),
    close: async () => {
      await context.close();
      await rm(profile, { recursive: true, force: true });
    },
  };
}
