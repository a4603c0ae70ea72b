// All scenarios, in the order they run: those that need the same testbed together.
// `short`: part of tools/test.sh. `quiet`: no load but its own. `moves`: the load moves nodes, too. `bed`: of which kind the
// testbed is, see bed.mjs.

import * as clock from './clock.mjs';
import * as disks from './disks.mjs';
import * as kills from './kills.mjs';
import * as moves from './moves.mjs';
import * as partitions from './partitions.mjs';
import * as points from './points.mjs';
import * as random from './random.mjs';
import * as reboots from './reboots.mjs';
import * as shared from './shared.mjs';
import * as store from './store.mjs';
import * as watches from './watches.mjs';

export const scenarios = [kills, store, watches, partitions, clock, reboots, moves, points, random, disks, shared].flatMap((file) => file.scenarios);
