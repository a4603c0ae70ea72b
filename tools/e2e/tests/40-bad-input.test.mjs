// What people and scripts get wrong: a clear error on every surface, and nothing left behind.

import assert from 'node:assert/strict';
import { existsSync } from 'node:fs';
import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { createServer } from 'node:net';
import { tmpdir } from 'node:os';
import { after, before, test } from 'node:test';

import { PORTAL, PREFIX, api, audit, cli, command, must, rootPassword, signIn } from '../lib/site.mjs';

let rest;
let docklet;
let token;
let scratch;

before(async () => {
  token = await signIn('root', await rootPassword());
  rest = api(token);
  docklet = cli(token);
  scratch = await mkdtemp(`${tmpdir()}/docklet-bad-`);
});

after(async () => {
  await rm(scratch, { recursive: true, force: true });
});

const names = ['', 'a'.repeat(21), 'größe', '../x', '-rf', 'Two Words', 'a--b', 'a-', '1st', '名'];

for (const name of names) {
  test(`a vcluster cannot be called ${JSON.stringify(name)}`, async () => {
    const answer = await rest('POST', '/vclusters', { name, nodes: 1 });
    assert.equal(answer.status, 422, JSON.stringify(answer.body));
    assert.equal(answer.body.field, 'name');
    assert.ok(answer.body.detail.length > 10);
    const typed = await docklet(['create', '-n', '1', '--', name]);
    assert.equal(typed.code, 2, typed.stderr);
    assert.ok(typed.stderr.trim().length > 0);
  });
}

for (const [what, body, field] of [
  ['zero nodes', { name: 'bad', nodes: 0 }, 'nodes'],
  ['negative nodes', { name: 'bad', nodes: -3 }, 'nodes'],
  ['a huge number of nodes', { name: 'bad', nodes: 1e15 }, 'nodes'],
  ['more CPUs than any host', { name: 'bad', nodes: 1, size: { cpu: 500 } }, 'size.cpu'],
  ['more memory than any host', { name: 'bad', nodes: 1, size: { memory_mib: 9_000_000 } }, 'size.memory_mib'],
  ['negative memory', { name: 'bad', nodes: 1, size: { memory_mib: -1 } }, 'size.memory_mib'],
  ['an unknown image', { name: 'bad', nodes: 1, image: 'windows' }, 'image'],
  ['an image that is a path', { name: 'bad', nodes: 1, image: '../../etc' }, 'image'],
]) {
  test(`${what} is refused by name`, async () => {
    const answer = await rest('POST', '/vclusters', body);
    assert.equal(answer.status, 422, JSON.stringify(answer.body));
    assert.equal(answer.body.field, field);
  });
}

for (const [what, text] of [
  ['malformed JSON', '{"name": "bad", '],
  ['a wrong type', '{"name": 7, "nodes": 1}'],
  ['an unknown field', '{"name": "bad", "nodes": 1, "colour": "red"}'],
  ['no body', ''],
  ['a list', '[]'],
]) {
  test(`${what} is a 400 that says so`, async () => {
    const answer = await fetch(`${PORTAL}/api/v1/vclusters`, {
      method: 'POST',
      headers: { authorization: `Bearer ${token}`, 'content-type': 'application/json' },
      body: text,
    });
    assert.equal(answer.status, 400, await answer.clone().text());
    assert.equal(answer.headers.get('content-type'), 'application/problem+json');
    assert.equal((await answer.json()).code, 'malformed_body');
  });
}

test('of two creates of one name at once, one wins', async () => {
  const size = { memory_mib: 128 };
  const answers = await Promise.all([1, 2, 3].map(() => rest('POST', '/vclusters', { name: 'twin', nodes: 1, image: 'small', size })));
  assert.deepEqual(answers.map((a) => a.status).sort(), [202, 409, 409]);
  assert.ok(answers.filter((a) => a.status === 409).every((a) => a.body.code === 'name_taken'));
  const typed = await docklet(['create', 'twin', '-n', '1']);
  assert.equal(typed.code, 1);
  assert.match(typed.stderr, /already a vcluster of that name/);
});

