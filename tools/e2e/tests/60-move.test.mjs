// Two hosts in network namespaces of their own: a node goes from one to the other with its disk, name and address; a host
// is emptied; what dies in the middle leaves the node in one place.

import assert from 'node:assert/strict';
import { readFile } from 'node:fs/promises';
import { after, before, test } from 'node:test';

import { leftOf } from '../lib/left.mjs';
import { command, eventually, must } from '../lib/site.mjs';

const PREFIX = '/opt/docklet-testbed';
const IMAGES = process.env.DOCKLET_E2E_IMAGES ?? '/opt/docklet/global/images';
const URL = 'http://localhost:8000';

const testbed = (...args) => must('docklet-testbed', ['--prefix', PREFIX, ...args]);
const inside = (host, argv, options) =>
  command('docklet-testbed', ['--prefix', PREFIX, 'exec', host, '--', ...argv], options);
let token;
const docklet = (...args) => inside('master', ['docklet', ...args], { env: { DOCKLET_URL: URL, DOCKLET_TOKEN: token }, timeout: 180_000 });

async function json(...args) {
  const done = await docklet(...args, '-o', 'json');
  assert.equal(done.code, 0, `${args.join(' ')}: ${done.stderr}`);
  return JSON.parse(done.stdout);
}

const nodes = async () => (await json('status', 'demo')).node_list;
const node = async (name) => (await nodes()).find((n) => n.name === name);
const inNode = (name, ...argv) => docklet('exec', `demo/${name}`, '-n', '--', ...argv);
const other = (host) => (host === 'h1' ? 'h2' : 'h1');
const audit = async (host) => {
  const done = await inside(host, ['docklet-worker', '--config', `${PREFIX}/${host}/docklet.conf`, 'audit']);
  assert.equal(done.code, 0, done.stdout + done.stderr);
};

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
  assert.equal((await docklet('create', 'demo', '-n', '4', '--image', 'small')).code, 0);
});

after(async () => {
  await testbed('down');
  assert.deepEqual(await leftOf(PREFIX), []);
});

test('a node moves with its disk, name and address', async () => {
  const was = await node('node1');
  const to = other(was.host);
  const hook = '#!/bin/sh\necho before >> /root/hooks\n';
  const made = await inNode('node1', 'sh', '-c', `mkdir -p /etc/docklet/hooks; printf '${hook}' > /etc/docklet/hooks/before-move; chmod +x /etc/docklet/hooks/before-move; echo kept > /root/file`);
  assert.equal(made.code, 0, made.stderr);
  const moved = await docklet('move', 'demo/node1', '--to', to);
  assert.equal(moved.code, 0, moved.stderr);
  const is = await node('node1');
  assert.deepEqual([is.host, is.ip], [to, was.ip]);
  await eventually('it runs', async () => (await node('node1')).status === 'running');
  assert.equal((await inNode('node1', 'cat', '/root/file', '/root/hooks')).stdout, 'kept\nbefore\n');
  for (const sibling of ['node2', 'node3', 'node4']) {
    const ssh = await inNode(sibling, 'ssh', '-o', 'BatchMode=yes', 'node1', 'hostname');
    assert.equal(ssh.stdout, 'node1\n', ssh.stderr);
  }
  await audit('h1');
  await audit('h2');
});

// Says its name on a port of TCP and of UDP, after every boot.
const SERVER = `
import socket, socketserver, threading
name = socket.gethostname().encode() + b"\\n"
class Tcp(socketserver.BaseRequestHandler):
    def handle(self): self.request.sendall(name)
class Udp(socketserver.BaseRequestHandler):
    def handle(self): self.request[1].sendto(name, self.client_address)
threading.Thread(target=socketserver.TCPServer(("", 7), Tcp).serve_forever).start()
socketserver.UDPServer(("", 7), Udp).serve_forever()
`;
const UNIT = '[Service]\nExecStart=/usr/bin/python3 /root/server.py\n[Install]\nWantedBy=multi-user.target\n';
const PUBLIC = 20_007;

// Asks at a host's published port, from outside of it: what is said, or nothing.
async function told(host, protocol) {
  const [address] = /10\.231\.0\.\d+/.exec((await inside(host, ['ip', '-4', '-o', 'address'])).stdout);
  const ask = `exec 3<>/dev/${protocol}/${address}/${PUBLIC} && echo >&3 && timeout 2 head -n 1 <&3`;
  return (await inside('master', ['timeout', '3', 'bash', '-c', ask])).stdout;
}

