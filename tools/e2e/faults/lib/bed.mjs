// The testbed that faults are tried on: its machines, its portal, and what runs in its nodes as the kernel tells it.

import { spawn } from 'node:child_process';
import { cp, mkdir, readdir, readFile, rm, writeFile } from 'node:fs/promises';
import { request } from 'node:http';
import { once } from 'node:events';

import { command, eventually, must } from '../../lib/site.mjs';

export const PREFIX = process.env.DOCKLET_FAULTS_PREFIX ?? '/opt/docklet-testbed';
const IMAGES = process.env.DOCKLET_E2E_IMAGES ?? '/opt/docklet/global/images';
const RELAY = new URL('relay.mjs', import.meta.url).pathname;
const SOCKET = `${PREFIX}.portal`;
const [MASTER, PORT] = ['10.231.0.1', 8000];
const CGROUPS = '/sys/fs/cgroup';
const ROOT_KEY = '/docklet/testbed/';

export const ETCD = ['etcd1', 'etcd2', 'etcd3'];

export const testbed = (...args) => must('docklet-testbed', ['--prefix', PREFIX, ...args]);
export const inside = (machine, argv, options) =>
  command('docklet-testbed', ['--prefix', PREFIX, 'exec', machine, '--', ...argv], options);
export const kill = (machine) => testbed('kill', machine);
export const start = (machine) => testbed('start', machine);
export const partition = (machine) => testbed('partition', machine);
export const heal = (machine) => testbed('heal', machine);
export const pause = (millis) => new Promise((resolve) => { setTimeout(resolve, millis); });

export const conf = (machine) => `${PREFIX}/${machine}/docklet.conf`;
export const programOf = (machine) => (machine === 'master' ? 'docklet-master' : 'docklet-worker');
export const pidOf = async (machine) => {
  const file = ETCD.includes(machine) ? 'etcd.pid' : `local/run/${programOf(machine)}.pid`;
  return Number((await readFile(`${PREFIX}/${machine}/${file}`, 'utf8')).trim());
};

let relay;
let token;
export let hosts = [];

// Brings it up with so many hosts and three members of etcd; `glusterfs`: what hosts share is a volume that can hang.
export async function up({ count = 3, settings = [], glusterfs = false } = {}) {
  await down();
  compacted = 0;
  const more = settings.flatMap((line) => ['--set', line]).concat(glusterfs ? ['--glusterfs'] : []);
  await must('docklet-testbed', ['--prefix', PREFIX, 'up', '--hosts', String(count), '--etcd', '3', '--images', IMAGES, ...more], { timeout: 180_000 });
  hosts = Array.from({ length: count }, (_, n) => `h${n + 1}`);
  relay = spawn('nsenter', ['--net=/run/netns/testbed-master', process.execPath, RELAY, SOCKET, MASTER, String(PORT)],
    { stdio: ['pipe', 'pipe', 'inherit'] });
  await once(relay.stdout, 'data');
  await signIn();
  await hostsAre('ready');
}

export async function signIn() {
  const password = (await readFile(`${PREFIX}/master/local/generated_password.txt`, 'utf8')).trim();
  const session = await ask('POST', '/sessions', { username: 'root', password });
  if (session.status !== 201) throw new Error(`sign-in: ${JSON.stringify(session)}`);
  token = session.body.token;
}

export async function down() {
  relay?.kill();
  relay = undefined;
  token = undefined;
  await testbed('down');
  await rm(SOCKET, { force: true });
}

// Copies what tells of a failure, before the testbed goes: every log, the master's database, what etcd holds. Returns where.
export async function keepTraces(name) {
  const place = `${PREFIX}-failed/${name}`;
  await rm(place, { recursive: true, force: true });
  // There are keys of nodes among it.
  await mkdir(`${PREFIX}-failed`, { recursive: true, mode: 0o700 });
  for (const machine of ['master', ...hosts, ...ETCD]) {
    await mkdir(`${place}/${machine}`, { recursive: true });
    for (const what of ['local/log', 'local/worker', 'local/master/docklet.db', 'local/master/docklet.db-wal', 'etcd.log']) {
      await cp(`${PREFIX}/${machine}/${what}`, `${place}/${machine}/${what.split('/').at(-1)}`, { recursive: true }).catch(() => {});
    }
  }
  const documents = await store().catch((error) => String(error));
  await writeFile(`${place}/etcd.json`, JSON.stringify(documents, null, 1));
  return place;
}

