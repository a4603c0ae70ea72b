// kill -9 of each program: nodes run on, and it is back in time.

import assert from 'node:assert/strict';

import { eventually } from '../../lib/site.mjs';
import { end, get, hosts, hostStatus, inits, kill, servants, start } from '../lib/bed.mjs';

const SIZE = { cpu: 0.1, memory_mib: 96, disk_mib: 64 };

// A vcluster that the load does not touch: its inits must be the same ones after a fault.
export async function steady(site, name, nodes = 3) {
  if (!site.load.wanted.has(name)) {
    await site.load.request('POST', '/vclusters', { name, nodes, image: 'small', size: SIZE }, [202]);
    site.load.wanted.set(name, { nodes, wanted: 'running' });
  }
  await eventually(`${name} runs`, async () => (await get(`/vclusters/${name}`)).status === 'running', 120_000);
  const ids = new Set((await site.store()).filter(([key, spec]) => key.startsWith('specs/') && spec.name === name).flatMap(([, spec]) => spec.nodes.map((n) => n.id)));
  return async () => Object.fromEntries(Object.entries(await inits()).filter(([id]) => ids.has(id)));
}

const seconds = (since) => (Date.now() - since) / 1000;

async function masterKilled(site) {
  const own = await steady(site, 'steady');
  const before = await own();
  let slowest = 0;
  for (let round = 0; round < (site.short ? 2 : 10); round += 1) {
    await site.pause(site.random.between(0, 1000));
    await kill('master');
    const killed = Date.now();
    await start('master');
    await eventually('the API is back', async () => (await get('/vclusters')).length > 0, 10_000);
    slowest = Math.max(slowest, seconds(killed));
    assert.deepEqual(await own(), before, 'the same inits');
  }
  assert.ok(slowest <= 5, `the API was back after ${slowest} s`);
  return `API back after at most ${slowest.toFixed(1)} s`;
}

async function workerKilled(site) {
  const own = await steady(site, 'steady');
  const before = await own();
  let slowest = 0;
  for (let round = 0; round < (site.short ? 1 : 4); round += 1) {
    for (const host of hosts) {
      await site.pause(site.random.between(0, 500));
      await kill(host);
      const killed = Date.now();
      await start(host);
      await eventually(`${host} has adopted its nodes`, async () => (await get('/vclusters/steady')).status === 'running', 20_000);
      slowest = Math.max(slowest, seconds(killed));
      assert.deepEqual(await own(), before, 'the same inits');
    }
  }
  assert.ok(slowest <= 10, `adopted after ${slowest} s`);
  return `adopted after at most ${slowest.toFixed(1)} s`;
}

// The worker's own short helpers, liblxc's monitors and the nodes' inits: what is gone is made again.
async function othersKilled(site) {
  const own = await steady(site, 'steady');
  const killed = { helpers: 0, monitors: 0 };
  for (let round = 0; round < (site.short ? 10 : 60); round += 1) {
    const random = site.random.fork();
    const there = await servants(random.pick(hosts));
    // A helper lives for milliseconds: whenever there is one, it goes.
    const kind = there.helpers.length > 0 || random.next() > 0.2 ? 'helpers' : 'monitors';
    if (there[kind].length > 0 && end(random.pick(there[kind]))) killed[kind] += 1;
    await site.pause(site.random.between(0, 200));
  }
  // Some were the steady ones'.
  await eventually('all of its nodes run', async () => (await get('/vclusters/steady')).status === 'running', 60_000);
  const [[host, pid]] = Object.values(await own()).map(([place]) => place.split('/'));
  end(Number(pid));
  await eventually('the node has a new init', async () => Object.values(await own()).flat().length === 3 && !Object.values(await own()).flat().includes(`${host}/${pid}`), 60_000);
  await eventually('all is well', async () => (await hostStatus(host)) === 'ready');
  return `${killed.helpers} helpers, ${killed.monitors} monitors and an init killed`;
}

export const scenarios = [
  { name: 'worker', title: 'a worker is killed: the same inits, adopted within 10 s', short: true, run: workerKilled },
  { name: 'master', title: 'the master is killed: the API is back within 5 s', short: true, run: masterKilled },
  { name: 'others', title: "the worker's helpers and a node's init are killed: they are made again", run: othersKilled },
];
