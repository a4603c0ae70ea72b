// Each program ends at each step that changes something, once before and once after it: DOCKLET_FAIL_AT, see
// common/daemon/src/fail.rs. Started again, it goes on from there.

import { command, eventually } from '../../lib/site.mjs';
import { checks } from '../lib/checks.mjs';
import { get, hosts, kill, pidOf, PREFIX, start } from '../lib/bed.mjs';

const moments = (steps) => steps.flatMap((step) => [`${step}-before`, `${step}-after`]);
const WORKER = moments(['image', 'disk', 'network', 'boot', 'ready', 'stop', 'remove', 'vcluster', 'vcluster-removal', 'begin-move', 'end-move', 'report', 'ledger']);
const MASTER = moments(['create', 'change', 'plan', 'carry']);

const lives = (pid) => {
  try {
    return process.kill(pid, 0);
  } catch {
    return false;
  }
};

// Starts a program that will end there, and returns when it has.
async function endAt(machine, point) {
  await kill(machine);
  const env = { DOCKLET_FAIL_AT: point };
  const started = await command('docklet-testbed', ['--prefix', PREFIX, 'start', machine], { env });
  // It may come to the step before it is up.
  if (started.code === 0) {
    const pid = await pidOf(machine);
    await eventually(`${machine} ends at ${point}`, () => !lives(pid), 90_000);
  }
  await start(machine);
}

async function everyPoint(site) {
  const left = [...WORKER];
  const master = [...MASTER];
  let slowest = 0;
  while (left.length + master.length > 0) {
    const now = hosts.map((host) => [host, left.shift()]).concat([['master', master.shift()]]).filter(([, point]) => point);
    await Promise.all(now.map(([machine, point]) => endAt(machine, point)));
    await eventually('the API is back', async () => (await get('/vclusters')).length >= 0);
    const took = await checks(site);
    slowest = Math.max(slowest, took);
    console.log(`#   ${now.map(([machine, point]) => `${machine} at ${point}`).join(', ')}; all as it should be after ${took.toFixed(1)} s`);
    site.load.go();
  }
  return `${WORKER.length + MASTER.length} points`;
}

export const scenarios = [{ name: 'points', title: 'each program ends before and after each step', moves: true, run: everyPoint }];
