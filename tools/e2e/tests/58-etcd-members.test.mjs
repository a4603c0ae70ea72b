// etcd apart from the master, by the scripts that operators use: one member, then three, each in a network namespace of
// its own. A member that lost its disk is replaced, a full etcd is emptied, and a snapshot is restored onto three members.
// What docs/how-to/several-hosts.md and back-up.md say is what is done here.

import assert from 'node:assert/strict';
import { copyFile, mkdir, readFile, rm, writeFile } from 'node:fs/promises';
import { after, before, test } from 'node:test';

import { command, eventually, must } from '../lib/site.mjs';

const PREFIX = '/opt/docklet-etcd-e2e';
const TOOLS = new URL('../..', import.meta.url).pathname;
const SWITCH = 'etcd-e2e';
const MEMBERS = [['etcd1', '10.232.0.1'], ['etcd2', '10.232.0.2'], ['etcd3', '10.232.0.3']];
const LIST = MEMBERS.map(([name, ip]) => `${name}=${ip}`);
// Each with an address of its own: members, a master of three, masters with one beside them and with one of their own.
const MACHINES = [...MEMBERS, ['master', '10.232.0.8'], ['alone', '10.232.0.9'], ['small', '10.232.0.10']];
const CERTIFICATES = `${PREFIX}/certificates`;
const SNAPSHOT = `${PREFIX}/etcd.snapshot`;

const ip = (...words) => must('ip', words);
const on = (machine, argv, { env, ...options } = {}) =>
  command('ip', ['netns', 'exec', `${SWITCH}-${machine}`, 'env', `DOCKLET_FS_PREFIX=${PREFIX}/${machine}`,
    `DOCKLET_CONF=${PREFIX}/${machine}/docklet.conf`, ...argv], { ...options, env: { ETCDCTL_API: '3', ...env } });
async function well(doing) {
  const done = await doing;
  assert.equal(done.code, 0, done.stdout + done.stderr);
  return done.stdout;
}
async function fails(doing, why) {
  const done = await doing;
  assert.equal(done.code, 1, done.stdout + done.stderr);
  assert.match(done.stderr, why);
}

const script = (name) => (machine, ...words) => on(machine, ['bash', `${TOOLS}/${name}`, ...words]);
const multi = script('etcd-multi-nodes.sh');
const single = script('etcd-one-node.sh');
const startWith = (certificates, name, ...options) => multi(name, 'start', ...options, name, `${certificates}/${name}`, ...LIST);
const start = (...words) => startWith(CERTIFICATES, ...words);
const data = (name) => `${PREFIX}/${name}/local/etcd-member/data`;

async function kill(name) {
  const pid = Number(await readFile(`${PREFIX}/${name}/local/etcd-member/pid`, 'utf8'));
  process.kill(pid, 'SIGKILL');
  await eventually('it has ended', async () => (await readFile(`/proc/${pid}/stat`, 'utf8').catch(() => ') Z ')).includes(') Z '));
}

// etcdctl as a master.
const etcdctl = (machine, endpoints, ...words) => {
  const identity = `${PREFIX}/${machine}/local/identity`;
  return on(machine, ['etcdctl', '--endpoints', endpoints.map((at) => `https://${at}:2379`).join(), '--cacert', `${identity}/ca.crt`,
    '--cert', `${identity}/master.crt`, '--key', `${identity}/master.key`, ...words]);
};

const tokens = {};
const master = (machine, ...words) => well(on(machine, ['docklet-master', '--config', `${PREFIX}/${machine}/docklet.conf`, ...words]));
const docklet = (machine, ...words) =>
  on(machine, ['docklet', ...words], { env: { DOCKLET_URL: 'http://localhost:8000', DOCKLET_TOKEN: tokens[machine] } });
// There is no host: what is asked for is written down and waits.
const create = (machine, name) => docklet(machine, 'create', name, '-n', '1', '--image', 'small', '--no-wait');
const names = async (machine) => JSON.parse(await well(docklet(machine, 'list', '-o', 'json'))).map((v) => v.name).sort().join();

async function signIn(machine) {
  const password = (await readFile(`${PREFIX}/${machine}/local/generated_password.txt`, 'utf8')).trim();
  const session = await well(on(machine, ['curl', '--silent', '--fail', '--json', JSON.stringify({ username: 'root', password }),
    'http://localhost:8000/api/v1/sessions']));
  tokens[machine] = JSON.parse(session).token;
}

