// Brings a Docklet up, runs every test against it, takes it down and lets the audit have the last word.
// Ends with `N passed, M failed`.

import { readdirSync } from 'node:fs';
import { run } from 'node:test';
import { spec } from 'node:test/reporters';

import { audit, down, up } from './lib/site.mjs';

const here = new URL('.', import.meta.url).pathname;
const wanted = process.argv.slice(2);
const files = readdirSync(`${here}tests`)
  .filter((name) => name.endsWith('.test.mjs') && (wanted.length === 0 || wanted.some((w) => name.includes(w))))
  .sort()
  .map((name) => `${here}tests/${name}`);

let passed = 0;
let failed = 0;
const leaf = (data) => data.details?.type !== 'suite' && !data.file?.endsWith(data.name) && !files.includes(data.name);

console.log('bringing up a Docklet for the tests');
await up();
const stream = run({ files, concurrency: 1, timeout: 600_000 });
stream.on('test:pass', (data) => { if (leaf(data)) passed += 1; });
stream.on('test:fail', (data) => { failed += 1; });
await new Promise((resolve) => {
  stream.compose(spec).pipe(process.stdout, { end: false });
  stream.on('end', resolve);
});
const left = await audit();
if (left.code === 0) {
  passed += 1;
} else {
  failed += 1;
  console.log(`the audit found something left over:\n${left.stdout}${left.stderr}`);
}
if (!process.env.DOCKLET_E2E_KEEP) await down();
console.log(`${passed} passed, ${failed} failed`);
process.exitCode = failed === 0 ? 0 : 1;
