// Random choices that a seed repeats. What happens between processes is as random as ever: a seed repeats what is done to
// them, in which order and with which pauses.

export class Random {
  #state;

  constructor(seed) {
    this.#state = seed >>> 0;
  }

  // At least 0 and below 1: Mulberry32.
  next() {
    this.#state = (this.#state + 0x6d2b79f5) >>> 0;
    let mixed = this.#state;
    mixed = Math.imul(mixed ^ (mixed >>> 15), mixed | 1);
    mixed ^= mixed + Math.imul(mixed ^ (mixed >>> 7), mixed | 61);
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 2 ** 32;
  }

  // A whole number from `low` to `high`, both included.
  between(low, high) {
    return low + Math.floor(this.next() * (high - low + 1));
  }

  pick(all) {
    return all[this.between(0, all.length - 1)];
  }

  // One of `[weight, value]…`.
  weighed(all) {
    let at = this.next() * all.reduce((sum, [weight]) => sum + weight, 0);
    for (const [weight, value] of all) {
      at -= weight;
      if (at < 0) return value;
    }
    return all.at(-1)[1];
  }

  // Another sequence that follows from this one.
  fork() {
    return new Random(this.between(0, 2 ** 32 - 1));
  }
}
