// The three checks after every fault: what was acknowledged has come about; SQL, etcd and hosts agree; the audit finds
// nothing left over. And what must hold at every moment: no node runs twice.

import assert from 'node:assert/strict';

import { eventually } from '../../lib/site.mjs';
import { alive, ask, conf, get, hosts, inits, inside, pause, rows, store } from './bed.mjs';
import { Leftover } from './retry.mjs';

// How long everything may take to come about once nothing is broken any more.
const LIMIT = 120_000;

// In seconds: what takes longer is worth a look.
const LONG = 10;

// In seconds: a change whose answer was lost is looked for a minute long, and found not to have been every half of one.
const UNKNOWN = 100;

// Does all of it once the load rests. Returns how long it took until all held, in seconds.
export async function checks(site, limit = LIMIT) {
  await site.load.rest();
  const began = Date.now();
  assert.deepEqual(site.load.wrong, [], 'answers that must not be');
  await acknowledged(site.load, limit);
  await told('SQL, etcd and hosts agree', agree, limit);
  await told('the audit finds nothing', audited, limit);
  assert.deepEqual(site.watch.twice, [], 'nodes that ran twice at once');
  return (Date.now() - began) / 1000;
}

// Waits for it, and says what stood in the way last where that took long.
async function told(what, condition, limit) {
  const began = Date.now();
  let last;
  await eventually(what, async () => {
    try {
      return await condition();
    } catch (error) {
      last = error;
      throw error;
    }
  }, limit);
  const took = (Date.now() - began) / 1000;
  if (took > LONG) console.log(`#   ${what}: only after ${took.toFixed(1)} s; before that: ${last?.message ?? 'no answer'}`);
}

// 1. Every vcluster that was acknowledged is as asked for, and no other is there.
async function acknowledged(load, limit) {
  const asWanted = async () => {
    const there = await get('/vclusters');
    assert.deepEqual(there.map((v) => v.name).sort(), [...load.wanted.keys()].sort());
    for (const { name, status, nodes, reason } of there) {
      const { nodes: count, wanted } = load.wanted.get(name);
      if (status === 'failed' && load.mayFail) {
        assert.ok(reason?.message, `${name} failed without a reason`);
      } else {
        assert.deepEqual({ status, nodes }, { status: wanted, nodes: count }, `${name}: ${JSON.stringify(reason)}`);
      }
    }
    return true;
  };
  await told('what was acknowledged has come about', asWanted, limit);
}

// 2. Names, usage, networks, plans and reports in etcd follow from the specs; the hosts run what the plans say; every
// operation in SQL has ended.
async function agree() {
  const documents = await store();
  const under = (prefix) => documents.filter(([key]) => key.startsWith(prefix)).map(([key, value]) => [key.slice(prefix.length), value]);
  const specs = under('specs/').map(([, spec]) => spec);
  const sorted = (list) => [...list].sort();

  assert.deepEqual(sorted(under('names/').map(([key, id]) => `${key} ${id}`)), sorted(specs.map((s) => `${s.owner}/${s.name} ${s.id}`)), 'names');
  assert.deepEqual(sorted(under('networks/').map(([id]) => id)), sorted(specs.map((s) => s.id)), 'networks');
  const counted = under('alloc/vclusters/').map(([id]) => id);
  assert.deepEqual(counted.filter((id) => !specs.some((s) => s.id === id)), [], 'counters of vclusters');
  const subnets = under('networks/').map(([, network]) => JSON.stringify(network.subnet));
  assert.equal(new Set(subnets).size, subnets.length, 'subnets');
  for (const [owner, usage] of under('usage/')) {
    const own = specs.filter((s) => s.owner === owner);
    assert.deepEqual([usage.vclusters, usage.nodes], [own.length, own.flatMap((s) => s.nodes).length], `usage of ${owner}`);
  }

  const wanted = new Map(specs.flatMap((spec) => spec.nodes.map((node) => [node.id, spec.wanted])));
  const parts = (prefix, kind) => under(prefix).map(([key, value]) => [...key.split('/'), value]).filter(([, k]) => k === kind);
  const plans = parts('plans/', 'nodes');
  const reports = new Map(parts('reports/', 'nodes').map(([host, , id, report]) => [`${host}/${id}`, report]));
  assert.deepEqual(sorted(plans.map(([, , id]) => id)), sorted(wanted.keys()), 'each node has one plan');
  assert.deepEqual(sorted(reports.keys()), sorted(plans.map(([host, , id]) => `${host}/${id}`)), 'each plan has a report');
  for (const [host, , id, plan] of plans) {
    const report = reports.get(`${host}/${id}`);
    assert.equal(plan.wanted, wanted.get(id), `the plan of ${id}`);
    assert.equal(report.generation, plan.generation, `the generation of ${id}`);
  }
  const ready = [...reports].filter(([, report]) => report.state === 'ready').map(([place, report]) => `${place}/${report.init_pid}`);
  const running = Object.entries(await inits()).flatMap(([id, places]) => places.map((place) => place.replace('/', `/${id}/`)));
  assert.deepEqual(sorted(running), sorted(ready), 'what runs is what is reported');
  const vclusters = (prefix) => sorted(parts(prefix, 'vclusters').map(([host, , id]) => `${host}/${id}`));
  assert.deepEqual(vclusters('plans/'), sorted(new Set(plans.map(([host, , , plan]) => `${host}/${plan.vcluster}`))), 'the vclusters of hosts');
  assert.deepEqual(vclusters('reports/'), vclusters('plans/'), 'the reports of vclusters');

  const there = new Map(specs.map((s) => [s.id, s.operation]));
  const inForce = new Set(there.values());
  const open = (await rows("SELECT id, name, action, started_at FROM operations WHERE outcome = 'running'"))
    .filter(({ id, started_at: began }) => inForce.has(id) || Date.now() * 1000 - began > UNKNOWN * 1e6);
  assert.deepEqual(open, [], 'operations that have no end');
  const kept = new Set((await rows('SELECT id FROM operations')).map((row) => row.id));
  for (const [id, operation] of there) assert.ok(kept.has(operation), `SQL knows nothing of the last change of ${id}`);
  return true;
}

// 3. Nothing is left over on any host.
async function audited() {
  for (const host of hosts) {
    const audit = await inside(host, ['docklet-worker', '--config', conf(host), 'audit']);
    if (audit.code !== 0) throw new Leftover(`${host}: ${audit.stdout}${audit.stderr}`);
  }
  return true;
}

// Looks again and again whether a node runs twice.
export class Watch {
  twice = [];
  looks = 0;
  #going = true;
  #task = this.#look();

  async end() {
    this.#going = false;
    await this.#task;
  }

  async #look() {
    while (this.#going) {
      const seen = new Map();
      for (const { id, host, group } of await alive()) {
        if (seen.has(id)) this.twice.push(`${id} on ${seen.get(id)} and ${host} (${group})`);
        seen.set(id, host);
      }
      this.looks += 1;
      await pause(300);
    }
  }
}

// What the API says of each node: `vcluster/node` → {host, status}.
export async function nodes() {
  const found = {};
  for (const { name } of await get('/vclusters')) {
    const answer = await ask('GET', `/vclusters/${name}/nodes`);
    for (const node of answer.body) found[`${name}/${node.name}`] = node;
  }
  return found;
}
