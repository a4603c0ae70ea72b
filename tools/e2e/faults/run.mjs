// Faults, one after the other, on a testbed of three hosts and three members of etcd under a random load; after each the
// three checks. Ends with `N passed, M failed`.
//
//   node tools/e2e/faults/run.mjs [--seed N] [--rounds N] [--short] [--retries N] [scenario…]
//
// The seed, which is printed first, repeats what is done. `--rounds` is for random kills, 1000 where absent. `--short`
// does those that are quick, a few rounds each. `--retries` tries what failed so often again, on a new testbed, but not
// where a node ran twice or something was left over. After a failure logs and documents are kept beside the testbed's
// place; DOCKLET_FAULTS_KEEP leaves everything as it is.

import { parseArgs } from 'node:util';

import * as bed from './lib/bed.mjs';
import { checks, Watch } from './lib/checks.mjs';
import { Load } from './lib/load.mjs';
import { Random } from './lib/random.mjs';
import { mayTryAgain } from './lib/retry.mjs';
import { scenarios } from './scenarios/index.mjs';

const { values, positionals } = parseArgs({
  allowPositionals: true,
  options: { seed: { type: 'string' }, rounds: { type: 'string' }, short: { type: 'boolean' }, retries: { type: 'string' } },
});
const seed = Number(values.seed ?? Math.floor(Math.random() * 2 ** 31));
const rounds = Number(values.rounds ?? (values.short ? 10 : 1000));
const retries = Number(values.retries ?? 0);
const unknown = positionals.filter((name) => !scenarios.some((s) => s.name === name));
if (unknown.length > 0 || !Number.isInteger(seed) || !Number.isInteger(rounds) || !Number.isInteger(retries)) {
  console.error(`run.mjs: unknown: ${unknown}; scenarios are ${scenarios.map((s) => s.name).join(' ')}`);
  process.exit(2);
}
const chosen = scenarios.filter((s) => (positionals.length > 0 ? positionals.includes(s.name) : !values.short || s.short));

let passed = 0;
let failed = 0;
let site;

async function bring({ bed: kind = {} }, random) {
  if (site && JSON.stringify(site.kind) === JSON.stringify(kind) && !site.broken) return;
  await take();
  const began = Date.now();
  await bed.up(kind);
  site = { ...bed, seed, rounds, short: values.short, kind, load: new Load(random.fork()), watch: new Watch() };
  console.log(`# a testbed is up after ${((Date.now() - began) / 1000).toFixed(1)} s`);
}

async function take() {
  await Promise.all([site?.watch.end(), site?.load.abandon()]);
  site = undefined;
  await bed.down();
}

// Whether that is the end of it: it went well, or must not be tried again. What is tried again is told, and counts only if
// it fails to the end.
async function tell(name, work, isLast = true) {
  const began = Date.now();
  try {
    const said = await work();
    passed += 1;
    console.log(`✔ ${name} (${((Date.now() - began) / 1000).toFixed(1)} s${said ? `; ${said}` : ''})`);
    return true;
  } catch (error) {
    const last = isLast || !mayTryAgain(error, site?.watch.twice);
    if (last) failed += 1;
    if (site) site.broken = true;
    console.log(`✖ ${name}${last ? '' : ', which is tried again'} (${((Date.now() - began) / 1000).toFixed(1)} s)`);
    for (let cause = error; cause; cause = cause.cause) console.log(String(cause.stack ?? cause).replace(/^/gm, '    '));
    if (site) console.log(`    traces are in ${await bed.keepTraces(name.replaceAll(/[^a-z0-9]+/g, '-').slice(0, 40))}`);
    return last;
  }
}

async function main() {
  const all = new Random(seed);
  for (const scenario of chosen) {
    // One of its own for each, so that a scenario does the same alone as among others.
    const random = new Random((seed ^ [...scenario.name].reduce((sum, c) => (Math.imul(sum, 31) + c.charCodeAt(0)) | 0, 7)) >>> 0);
    const once = async () => {
      await bring(scenario, all);
      site.random = random;
      site.load.moves = Boolean(scenario.moves);
      if (!scenario.quiet) site.load.go();
      const said = await scenario.run(site);
      const took = await checks(site);
      return [said, `all as it should be after ${took.toFixed(1)} s`].filter(Boolean).join('; ');
    };
    for (let left = retries; !(await tell(scenario.title, once, left === 0)) && left > 0;) left -= 1;
    if (failed > 0 && process.env.DOCKLET_FAULTS_KEEP) return;
  }
  if (site && !site.broken) {
    await tell('deleted, nothing is left', async () => {
      await site.load.clear();
      await checks(site);
      const { acknowledged, repeated, unavailable } = site.load.counts;
      return `${acknowledged} requests acknowledged, ${repeated} repeated, ${unavailable} answered 503; looked ${site.watch.looks} times for nodes that run twice`;
    });
  }
}

console.log(`# seed ${seed}`);
let interrupted = false;
for (const signal of ['SIGINT', 'SIGTERM']) {
  process.on(signal, async () => {
    if (interrupted) return;
    interrupted = true;
    console.log(`# ${signal}: taking everything down`);
    await take().catch((error) => console.error(error));
    console.log(`${passed} passed, ${failed + 1} failed`);
    process.exit(1);
  });
}
await main();
if (!interrupted) {
  if (process.env.DOCKLET_FAULTS_KEEP && failed > 0) {
    process.exitCode = 1;
  } else {
    await tell('the testbed goes', take);
  }
  console.log(`${passed} passed, ${failed} failed`);
  process.exit(failed === 0 ? 0 : 1);
}