const configure = (machine, etcd) => writeFile(`${PREFIX}/${machine}/docklet.conf`,
  `CLUSTER_NAME=etcd-e2e\nFS_PREFIX=${PREFIX}/${machine}\nCLUSTER_NET=172.27.0.1/16\nDEFAULT_IMAGE=small\nETCD=${etcd}\n`);

async function init(machine, etcd) {
  await configure(machine, etcd);
  const images = process.env.DOCKLET_E2E_IMAGES ?? '/opt/docklet/global/images';
  await mkdir(`${PREFIX}/${machine}/global/images`, { recursive: true });
  await must('cp', ['-al', `${images}/small`, `${PREFIX}/${machine}/global/images/`]);
  await master(machine, 'init');
  await signIn(machine);
}

async function down() {
  for (const [machine] of MACHINES) {
    await on(machine, ['docklet-master', '--config', `${PREFIX}/${machine}/docklet.conf`, 'stop']);
    await multi(machine, 'stop');
    await command('ip', ['netns', 'del', `${SWITCH}-${machine}`]);
  }
  await command('ip', ['netns', 'del', SWITCH]);
  await rm(PREFIX, { recursive: true, force: true });
}

before(async () => {
  await down();
  await ip('netns', 'add', SWITCH);
  await ip('-n', SWITCH, 'link', 'add', 'switch', 'up', 'type', 'bridge');
  for (const [machine, address] of MACHINES) {
    const there = `${SWITCH}-${machine}`;
    await mkdir(`${PREFIX}/${machine}`, { recursive: true });
    await ip('netns', 'add', there);
    await ip('-n', SWITCH, 'link', 'add', 'name', `to-${machine}`, 'up', 'master', 'switch', 'type', 'veth', 'peer', 'name', 'eth0', 'netns', there);
    await ip('-n', there, 'addr', 'add', `${address}/24`, 'dev', 'eth0');
    await ip('-n', there, 'link', 'set', 'eth0', 'up');
    await ip('-n', there, 'link', 'set', 'lo', 'up');
  }
});

after(down);

test('one member beside the master keeps what it holds over a restart', async () => {
  await well(single('alone', 'start', '10.232.0.9'));
  assert.match(await well(single('alone', 'start', '10.232.0.9')), /runs already/);
  await init('alone', '10.232.0.9:2379');
  await well(create('alone', 'demo'));
  await well(single('alone', 'stop'));
  await fails(single('alone', 'status'), /does not run/);
  await well(single('alone', 'start', '10.232.0.9'));
  await eventually('the vcluster is known', async () => (await names('alone')) === 'demo');
});

test('a full etcd refuses changes, and is emptied while everything runs', async () => {
  const own = (...words) => etcdctl('alone', ['10.232.0.9'], ...words);
  await well(single('alone', 'stop'));
  await well(on('alone', ['env', 'DOCKLET_ETCD_QUOTA_BYTES=16777216', 'bash', `${TOOLS}/etcd-one-node.sh`, 'start', '10.232.0.9']));
  const much = 'x'.repeat(100 << 10);
  let put;
  for (let n = 0; n < 400 && put?.code !== 1; n += 1) put = await own('put', '/docklet/of-somebody-else', much);
  assert.match(put.stderr, /database space exceeded/);
  assert.match(await well(own('alarm', 'list')), /NOSPACE/);
  // Reading goes on, changes are refused and say so.
  assert.equal(await names('alone'), 'demo');
  await fails(create('alone', 'later'), /store/);
  const status = JSON.parse(await well(own('endpoint', 'status', '--write-out', 'json')));
  await well(own('compact', String(status[0].Status.header.revision)));
  await well(own('defrag'));
  await well(own('alarm', 'disarm'));
  const now = JSON.parse(await well(own('endpoint', 'status', '--write-out', 'json')));
  assert.ok(now[0].Status.dbSize < 4 << 20, String(now[0].Status.dbSize));
  await eventually('changes are taken', async () => (await create('alone', 'later')).code === 0);
  assert.equal(await names('alone'), 'demo,later');
  await master('alone', 'stop');
  await well(single('alone', 'stop'));
});

test('three members serve once most of them run', async () => {
  await well(multi('etcd1', 'certificates', CERTIFICATES, ...LIST));
  for (const [name] of MEMBERS) await well(start(name));
  await well(multi('master', 'master', `${CERTIFICATES}/master`));
  await init('master', MEMBERS.map(([, at]) => `${at}:2379`).join());
  await well(create('master', 'demo'));
  assert.equal((await well(multi('master', 'status'))).match(/10\.232\.0\.\d:2379/g).length, 3);
});

