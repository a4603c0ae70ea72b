// Which failures are tried again. A machine that was slow for a moment is no fault of ours. What must never be is: once seen,
// no later run takes it back.

// Something was left over, or the audit of a host does not answer.
export class Leftover extends Error {}

export function mayTryAgain(error, twice = []) {
  if (twice.length > 0) return false;
  for (let cause = error; cause; cause = cause.cause) if (cause instanceof Leftover) return false;
  return true;
}
