//! Members in proportion to their weights, in constant time and exactly: the alias method (Walker 1977, in the form of
//! Vose 1991) over whole numbers.
//!
//! Each of N members has a column as high as the total of the weights, W. A column is filled by its own member up to
//! `threshold` and by one other above it, such that over all N columns each member has N times its weight. So a column
//! and a height, each uniform, are a draw by weight, whatever the weights and however many members.

use super::random;

/// How often a draw is repeated when it hits a member that cannot be used, before all are looked at: of ten members
/// with half of them out, one pick in 256 gets that far.
const REDRAWS: usize = 8;

/// Members with weights, made for drawing.
#[derive(Debug)]
pub struct Shares {
    columns: Box<[Column]>,
    total: u32,
}

/// A member and its weight.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Share {
    /// Its index in the route.
    pub member: u32,
    /// Over 0.
    pub weight: u32,
}

#[derive(Clone, Copy, Debug)]
struct Column {
    share: Share,
    /// Up to here the column is its own member's, of [`Shares::total`].
    threshold: u32,
    /// The column whose member has the rest.
    alias: u32,
}

impl Shares {
    /// Of the members that have a weight. Only if their sum were over 2^32, which takes 65,538 members of the highest
    /// weight, are weights rounded: to their share of 2^32, at least 1.
    ///
    /// # Panics
    /// Without any member with a weight.
    pub fn new(weights: &[u32]) -> Self {
        let members = (0_u32..).zip(weights).filter(|&(_, &weight)| weight > 0);
        let mut shares: Vec<Share> = members
            .map(|(member, &weight)| Share { member, weight })
            .collect();
        assert!(!shares.is_empty(), "somebody has a weight");
        let total = loop {
            let total: u64 = shares.iter().map(|share| u64::from(share.weight)).sum();
            if let Ok(total) = u32::try_from(total) {
                break total;
            }
            for share in &mut shares {
                share.weight = (share.weight / 2).max(1);
            }
        };
        let mut columns: Vec<Column> = (0..)
            .zip(shares)
            .map(|(alias, share)| Column {
                share,
                threshold: 0,
                alias,
            })
            .collect();
        fill(&mut columns, total);
        Self {
            columns: columns.into(),
            total,
        }
    }

    /// How many members have a weight.
    pub fn len(&self) -> usize {
        self.columns.len()
    }

    /// Each member with its weight.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = Share> {
        self.columns.iter().map(|column| column.share)
    }

    /// One of them, of those below [`Self::len`].
    pub fn nth(&self, index: usize) -> Share {
        self.columns[index].share
    }

    /// The sum of the weights.
    pub fn total(&self) -> u32 {
        self.total
    }

    /// Whose this height, below [`Self::total`], of this column, below [`Self::len`], is.
    pub fn at(&self, column: usize, height: u32) -> Share {
        let column = &self.columns[column];
        match height < column.threshold {
            true => column.share,
            false => self.nth(column.alias as usize),
        }
    }

    /// A member, at random by weight.
    pub fn draw(&self) -> Share {
        let bits = random::bits();
        let scaled = |bits: u64, bound: u64| (bits * bound) >> 32;
        let column = scaled(bits >> 32, self.columns.len() as u64);
        let height = scaled(bits & 0xffff_ffff, u64::from(self.total));
        self.at(column as usize, height as u32)
    }

    /// A usable member, at random by weight among those; `None` if there is none.
    pub fn draw_usable(&self, is_usable: impl Fn(u32) -> bool) -> Option<Share> {
        let mut draws = (0..REDRAWS).map(|_| self.draw());
        draws.find(|share| is_usable(share.member)).or_else(|| {
            // Few are left: look at each, and keep the k-th with the odds of its weight to that of the first k.
            let (mut kept, mut seen) = (None, 0);
            for share in self.iter().filter(|share| is_usable(share.member)) {
                seen += u64::from(share.weight);
                if random::below(seen) < u64::from(share.weight) {
                    kept = Some(share);
                }
            }
            kept
        })
    }
}

