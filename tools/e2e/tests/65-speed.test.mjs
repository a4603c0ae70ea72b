// The way into a node has not become several times slower: the short form of `docklet-bench proxy`.

import assert from 'node:assert/strict';
import { test } from 'node:test';

import { PORTAL, PREFIX, command } from '../lib/site.mjs';

test('requests and sockets into a node cost no several times of nginx', async () => {
  const done = await command('docklet-bench', ['proxy', '--short', '--json', '--url', PORTAL, '--fs-prefix', PREFIX]);
  assert.equal(done.code, 0, `${done.stdout}\n${done.stderr}`);
});
