// Bundles the portal's styles and scripts from assets-src/ into dist/, under names that hold a hash of their content.
//
// 1. Tabler's CSS loses every rule that no template or script uses (PurgeCSS), then ours is put behind it.
// 2. esbuild bundles and minifies. The terminal is a bundle of its own: only its page loads it.
// 3. The icons become one SVG sprite.
// 4. Each file is written as name.<hash>.ext and, where that pays, gzipped beside it; manifest.json maps the names.

import { build, transform } from "esbuild";
import { PurgeCSS } from "purgecss";
import { createHash } from "node:crypto";
import { mkdir, readFile, readdir, rm, writeFile } from "node:fs/promises";
import path from "node:path";
import { fileURLToPath } from "node:url";
import { gzipSync } from "node:zlib";

const here = path.dirname(fileURLToPath(import.meta.url));
const source = path.join(here, "assets-src");
const dist = path.join(here, "dist");
const target = ["chrome111", "firefox115", "safari16.4"];

/** Tabler with only what the templates use. */
async function tabler() {
  const [{ css }] = await new PurgeCSS().purge({
    content: [
      path.join(here, "templates/**/*.html"),
      path.join(here, "src/**/*.rs"),
      path.join(source, "js/**/*.js"),
    ],
    css: [path.join(here, "node_modules/@tabler/core/dist/css/tabler.min.css")],
    safelist: { standard: ["show", "disabled", "active"], greedy: [/data-bs-theme/] },
    variables: true,
    keyframes: true,
    fontFace: true,
  });
  // A source map of the whole Tabler would be wrong for what is left.
  return css.replace(/\/\*# sourceMappingURL.*?\*\//g, "");
}

async function styles() {
  const ours = await build({
    entryPoints: [path.join(source, "css/app.css")],
    bundle: true, write: false, minify: true, target,
  });
  const { code } = await transform((await tabler()) + ours.outputFiles[0].text, { loader: "css", minify: true, target });
  return code;
}

async function bundle(entry, format) {
  const result = await build({
    entryPoints: [path.join(source, entry)],
    bundle: true, write: false, minify: true, target, format, legalComments: "none", outdir: dist,
  });
  return result.outputFiles[0].text;
}

/** All icons as symbols of one file. */
async function sprite() {
  const folder = path.join(source, "icons");
  const names = (await readdir(folder)).filter((name) => name.endsWith(".svg")).sort();
  const symbols = await Promise.all(names.map(async (name) => {
    const svg = await readFile(path.join(folder, name), "utf8");
    const inner = svg.slice(svg.indexOf(">", svg.indexOf("<svg")) + 1, svg.lastIndexOf("</svg>"));
    return `<symbol id="${path.basename(name, ".svg")}" viewBox="0 0 24 24" fill="none" stroke="currentColor" `
      + `stroke-width="1.75" stroke-linecap="round" stroke-linejoin="round">${inner.replace(/\s*\n\s*/g, "")}</symbol>`;
  }));
  return `<svg xmlns="http://www.w3.org/2000/svg">${symbols.join("")}</svg>`;
}

const files = {
  "app.css": await styles(),
  "terminal.css": await bundle("css/terminal.css"),
  "theme.js": await bundle("js/theme.js", "iife"),
  "app.js": await bundle("js/app.js", "iife"),
  "terminal.js": await bundle("js/terminal.js", "esm"),
  "icons.svg": await sprite(),
  "favicon.svg": await readFile(path.join(source, "favicon.svg"), "utf8"),
};

await rm(dist, { recursive: true, force: true });
await mkdir(dist, { recursive: true });
const manifest = {};
for (const [name, text] of Object.entries(files)) {
  const body = Buffer.from(text);
  const { name: stem, ext } = path.parse(name);
  const hashed = `${stem}.${createHash("sha256").update(body).digest("hex").slice(0, 10)}${ext}`;
  const zipped = gzipSync(body, { level: 9 });
  manifest[name] = hashed;
  await writeFile(path.join(dist, hashed), body);
  if (zipped.length < body.length * 0.95) await writeFile(path.join(dist, `${hashed}.gz`), zipped);
  console.log(`${hashed.padEnd(28)} ${String(body.length).padStart(8)} bytes, gzipped ${String(zipped.length).padStart(7)}`);
}
// Last, for its presence says that the rest is whole.
await writeFile(path.join(dist, "manifest.json"), JSON.stringify(manifest, null, 2));
