// Hosts whose disks are full: new nodes are refused with the reason, and what is there can be deleted.

import assert from 'node:assert/strict';

import { eventually } from '../../lib/site.mjs';
import { ask, get, hosts } from '../lib/bed.mjs';

const BIG = { cpu: 0.1, memory_mib: 128, disk_mib: 1000 };
const SMALL = { cpu: 0.1, memory_mib: 96, disk_mib: 64 };

async function diskFull(site) {
  const { load } = site;
  const create = async (name, size) => {
    await load.request('POST', '/vclusters', { name, nodes: hosts.length, image: 'small', size }, [202]);
    load.wanted.set(name, { nodes: hosts.length, wanted: 'running' });
  };
  const remove = async (name) => {
    const answer = await ask('DELETE', `/vclusters/${name}?wait=absent&timeout=30`);
    assert.equal(answer.status, 204, JSON.stringify(answer.body));
    load.wanted.delete(name);
  };
  await create('fill', BIG);
  await eventually('it runs', async () => (await get('/vclusters/fill')).status === 'running');
  for (const { name } of await get('/vclusters/fill/nodes')) {
    const filled = await ask('POST', `/vclusters/fill/nodes/${name}/exec`, { argv: ['sh', '-c', 'dd if=/dev/zero of=/var/fill bs=1M; sync; true'], timeout_s: 60 }, {}, 70_000);
    assert.equal(filled.status, 200, JSON.stringify(filled.body));
  }
  await create('more', SMALL);
  let refused;
  await eventually('it failed', async () => {
    refused = await get('/vclusters/more');
    return refused.status === 'failed';
  });
  assert.equal(refused.reason.code, 'out_of_space', JSON.stringify(refused.reason));
  // Those that run go on.
  assert.equal((await get('/vclusters/fill')).status, 'running');
  await remove('more');
  await remove('fill');
  await create('again', SMALL);
  await eventually('there is room again', async () => (await get('/vclusters/again')).status === 'running');
  await remove('again');
  return refused.reason.message;
}

export const scenarios = [{
  name: 'disk-full', title: 'disks are full: creates fail with the reason, deletes work', quiet: true,
  bed: { settings: ['DISKPOOL_SIZE=1024', 'DISK_OVERCOMMIT=4'] }, run: diskFull,
}];
