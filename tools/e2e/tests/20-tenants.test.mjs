// Two users who must not know of each other, on every surface: REST, command line, portal, proxy.

import assert from 'node:assert/strict';
import { after, before, test } from 'node:test';

import { PORT, api, cli, rootPassword, signIn } from '../lib/site.mjs';

let root;
let alice;
let bob;
let bobCli;
let bobToken;

before(async () => {
  root = api(await signIn('root', await rootPassword()));
  for (const username of ['alice', 'bob']) {
    const made = await root('POST', '/users', { username, password: `${username}-password` });
    assert.equal(made.status, 201, JSON.stringify(made.body));
  }
  alice = api(await signIn('alice', 'alice-password'));
  bobToken = await signIn('bob', 'bob-password');
  bob = api(bobToken);
  bobCli = cli(bobToken);
  const made = await alice('POST', '/vclusters', { name: 'secret', nodes: 2, image: 'small', size: { memory_mib: 256 } });
  assert.equal(made.status, 202, JSON.stringify(made.body));
  const ready = await alice('GET', '/vclusters/secret?wait=running&timeout=60');
  assert.equal(ready.body.status, 'running', JSON.stringify(ready.body));
});

after(async () => {
  for (const owner of ['alice', 'bob']) {
    for (const { name } of (await root('GET', `/vclusters?owner=${owner}`)).body) {
      await root('DELETE', `/vclusters/${name}?owner=${owner}&wait=absent&timeout=60`);
    }
    await root('DELETE', `/users/${owner}`);
  }
});

test('a second user sees nothing of the first', async () => {
  assert.deepEqual((await bob('GET', '/vclusters')).body, []);
  for (const [method, path, body] of [
    ['GET', '/vclusters/secret'],
    ['PATCH', '/vclusters/secret', { nodes: 1 }],
    ['DELETE', '/vclusters/secret'],
    ['POST', '/vclusters/secret/start'],
    ['POST', '/vclusters/secret/stop'],
    ['GET', '/vclusters/secret/nodes'],
    ['POST', '/vclusters/secret/nodes/node1/exec', { argv: ['id'] }],
    ['POST', '/vclusters/secret/nodes/node1/apps/jupyter'],
    ['GET', '/vclusters/secret?owner=alice'],
    ['DELETE', '/vclusters/secret?owner=alice'],
    ['POST', '/vclusters/secret/nodes/node1/exec?owner=alice', { argv: ['id'] }],
  ]) {
    const answer = await bob(method, path, body);
    assert.equal(answer.status, 404, `${method} ${path}: ${answer.status} ${JSON.stringify(answer.body)}`);
    assert.equal(answer.body.code, 'not_found');
  }
});

test('the same name can be used by both', async () => {
  const made = await bob('POST', '/vclusters', { name: 'secret', nodes: 1, image: 'small', size: { memory_mib: 256 } });
  assert.equal(made.status, 202, JSON.stringify(made.body));
  await bob('GET', '/vclusters/secret?wait=running&timeout=60');
  const gone = await bob('DELETE', '/vclusters/secret?wait=absent&timeout=60');
  assert.ok([200, 204].includes(gone.status), JSON.stringify(gone));
  assert.equal((await alice('GET', '/vclusters/secret')).body.status, 'running');
});

test('the command line says the same as for a name that does not exist', async () => {
  for (const args of [['status', 'secret'], ['delete', 'secret', '--yes'], ['exec', 'secret/node1', '--', 'id'], ['stop', 'secret']]) {
    const mine = await bobCli(args);
    const nobody = await bobCli(args.map((a) => a.replace('secret', 'absent')));
    assert.equal(mine.code, 3, `${args}: ${mine.stderr}`);
    assert.equal(mine.stderr.replaceAll('secret', 'absent'), nobody.stderr);
  }
});

test('the proxy does not lead there', async () => {
  for (const cookie of ['', 'docklet_app=forged', `docklet_session=${bobToken}`]) {
    const answer = await appRequest('22--node1--secret--alice.localhost', cookie);
    assert.ok([302, 303, 401, 404].includes(answer.status), `${cookie}: ${answer.status}`);
    assert.ok(!answer.body.includes('SSH-'));
  }
});

test('a node of one cannot reach a node of the other, nor the host', async () => {
  const made = await bob('POST', '/vclusters', { name: 'spy', nodes: 1, image: 'small', size: { memory_mib: 256 } });
  assert.equal(made.status, 202, JSON.stringify(made.body));
  await bob('GET', '/vclusters/spy?wait=running&timeout=60');
  const target = (await alice('GET', '/vclusters/secret/nodes')).body[0].ip;
  const subnet = (await alice('GET', '/vclusters/secret')).body.subnet;
  const gateway = subnet.replace(/\.(\d+)\/\d+$/, (_, last) => `.${Number(last) + 1}`);
  const own = (await bob('GET', '/vclusters/spy')).body.subnet.replace(/\.(\d+)\/\d+$/, (_, last) => `.${Number(last) + 1}`);
  const script = [target, gateway, own]
    .flatMap((ip) => [22, 18000, 19000, 19001, 22379].map((port) => `timeout 1 bash -c 'exec 3<>/dev/tcp/${ip}/${port}' 2>/dev/null && echo open ${ip}:${port}`))
    .concat([`ping -c 1 -W 1 ${target} >/dev/null && echo ping ${target}`, 'true'])
    .join('\n');
  const probe = await bob('POST', '/vclusters/spy/nodes/node1/exec', { argv: ['bash', '-c', script], timeout_s: 60 });
  assert.equal(probe.body.stdout, '');
});

test('a cap is a cap, also for two requests at once', async () => {
  const size = { cpu: 0.1, memory_mib: 64, disk_mib: 64 };
  const over = await bob('POST', '/vclusters', { name: 'many', nodes: 5, image: 'small', size });
  assert.equal(over.status, 403);
  assert.equal(over.body.code, 'over_quota');
  const answers = await Promise.all(['one', 'two'].map((name) => bob('POST', '/vclusters', { name, nodes: 2, image: 'small', size })));
  assert.deepEqual(answers.map((a) => a.status).sort(), [202, 403]);
});

test('a disabled user is out at once, and removed only without vclusters', async () => {
  const refused = await root('DELETE', '/users/alice');
  assert.equal(refused.status, 409, JSON.stringify(refused.body));
  assert.match(refused.body.detail, /secret/);
  await root('PATCH', '/users/bob', { disabled: true });
  assert.equal((await bob('GET', '/vclusters')).status, 401);
  await assert.rejects(signIn('bob', 'bob-password'), /403/);
  await root('PATCH', '/users/bob', { disabled: false });
});

// fetch() does not let us name a Host; the socket does.
async function appRequest(host, cookie) {
  const { request } = await import('node:http');
  return new Promise((resolve, reject) => {
    const headers = { host: `${host}:${PORT}`, ...(cookie ? { cookie } : {}) };
    const sent = request({ host: '127.0.0.1', port: PORT, path: '/', headers }, (answer) => {
      let body = '';
      answer.on('data', (chunk) => { body += chunk; });
      answer.on('end', () => resolve({ status: answer.statusCode, body }));
    });
    sent.on('error', reject);
    sent.end();
  });
}
