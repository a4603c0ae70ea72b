// Two masters, each a process with its own configuration and port, over one etcd and one PostgreSQL, and a real host: any
// of them serves, a stale one does no harm, and who is signed in stays so when one is killed.

import assert from 'node:assert/strict';
import { copyFile, mkdir, readFile, symlink, writeFile } from 'node:fs/promises';
import { request } from 'node:http';
import { after, before, test } from 'node:test';

import { startPostgres } from '../lib/postgres.mjs';
import { CONF, PORTAL, PREFIX, SETTINGS, api, command, eventually, must, rootPassword, signIn } from '../lib/site.mjs';

const PASSWORD_FILE = `${PREFIX}/local/generated_password.txt`;
const FIRST = { conf: `${PREFIX}/front1.conf`, prefix: PREFIX, portal: PORTAL, name: 'front1' };
const SECOND = { conf: `${PREFIX}/front2.conf`, prefix: `${PREFIX}/front2`, portal: 'http://localhost:18010', name: 'front2' };
const SIZE = { cpu: 0.1, memory_mib: 128, disk_mib: 128 };

let postgres;
let password;
let token;
let first;
let second;

const master = (which, ...args) => must('docklet-master', ['--config', which.conf, ...args]);
const pid = async (which) => Number((await readFile(`${which.prefix}/local/run/docklet-master.pid`, 'utf8')).trim());
const masters = async (ask) => (await ask('GET', '/masters')).body.map((m) => m.name);

before(async () => {
  // The host, its etcd and its files stay as they are; the accounts of this test are in PostgreSQL.
  password = await readFile(PASSWORD_FILE, 'utf8');
  await must('docklet-master', ['--config', CONF, 'stop']);
  postgres = await startPostgres();
  const settings = SETTINGS.replace(/HOST_NAME=.*\n|USER_MAX.*\n/g, '');
  await writeFile(FIRST.conf, `${settings}HOST_NAME=${FIRST.name}\nDATABASE_URL=${postgres.url}\nUSER_MAX_NODES=12\n`);
  await writeFile(SECOND.conf, `${settings.replace(`FS_PREFIX=${PREFIX}`, `FS_PREFIX=${SECOND.prefix}`).replace('PROXY_PORT=18000', 'PROXY_PORT=18010')}HOST_NAME=${SECOND.name}\nDATABASE_URL=${postgres.url}\nUSER_MAX_NODES=12\n`);
  await master(FIRST, 'init');
  // What a second machine has: the shared files, the certificates of etcd. On this one it reaches the same worker.
  await mkdir(`${SECOND.prefix}/local/identity`, { recursive: true });
  await mkdir(`${SECOND.prefix}/local/run`);
  await symlink(`${PREFIX}/global`, `${SECOND.prefix}/global`);
  await symlink(`${PREFIX}/local/run/worker.sock`, `${SECOND.prefix}/local/run/worker.sock`);
  for (const file of ['ca.key', 'ca.crt']) {
    await copyFile(`${PREFIX}/local/identity/${file}`, `${SECOND.prefix}/local/identity/${file}`);
  }
  await master(SECOND, 'start');
  token = await signIn('root', await rootPassword());
  first = api(token);
  second = api(token, SECOND.portal);
  await eventually('the host is ready', async () => (await second('GET', '/hosts')).body.some((h) => h.status === 'ready'));
});

after(async () => {
  for (const { name } of (await second('GET', '/vclusters')).body) await second('DELETE', `/vclusters/${name}?wait=absent&timeout=60`);
  await master(SECOND, 'stop');
  await master(FIRST, 'stop');
  await postgres.stop();
  await writeFile(PASSWORD_FILE, password);
  await must('docklet-master', ['--config', CONF, 'start']);
});

