// Pictures of previews: node test/pictures.mjs OUTDIR [name…]; all of them, light and dark, wide and narrow.
import { mkdir } from "node:fs/promises";
import { browse, names, serve } from "./site.mjs";

const [out, ...wanted] = process.argv.slice(2);
await mkdir(out, { recursive: true });
const site = await serve();
for (const [label, options] of Object.entries({
  light: {}, dark: { scheme: "dark" },
  phone: { width: 390, height: 844 }, "phone-dark": { width: 390, height: 844, scheme: "dark" },
})) {
  const browser = await browse(options);
  for (const name of wanted.length ? wanted : await names()) {
    await browser.page.goto(`${site.url}/${name}`);
    await browser.page.waitForTimeout(150);
    await browser.page.screenshot({ path: `${out}/${name}-${label}.png`, fullPage: !name.startsWith("terminal") });
  }
  await browser.close();
}
await site.close();
