// Users' files on a GlusterFS volume, seen from two hosts: the same everywhere, within the user's quota; and what happens
// while the volume hangs or its servers are away.

import assert from 'node:assert/strict';
import { readFile, readdir } from 'node:fs/promises';
import { after, before, test } from 'node:test';

import { leftOf } from '../lib/left.mjs';
import { command, eventually, must } from '../lib/site.mjs';

const PREFIX = '/opt/docklet-testbed';
const IMAGES = process.env.DOCKLET_E2E_IMAGES ?? '/opt/docklet/global/images';
const URL = 'http://localhost:8000';

const testbed = (...args) => must('docklet-testbed', ['--prefix', PREFIX, ...args]);
const inside = (host, argv, options) =>
  command('docklet-testbed', ['--prefix', PREFIX, 'exec', host, '--', ...argv], options);
const gluster = async (...words) => {
  const done = await inside('files', ['gluster', '--mode=script', 'volume', ...words]);
  assert.equal(done.code, 0, done.stdout + done.stderr);
};
const tokens = {};
const as = (user, ...args) =>
  inside('master', ['docklet', ...args], { env: { DOCKLET_URL: URL, DOCKLET_TOKEN: tokens[user] }, timeout: 60_000 });
const docklet = (...args) => as('root', ...args);

async function json(...args) {
  const done = await docklet(...args, '-o', 'json');
  assert.equal(done.code, 0, `${args.join(' ')}: ${done.stderr}`);
  return JSON.parse(done.stdout);
}

async function signIn(username, password) {
  const session = await inside('master', [
    'curl', '--silent', '--fail', '--json', JSON.stringify({ username, password }), `${URL}/api/v1/sessions`,
  ]);
  assert.equal(session.code, 0, session.stderr);
  tokens[username] = JSON.parse(session.stdout).token;
}

const sh = (node, script, user = 'root') => as(user, 'exec', node, '--', 'sh', '-c', script);

// One node on each host.
const nodes = {};

const shared = async (host) => (await json('host', 'show', host)).checks.find((c) => c.name === 'shared_directory');
const isWell = async () => (await Promise.all(['h1', 'h2'].map(shared))).every((check) => check.outcome === 'ok');

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

before(async () => {
  await testbed('down');
  await testbed('up', '--hosts', '2', '--glusterfs', '--images', IMAGES);
  await signIn('root', (await readFile(`${PREFIX}/master/local/generated_password.txt`, 'utf8')).trim());
  await eventually('both hosts are ready', async () => (await json('host', 'list')).filter((h) => h.status === 'ready').length === 2);
  const created = await docklet('create', 'demo', '-n', '2', '--image', 'small');
  assert.equal(created.code, 0, created.stderr);
  for (const { name, host } of (await json('status', 'demo')).node_list) nodes[host] = `demo/${name}`;
  assert.deepEqual(Object.keys(nodes).sort(), ['h1', 'h2']);
});

after(async () => {
  for (const pid of await bricks()) process.kill(pid, 'SIGCONT');
  await testbed('down');
  assert.deepEqual(await leftOf(PREFIX), []);
  for (const place of ['/var/lib/glusterd/glusterd.info', '/var/lib/glusterd/vols']) {
    assert.notEqual((await command('stat', [place])).code, 0, place);
  }
});

test('a file written on one host is read on the other, and root owns it', async () => {
  assert.equal((await sh(nodes.h1, 'echo hello > nfs/file && mkdir nfs/sub')).code, 0);
  const read = await sh(nodes.h2, 'cat nfs/file && stat -c "%u %g" nfs nfs/file nfs/sub');
  assert.equal(read.stdout, 'hello\n0 0\n0 0\n0 0\n', read.stderr);
});

test('nodes of both hosts append to one file, and no line is lost', async () => {
  // Made beforehand: of two GlusterFS clients that make one file at the same instant, one may be told "File exists".
  assert.equal((await sh(nodes.h1, ': > nfs/log')).code, 0);
  const append = (node) => sh(node, 'for i in $(seq 200); do echo "$(hostname) $i" >> nfs/log; done');
  const done = await Promise.all([append(nodes.h1), append(nodes.h2)]);
  assert.deepEqual(done.map((d) => [d.code, d.stderr]), [[0, ''], [0, '']]);
  const count = await sh(nodes.h1, 'sort -u nfs/log | wc -l');
  assert.equal(count.stdout.trim(), '400');
});

