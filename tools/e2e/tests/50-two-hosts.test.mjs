// Two hosts in network namespaces of their own: nodes of one vcluster on both are neighbours, those of another are not;
// a host that is cut off is shown so, keeps its nodes, and comes back as it was.

import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { mkdir, readFile, readdir, writeFile } from 'node:fs/promises';
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
  assert.deepEqual(await leftOf(PREFIX), []);
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

// Says to each who asks where the question came from.
const OUTSIDE = '11.11.11.11';
const MIRROR = `
import http.server
class Mirror(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(self.client_address[0].encode())
server = http.server.HTTPServer(('${OUTSIDE}', 8080), Mirror)
print('serves', flush=True)
server.serve_forever()`;

test('what a node asks of the outside comes from the address of its own host', async () => {
  await must('ip', ['-n', 'testbed-switch', 'addr', 'add', `${OUTSIDE}/32`, 'dev', 'switch']);
  const server = spawn('ip', ['netns', 'exec', 'testbed-switch', 'python3', '-c', MIRROR], { stdio: ['ignore', 'pipe', 'inherit'] });
  try {
    await once(server.stdout, 'data');
    for (const { name, host } of (await json('status', 'demo')).node_list) {
      const ask = `import urllib.request as u; print(u.urlopen("http://${OUTSIDE}:8080", timeout=5).read().decode())`;
      const said = await docklet('exec', `demo/${name}`, '--', 'python3', '-c', ask);
      assert.equal(said.stdout, `${{ h1: '10.231.0.11', h2: '10.231.0.12' }[host]}\n`, `${name}: ${said.stderr}`);
    }
  } finally {
    server.kill('SIGKILL');
    await must('ip', ['-n', 'testbed-switch', 'addr', 'del', `${OUTSIDE}/32`, 'dev', 'switch']);
  }
});

test('commands, logs and terminals reach the nodes of every host', async () => {
  const nodes = (await json('status', 'demo')).node_list;
  for (const { name } of nodes) {
    const said = await docklet('exec', `demo/${name}`, '--', 'hostname');
    assert.equal(said.stdout, `${name}\n`, said.stderr);
    // As a person would, at a terminal; what is typed is echoed, so the answer is not a part of the question.
    const shell = await inside('master', ['script', '--quiet', '--return', '--command', `docklet connect demo/${name}`, '/dev/null'],
      { env: { DOCKLET_URL: URL, DOCKLET_TOKEN: token, TERM: 'xterm' }, input: 'echo "<$(hostname)>"; exit 7\n', timeout: 30_000 });
    assert.ok(shell.stdout.includes(`<${name}>`), shell.stdout + shell.stderr);
  }
  const logs = await docklet('logs', `demo/${nodes.at(-1).name}`);
  assert.equal(logs.code, 0, logs.stderr);
});

test('an application of a node of either host is reached through the portal', async () => {
  const hosts = new Set();
  const jar = `${PREFIX}/cookies`;
  await writeFile(jar, `localhost\tFALSE\t/\tFALSE\t0\tdocklet_session\t${token}\n`);
  for (const { name, host } of (await json('status', 'demo')).node_list) {
    const start = 'cd /usr/share && (setsid python3 -m http.server 8080 >/dev/null 2>&1 &)';
    assert.equal((await docklet('exec', `demo/${name}`, '--', 'sh', '-c', start)).code, 0);
    hosts.add(host);
    // As a browser: to the application, to the portal and back with a ticket. It knows *.localhost by itself.
    const authority = `8080--${name}--demo--root.localhost`;
    const page = async () => {
      const answer = await inside('master', [
        'curl', '--silent', '--location', '--max-time', '5', '--header', 'Accept: text/html', '--cookie-jar', jar, '--cookie', jar,
        '--resolve', `${authority}:8000:127.0.0.1`, `http://${authority}:8000/`,
      ]);
      return answer.stdout.includes('Directory listing');
    };
    await eventually(`${name} answers`, page);
  }
  assert.equal(hosts.size, 2);
});

