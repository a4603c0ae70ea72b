// Members of etcd are killed: one, which changes nothing, and two, which is the end of all changes for a while.

import assert from 'node:assert/strict';

import { eventually } from '../../lib/site.mjs';
import { ask, ETCD, get, inNode, inside, kill, page, partition, heal, pause, rows, start, terminal } from '../lib/bed.mjs';
import { steady } from './kills.mjs';

async function memberKilled(site) {
  const own = await steady(site, 'steady');
  const before = await own();
  for (let round = 0; round < (site.short ? 1 : 3); round += 1) {
    for (const member of ETCD) {
      await kill(member);
      const counted = site.load.counts.acknowledged;
      // Changes go on with two of three.
      await eventually('requests are acknowledged', () => site.load.counts.acknowledged >= counted + 3, 60_000);
      await start(member);
      await pause(site.random.between(0, 1500));
    }
  }
  assert.deepEqual(await own(), before, 'the same inits');
  return undefined;
}

// Types into a terminal until the shell in it has worked something out.
async function answers(shell, node) {
  const wanted = `${6 * 7}-${node}`;
  shell.shown = '';
  shell.type('echo $((6*7))-$(hostname)\r');
  await eventually(`the shell in ${node} answers`, () => shell.shown.includes(wanted), 10_000);
}

async function quorumLost(site) {
  const own = await steady(site, 'steady');
  const before = await own();
  const [node] = await get('/vclusters/steady/nodes');
  const serve = ['sh', '-c', 'cd /usr/share && (setsid python3 -m http.server 8080 >/dev/null 2>&1 &)'];
  assert.equal((await ask('POST', `/vclusters/steady/nodes/${node.name}/exec`, { argv: serve })).status, 200);
  const listed = async () => (await page('steady', node.name, 8080)).includes('Directory listing');
  await eventually('the application answers', listed);
  const shell = await terminal('steady', node.name);
  await answers(shell, node.name);
  const kept = site.random.between(0, 2);
  const gone = ETCD.filter((_, n) => n !== kept);
  for (const member of gone) await kill(member);
  const began = Date.now();
  const change = await ask('POST', '/vclusters', { name: 'late', nodes: 1, image: 'small' });
  assert.equal(change.status, 503, JSON.stringify(change.body));
  assert.equal(change.body.code, 'unavailable');
  assert.ok(Number(change.retryAfter) > 0, `Retry-After: ${change.retryAfter}`);
  const refused = (Date.now() - began) / 1000;
  // Longer than any lease, so that everybody has noticed.
  while (Date.now() - began < (site.short ? 6_000 : 40_000)) {
    const said = await ask('POST', `/vclusters/steady/nodes/${node.name}/exec`, { argv: ['hostname'] });
    assert.deepEqual([said.status, said.body?.stdout], [200, `${node.name}\n`], JSON.stringify(said.body));
    assert.equal((await ask('GET', '/vclusters')).status, 200);
    assert.ok(await listed(), 'the application answers');
    await answers(shell, node.name);
    assert.deepEqual(await own(), before, 'nothing stops');
    await pause(1000);
  }
  assert.ok(shell.open, 'the terminal stayed open');
  shell.end();
  const another = await terminal('steady', node.name);
  await answers(another, node.name);
  another.end();
  // By now etcd refuses at once: nothing can come of it, and nothing is told of it.
  assert.equal((await ask('POST', '/vclusters', { name: 'later', nodes: 1, image: 'small' })).status, 503);
  assert.deepEqual(await rows("SELECT name, outcome FROM operations WHERE name = 'later'"), []);
  for (const member of gone) await start(member);
  // The one that was refused may have been committed by a member that came back: nobody knows, the client asks again. It
  // comes before everything that is taken from now on, so that whoever sees this change sees that one, too.
  const back = Date.now();
  const next = await eventuallyAnswered('POST', '/vclusters', { name: 'next', nodes: 1, image: 'small' });
  // Taken for its own, if an earlier try of it was taken without an answer.
  assert.ok([202, 409].includes(next.status), JSON.stringify(next));
  assert.ok([202, 204].includes((await eventuallyAnswered('DELETE', '/vclusters/next')).status));
  const again = await eventuallyAnswered('DELETE', '/vclusters/late');
  assert.ok([202, 204, 404].includes(again.status), JSON.stringify(again));
  const took = (Date.now() - back) / 1000;
  assert.deepEqual(await own(), before, 'the same inits');
  return `503 after ${refused.toFixed(1)} s, changes again after ${took.toFixed(1)} s`;
}

// A master that comes while there is no quorum knows nothing yet: it says so, waits, and serves once it can.
async function masterWithoutQuorum(site) {
  const own = await steady(site, 'steady');
  const before = await own();
  const kept = site.random.between(0, 2);
  const gone = ETCD.filter((_, n) => n !== kept);
  for (const member of gone) await kill(member);
  await kill('master');
  await start('master');
  const portal = async (path) => (await inside('master', ['curl', '--silent', '--max-time', '5', '--write-out', ' %{http_code}', `http://10.231.0.1:8000${path}`])).stdout;
  await eventually('it is alive', async () => (await portal('/healthz')).endsWith(' 200'), 30_000);
  assert.match(await portal('/readyz'), /"store":false.* 503$/);
  const began = Date.now();
  while (Date.now() - began < (site.short ? 5_000 : 90_000)) {
    const change = await ask('POST', '/vclusters', { name: 'late', nodes: 1, image: 'small' });
    assert.deepEqual([change.status, change.body?.code], [503, 'unavailable'], JSON.stringify(change));
    assert.ok(Number(change.retryAfter) > 0, `Retry-After: ${change.retryAfter}`);
    assert.deepEqual(await own(), before, 'nothing stops');
    await pause(1000);
  }
  for (const member of gone) await start(member);
  const back = Date.now();
  await eventually('it serves', async () => (await get('/vclusters/steady')).status === 'running', 60_000);
  const took = (Date.now() - back) / 1000;
  assert.deepEqual(await own(), before, 'the same inits');
  return `it served ${took.toFixed(1)} s after etcd was back`;
}

async function eventuallyAnswered(method, path, body) {
  let answer;
  await eventually(`${method} ${path} is answered`, async () => {
    answer = await ask(method, path, body);
    return answer.status !== 503;
  });
  return answer;
}

// The member that leads is cut off rather than killed: connections to it stay open and say nothing.
async function memberCutOff(site) {
  const own = await steady(site, 'steady');
  const before = await own();
  for (const member of site.short ? ETCD.slice(0, 1) : ETCD) {
    await partition(member);
    try {
      const counted = site.load.counts.acknowledged;
      await eventually('requests are acknowledged', () => site.load.counts.acknowledged >= counted + 3, 60_000);
    } finally {
      await heal(member);
    }
  }
  const [id, [place]] = Object.entries(await own())[0];
  const said = await inNode(place.split('/')[1], 'true');
  assert.equal(said.code, 0, `${id}: ${said.stderr}`);
  assert.deepEqual(await own(), before, 'the same inits');
  return undefined;
}

export const scenarios = [
  { name: 'etcd-member', title: 'each member of etcd is killed: no acknowledged change is lost', run: memberKilled },
  { name: 'etcd-cut-off', title: 'each member of etcd is cut off: changes go on', run: memberCutOff },
  { name: 'etcd-quorum-master', title: 'the master is killed and started while etcd has no quorum: it waits and says so', short: true, run: masterWithoutQuorum },
  { name: 'etcd-quorum', title: 'etcd has no quorum: changes get 503, nodes run and are reached, then all goes on', short: true, run: quorumLost },
];
