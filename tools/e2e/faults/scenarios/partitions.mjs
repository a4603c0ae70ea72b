// Hosts are cut off: wholly, one way, again and again.

import assert from 'node:assert/strict';

import { eventually, must } from '../../lib/site.mjs';
import { compact, get, heal, hosts, hostsAre, hostStatus, kill, partition, pause, start } from '../lib/bed.mjs';
import { steady } from './kills.mjs';

const on = (places, host) => Object.values(places).flat().filter((place) => place.startsWith(`${host}/`));

async function cutOff(site) {
  const own = await steady(site, 'steady');
  const before = await own();
  const host = site.random.pick(hosts);
  // In the middle of creates and deletes.
  await pause(site.random.between(0, 2000));
  await partition(host);
  const began = Date.now();
  await eventually('it is shown as unreachable', async () => (await hostStatus(host)) === 'unreachable', 40_000);
  const shown = (Date.now() - began) / 1000;
  assert.deepEqual(await own(), before, 'its nodes run on');
  assert.equal((await get('/vclusters/steady')).status, 'degraded');
  // Time for somebody to get the idea of starting its nodes elsewhere.
  await pause(site.short ? 3000 : 30_000);
  assert.deepEqual(await own(), before, 'its nodes run on, and nowhere else');
  await heal(host);
  const healed = Date.now();
  await hostsAre('ready');
  await eventually('it is as it was', async () => (await get('/vclusters/steady')).status === 'running');
  assert.deepEqual(await own(), before, 'the same inits');
  return `${host} with ${on(before, host).length} steady nodes: shown after ${shown.toFixed(1)} s, whole again ${((Date.now() - healed) / 1000).toFixed(1)} s after healing`;
}

// What one machine drops of all that comes in, or goes out.
const nft = (machine, ...words) => must('ip', ['netns', 'exec', `testbed-${machine}`, 'nft', ...words]);

async function drop(machine, direction) {
  // A table that neither the worker nor its packet filter looks at.
  const [hook, match] = direction === 'in' ? ['input', 'iifname'] : ['output', 'oifname'];
  await nft(machine, `add table inet testbed_fault; add chain inet testbed_fault c { type filter hook ${hook} priority -400; }; add rule inet testbed_fault c ${match} "eth0" drop`);
}

const undrop = (machine) => nft(machine, 'delete table inet testbed_fault');

async function oneWay(site) {
  const own = await steady(site, 'steady');
  const before = await own();
  const times = [];
  for (const direction of ['in', 'out']) {
    const host = site.random.pick(hosts);
    await drop(host, direction);
    const began = Date.now();
    try {
      await eventually('it is shown as unreachable', async () => (await hostStatus(host)) === 'unreachable', 40_000);
      times.push(`${direction} ${((Date.now() - began) / 1000).toFixed(1)} s`);
      await pause(5000);
      assert.deepEqual(await own(), before, 'its nodes run on');
    } finally {
      await undrop(host);
    }
    await hostsAre('ready');
    assert.deepEqual(await own(), before, 'the same inits');
  }
  return `shown as unreachable: ${times.join(', ')}`;
}

async function flapping(site) {
  const own = await steady(site, 'steady');
  const before = await own();
  const rounds = site.short ? 5 : 40;
  for (let round = 0; round < rounds; round += 1) {
    const host = site.random.pick(hosts);
    await partition(host);
    await pause(site.random.between(50, 4000));
    await heal(host);
    await pause(site.random.between(50, 2000));
  }
  await hostsAre('ready');
  assert.deepEqual(await own(), before, 'the same inits');
  return `${rounds} times`;
}

async function masterCutOff(site) {
  const own = await steady(site, 'steady');
  const before = await own();
  await partition('master');
  await pause(site.random.between(15_000, 25_000));
  assert.deepEqual(await own(), before, 'nodes run on');
  await heal('master');
  const healed = Date.now();
  await hostsAre('ready');
  return `all hosts ready ${((Date.now() - healed) / 1000).toFixed(1)} s after healing`;
}

// The master sleeps past its lease, wakes with the picture of before, and what it had begun must do no harm.
async function stale(site) {
  const own = await steady(site, 'steady');
  const before = await own();
  const pid = await site.pidOf('master');
  process.kill(pid, 'SIGSTOP');
  try {
    await pause(site.random.between(12_000, 20_000));
    // What it knows is of yesterday, and what came between is forgotten.
    const host = site.random.pick(hosts);
    await kill(host);
    await start(host);
    await compact();
    assert.deepEqual(await own(), before, 'nodes run on');
  } finally {
    process.kill(pid, 'SIGCONT');
  }
  await hostsAre('ready');
  assert.deepEqual(await own(), before, 'the same inits');
  return undefined;
}

export const scenarios = [
  { name: 'partition', title: 'a host is cut off: unreachable within 40 s, nothing runs twice, it comes back as it was', short: true, run: cutOff },
  { name: 'one-way', title: 'a host hears nothing, then a host is not heard', run: oneWay },
  { name: 'flapping', title: 'hosts are cut off again and again', run: flapping },
  { name: 'master-cut-off', title: 'the master is cut off from etcd and hosts', run: masterCutOff },
  { name: 'stale', title: 'the master sleeps past its lease and wakes up', run: stale },
];