test('a token is good for one host and once, and a certificate is renewed while its worker runs', async () => {
  const conf = (host) => `${PREFIX}/${host}/docklet.conf`;
  const worker = (...words) => inside('h2', ['docklet-worker', '--config', conf('h2'), ...words]);
  const newToken = async (...options) => {
    const printed = await inside('master', ['docklet-master', '--config', conf('master'), 'token', ...options]);
    assert.equal(printed.code, 0, printed.stderr);
    const [program, ...join] = printed.stdout.trim().split(' ');
    assert.equal(program, 'docklet-worker');
    return join;
  };
  const [foreign, once] = [await newToken('--host', 'h9'), await newToken()];
  assert.match((await worker(...foreign)).stderr, /is running .* stop it first/);
  // Two more hosts, on the machine that is there; their workers never start.
  const joins = async (name, join) => {
    await mkdir(`${PREFIX}/h2/${name}`, { recursive: true });
    await writeFile(`${PREFIX}/h2/${name}.conf`, `FS_PREFIX=${PREFIX}/h2/${name}\nHOST_NAME=${name}\nNETWORK_DEVICE=eth0\n`);
    return inside('h2', ['docklet-worker', '--config', `${PREFIX}/h2/${name}.conf`, ...join]);
  };
  assert.match((await joins('spare', foreign)).stderr, /h9/);
  const joined = await joins('spare', once);
  assert.equal(joined.code, 0, joined.stderr);
  const again = await joins('another', once);
  assert.equal(again.code, 1, again.stdout);
  assert.match(again.stderr, /used/);
  const certificate = () => inside('h2', ['sha256sum', `${PREFIX}/h2/local/identity/worker.crt`]);
  const before = await certificate();
  const renewed = await worker('renew');
  assert.equal(renewed.code, 0, renewed.stderr);
  assert.notEqual((await certificate()).stdout, before.stdout);
  const far = (await json('status', 'demo')).node_list.find((n) => n.host === 'h2');
  assert.equal((await docklet('exec', `demo/${far.name}`, '--', 'true')).code, 0);
});

test('a host reads nothing of another in the store', async () => {
  const etcdctl = (host, ...words) => {
    const identity = `${PREFIX}/${host}/local/identity`;
    return inside(host, [
      'etcdctl', '--endpoints=https://10.231.0.1:2379', `--cacert=${identity}/ca.crt`, `--cert=${identity}/worker.crt`,
      `--key=${identity}/worker.key`, ...words,
    ], { env: { ETCDCTL_API: '3' } });
  };
  assert.equal((await etcdctl('h1', 'get', '--prefix', '/docklet/testbed/plans/h1/')).code, 0);
  for (const words of [
    ['get', '--prefix', '/docklet/testbed/plans/h2/'],
    ['get', '--prefix', '/docklet/testbed/specs/'],
    ['put', '/docklet/testbed/reports/h2/nodes/x', 'x'],
    ['put', '/docklet/testbed/plans/h1/nodes/x', 'x'],
  ]) {
    const answer = await etcdctl('h1', ...words);
    assert.match(answer.stderr, /permission denied/, words.join(' '));
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
  await testbed('start', 'h1');
  await eventually('all is well', async () => (await json('status', 'demo')).status === 'running');
  assert.deepEqual(await inits('h1'), nodes);
});

// As while a site is upgraded, or after a step back.
test('documents of a later version are read past what is unknown in them', async () => {
  const identity = `${PREFIX}/master/local/identity`;
  const etcdctl = async (words, input) => {
    const done = await inside('master', ['etcdctl', '--endpoints=https://10.231.0.1:2379', `--cacert=${identity}/ca.crt`,
      `--cert=${identity}/master.crt`, `--key=${identity}/master.key`, ...words], { env: { ETCDCTL_API: '3' }, input });
    assert.equal(done.code, 0, done.stderr);
    return done.stdout.trim();
  };
  const unknown = { of_a_later_version: { any: ['thing'] } };
  const rewrite = async (key, change) => {
    const was = JSON.parse(await etcdctl(['get', '--print-value-only', key]));
    await etcdctl(['put', key], JSON.stringify({ ...was, ...unknown, ...change(was) }));
  };
  const first = async (prefix) => (await etcdctl(['get', '--prefix', '--keys-only', '--limit=1', `/docklet/testbed/${prefix}`]));
  const [held] = await inits('h1');
  const others = (all) => all.filter((node) => node.name !== held.name);
  const before = others(await inits('h1'));
  // Without a master nobody writes plans but us; its etcd goes on.
  await testbed('kill', 'master');
  const prefix = '/docklet/testbed/plans/h1/nodes/';
  const plans = (await etcdctl(['get', '--prefix', '--keys-only', prefix])).split('\n').filter(Boolean);
  for (const key of plans) {
    await rewrite(key, (plan) => (plan.name === held.name ? { wanted: 'stopped', generation: plan.generation + 1 } : {}));
  }
  await rewrite(await first('plans/h1/vclusters/'), (share) => ({
    network: { ...share.network, ...unknown }, peers: share.peers.map((peer) => ({ ...peer, ...unknown })),
  }));
  await eventually('the host follows the plan', async () => !(await inits('h1')).some((node) => node.name === held.name));
  assert.deepEqual(await inits('h1'), before);
  await rewrite(await first('specs/'), (spec) => ({ nodes: spec.nodes.map((node) => ({ ...node, ...unknown })) }));
  await testbed('kill', 'h2');
  await rewrite('/docklet/testbed/hosts/h2', (host) => ({ version: '99.0.0', capacity: { ...host.capacity, ...unknown } }));
  await testbed('start', 'master');
  assert.equal((await json('host', 'show', 'h2')).version, '99.0.0');
  await testbed('start', 'h2');
  await eventually('what is wanted runs again', async () => (await json('status', 'demo')).status === 'running');
  assert.ok((await inits('h1')).some((node) => node.name === held.name));
  assert.deepEqual(others(await inits('h1')), before);
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
