// Every page in every state: axe-core finds nothing in light and dark, wide and on a phone; nothing is wider than the
// screen; no script breaks the policy.

import assert from "node:assert/strict";
import { readFile } from "node:fs/promises";
import { createRequire } from "node:module";
import { after, before, test } from "node:test";
import { browse, names, serve } from "./site.mjs";

const axe = await readFile(createRequire(import.meta.url).resolve("axe-core/axe.min.js"), "utf8");

let site;
let browser;
before(async () => {
  site = await serve();
  browser = await browse();
});
after(async () => {
  await browser.close();
  await site.close();
});

for (const name of await names()) {
  test(name, async () => {
    const { page } = browser;
    const errors = [];
    const note = (message) => {
      if (message.type() === "error" && !/Failed to load resource|WebSocket/.test(message.text())) errors.push(message.text());
    };
    const thrown = (error) => errors.push(String(error));
    page.on("console", note);
    page.on("pageerror", thrown);
    for (const scheme of ["light", "dark"]) {
      for (const width of [1280, 390]) {
        await page.emulateMedia({ colorScheme: scheme, reducedMotion: "reduce" });
        await page.setViewportSize({ width, height: 844 });
        await page.goto(`${site.url}/${name}`);
        const where = `${name}, ${scheme}, ${width} px`;
        assert.equal(await page.evaluate(() => document.documentElement.dataset.bsTheme), scheme);
        await page.evaluate(axe);
        const { violations } = await page.evaluate(() => globalThis.axe.run());
        const found = violations.map((v) => `${v.id}: ${v.help}\n${v.nodes.slice(0, 4).map((n) => `  ${n.html.slice(0, 200)}\n  ${n.failureSummary}`).join("\n")}`);
        assert.equal(found.length, 0, `${where}:\n${found.join("\n")}`);
        const wide = await page.evaluate(() => document.documentElement.scrollWidth - innerWidth);
        assert.ok(wide <= 0, `${where}: ${wide} px wider than the screen`);
      }
    }
    page.off("console", note);
    page.off("pageerror", thrown);
    assert.deepEqual(errors, []);
  });
}
