// What docs/how-to/upgrade.md says, done on two hosts: the master is replaced, then the workers one by one, and then all of it
// is taken back. Nodes run on all the time and the mixture works after each step. The programs of the other version are
// in $DOCKLET_E2E_OLD; without it the same ones are stopped and started in that order.

import assert from 'node:assert/strict';
import { readFile, readdir } from 'node:fs/promises';
import { after, before, test } from 'node:test';

import { command, eventually, must } from '../lib/site.mjs';

const PREFIX = '/opt/docklet-testbed';
const IMAGES = process.env.DOCKLET_E2E_IMAGES ?? '/opt/docklet/global/images';
const URL = 'http://localhost:8000';
const OLD = process.env.DOCKLET_E2E_OLD ? { PATH: `${process.env.DOCKLET_E2E_OLD}:${process.env.PATH}` } : {};
const NEW = {};

const testbed = (...args) => must('docklet-testbed', ['--prefix', PREFIX, ...args], { env: OLD });
const inside = (machine, argv, options) =>
  command('docklet-testbed', ['--prefix', PREFIX, 'exec', machine, '--', ...argv], options);
let token;
const docklet = (...args) => inside('master', ['docklet', ...args], { env: { DOCKLET_URL: URL, DOCKLET_TOKEN: token } });

async function json(...args) {
  const done = await docklet(...args, '-o', 'json');
  assert.equal(done.code, 0, `${args.join(' ')}: ${done.stderr}`);
  return JSON.parse(done.stdout);
}

// The process ids of the nodes' inits that run on both hosts, and when they began.
async function inits() {
  const found = [];
  for (const states of ['h1', 'h2'].map((host) => `${PREFIX}/${host}/local/nodes`)) {
    for (const id of await readdir(states)) {
      const run = await readFile(`${states}/${id}/run.json`, 'utf8').then(JSON.parse, () => undefined);
      if (run) found.push(`${id} ${run.init.pid} ${run.init.start}`);
    }
  }
  return found.sort();
}

async function exchange(machine, version) {
  const program = machine === 'master' ? 'docklet-master' : 'docklet-worker';
  for (const [verb, env] of [['stop', version === NEW ? OLD : NEW], ['start', version]]) {
    const done = await inside(machine, [program, '--config', `${PREFIX}/${machine}/docklet.conf`, verb], { env });
    assert.equal(done.code, 0, done.stdout + done.stderr);
  }
}

let held;
const size = 4;

// As with programs of one version: nodes ran on, changes are carried out on both hosts, commands reach every node.
async function works() {
  await eventually('both hosts are ready', async () => (await json('host', 'list')).filter((h) => h.status === 'ready').length === 2);
  const now = await inits();
  assert.deepEqual(held.filter((node) => !now.includes(node)), [], 'no node was ended');
  for (const nodes of [size + 2, size]) {
    const scaled = await docklet('scale', 'demo', String(nodes));
    assert.equal(scaled.code, 0, scaled.stderr);
  }
  let list;
  await eventually('the nodes that are left are shown', async () => {
    list = (await json('status', 'demo')).node_list;
    return list.length === size;
  });
  assert.deepEqual([...new Set(list.map((node) => node.host))].sort(), ['h1', 'h2']);
  for (const { name } of list) {
    const said = await docklet('exec', `demo/${name}`, '--', 'cat', '/root/mine');
    assert.equal(said.stdout, `${name}\n`, said.stderr);
  }
  const created = await docklet('create', 'other', '-n', '2', '--image', 'small');
  assert.equal(created.code, 0, created.stderr);
  assert.equal((await docklet('delete', 'other', '--yes')).code, 0);
  assert.deepEqual(await inits(), held);
}

before(async () => {
  await testbed('down');
  await testbed('up', '--hosts', '2', '--images', IMAGES);
  const password = (await readFile(`${PREFIX}/master/local/generated_password.txt`, 'utf8')).trim();
  const session = await inside('master', [
    'curl', '--silent', '--fail', '--json', JSON.stringify({ username: 'root', password }), `${URL}/api/v1/sessions`,
  ]);
  assert.equal(session.code, 0, session.stderr);
  token = JSON.parse(session.stdout).token;
  await eventually('both hosts are ready', async () => (await json('host', 'list')).filter((h) => h.status === 'ready').length === 2);
  assert.equal((await docklet('create', 'demo', '-n', String(size), '--image', 'small')).code, 0);
  for (const { name } of (await json('status', 'demo')).node_list) {
    assert.equal((await docklet('exec', `demo/${name}`, '--', 'sh', '-c', 'hostname > /root/mine')).code, 0);
  }
  held = await inits();
  assert.equal(held.length, size);
});

after(() => testbed('down'));

for (const machine of ['master', 'h1', 'h2']) {
  test(`the new program on ${machine}: all goes on`, async () => {
    await exchange(machine, NEW);
    await works();
  });
}

for (const machine of ['h2', 'h1', 'master']) {
  test(`back to the old one on ${machine}: all goes on`, async () => {
    await exchange(machine, OLD);
    await works();
  });
}

test('deleted, nothing is left on either host', async () => {
  assert.equal((await docklet('delete', 'demo', '--yes')).code, 0);
  for (const host of ['h1', 'h2']) {
    const audit = await inside(host, ['docklet-worker', '--config', `${PREFIX}/${host}/docklet.conf`, 'audit'], { env: OLD });
    assert.equal(audit.code, 0, audit.stdout + audit.stderr);
  }
});
