// Neither launching nor the way into a node has become several times slower: the short forms of `docklet-bench`. Machines
// are noisy, so that only a factor counts.

import assert from 'node:assert/strict';
import { test } from 'node:test';

import { PORTAL, PREFIX, command } from '../lib/site.mjs';

test('requests and sockets into a node cost no several times of nginx', async () => {
  const done = await command('docklet-bench', ['proxy', '--short', '--json', '--url', PORTAL, '--fs-prefix', PREFIX]);
  assert.equal(done.code, 0, `${done.stdout}\n${done.stderr}`);
});

test('five nodes are ready and gone in no several times of plain lxc-start', async () => {
  const done = await command('docklet-bench', ['launch', '--nodes', '5', '--rounds', '3', '--no-lxd', '--json', '--url', PORTAL, '--fs-prefix', PREFIX]);
  assert.equal(done.code, 0, `${done.stdout}\n${done.stderr}`);
  const { ratio, docklet, floor } = JSON.parse(done.stdout);
  const told = `ready ${docklet.ready_s.median} s (floor ${floor.ready_s.median} s), gone ${docklet.gone_s.median} s`;
  assert.ok(ratio.ready < 3, told);
  assert.ok(docklet.gone_s.median < 2, told);
});
