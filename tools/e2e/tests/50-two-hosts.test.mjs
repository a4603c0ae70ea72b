// Two hosts in network namespaces of their own: nodes of one vcluster on both are neighbours, those of another are not;
// a host that is cut off is shown so, keeps its nodes, and comes back as it was.

import assert from 'node:assert/strict';
import { readFile, readdir } from 'node:fs/promises';
import { after, before, test } from 'node:test';

import { command, eventually, must } from '../lib/site.mjs';

const PREFIX = '/opt/docklet-testbed';
const IMAGES = process.env.DOCKLET_E2E_IMAGES ?? '/opt/docklet/global/images';
const URL = 'http://localhost:8000';

const testbed = (...args) => must('docklet-testbed', ['--prefix', PREFIX, ...args]);
const inside = (host, argv, options) =>
  command('docklet-testbed', ['--prefix', PREFIX, 'exec', host, '--', ...argv], options);
let token;
const docklet = (...args) => inside('master', ['docklet', ...args], { env: { DOCKLET_URL: URL, DOCKLET_TOKEN: token } });

async function json(...args) {
  const done = await docklet(...args, '-o', 'json');
  assert.equal(done.code, 0, `${args.join(' ')}: ${done.stderr}`);
  return JSON.parse(done.stdout);
}

// The nodes that run on a host: the name they think they have, their address, the process id of their init.
async function inits(host) {
  const states = `${PREFIX}/${host}/local/nodes`;
  const found = [];
  for (const id of await readdir(states)) {
    // One that is on its way up or down has no init, or no files any more.
    const read = (file) => readFile(`${states}/${id}/${file}`, 'utf8').then(JSON.parse, () => undefined);
    const [run, note] = await Promise.all([read('run.json'), read('node.json')]);
    const name = run && note && (await command('nsenter', ['--target', String(run.init.pid), '--uts', 'hostname']));
    if (name?.code === 0) found.push({ name: name.stdout.trim(), pid: run.init.pid, ip: note.ip });
  }
  return found.sort((a, b) => a.name.localeCompare(b.name) || a.pid - b.pid);
}

// Runs a command as the node's root.
const inNode = (pid, ...argv) =>
  command('nsenter', ['--target', String(pid), '--all', '--setuid', '0', '--setgid', '0', ...argv], { timeout: 30_000 });

const hostStatus = async (name) => (await json('host', 'show', name)).status;

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
});

after(async () => {
  await testbed('down');
  const { stdout } = await command('ip', ['netns', 'list']);
  assert.ok(!stdout.includes('testbed-'), stdout);
});

test('the nodes of a vcluster spread over both hosts and reach each other by name', async () => {
  assert.equal((await docklet('create', 'demo', '-n', '4', '--image', 'small')).code, 0);
  const [first, second] = [await inits('h1'), await inits('h2')];
  assert.deepEqual([first.length, second.length], [2, 2]);
  const [near] = first;
  for (const { name } of second) {
    const ping = await inNode(near.pid, 'ping', '-c', '1', '-W', '2', name);
    assert.equal(ping.code, 0, ping.stdout + ping.stderr);
    const ssh = await inNode(near.pid, 'ssh', '-o', 'BatchMode=yes', name, 'hostname');
    assert.equal(ssh.stdout, `${name}\n`, ssh.stderr);
  }
});

test('the largest packet passes between hosts, and nothing larger is let in', async () => {
  const [[near], [far]] = [await inits('h1'), await inits('h2')];
  const size = (bytes) => inNode(near.pid, 'ping', '-c', '1', '-W', '2', '-M', 'do', '-s', String(bytes), far.name);
  assert.equal((await size(1450 - 28)).code, 0);
  assert.notEqual((await size(1451 - 28)).code, 0);
});

test('a new node on the other host is known at once, and one that is gone is forgotten', async () => {
  const entries = async () => (await inside('h1', ['bridge', 'fdb', 'show'])).stdout.split('\n').filter((l) => / dst | static/.test(l));
  const before = (await entries()).length;
  assert.equal((await docklet('scale', 'demo', '6')).code, 0);
  const [[near], far] = [await inits('h1'), (await inits('h2')).at(-1)];
  assert.equal((await inNode(near.pid, 'ping', '-c', '1', '-W', '2', far.name)).code, 0);
  // In the bridge and in the tunnel.
  assert.equal((await entries()).length, before + 2);
  assert.equal((await docklet('scale', 'demo', '4')).code, 0);
  await eventually('it is forgotten', async () => (await entries()).length === before);
});

test('another vcluster on the same hosts is out of reach', async () => {
  const [mine] = await inits('h1');
  const known = new Set((await inits('h2')).map((n) => n.pid));
  assert.equal((await docklet('create', 'other', '-n', '2', '--image', 'small')).code, 0);
  const foreign = (await inits('h2')).find((n) => !known.has(n.pid));
  assert.notEqual((await inNode(mine.pid, 'ping', '-c', '1', '-W', '2', foreign.ip)).code, 0);
  assert.equal((await docklet('delete', 'other', '--yes')).code, 0);
});

test('a host that is cut off is shown so, keeps its nodes, and comes back as it was', async () => {
  const nodes = await inits('h2');
  await testbed('partition', 'h2');
  await eventually('it is shown as unreachable', async () => (await hostStatus('h2')) === 'unreachable', 60_000);
  const { status, reason } = await json('status', 'demo');
  assert.equal(status, 'degraded', JSON.stringify(reason));
  assert.deepEqual(await inits('h2'), nodes);
  // What is asked for now goes to the host that is left.
  assert.equal((await docklet('scale', 'demo', '5', '--no-wait')).code, 0);
  await eventually('the new node runs on the other one', async () => (await inits('h1')).length === 3);
  await testbed('heal', 'h2');
  await eventually('it is ready again', async () => (await hostStatus('h2')) === 'ready', 60_000);
  assert.deepEqual(await inits('h2'), nodes);
  const fresh = (await inits('h1')).at(-1).name;
  await eventually('the new node is known there', async () => (await inNode(nodes[0].pid, 'ping', '-c', '1', '-W', '2', fresh)).code === 0);
});

test('a worker that is killed adopts its nodes', async () => {
  const nodes = await inits('h1');
  await testbed('kill', 'h1');
  const started = await inside('h1', ['docklet-worker', '--config', `${PREFIX}/h1/docklet.conf`, 'start']);
  assert.equal(started.code, 0, started.stderr);
  await eventually('all is well', async () => (await json('status', 'demo')).status === 'running');
  assert.deepEqual(await inits('h1'), nodes);
});

test('deleted, nothing is left on either host', async () => {
  const deleted = await docklet('delete', 'demo', '--yes');
  assert.equal(deleted.code, 0, deleted.stderr);
  for (const host of ['h1', 'h2']) {
    const audit = await inside(host, ['docklet-worker', '--config', `${PREFIX}/${host}/docklet.conf`, 'audit']);
    assert.equal(audit.code, 0, audit.stdout + audit.stderr);
    const { stdout } = await inside(host, ['ip', '-brief', 'link']);
    assert.ok(!stdout.includes('dk'), stdout);
  }
});
