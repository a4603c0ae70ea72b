//! What is told of the limits that a node ran into.

use docklet_types::report::{LimitHit, LimitKind};
use docklet_types::time::Micros;
use docklet_worker_host::Hits;

/// What is to be told now of one init, by what was told of it and what was read. A count may become less, where the kernel keeps
/// it with a group that is gone; what was told stands. A disk that has room again is not full.
#[must_use]
pub fn told(before: &[LimitHit], read: Hits, now: Micros) -> Vec<LimitHit> {
    let counts = [
        (LimitKind::Memory, read.memory),
        (LimitKind::Processes, read.processes),
        (LimitKind::Disk, u64::from(read.disk_full)),
    ];
    let hit = |(limit, times): (LimitKind, u64)| {
        let known = before.iter().find(|hit| hit.limit == limit).copied();
        let stands = |known: &LimitHit| known.times >= times && (limit != LimitKind::Disk || times > 0);
        known.filter(stands).or_else(|| (times > 0).then_some(LimitHit { limit, times, at: now }))
    };
    counts.into_iter().filter_map(hit).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_became_more_is_new_and_what_was_told_stands() {
        let (one, two) = (Micros(1), Micros(2));
        let first = told(&[], Hits { memory: 1, processes: 0, disk_full: true }, one);
        assert_eq!(
            first.iter().map(|h| (h.limit, h.times)).collect::<Vec<_>>(),
            [(LimitKind::Memory, 1), (LimitKind::Disk, 1)]
        );
        assert_eq!(told(&first, Hits { memory: 1, processes: 0, disk_full: true }, two), first, "nothing new");
        let later = told(&first, Hits { memory: 3, processes: 7, disk_full: false }, two);
        let hit = |limit, times| LimitHit { limit, times, at: two };
        assert_eq!(later, [hit(LimitKind::Memory, 3), hit(LimitKind::Processes, 7)]);
        assert_eq!(
            told(&later, Hits { memory: 2, ..Hits::default() }, Micros(3)),
            later,
            "a group went with its count"
        );
        assert!(told(&first[1..], Hits::default(), two).is_empty(), "there is room again");
    }
}
