//! Which partitions a worker takes and gives up, so that each worker has its share of them.

use crate::broker::Depth;

/// A partition as a worker sees it.
#[derive(Debug, Clone, Copy)]
pub struct Partition {
    /// Whether this worker consumes from it.
    pub is_mine: bool,
    /// What the broker says of it.
    pub depth: Depth,
}

/// What is to be done about a partition.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Consume from it.
    Take(usize),
    /// Leave it to others.
    GiveUp(usize),
}

/// The next steps towards an equal share for each of the `workers`; `chance` differs from worker to worker.
///
/// There is no leader and no vote: who has too many lets go, who has too few takes what nobody has; of two
/// that want the same one the broker lets one have it.
pub fn steps(partitions: &[Partition], workers: u32, chance: u64) -> Vec<Step> {
    let count = partitions.len();
    let share = count.div_ceil(usize::try_from(workers).unwrap_or(1).max(1));
    let (mut mine, others): (Vec<usize>, Vec<usize>) = (0..count).partition(|&at| partitions[at].is_mine);
    if mine.len() > share {
        // What has least to do is let go first.
        mine.sort_by_key(|&at| partitions[at].depth.messages);
        return mine[..mine.len() - share].iter().map(|&at| Step::GiveUp(at)).collect();
    }
    let free = others.into_iter().filter(|&at| partitions[at].depth.consumers == 0);
    let mut free: Vec<usize> = free.collect();
    if !free.is_empty() {
        let start = usize::try_from(chance % free.len() as u64).unwrap_or(0);
        free.rotate_left(start);
    }
    free.into_iter().take(share - mine.len()).map(Step::Take).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn draw(seed: usize) -> u64 {
        std::hash::BuildHasher::hash_one(
            &std::hash::BuildHasherDefault::<std::hash::DefaultHasher>::new(),
            seed,
        )
    }

    /// A few workers that look at the same queues one after the other, until none has anything to do.
    fn settled(count: usize, owners: &mut [Vec<bool>]) -> usize {
        for round in 1..1000 {
            let mut is_quiet = true;
            for worker in 0..owners.len() {
                let partitions: Vec<Partition> = (0..count)
                    .map(|at| {
                        let is_consumed = owners.iter().any(|owned| owned[at]);
                        let depth = Depth { messages: 0, consumers: is_consumed.into() };
                        Partition { is_mine: owners[worker][at], depth }
                    })
                    .collect();
                let chance = draw(round * 1000 + worker);
                let workers = u32::try_from(owners.len()).unwrap();
                for step in steps(&partitions, workers, chance) {
                    is_quiet = false;
                    match step {
                        Step::Take(at) => owners[worker][at] = true,
                        Step::GiveUp(at) => owners[worker][at] = false,
                    }
                }
            }
            if is_quiet {
                return round;
            }
        }
        panic!("never settled: {owners:?}");
    }

    #[test]
    fn every_partition_has_one_worker_and_no_worker_more_than_its_share() {
        for count in [1, 2, 8, 13, 64] {
            for workers in [1, 2, 3, 4, 9] {
                // At first all belong to one; then that one is gone.
                let mut owners = vec![vec![false; count]; workers];
                owners[0] = vec![true; count];
                for survivors in (1..=workers).rev() {
                    owners.truncate(survivors);
                    settled(count, &mut owners);
                    for at in 0..count {
                        assert_eq!(owners.iter().filter(|owned| owned[at]).count(), 1);
                    }
                    let most = owners.iter().map(|owned| owned.iter().filter(|own| **own).count()).max();
                    assert!(most.unwrap() <= count.div_ceil(survivors));
                }
            }
        }
    }
}