test('a second master joins what is there and cannot wipe it', async () => {
  await eventually('both are listed', async () => (await masters(first)).join() === 'front1,front2');
  assert.deepEqual((await second('GET', '/masters')).body.map((m) => m.here), [false, true]);
  await master(SECOND, 'stop');
  const init = (...options) => command('docklet-master', ['--config', SECOND.conf, 'init', ...options]);
  for (const [refused, why] of [[await init(), /already a system in the database/], [await init('--force'), /other masters of it run: front1/]]) {
    assert.equal(refused.code, 1, refused.stdout);
    assert.match(refused.stderr, why);
  }
  await master(SECOND, 'start');
  assert.equal((await second('GET', '/me')).body.username, 'root');
});

test('both serve, both plan, and nothing is given twice', async () => {
  const names = ['a', 'b', 'c', 'd'];
  const made = await Promise.all(names.map((name, n) => (n % 2 ? second : first)('POST', '/vclusters', { name, nodes: 2, image: 'small', size: SIZE })));
  assert.deepEqual(made.map((m) => m.status), [202, 202, 202, 202], JSON.stringify(made));
  const scaled = await Promise.all(names.map((name, n) => (n % 2 ? first : second)('PATCH', `/vclusters/${name}`, { nodes: 3 })));
  assert.ok(scaled.every((s) => s.status === 202), JSON.stringify(scaled));
  const addresses = new Set();
  for (const [n, name] of names.entries()) {
    const ask = n % 2 ? first : second;
    const { body } = await ask('GET', `/vclusters/${name}?wait=running&timeout=60`);
    assert.equal(body.status, 'running', JSON.stringify(body));
    for (const node of (await ask('GET', `/vclusters/${name}/nodes`)).body) addresses.add(node.ip);
  }
  assert.equal(addresses.size, 12);
  assert.equal((await first('GET', '/hosts')).body[0].nodes, 12);
  for (const ask of [first, second]) {
    const shown = await ask('POST', '/vclusters/a/nodes/node1/exec', { argv: ['hostname'] });
    assert.equal(shown.body.stdout, 'node1\n');
  }
  const gone = await Promise.all(names.slice(1).map((name, n) => (n % 2 ? first : second)('DELETE', `/vclusters/${name}?wait=absent&timeout=60`)));
  assert.deepEqual(gone.map((g) => g.status), [204, 204, 204]);
});

test('signing out at one closes the terminal at the other', async () => {
  const mine = await signIn('root', await rootPassword());
  const socket = await new Promise((resolve, reject) => {
    const headers = {
      authorization: `Bearer ${mine}`, origin: PORTAL, connection: 'Upgrade', upgrade: 'websocket',
      'sec-websocket-version': '13', 'sec-websocket-key': 'dGhlIHNhbXBsZSBub25jZQ==',
    };
    const asked = request(`${PORTAL}/api/v1/vclusters/a/nodes/node1/terminal`, { headers });
    asked.on('upgrade', (_, upgraded) => resolve(upgraded));
    asked.on('response', (answer) => reject(new Error(`no terminal: ${answer.statusCode}`)));
    asked.on('error', reject);
    asked.end();
  });
  let told = '';
  socket.setEncoding('latin1').on('data', (text) => { told += text; });
  await eventually('the shell has a prompt', () => told.length > 0);
  const began = Date.now();
  assert.equal((await api(mine, SECOND.portal)('DELETE', '/sessions/current')).status, 204);
  // In the close frame; the last that comes.
  await eventually('the socket is closed', () => told.endsWith('signed out'), 2000);
  assert.ok(Date.now() - began < 2000, `${Date.now() - began} ms`);
  socket.destroy();
});