test('deleting while it is being created, and deleting twice', async () => {
  const made = await rest('POST', '/vclusters', { name: 'brief', nodes: 3, image: 'small', size: { memory_mib: 128 } });
  assert.equal(made.status, 202);
  const [one, two] = await Promise.all([rest('DELETE', '/vclusters/brief'), rest('DELETE', '/vclusters/brief')]);
  assert.ok([one.status, two.status].every((s) => [202, 204, 404].includes(s)), `${one.status} ${two.status}`);
  const gone = await rest('DELETE', '/vclusters/brief?wait=absent&timeout=60');
  assert.ok([200, 204, 404].includes(gone.status), JSON.stringify(gone));
  assert.equal((await rest('DELETE', '/vclusters/brief')).status, 404);
  assert.equal((await docklet(['delete', 'brief', '--yes'])).code, 3);
  await rest('DELETE', '/vclusters/twin?wait=absent&timeout=60');
  const found = await audit();
  assert.equal(found.code, 0, found.stdout);
});

async function conf(text) {
  const file = `${scratch}/docklet.conf`;
  await writeFile(file, text);
  return file;
}

test('a bad configuration names the key and the line, all at once', async () => {
  const file = await conf('CLUSTER_NAME=test\nPROXY_PROT=1\n\nSTORAGE=tape\n');
  for (const program of ['docklet-master', 'docklet-worker']) {
    const done = await command(program, ['--config', file, 'start']);
    assert.equal(done.code, 2, done.stderr);
    assert.match(done.stderr, /line 2: PROXY_PROT.*PROXY_PORT/);
    assert.match(done.stderr, /line 4: STORAGE/);
  }
});

test('a port in use is said by its number', async () => {
  const taken = createServer();
  await new Promise((done) => { taken.listen(0, '127.0.0.1', done); });
  const { port } = taken.address();
  const file = await conf(`CLUSTER_NAME=bad\nFS_PREFIX=${scratch}/p\nETCD=localhost:22479\nPROXY_IP=127.0.0.1\nPROXY_PORT=${port}\n`);
  const done = await command('docklet-master', ['--config', file, 'init']);
  await command('docklet-master', ['--config', file, 'stop']);
  await new Promise((closed) => { taken.close(closed); });
  assert.equal(done.code, 1, done.stdout);
  assert.match(done.stderr, new RegExp(`${port}`));
});

test('an etcd that does not answer is said by its address', async () => {
  const file = await conf(`CLUSTER_NAME=bad\nFS_PREFIX=${scratch}/q\nETCD=127.0.0.1:1,127.0.0.1:2\nPROXY_IP=127.0.0.1\nPROXY_PORT=18999\n`);
  const done = await command('docklet-master', ['--config', file, 'init']);
  assert.equal(done.code, 1, done.stdout);
  assert.match(done.stderr, /etcd at 127\.0\.0\.1:1/);
});

test('a network of the machine inside CLUSTER_NET is named before anything is made', async () => {
  const place = `${scratch}/o`;
  const file = await conf(`CLUSTER_NAME=bad\nFS_PREFIX=${place}\nCLUSTER_NET=172.30.0.1/16\nETCD=localhost:22479\nPROXY_IP=127.0.0.1\nPROXY_PORT=18998\n`);
  await must('ip', ['netns', 'add', 'docklet-bad']);
  try {
    await must('ip', ['-n', 'docklet-bad', 'link', 'add', 'lan', 'type', 'bridge']);
    await must('ip', ['-n', 'docklet-bad', 'address', 'add', '172.30.9.1/24', 'dev', 'lan']);
    const done = await command('ip', ['netns', 'exec', 'docklet-bad', 'docklet-master', '--config', file, 'init']);
    assert.equal(done.code, 1, done.stdout);
    assert.match(done.stderr, /172\.30\.9\.0\/24 by lan.*CLUSTER_NET 172\.30\.0\.0\/16/);
    assert.ok(!existsSync(place), 'nothing was made');
  } finally {
    await must('ip', ['netns', 'delete', 'docklet-bad']);
  }
});

test('init does not wipe what is there', async () => {
  const done = await command('docklet-master', ['--config', `${PREFIX}/docklet.conf`, 'init']);
  assert.equal(done.code, 1);
  assert.match(done.stderr, /--force/);
  assert.equal((await rest('GET', '/me')).status, 200);
});