test('published ports go with a node that moves, and stay through the death of worker and master', async () => {
  const from = (await node('node2')).host;
  const to = other(from);
  const files = [[SERVER, '/root/server.py'], [UNIT, '/etc/systemd/system/server.service']];
  const write = files.map(([text, file]) => `echo ${Buffer.from(text).toString('base64')} | base64 -d > ${file}`).join(' && ');
  const made = await inNode('node2', 'sh', '-c', `${write} && systemctl enable --now server`);
  assert.equal(made.code, 0, made.stderr);
  for (const protocol of ['tcp', 'udp']) {
    const published = await docklet('port', 'add', 'demo/node2', '7', '--protocol', protocol, '--public', String(PUBLIC));
    assert.equal(published.code, 0, published.stderr);
  }
  const only = async (when, host) => {
    for (const protocol of ['tcp', 'udp']) {
      await eventually(`${protocol} is answered at ${host} ${when}`, async () => (await told(host, protocol)) === 'node2\n');
      assert.equal(await told(other(host), protocol), '', `${protocol} at ${other(host)} ${when}`);
    }
  };
  await only('at first', from);
  const moved = await docklet('move', 'demo/node2', '--to', to);
  assert.equal(moved.code, 0, moved.stderr);
  await only('after the move', to);
  for (const machine of ['h1', 'h2', 'master']) await testbed('kill', machine);
  for (const machine of ['master', 'h1', 'h2']) await testbed('start', machine);
  await eventually('both hosts are ready', async () => (await json('host', 'list')).filter((h) => h.status === 'ready').length === 2);
  await only('after the restart', to);
  for (const protocol of ['tcp', 'udp']) {
    assert.equal((await docklet('port', 'remove', 'demo', String(PUBLIC), '--protocol', protocol)).code, 0);
    await eventually(`${protocol} is closed`, async () => (await told(to, protocol)) === '');
  }
  await audit('h1');
  await audit('h2');
});

test('a host is emptied and opened again', async () => {
  const before = Object.fromEntries((await nodes()).map((n) => [n.name, n.ip]));
  const drained = await docklet('host', 'drain', 'h1', '--timeout', '3m');
  assert.equal(drained.code, 0, drained.stderr);
  assert.equal((await json('host', 'show', 'h1')).status, 'drained');
  const all = await nodes();
  assert.ok(all.every((n) => n.host === 'h2'), JSON.stringify(all));
  assert.deepEqual(Object.fromEntries(all.map((n) => [n.name, n.ip])), before);
  assert.equal((await docklet('host', 'undrain', 'h1')).code, 0);
  await audit('h1');
});

test('a whole vcluster moves', async () => {
  const before = (await nodes()).map((n) => [n.name, n.ip]);
  for (const to of ['h1', 'h2']) {
    const moved = await docklet('move', 'demo', '--to', to);
    assert.equal(moved.code, 0, moved.stderr);
    await eventually('it runs there', async () => (await nodes()).every((n) => n.host === to && n.status === 'running'));
    assert.deepEqual((await nodes()).map((n) => [n.name, n.ip]), before);
    const ssh = await inNode('node1', 'ssh', '-o', 'BatchMode=yes', 'node4', 'hostname');
    assert.equal(ssh.stdout, 'node4\n', ssh.stderr);
    await audit(other(to));
  }
});

test('a target that is cut off in the middle leaves the node where it was', async () => {
  assert.equal((await inNode('node1', 'dd', 'if=/dev/urandom', 'of=/root/much', 'bs=1M', 'count=600')).code, 0);
  assert.equal((await docklet('move', 'demo/node1', '--to', 'h1', '--no-wait')).code, 0);
  await eventually('it is copied', async () => (await node('node1')).moving?.stage === 'copying');
  await testbed('partition', 'h1');
  await eventually('it was given up', async () => (await node('node1')).moving?.stage === 'failed', 90_000);
  await eventually('it runs where it was', async () => {
    const { host, status } = await node('node1');
    return host === 'h2' && status === 'running';
  });
  await testbed('heal', 'h1');
  await eventually('the target let go', async () => (await json('host', 'show', 'h1')).nodes === 0, 90_000);
  await audit('h1');
  await audit('h2');
});

test('deleted, nothing is left on either host', async () => {
  assert.equal((await docklet('delete', 'demo', '--yes')).code, 0);
  await audit('h1');
  await audit('h2');
});
