// All scenarios, in the order they run: those that need the same testbed together.
// `short`: part of tools/test.sh. `quiet`: no load but its own. `settings`: more lines for docklet.conf.

import * as disks from './disks.mjs';
import * as kills from './kills.mjs';
import * as partitions from './partitions.mjs';
import * as points from './points.mjs';
import * as random from './random.mjs';
import * as reboots from './reboots.mjs';
import * as store from './store.mjs';

export const scenarios = [kills, store, partitions, reboots, points, random, disks].flatMap((file) => file.scenarios);
