// The main job from the command line: ten nodes that behave like a rack, that survive every process of ours, and that
// leave nothing behind.

import assert from 'node:assert/strict';
import { readFile, stat } from 'node:fs/promises';
import { after, before, test } from 'node:test';

import { PORTAL, PREFIX, api, audit, cli, etcdPid, eventually, master, pid, rootPassword, signIn, worker } from '../lib/site.mjs';

let docklet;
let rest;
before(async () => {
  const token = await signIn('root', await rootPassword());
  docklet = cli(token);
  rest = api(token);
  // Run once more with nodes that are booted before they are asked for, where everything must be just the same.
  const ahead = Number(process.env.DOCKLET_PREBOOT_NODES ?? 0);
  await eventually(`${ahead} nodes are booted ahead`, async () =>
    (await rest('GET', '/hosts/e2e-host')).body.nodes_warm === ahead);
});
after(async () => {
  await docklet(['delete', 'demo', '--yes']);
});

async function ok(args, options) {
  const done = await docklet(args, options);
  assert.equal(done.code, 0, `docklet ${args.join(' ')}: ${done.stdout}${done.stderr}`);
  return done.stdout;
}

const sh = (node, script) => ok(['exec', `demo/${node}`, '--', 'bash', '-c', script]);

async function initPids() {
  const pids = {};
  for (const { name } of (await rest('GET', '/vclusters/demo/nodes')).body) {
    const init = await sh(name, 'stat -c %Y /proc/1; cat /proc/1/stat | cut -d" " -f22');
    pids[name] = init;
  }
  return pids;
}

test('docklet create returns with ten nodes whose sshd answers', async () => {
  await ok(['create', 'demo', '-n', '10', '--image', 'small', '--memory', '512m']);
  const { body } = await rest('GET', '/vclusters/demo');
  assert.equal(body.status, 'running');
  assert.equal(body.nodes_ready, 10);
  const steps = body.operation.steps.map((step) => step.step);
  assert.ok(steps.includes(process.env.DOCKLET_PREBOOT_NODES ? 'thaw' : 'boot'), `it went by ${steps}`);
  const banner = await sh('node1', 'for n in $(seq 10); do exec 3<>/dev/tcp/node$n/22; head -c 7 <&3; exec 3>&-; done');
  assert.equal(banner, 'SSH-2.0'.repeat(10));
});

test('a node knows its name and thinks that it is root', async () => {
  assert.equal(await ok(['exec', 'demo/node7', '--', 'hostname']), 'node7\n');
  assert.equal(await ok(['exec', 'demo/node7', '--', 'id', '-u']), '0\n');
});

test('the host sees an unprivileged user', async () => {
  await sh('node1', 'systemd-run --quiet --unit=marker sleep 3141');
  const { execFileSync } = await import('node:child_process');
  const sleeper = execFileSync('pgrep', ['-f', '^(/usr/bin/|/bin/)?sleep 3141']).toString().trim().split('\n')[0];
  const owner = (await stat(`/proc/${sleeper}`)).uid;
  assert.ok(owner >= 1_000_000, `the host sees uid ${owner}`);
  await sh('node1', 'systemctl stop marker');
});

test('node1 pings and sshes node10 by name, without a password and without a question', async () => {
  await sh('node1', 'ping -c 1 -W 2 node10');
  assert.equal(await sh('node1', 'ssh -o BatchMode=yes node10 hostname'), 'node10\n');
  assert.equal(await sh('node3', 'ssh -o BatchMode=yes node1 ssh -o BatchMode=yes node9 hostname'), 'node9\n');
});

test('a node cannot use more memory or processes than it was given', async () => {
  const eater = await docklet(['exec', 'demo/node2', '--', 'python3', '-c', 'x = b"x" * (700 << 20)']);
  assert.notEqual(eater.code, 0, 'a node of 512 MiB took 700');
  // Threads count as processes, and 100,000 of them would fit the memory no better than they fit the limit.
  const threads = await docklet(['exec', 'demo/node2', '--', 'python3', '-c', `
import threading
threading.stack_size(65536)
done = threading.Event()
try:
    for _ in range(100000):
        threading.Thread(target=done.wait, daemon=True).start()
    print("unlimited")
except RuntimeError:
    print("limited")
finally:
    done.set()
`]);
  assert.equal(threads.stdout, 'limited\n', threads.stderr);
  assert.equal(await ok(['exec', 'demo/node2', '--', 'hostname']), 'node2\n', 'the node lives on');
  // And its owner is told why something was ended.
  await eventually('the limits are told', async () => {
    const nodes = (await rest('GET', '/vclusters/demo/nodes')).body;
    const told = (name) => (nodes.find((node) => node.name === name).limits_hit ?? []).map((hit) => hit.limit);
    return told('node2').includes('memory') && told('node2').includes('processes') && told('node1').length === 0;
  });
  assert.match(await ok(['status', 'demo']), /node2 .*ran out of memory/);
});

test('exec passes input, output and the exit code', async () => {
  const done = await docklet(['exec', 'demo/node1', '--', 'bash', '-c', 'cat; echo err >&2; exit 7'], { input: 'grüße\n' });
  assert.deepEqual([done.code, done.stdout, done.stderr], [7, 'grüße\n', 'err\n']);
});

for (const victim of ['docklet-worker', 'docklet-master', 'etcd']) {
  test(`kill -9 of ${victim} stops no node, and afterwards everything works`, async () => {
    const before = await initPids();
    const killed = victim === 'etcd' ? await etcdPid() : await pid(victim);
    process.kill(killed, 'SIGKILL');
    if (victim === 'docklet-worker') await worker('start');
    if (victim === 'docklet-master') await master('start');
    if (victim === 'etcd') await eventually('the master has started it again', async () => (await etcdPid()) !== killed);
    await eventually('it is ready again', async () => (await fetch(`${PORTAL}/readyz`)).ok);
    await eventually('ten nodes are shown running', async () => {
      const { body } = await rest('GET', '/vclusters/demo');
      return body.status === 'running' && body.nodes_ready === 10;
    });
    assert.deepEqual(await initPids(), before, 'the same inits as before');
    await ok(['scale', 'demo', '11']);
    // Each time a new node, at the address of the one before.
    assert.equal(await sh('node1', 'timeout 10 ssh -o BatchMode=yes node11 hostname'), 'node11\n');
    await ok(['scale', 'demo', '10']);
    await eventually('node11 is gone', async () => (await rest('GET', '/vclusters/demo/nodes')).body.length === 10);
  });
}

test('stop and start keep what was written', async () => {
  await sh('node4', 'echo kept > /root/file');
  await ok(['stop', 'demo']);
  assert.equal((await rest('GET', '/vclusters/demo')).body.status, 'stopped');
  await ok(['start', 'demo']);
  assert.equal(await sh('node4', 'cat /root/file'), 'kept\n');
  assert.equal(await sh('node1', 'ssh -o BatchMode=yes node4 cat /root/file'), 'kept\n');
});

test('docklet delete returns when nothing is left, and the audit agrees', async () => {
  await ok(['delete', 'demo', '--yes']);
  assert.equal((await rest('GET', '/vclusters/demo')).status, 404);
  const found = await audit();
  assert.equal(found.code, 0, found.stdout);
  const mounts = await readFile('/proc/self/mountinfo', 'utf8');
  assert.ok(!mounts.split('\n').some((m) => m.includes(`${PREFIX}/local/pool/nodes`)), 'no mount of a node');
});