// One request to the API. Throws where no answer comes.
export function ask(method, path, body, headers = {}, limit = 40_000) {
  return new Promise((resolve, reject) => {
    const asked = request({
      socketPath: SOCKET, method, path: `/api/v1${path}`, agent: false, timeout: limit,
      headers: {
        host: `${MASTER}:${PORT}`, ...(token ? { authorization: `Bearer ${token}` } : {}),
        ...(body === undefined ? {} : { 'content-type': 'application/json' }), ...headers,
      },
    });
    asked.on('timeout', () => asked.destroy(new Error(`no answer in ${limit} ms`)));
    asked.on('error', reject);
    asked.on('response', (answer) => {
      let text = '';
      answer.setEncoding('utf8').on('data', (more) => { text += more; });
      answer.on('error', reject);
      answer.on('end', () => {
        try {
          resolve({ status: answer.statusCode, retryAfter: answer.headers['retry-after'], body: text ? JSON.parse(text) : null });
        } catch (error) {
          reject(error);
        }
      });
    });
    asked.end(body === undefined ? undefined : JSON.stringify(body));
  });
}

// An HTTP application of a node, as root's browser reaches it from the master's machine: its page.
export async function page(vcluster, node, port) {
  const jar = `${PREFIX}/cookies`;
  await writeFile(jar, `localhost\tFALSE\t/\tFALSE\t0\tdocklet_session\t${token}\n`, { mode: 0o600 });
  const authority = `${port}--${node}--${vcluster}--root.localhost:${PORT}`;
  const answer = await inside('master', [
    'curl', '--silent', '--location', '--max-time', '5', '--header', 'Accept: text/html', '--cookie-jar', jar, '--cookie', jar,
    '--resolve', `${authority}:127.0.0.1`, `http://${authority}/`,
  ]);
  return answer.stdout;
}

// A terminal in a node: `shown` so far, `type(text)`, whether it is `open`, `end()`.
export function terminal(vcluster, node) {
  return new Promise((resolve, reject) => {
    const asked = request({
      socketPath: SOCKET, path: `/api/v1/vclusters/${vcluster}/nodes/${node}/terminal`, agent: false, timeout: 20_000,
      headers: {
        host: `localhost:${PORT}`, origin: `http://localhost:${PORT}`, authorization: `Bearer ${token}`, connection: 'Upgrade',
        upgrade: 'websocket', 'sec-websocket-version': '13', 'sec-websocket-key': 'dGhlIHNhbXBsZSBub25jZQ==',
      },
    });
    asked.on('timeout', () => asked.destroy(new Error('no terminal in time')));
    asked.on('error', reject);
    asked.on('response', (answer) => reject(new Error(`no terminal: ${answer.statusCode}`)));
    asked.on('upgrade', (_, socket) => {
      socket.setTimeout(0);
      const shell = {
        shown: '', open: true, end: () => socket.destroy(),
        // A short binary message under a mask of zeros.
        type: (text) => socket.write(Buffer.concat([Buffer.from([0x82, 0x80 | text.length, 0, 0, 0, 0]), Buffer.from(text)])),
      };
      socket.setEncoding('latin1').on('data', (text) => { shell.shown += text; });
      socket.on('error', () => {}).on('close', () => { shell.open = false; });
      resolve(shell);
    });
    asked.end();
  });
}

export async function get(path) {
  const { status, body } = await ask('GET', path);
  if (status !== 200) throw new Error(`GET ${path}: ${status} ${JSON.stringify(body)}`);
  return body;
}

export const hostStatus = async (name) => (await get(`/hosts/${name}`)).status;
export const hostsAre = (status, names = hosts, limit = 60_000) =>
  eventually(`${names} are ${status}`, async () => (await Promise.all(names.map(hostStatus))).every((s) => s === status), limit);

// In the switch's namespace, where nothing is between it and etcd.
async function etcdctl(...words) {
  const identity = `${PREFIX}/master/local/identity`;
  const members = [2, 3, 4].map((n) => `https://10.231.0.${n}:2379`).join(',');
  const answer = await command('ip', [
    'netns', 'exec', 'testbed-switch', 'etcdctl', `--endpoints=${members}`, `--cacert=${identity}/ca.crt`, `--cert=${identity}/master.crt`,
    `--key=${identity}/master.key`, ...words,
  ], { env: { ETCDCTL_API: '3' } });
  if (answer.code !== 0) throw new Error(answer.stderr);
  return answer.stdout;
}

let compacted = 0;

// Has etcd forget all changes until now.
export async function compact() {
  const { header } = JSON.parse(await etcdctl('get', ROOT_KEY, '--write-out=json'));
  if (header.revision > compacted) await etcdctl('compaction', String(header.revision));
  compacted = header.revision;
}

