// A clock that is an hour off, of a worker and of the master: only certificates and expiries care.

import assert from 'node:assert/strict';

import { eventually, must } from '../../lib/site.mjs';
import { ask, get, hostsAre, hosts, kill, PREFIX, start } from '../lib/bed.mjs';
import { checks } from '../lib/checks.mjs';
import { steady } from './kills.mjs';

// Debian's libfaketime, for programs with threads; the loader knows $LIB. Timers go by the monotonic clock, which stays, and
// so do times of files. Helpers of the worker have the machine's clock: their environment is empty.
const shifted = (by) => ({
  LD_PRELOAD: '/usr/$LIB/faketime/libfaketimeMT.so.1', FAKETIME: by, FAKETIME_DONT_FAKE_MONOTONIC: '1', NO_FAKE_STAT: '1',
});
// When a program says that it started, in ms: where it is told, or `undefined`.
const started = { h1: 'hosts/h1', master: 'masters/' };

async function startedAt(site, machine) {
  const [, report] = (await site.store()).find(([key]) => key.startsWith(started[machine])) ?? [];
  return report && report.started_at / 1000;
}

async function startShifted(site, machine, by) {
  const before = await startedAt(site, machine);
  await kill(machine);
  await must('docklet-testbed', ['--prefix', PREFIX, 'start', machine], { env: shifted(by) });
  const minutes = by === '+1h' ? 60 : -60;
  await eventually(`the clock of ${machine} is ${by}`, async () => {
    const at = await startedAt(site, machine);
    return at !== before && Math.abs((at - Date.now()) / 60_000 - minutes) < 10;
  });
}

async function clocksOff(site) {
  const own = await steady(site, 'steady');
  const before = await own();
  let slowest = 0;
  for (const machine of ['h1', 'master']) {
    for (const by of ['+1h', '-1h']) {
      await startShifted(site, machine, by);
      site.load.go();
      await eventually('the API is back', async () => (await get('/vclusters/steady')).status === 'running', 20_000);
      await hostsAre('ready');
      const counted = site.load.counts.acknowledged;
      await eventually('requests are acknowledged', () => site.load.counts.acknowledged >= counted + 10, 120_000);
      // Who was signed in is; commands reach every host, and take as long as they may.
      for (const node of await get('/vclusters/steady/nodes')) {
        const said = await ask('POST', `/vclusters/steady/nodes/${node.name}/exec`, { argv: ['hostname'], timeout_s: 20 });
        assert.deepEqual([said.status, said.body?.stdout], [200, `${node.name}\n`], JSON.stringify(said.body));
      }
      slowest = Math.max(slowest, await checks(site));
      assert.deepEqual(await own(), before, 'the same inits');
    }
    await kill(machine);
    await start(machine);
  }
  await hostsAre('ready', hosts);
  return `all as it should be after at most ${slowest.toFixed(1)} s with each clock`;
}

export const scenarios = [
  { name: 'clock', title: "a worker's and the master's clock are an hour off: nothing changes", short: true, run: clocksOff },
];
