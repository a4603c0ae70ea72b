// What docs/how-to/back-up.md says, done: accounts and plans are lost and restored from a copy that is older than the
// hosts. What the copy names runs on as it was, what it does not name is left alone until an operator removes it.

import assert from 'node:assert/strict';
import { copyFile, mkdir, readFile, readdir, rm } from 'node:fs/promises';
import { after, before, test } from 'node:test';

import { PREFIX, api, audit, command, eventually, master, must, rootPassword, signIn, worker } from '../lib/site.mjs';

const SIZE = { cpu: 0.1, memory_mib: 128, disk_mib: 128 };
const BACKUP = `${PREFIX}/backup`;
const DATABASE = `${PREFIX}/local/master/docklet.db`;
const ETCD = `${PREFIX}/local/etcd`;
const IDENTITY = `${PREFIX}/local/identity`;
const env = { ETCDCTL_API: '3' };

let root;
let held;
let late;

// The nodes on this host by id: their names and the process ids of their inits.
async function inits() {
  const states = `${PREFIX}/local/nodes`;
  const found = {};
  for (const id of await readdir(states)) {
    const run = await readFile(`${states}/${id}/run.json`, 'utf8').then(JSON.parse, () => undefined);
    if (run) found[id] = run.init.pid;
  }
  return found;
}

const create = async (name, nodes) => {
  const made = await root('POST', '/vclusters', { name, nodes, image: 'small', size: SIZE });
  assert.equal(made.status, 202, JSON.stringify(made.body));
  assert.equal((await root('GET', `/vclusters/${name}?wait=running&timeout=60`)).body.status, 'running');
};

before(async () => {
  root = api(await signIn('root', await rootPassword()));
  await create('keep', 2);
  await root('POST', '/vclusters/keep/nodes/node1/exec', { argv: ['touch', '/root/mine'] });
  await mkdir(BACKUP, { recursive: true });
});

after(async () => {
  for (const { name } of (await root('GET', '/vclusters')).body) await root('DELETE', `/vclusters/${name}?wait=absent&timeout=60`);
});

test('a copy is taken while everything runs', async () => {
  await must('etcdctl', ['--endpoints', 'https://127.0.0.1:22379', '--cacert', `${IDENTITY}/ca.crt`,
    '--cert', `${IDENTITY}/master.crt`, '--key', `${IDENTITY}/master.key`, 'snapshot', 'save', `${BACKUP}/etcd.snapshot`], { env });
  await must('sqlite3', [DATABASE, `.backup '${BACKUP}/docklet.db'`]);
});

test('the world goes on, and then its records are lost', async () => {
  await create('later', 1);
  assert.equal((await root('PATCH', '/vclusters/keep', { nodes: 3 })).status, 202);
  await eventually('it has three', async () => (await root('GET', '/vclusters/keep')).body.nodes_ready === 3);
  late = (await root('POST', '/users', { username: 'late', password: 'late-password' })).body;
  held = await inits();
  assert.equal(Object.keys(held).length, 4);
  await worker('stop');
  await master('stop');
  await rm(`${ETCD}/data`, { recursive: true });
  await rm(DATABASE);
});

test('restored, what the copy names is as it was, and the rest is left alone', async () => {
  await must('etcdctl', ['snapshot', 'restore', `${BACKUP}/etcd.snapshot`, '--name', 'docklet',
    '--initial-cluster', 'docklet=https://127.0.0.1:22380', '--initial-advertise-peer-urls', 'https://127.0.0.1:22380',
    '--data-dir', `${ETCD}/data`], { env });
  for (const rest of ['-wal', '-shm']) await rm(`${DATABASE}${rest}`, { force: true });
  await copyFile(`${BACKUP}/docklet.db`, DATABASE);
  await must('sqlite3', [DATABASE, `DELETE FROM app_tokens; DELETE FROM sessions; DELETE FROM idempotency_keys;
    UPDATE counters SET value = value + 1000 WHERE name = 'id_range';`]);
  await rm(`${PREFIX}/local/worker/plans.json`);
  await master('start');
  await worker('start');

  assert.equal((await root('GET', '/me')).status, 401, 'a session from before is over');
  root = api(await signIn('root', await rootPassword()));
  const { body } = await root('GET', '/vclusters/keep?wait=running&timeout=60');
  assert.deepEqual([body.status, body.nodes], ['running', 2], JSON.stringify(body));
  assert.equal((await root('POST', '/vclusters/keep/nodes/node1/exec', { argv: ['ls', '/root/mine'] })).body.exit_code, 0);
  assert.equal((await root('GET', '/vclusters/later')).status, 404);
  assert.deepEqual(await inits(), held, 'no node was ended or started');
  // Somebody else's block of ids must not become that of a new user.
  const next = (await root('POST', '/users', { username: 'next', password: 'next-password' })).body;
  assert.ok(next.first_id > late.first_id, `${next.first_id} ${late.first_id}`);
  await root('DELETE', '/users/next');
});

test('the audit names what is left, and an operator removes it', async () => {
  const { code, stdout } = await audit('-o', 'json');
  assert.equal(code, 1);
  const owners = [...new Set(JSON.parse(stdout).findings.map((f) => f.owner))].filter(Boolean);
  const nodes = owners.filter((id) => held[id]);
  // keep's third, and later's only one with its vcluster.
  assert.deepEqual([nodes.length, owners.length], [2, 3], stdout);
  const planned = Object.keys(held).find((id) => !nodes.includes(id));
  const refused = await command('docklet-worker', ['--config', `${PREFIX}/docklet.conf`, 'remove', ...nodes, planned]);
  assert.equal(refused.code, 1);
  assert.match(refused.stderr, /a plan names/);
  assert.deepEqual(await inits(), held);
  await worker('remove', ...owners);
  await eventually('nothing is left over', async () => (await audit()).code === 0);
  assert.equal(Object.keys(await inits()).length, 2);
});