/// Gives each column its threshold and its alias. A member needs N times its weight, and each column holds W of it: whoever needs
/// less than a column shares it with one who needs more.
fn fill(columns: &mut [Column], total: u32) {
    let (total, count) = (u64::from(total), columns.len() as u64);
    let mut needs: Vec<u64> = (columns.iter())
        .map(|column| u64::from(column.share.weight) * count)
        .collect();
    let (mut poor, mut rich): (Vec<usize>, Vec<usize>) =
        (0..columns.len()).partition(|&index| needs[index] < total);
    while let (Some(index), Some(&giver)) = (poor.pop(), rich.last()) {
        columns[index].threshold = needs[index] as u32;
        columns[index].alias = giver as u32;
        needs[giver] -= total - needs[index];
        if needs[giver] < total {
            rich.pop();
            poor.push(giver);
        }
    }
    // Whole numbers add up: who is left needs exactly one column.
    for index in rich {
        columns[index].threshold = total as u32;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How often each member stands in all of the columns: N times its weight.
    fn areas(weights: &[u32]) -> Vec<u64> {
        let shares = Shares::new(weights);
        let mut areas = vec![0; weights.len()];
        for column in &shares.columns {
            let alias = shares.nth(column.alias as usize);
            areas[column.share.member as usize] += u64::from(column.threshold);
            areas[alias.member as usize] += u64::from(shares.total - column.threshold);
        }
        areas
    }

    #[test]
    fn every_weight_is_met_exactly() {
        for weights in [
            &[1][..],
            &[1, 1, 1],
            &[5, 1, 1],
            &[0, 3, 0, 4],
            &[65_535, 1, 65_535],
            &[65_535, 1, 1, 7, 0, 300],
            &[1, 2, 3, 4, 5, 6, 7, 8, 9, 65_535],
        ] {
            let count = weights.iter().filter(|&&weight| weight > 0).count() as u64;
            let expected: Vec<u64> = (weights.iter())
                .map(|&weight| u64::from(weight) * count)
                .collect();
            assert_eq!(areas(weights), expected, "{weights:?}");
        }
    }

    #[test]
    fn weights_over_any_number_of_members_neither_overflow_nor_vanish() {
        let mut weights = vec![65_535; 70_000];
        weights[3] = 1;
        let shares = Shares::new(&weights);
        assert_eq!(shares.len(), 70_000);
        assert!(shares.iter().all(|share| share.weight > 0));
        assert!(areas(&weights).iter().all(|&area| area > 0));
    }

    /// 5 : 3 : 0 : 2 of 100,000; the standard deviation is under 160.
    #[test]
    fn draws_follow_the_weights() {
        random::reseed(1);
        let shares = Shares::new(&[5, 3, 0, 2]);
        let mut counts = [0_i32; 4];
        for _ in 0..100_000 {
            counts[shares.draw().member as usize] += 1;
        }
        for (count, expected) in counts.into_iter().zip([50_000, 30_000, 0, 20_000]) {
            assert!((count - expected).abs() < 800, "{counts:?}");
        }
    }

    /// With all but two of twenty out, most picks look at each.
    #[test]
    fn draws_among_the_usable_follow_their_weights() {
        random::reseed(2);
        let mut weights = [50; 20];
        (weights[4], weights[17]) = (1, 3);
        let shares = Shares::new(&weights);
        let mut fourths = 0_i32;
        for _ in 0..40_000 {
            let usable = |member| matches!(member, 4 | 17);
            match shares.draw_usable(usable).map(|share| share.member) {
                Some(4) => fourths += 1,
                Some(17) => {}
                other => panic!("{other:?} is not usable"),
            }
        }
        assert!((fourths - 10_000).abs() < 500, "{fourths}");
        assert_eq!(shares.draw_usable(|_| false), None);
    }
}
