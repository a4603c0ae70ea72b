// Each program ends at each step that changes something, once before and once after it: DOCKLET_FAIL_AT, see
// common/daemon/src/fail.rs. Started again, it goes on from there.

import assert from 'node:assert/strict';

import { command, eventually, must } from '../../lib/site.mjs';
import { checks } from '../lib/checks.mjs';
import { ask, get, hosts, kill, pidOf, PREFIX, signIn, start } from '../lib/bed.mjs';

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

// Nodes that are booted before they are asked for, on a host of its own: small enough for a minute to be over soon.
const AHEAD = ['PREBOOT_NODES=2', 'PREBOOT_MINUTES=1', 'DEFAULT_IMAGE=small', 'NODE_CPU=0.1', 'NODE_MEMORY_MIB=96', 'NODE_DISK_MIB=64'];

async function whereNodesStandStill() {
  const warm = async (count) => (await get('/hosts/h1')).nodes_warm === count;
  const warmed = () => eventually('two nodes are kept warm', () => warm(2), 90_000);
  const endsDuring = async (point, act) => {
    await kill('h1');
    await must('docklet-testbed', ['--prefix', PREFIX, 'start', 'h1'], { env: { DOCKLET_FAIL_AT: point } });
    const pid = await pidOf('h1');
    await act();
    await eventually(`h1 ends at ${point}`, () => !lives(pid), 60_000);
    await start('h1');
  };
  const made = [];
  for (const moment of ['before', 'after']) {
    await warmed();
    const name = `ahead-${moment}`;
    await endsDuring(`thaw-${moment}`, async () => {
      const answer = await ask('POST', '/vclusters', { name, nodes: 2 });
      assert.equal(answer.status, 202, JSON.stringify(answer.body));
    });
    made.push(name);
    await eventually(`${name} runs`, async () => (await get(`/vclusters/${name}`)).status === 'running', 90_000);
    // Whoever signs in has the next ones made ready.
    await endsDuring(`freeze-${moment}`, () => signIn());
  }
  await warmed();
  for (const name of made) assert.equal((await ask('DELETE', `/vclusters/${name}`)).status, 202);
  await eventually('what nobody asked for is gone', () => warm(0), 150_000);
  return '4 points';
}

export const scenarios = [
  { name: 'points', title: 'each program ends before and after each step', moves: true, run: everyPoint },
  { name: 'points-ahead', title: 'the worker ends where nodes are frozen and thawed', quiet: true, bed: { count: 1, settings: AHEAD }, run: whereNodesStandStill },
];
