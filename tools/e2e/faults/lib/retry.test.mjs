import assert from 'node:assert/strict';
import { test } from 'node:test';

import { eventually } from '../../lib/site.mjs';
import { Leftover, mayTryAgain } from './retry.mjs';

const failing = (error) => eventually('it holds', () => { throw error; }, 0).catch((told) => told);

test('what was too slow is tried again', async () => {
  assert.ok(mayTryAgain(await failing(new Error('not yet'))));
});

test('what was left over is not', async () => {
  assert.ok(!mayTryAgain(await failing(new Leftover('h1: a mount'))));
});

test('where a node ran twice nothing is, whatever else failed', async () => {
  assert.ok(!mayTryAgain(await failing(new Error('not yet')), ['a node on h1 and h2']));
});