test('a member that lost its disk does not come back as it was', async () => {
  await fails(multi('master', 'replace', 'etcd2', ...LIST), /etcd2 serves/);
  await kill('etcd2');
  await rm(data('etcd2'), { recursive: true });
  await well(create('master', 'meanwhile'));
  await fails(start('etcd2'), /replace it/);
  await rm(data('etcd2'), { recursive: true, force: true });
  await fails(start('etcd2', '--existing'), /do not wait for a new etcd2/);
});

test('it is replaced, and holds what the others do', async () => {
  await well(multi('master', 'replace', 'etcd2', ...LIST));
  assert.match(await well(multi('master', 'replace', 'etcd2', ...LIST)), /waited for already/);
  await well(start('etcd2', '--existing'));
  await fails(multi('master', 'replace', 'etcd2', ...LIST), /etcd2 serves/);
  // Without one of those that were there from the beginning it is needed.
  await kill('etcd1');
  await eventually('changes are taken', async () => (await create('master', 'after')).code === 0);
  assert.equal(await names('master'), 'after,demo,meanwhile');
  // A member with its data just starts again, and so does the one that was replaced.
  await well(start('etcd1'));
  await kill('etcd2');
  await fails(start('etcd2', '--existing'), /start it without --existing/);
  await well(start('etcd2'));
  for (const [, at] of MEMBERS) await eventually(`${at} serves`, async () => (await etcdctl('master', [at], 'endpoint', 'health')).code === 0);
});

test('where most are lost no member is replaced', async () => {
  await well(etcdctl('master', [MEMBERS[0][1]], 'snapshot', 'save', SNAPSHOT));
  await well(create('master', 'later'));
  await kill('etcd1');
  await kill('etcd2');
  await fails(multi('master', 'replace', 'etcd2', ...LIST), /no other member serves/);
});

// Onto all members, which then begin anew.
async function restore(snapshot, token, certificates) {
  const cluster = MEMBERS.map(([name, at]) => `${name}=https://${at}:2380`).join();
  for (const [name, at] of MEMBERS) {
    await well(multi(name, 'stop'));
    await rm(data(name), { recursive: true });
    await well(on(name, ['etcdctl', 'snapshot', 'restore', snapshot, '--name', name, '--initial-cluster', cluster,
      '--initial-cluster-token', token, '--initial-advertise-peer-urls', `https://${at}:2380`, '--data-dir', data(name)]));
  }
  for (const [name] of MEMBERS) await well(startWith(certificates, name));
}

test('a snapshot is restored onto three members', async () => {
  await master('master', 'stop');
  await restore(SNAPSHOT, 'docklet-restored', CERTIFICATES);
  await master('master', 'start');
  assert.equal(await names('master'), 'after,demo,meanwhile');
  assert.equal((await well(multi('master', 'status'))).match(/10\.232\.0\.\d:2379/g).length, 3);
  // Who may do what came back, too: nobody without a user of etcd's own reads a key.
  const own = `${CERTIFICATES}/etcd1`;
  const refused = await on('etcd1', ['etcdctl', '--endpoints', 'https://10.232.0.1:2379', '--cacert', `${own}/ca.crt`, '--cert', `${own}/server.crt`,
    '--key', `${own}/server.key`, 'get', '--prefix', '/docklet/']);
  assert.match(refused.stderr, /permission denied/);
});

test('a site whose master has an etcd of its own grows to three members', async () => {
  await master('master', 'stop');
  await init('small', 'localhost:2379');
  await well(create('small', 'old'));
  const snapshot = `${PREFIX}/small.snapshot`;
  await well(etcdctl('small', ['127.0.0.1'], 'snapshot', 'save', snapshot));
  await master('small', 'stop');
  const certificates = `${PREFIX}/certificates-small`;
  await mkdir(certificates);
  for (const file of ['ca.crt', 'ca.key']) await copyFile(`${PREFIX}/small/local/identity/${file}`, `${certificates}/${file}`);
  await well(multi('small', 'certificates', certificates, ...LIST));
  await restore(snapshot, 'docklet-grown', certificates);
  await well(multi('small', 'master', `${certificates}/master`));
  await configure('small', MEMBERS.map(([, at]) => `${at}:2379`).join());
  await master('small', 'start');
  assert.equal(await names('small'), 'old');
  await well(create('small', 'new'));
});
