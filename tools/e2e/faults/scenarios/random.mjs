// Any program is killed at any moment, over and over.

import { checks } from '../lib/checks.mjs';
import { end, ETCD, hosts, kill, pause, servants, start } from '../lib/bed.mjs';

// The checks are done each so many rounds.
const BETWEEN = 50;

async function randomKills(site) {
  const { random } = site;
  const killed = {};
  const down = new Map();
  let slowest = 0;
  const back = async (machine) => {
    down.delete(machine);
    await start(machine);
  };
  for (let round = 1; round <= site.rounds; round += 1) {
    const victim = random.weighed([[5, random.pick(hosts)], [3, 'master'], [2, random.pick(ETCD)], [2, 'helper']]);
    const pauses = [random.between(0, 600), random.between(0, 800)];
    // Some stay away while the next one is killed.
    const stays = random.next() < 0.2;
    await pause(pauses[0]);
    const kind = victim.replace(/\d/, '').replace(/^h$/, 'worker');
    let died = true;
    if (victim === 'helper') {
      died = await killHelper(random.fork());
    } else if (!down.has(victim)) {
      await kill(victim);
      down.set(victim, round);
    }
    if (died) killed[kind] = (killed[kind] ?? 0) + 1;
    await pause(pauses[1]);
    for (const [machine, since] of down) if (!stays || since < round) await back(machine);
    if (round % BETWEEN === 0 || round === site.rounds) {
      for (const machine of down.keys()) await back(machine);
      slowest = Math.max(slowest, await checks(site));
      console.log(`#   ${round} of ${site.rounds} rounds; ${Object.entries(killed).map(([k, n]) => `${n} ${k}`).join(', ')}; ${site.load.counts.acknowledged} requests acknowledged, ${site.load.counts.moves} moves`);
      site.load.go();
    }
  }
  return `${site.rounds} rounds; ${Object.entries(killed).map(([k, n]) => `${n} ${k}`).join(', ')}; converged after at most ${slowest.toFixed(1)} s`;
}

// Helpers live for milliseconds: it waits a moment for one.
async function killHelper(random) {
  const from = random.between(0, hosts.length - 1);
  for (let look = 0; look < 30; look += 1) {
    const { helpers } = await servants(hosts[(from + look) % hosts.length]);
    if (helpers.length > 0 && end(random.pick(helpers))) return true;
    await pause(10);
  }
  return false;
}

export const scenarios = [
  { name: 'random', title: 'any program is killed at any moment', short: true, moves: true, run: randomKills },
];
