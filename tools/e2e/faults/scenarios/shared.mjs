// The directory that all hosts share hangs: it is reported, what runs goes on, and all goes on by itself afterwards.

import assert from 'node:assert/strict';
import { readdir, readFile } from 'node:fs/promises';

import { eventually } from '../../lib/site.mjs';
import { ask, get, hosts, inNode, kill, PREFIX, start } from '../lib/bed.mjs';
import { checks } from '../lib/checks.mjs';
import { steady } from './kills.mjs';

// The processes that serve the volume's bricks.
async function bricks() {
  const found = [];
  for (const pid of (await readdir('/proc')).filter((name) => /^\d+$/.test(name))) {
    const words = (await readFile(`/proc/${pid}/cmdline`, 'utf8').catch(() => '')).split('\0');
    if (words[0].endsWith('glusterfsd') && words.some((word) => word.includes(PREFIX.slice(1).replaceAll('/', '-')))) {
      found.push(Number(pid));
    }
  }
  return found;
}

const shared = async (host) => (await get(`/hosts/${host}`)).checks.find((c) => c.name === 'shared_directory');
const all = (outcome) => async () => (await Promise.all(hosts.map(shared))).every((check) => check.outcome === outcome);

async function hangs(site) {
  const own = await steady(site, 'steady');
  const before = await own();
  let slowest = 0;
  for (let round = 0; round < (site.short ? 1 : 3); round += 1) {
    await site.pause(site.random.between(0, 2000));
    const serving = await bricks();
    assert.notEqual(serving.length, 0);
    for (const pid of serving) process.kill(pid, 'SIGSTOP');
    try {
      const began = Date.now();
      await eventually('every host reports it', all('failed'), 30_000);
      slowest = Math.max(slowest, (Date.now() - began) / 1000);
      // A worker that starts meanwhile adopts its nodes.
      const host = site.random.pick(hosts);
      await kill(host);
      const killed = Date.now();
      await start(host);
      await eventually('its nodes are known', async () => (await get('/vclusters/steady')).status === 'running', 20_000);
      assert.ok(Date.now() - killed < 20_000);
      assert.deepEqual(await own(), before, 'the same inits');
      // Nodes are reached.
      const [place] = Object.values(await own())[0];
      assert.equal((await inNode(place.split('/')[1], 'true')).code, 0);
      assert.equal((await ask('POST', '/vclusters/steady/nodes/node1/exec', { argv: ['hostname'] })).status, 200);
      await site.pause(site.random.between(0, 5000));
    } finally {
      for (const pid of serving) process.kill(pid, 'SIGCONT');
    }
    await eventually('the hosts are well', all('ok'), 60_000);
    await checks(site);
    assert.deepEqual(await own(), before, 'the same inits');
    site.load.go();
  }
  return `reported after at most ${slowest.toFixed(1)} s`;
}

export const scenarios = [{
  name: 'shared-hangs', title: 'the shared directory hangs: reported within 30 s, nodes run on, all goes on by itself',
  bed: { glusterfs: true }, run: hangs,
}];