test('another user has files of their own and reaches no others', async () => {
  const password = 'a long enough one';
  const made = await inside('master', [
    'curl', '--silent', '--fail', '--header', `authorization: Bearer ${tokens.root}`,
    '--json', JSON.stringify({ username: 'alice', password, role: 'user' }), `${URL}/api/v1/users`,
  ]);
  assert.equal(made.code, 0, made.stdout + made.stderr);
  await signIn('alice', password);
  const created = await as('alice', 'create', 'hers', '-n', '1', '--image', 'small');
  assert.equal(created.code, 0, created.stderr);
  const looked = await sh('hers/node1', 'ls -A nfs; echo mine > nfs/file; ls nfs/.. ; cat nfs/file', 'alice');
  assert.ok(!looked.stdout.includes('log') && looked.stdout.endsWith('mine\n'), looked.stdout);
  assert.equal((await sh(nodes.h1, 'cat nfs/file')).stdout, 'hello\n');
  assert.equal((await as('alice', 'delete', 'hers', '--yes')).code, 0);
});

test('a quota of the user\'s data stops writing on every host', async () => {
  await gluster('quota', 'docklet', 'limit-usage', '/users/root/data', '20MB');
  // GlusterFS counts what is written every now and then (soft-timeout, a minute where it was not heard yet), so it is
  // written until it has.
  let full;
  await eventually('writing is refused', async () => {
    full = await sh(nodes.h2, 'dd if=/dev/zero bs=1M count=2 oflag=sync >> nfs/big');
    return full.code !== 0;
  }, 150_000);
  assert.match(full.stderr, /Disk quota exceeded/);
  // Given back from the other host, there is room again.
  assert.equal((await sh(nodes.h1, 'rm nfs/big')).code, 0);
  await eventually('there is room again', async () => (await sh(nodes.h1, 'echo more > nfs/more')).code === 0, 150_000);
  await gluster('quota', 'docklet', 'remove', '/users/root/data');
});

test('while the volume hangs it is reported, nothing else waits, and all goes on by itself', async () => {
  const serving = await bricks();
  assert.notEqual(serving.length, 0);
  for (const pid of serving) process.kill(pid, 'SIGSTOP');
  const began = Date.now();
  await eventually('both hosts report it', async () => {
    const checks = await Promise.all(['h1', 'h2'].map(shared));
    return checks.every((c) => c.outcome === 'failed' && c.message.includes('does not answer'));
  }, 30_000);
  assert.ok(Date.now() - began < 30_000);
  // The master says so, rather than to wait.
  const images = await docklet('image', 'list');
  assert.notEqual(images.code, 0);
  assert.match(images.stderr, /does not answer/);
  // A worker that starts meanwhile gets its nodes back.
  await testbed('kill', 'h2');
  await testbed('start', 'h2');
  await eventually('its nodes are known', async () => (await json('status', 'demo')).status === 'running');
  // Nodes go on, and are stopped.
  assert.equal((await sh(nodes.h1, 'hostname')).code, 0);
  const audit = await inside('h1', ['docklet-worker', '--config', `${PREFIX}/h1/docklet.conf`, 'audit'], { timeout: 10_000 });
  assert.equal(audit.code, 0, audit.stdout + audit.stderr);
  const stopped = await docklet('stop', 'demo');
  assert.equal(stopped.code, 0, stopped.stderr);
  assert.equal((await docklet('start', 'demo', '--no-wait')).code, 0);
  await eventually('the reason is shown', async () => {
    const { node_list: list } = await json('status', 'demo');
    return list.every((n) => /does not answer/.test(n.reason?.message ?? ''));
  });
  for (const pid of serving) process.kill(pid, 'SIGCONT');
  await eventually('the hosts are well', isWell, 30_000);
  await eventually('the nodes run', async () => (await json('status', 'demo')).status === 'running', 30_000);
  assert.equal((await sh(nodes.h2, 'cat nfs/file')).stdout, 'hello\n');
});

test('a volume whose server is gone answers with an error, and comes back', async () => {
  const serving = await bricks();
  for (const pid of serving) process.kill(pid, 'SIGKILL');
  await eventually('both hosts report it', async () => {
    const checks = await Promise.all(['h1', 'h2'].map(shared));
    return checks.every((c) => c.outcome === 'failed' && c.message.includes('cannot be used'));
  }, 30_000);
  await gluster('start', 'docklet', 'force');
  await eventually('the hosts are well', isWell, 30_000);
  assert.equal((await sh(nodes.h1, 'cat nfs/file')).stdout, 'hello\n');
  assert.equal((await docklet('delete', 'demo', '--yes')).code, 0);
});