// Everything in etcd: [key without its root, document].
export async function store() {
  const answer = await etcdctl('get', '--prefix', ROOT_KEY, '--write-out=json');
  const decode = (text) => Buffer.from(text ?? '', 'base64').toString();
  return (JSON.parse(answer).kvs ?? []).map(({ key, value }) => {
    const text = decode(value);
    try {
      return [decode(key).slice(ROOT_KEY.length), JSON.parse(text)];
    } catch {
      return [decode(key).slice(ROOT_KEY.length), text];
    }
  });
}

// Rows of the master's database.
export async function rows(query) {
  const text = await must('sqlite3', ['-readonly', '-json', '-cmd', '.timeout 5000', `${PREFIX}/master/local/master/docklet.db`, query]);
  return text.trim() ? JSON.parse(text) : [];
}

const hierarchies = async () => (await readdir(CGROUPS)).map((name) => `${CGROUPS}/${name}`);
const list = (directory) => readdir(directory, { withFileTypes: true }).catch(() => []);
const pids = async (group) =>
  (await readFile(`${group}/cgroup.procs`, 'utf8').catch(() => '')).split('\n').filter(Boolean).map(Number);

let hierarchy;

// One control group for each host.
async function groupOf(host) {
  if (!hierarchy) {
    for (const place of [...(await hierarchies()), CGROUPS]) {
      if ((await list(place)).some((entry) => entry.name === 'docklet-testbed-h1')) hierarchy = place;
      if (hierarchy) break;
    }
  }
  return `${hierarchy}/docklet-testbed-${host}`;
}

async function payloads(group, found = []) {
  for (const entry of await list(group)) {
    if (!entry.isDirectory()) continue;
    if (entry.name.startsWith('lxc.payload.dk-')) found.push(`${group}/${entry.name}`);
    else if (!entry.name.startsWith('lxc.')) await payloads(`${group}/${entry.name}`, found);
  }
  return found;
}

async function populated(group) {
  if ((await pids(group)).length > 0) return true;
  for (const entry of await list(group)) {
    if (entry.isDirectory() && (await populated(`${group}/${entry.name}`))) return true;
  }
  return false;
}

async function allPids(group, found = []) {
  found.push(...(await pids(group)));
  for (const entry of await list(group)) if (entry.isDirectory()) await allPids(`${group}/${entry.name}`, found);
  return found;
}

const idOf = (group) => {
  const [, a, b, c, d, e] = /lxc\.payload\.dk-(.{8})(.{4})(.{4})(.{4})(.{12})/.exec(group);
  return [a, b, c, d, e].join('-');
};

// The nodes that have processes, by the kernel alone: [{id, host}], one for each control group of a node.
export async function alive() {
  const found = [];
  for (const host of hosts) {
    for (const group of await payloads(await groupOf(host))) {
      if (await populated(group)) found.push({ id: idOf(group), host, group });
    }
  }
  return found;
}

// The init of each running node: node id → `host/pid`. An init is the first process of its own namespace.
export async function inits() {
  const found = {};
  for (const { id, host, group } of await alive()) {
    for (const pid of await allPids(group)) {
      const status = await readFile(`/proc/${pid}/status`, 'utf8').catch(() => '');
      const numbers = /^NSpid:\s+(.*)$/m.exec(status)?.[1].split(/\s+/) ?? [];
      // A host's processes are in one namespace, its nodes' inits in one below; what a node makes itself is deeper.
      if (numbers.length === 2 && numbers[1] === '1') (found[id] ??= []).push(`${host}/${pid}`);
    }
  }
  return found;
}

// What the worker of a host has started and does not wait for in its own process: its short helpers, and liblxc's monitors.
export async function servants(host) {
  const found = { helpers: [], monitors: [] };
  for (const pid of await allPids(await groupOf(host))) {
    const line = (await readFile(`/proc/${pid}/cmdline`, 'utf8').catch(() => '')).split('\0');
    // Before it has a title of its own, a monitor is called as the helper that forked it.
    if (line[0].startsWith('[lxc monitor]')) found.monitors.push(pid);
    else if (line[1] === 'helper') found.helpers.push(pid);
  }
  return found;
}

// Ends a process at once; whether it was still there.
export function end(pid) {
  try {
    return process.kill(pid, 'SIGKILL');
  } catch {
    return false;
  }
}

// Runs a command in a node by its init, as its root, without any of Docklet's programs.
export const inNode = (pid, ...argv) =>
  command('nsenter', ['--target', String(pid), '--all', '--setuid', '0', '--setgid', '0', ...argv], { timeout: 30_000 });
