// What users do meanwhile: creates, scales, stops, starts, deletes and, where told to, moves in random order, several at once. Every request is
// repeated until it is answered, as a good client does, so that what must hold in the end is known.

import { eventually } from '../../lib/site.mjs';
import { ask, hosts, pause } from './bed.mjs';

const SIZE = { cpu: 0.1, memory_mib: 96, disk_mib: 64 };
// How long one request may go unanswered, faults included.
const PATIENCE = 180_000;
// How long the API may not know what it has acknowledged, where it may miss what etcd tells it.
const KNOWN = 70_000;

export class Load {
  // name → {nodes, wanted}: what was acknowledged.
  wanted = new Map();
  // Answers that must not be.
  wrong = [];
  counts = { acknowledged: 0, repeated: 0, unavailable: 0, moves: 0 };
  // Whether nodes are moved, too.
  moves = false;
  // Whether the API may not know yet what it has acknowledged.
  mayMiss = false;
  #users;
  #going = false;
  #abandoned = false;
  #tasks = [];

  constructor(random, { users = 3, slots = 2, nodes = 3 } = {}) {
    this.#users = Array.from({ length: users }, (_, n) => ({
      random: random.fork(), letter: String.fromCharCode(97 + n), slots: Array(slots).fill(null), made: 0, nodes,
    }));
  }

  go() {
    if (this.#going) return;
    this.#going = true;
    this.#tasks = this.#users.map((user) => this.#work(user));
  }

  // Returns when every request was answered.
  async rest() {
    this.#going = false;
    await Promise.all(this.#tasks);
    this.#tasks = [];
  }

  // Gives up what has no answer yet: the testbed goes, and what comes after it is not this load's.
  async abandon() {
    this.#abandoned = true;
    await this.rest();
  }

  async #work(user) {
    while (this.#going) {
      try {
        await this.#step(user);
      } catch (error) {
        this.wrong.push(error.message);
        return;
      }
      await pause(user.random.between(0, 500));
    }
  }

  async #step(user) {
    const { random, slots } = user;
    const slot = random.between(0, slots.length - 1);
    const name = slots[slot];
    if (!name) {
      const fresh = `${user.letter}${user.made += 1}`;
      const nodes = random.between(1, user.nodes);
      slots[slot] = fresh;
      await this.request('POST', '/vclusters', { name: fresh, nodes, image: 'small', size: SIZE }, [202]);
      this.wanted.set(fresh, { nodes, wanted: 'running' });
      return;
    }
    const state = this.wanted.get(name);
    const to = random.between(1, user.nodes);
    switch (random.weighed([[4, 'scale'], [2, 'stop'], [3, 'start'], [3, 'delete'], ...(this.moves ? [[5, 'move']] : [])])) {
      case 'move':
        await this.#move(name, `node${to}`, random.pick(hosts));
        break;
      case 'scale':
        await this.request('PATCH', `/vclusters/${name}`, { nodes: to }, [200, 202]);
        state.nodes = to;
        break;
      case 'stop':
        await this.request('POST', `/vclusters/${name}/stop`, undefined, [200, 202]);
        state.wanted = 'stopped';
        break;
      case 'start':
        await this.request('POST', `/vclusters/${name}/start`, undefined, [200, 202]);
        state.wanted = 'running';
        break;
      default:
        // A repetition may find it gone.
        await this.request('DELETE', `/vclusters/${name}`, undefined, [202, 204, 404]);
        this.wanted.delete(name);
        slots[slot] = null;
    }
  }

  // Whatever becomes of it, the node is in one place afterwards. There may be no such node, or it is on its way already.
  async #move(name, node, host) {
    const answer = await this.request('POST', `/vclusters/${name}/move`, { node, host }, [202, 404, 409], [404]);
    if (Array.isArray(answer)) this.counts.moves += 1;
  }

  // Sends a request until it is answered; the answer must be one of `fine`, and one of `atOnce` not only to a repetition.
  async request(method, path, body, fine, atOnce = []) {
    const headers = method === 'POST' ? { 'idempotency-key': `${path} ${Math.random()}` } : {};
    const began = Date.now();
    const deadline = began + PATIENCE;
    let last;
    let later = 200;
    for (let tries = 0; Date.now() < deadline && !this.#abandoned; tries += 1) {
      if (tries > 0) {
        this.counts.repeated += 1;
        await pause(later);
        later = 200;
      }
      let answer;
      try {
        answer = await ask(method, path, body, headers);
      } catch (error) {
        last = error.message;
        continue;
      }
      if (answer.status === 404 && this.mayMiss && !atOnce.includes(404) && Date.now() - began < KNOWN) {
        last = 'what was acknowledged is not there';
        later = 1000;
        continue;
      }
      if (fine.includes(answer.status)) {
        if (answer.status === 404 && tries === 0 && !atOnce.includes(404)) throw new Error(`${method} ${path}: what was acknowledged is not there`);
        this.counts.acknowledged += 1;
        return answer.body;
      }
      last = `${answer.status} ${JSON.stringify(answer.body)}`;
      if (answer.status === 503) {
        this.counts.unavailable += 1;
        if (!(answer.retryAfter > 0)) throw new Error(`${method} ${path}: 503 without Retry-After`);
        later = 1000 * answer.retryAfter;
      } else if (!(answer.status === 409 && answer.body?.code === 'conflict')) {
        throw new Error(`${method} ${path}: ${last}`);
      }
    }
    throw new Error(`${method} ${path}: no answer in ${PATIENCE / 1000} s; the last: ${last}`);
  }

  // Deletes everything.
  async clear() {
    await this.rest();
    for (const name of this.wanted.keys()) await this.request('DELETE', `/vclusters/${name}`, undefined, [202, 204, 404]);
    this.wanted.clear();
    for (const user of this.#users) user.slots.fill(null);
    await eventually('all vclusters are gone', async () => (await ask('GET', '/vclusters')).body.length === 0, 120_000);
  }
}