test('a master that slept and wakes up again does no harm', async () => {
  const asleep = await pid(FIRST);
  process.kill(asleep, 'SIGSTOP');
  let late;
  try {
    // It takes these when it wakes, with a picture from before.
    late = [first('POST', '/vclusters', { name: 'b', nodes: 1, image: 'small', size: SIZE }), first('PATCH', '/vclusters/a', { nodes: 1 })];
    await eventually('its lease is over', async () => (await masters(second)).join() === 'front2', 30_000);
    assert.equal((await second('POST', '/vclusters', { name: 'b', nodes: 2, image: 'small', size: SIZE })).status, 202);
    assert.equal((await second('GET', '/vclusters/b?wait=running&timeout=60')).body.status, 'running');
    assert.equal((await second('POST', '/vclusters/a/stop')).status, 202);
    assert.equal((await second('GET', '/vclusters/a?wait=stopped&timeout=60')).body.status, 'stopped');
  } finally {
    process.kill(asleep, 'SIGCONT');
  }
  const [create, scale] = await Promise.all(late);
  assert.equal(create.status, 409, JSON.stringify(create.body));
  assert.equal(create.body.code, 'name_taken');
  // Applied to what the other had made of it: fewer nodes, and still stopped.
  assert.equal(scale.status, 202, JSON.stringify(scale.body));
  for (const ask of [first, second]) {
    await eventually('one node of a is left, stopped', async () => {
      const { body } = await ask('GET', '/vclusters/a');
      return body.nodes === 1 && body.status === 'stopped';
    });
    assert.equal((await ask('GET', '/vclusters/b')).body.nodes, 2);
  }
  await eventually('it is listed again', async () => (await masters(second)).join() === 'front1,front2');
});

test('one is killed: who is signed in goes on at the other, and what was asked for comes about', async () => {
  const wanted = { name: 'last', nodes: 2, image: 'small', size: SIZE };
  const key = { 'idempotency-key': 'right before the end' };
  const { status, body: { id } } = await first('POST', '/vclusters', wanted, key);
  process.kill(await pid(FIRST), 'SIGKILL');
  assert.equal(status, 202);
  assert.equal((await second('GET', '/vclusters/last?wait=running&timeout=60')).body.status, 'running');
  // The client that did not hear the answer asks again, elsewhere.
  const again = await second('POST', '/vclusters', wanted, key);
  assert.equal(again.status, 202, JSON.stringify(again.body));
  assert.equal(again.body.id, id);
  await eventually('its end is in the history', async () =>
    (await second('GET', '/vclusters/last/operations')).body.map((o) => o.outcome).join() === 'done');
  await master(FIRST, 'start');
  assert.equal((await first('GET', '/me')).body.username, 'root');
  await eventually('both are listed again', async () => (await masters(first)).join() === 'front1,front2');
});

// What docs/how-to/back-up.md says of PostgreSQL, done.
test('accounts are restored from a copy, and what was given since is not given again', async () => {
  const copy = `${PREFIX}/docklet.dump`;
  assert.equal((await first('POST', '/users', { username: 'early', password: 'early-password' })).status, 201);
  await postgres.client('pg_dump', '--format=custom', `--file=${copy}`, 'docklet');
  const { body: late } = await first('POST', '/users', { username: 'late', password: 'late-password' });
  const shown = async () => (await first('GET', '/vclusters/last/nodes')).body.map((node) => [node.name, node.ip, node.status]);
  const nodes = await shown();
  await master(SECOND, 'stop');
  await master(FIRST, 'stop');
  await postgres.client('dropdb', 'docklet');
  await postgres.client('createdb', 'docklet');
  await postgres.client('pg_restore', '--no-owner', '--dbname=docklet', copy);
  await postgres.client('psql', '--set=ON_ERROR_STOP=1', '--dbname=docklet', '--command', `DELETE FROM app_tokens; DELETE FROM sessions;
    DELETE FROM idempotency_keys; UPDATE counters SET value = value + 1000 WHERE name = 'id_range'`);
  await master(FIRST, 'start');
  await master(SECOND, 'start');
  assert.equal((await first('GET', '/me')).status, 401, 'a session from before is over');
  token = await signIn('root', await rootPassword());
  first = api(token);
  second = api(token, SECOND.portal);
  assert.deepEqual((await second('GET', '/users')).body.map((user) => user.username).sort(), ['early', 'root']);
  assert.deepEqual(await shown(), nodes);
  const { body: next } = await second('POST', '/users', { username: 'next', password: 'next-password' });
  assert.ok(next.first_id > late.first_id, `${next.first_id} ${late.first_id}`);
  await signIn('early', 'early-password', SECOND.portal);
});
