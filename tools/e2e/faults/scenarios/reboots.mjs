// A host is reset: nothing of it is left but its disk. What should run runs again, with etcd and without.

import assert from 'node:assert/strict';

import { eventually, must } from '../../lib/site.mjs';
import { get, heal, hosts, hostsAre, partition, PREFIX, start } from '../lib/bed.mjs';
import { steady } from './kills.mjs';

// In seconds.
const LIMIT = 120;

const reboot = (host) => must('docklet-testbed', ['--prefix', PREFIX, 'reboot', host]);
const on = (places, host) => Object.entries(places).filter(([, [place]]) => place.startsWith(`${host}/`)).map(([id]) => id).sort();

async function rebooted(site, cutOff) {
  const own = await steady(site, 'steady');
  const before = await own();
  const host = site.random.pick(hosts.filter((h) => on(before, h).length > 0));
  await site.pause(site.random.between(0, 2000));
  await reboot(host);
  assert.deepEqual(on(await own(), host), [], 'nothing runs');
  if (cutOff) await partition(host);
  const began = Date.now();
  await start(host);
  await eventually('the same nodes run on it', async () => on(await own(), host).join() === on(before, host).join(), LIMIT * 1000);
  const ran = (Date.now() - began) / 1000;
  if (cutOff) await heal(host);
  await hostsAre('ready');
  await eventually('all is well', async () => (await get('/vclusters/steady')).status === 'running', LIMIT * 1000);
  const after = await own();
  for (const other of hosts) {
    if (other !== host) assert.deepEqual(on(after, other), on(before, other), `the nodes of ${other}`);
  }
  return `${host}: ${on(before, host).length} steady nodes ran after ${ran.toFixed(1)} s`;
}

export const scenarios = [
  { name: 'reboot', title: 'a host is reset: what should run runs within 120 s', run: (site) => rebooted(site, false) },
  { name: 'reboot-alone', title: 'a host is reset and cut off: it starts its nodes from its own disk', run: (site) => rebooted(site, true) },
];
