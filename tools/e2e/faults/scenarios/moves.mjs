// Nodes move while the programs that move them are killed: each is in one place afterwards, with its disk.

import assert from 'node:assert/strict';

import { eventually } from '../../lib/site.mjs';
import { ask, get, hosts, kill, pause, start } from '../lib/bed.mjs';
import { steady } from './kills.mjs';

async function movesKilled(site) {
  await steady(site, 'steady');
  const { random } = site;
  const node = async () => (await get('/vclusters/steady/nodes')).find((n) => n.name === 'node1');
  const exec = async (...argv) => {
    const said = await ask('POST', '/vclusters/steady/nodes/node1/exec', { argv, timeout_s: 30 });
    assert.deepEqual([said.status, said.body?.exit_code], [200, 0], JSON.stringify(said.body));
    return said.body.stdout;
  };
  await exec('sh', '-c', 'head -c 20000000 /dev/urandom > /root/much; sync');
  const sum = await exec('md5sum', '/root/much');
  const seen = { moved: 0, stayed: 0 };
  for (let round = 0; round < (site.short ? 3 : 20); round += 1) {
    const from = (await node()).host;
    const to = random.pick(hosts.filter((host) => host !== from));
    const victim = random.weighed([[4, 'master'], [1, from], [1, to]]);
    const pauses = [random.between(0, 1500), random.between(0, 1000)];
    await site.load.request('POST', '/vclusters/steady/move', { node: 'node1', host: to }, [202]);
    await pause(pauses[0]);
    await kill(victim);
    await pause(pauses[1]);
    await start(victim);
    let is;
    await eventually('the move is over', async () => {
      is = await node();
      return is.status === 'running' && (!is.moving || is.moving.stage === 'failed');
    }, 120_000);
    if (is.moving) assert.ok(is.moving.reason?.message, `it failed without a reason: ${JSON.stringify(is)}`);
    assert.equal(is.host, is.moving ? from : to, JSON.stringify(is));
    seen[is.moving ? 'stayed' : 'moved'] += 1;
    assert.equal(await exec('md5sum', '/root/much'), sum, 'its disk');
  }
  return `${seen.moved} times it moved, ${seen.stayed} times it stayed with a reason; ${site.load.counts.moves} moves by the load`;
}

export const scenarios = [
  { name: 'moves', title: 'the master or a worker is killed while nodes move: each is in one place, with its disk', moves: true, run: movesKilled },
];
