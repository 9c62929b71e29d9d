//! Cells by a dense index, made when they are first used and never moved: so one thread may write them while others
//! read, without a lock.

use std::sync::OnceLock;

/// Cells in blocks that double in size. An index that is never used costs nothing but its share of a block.
#[derive(Debug)]
pub struct Cells<T> {
    blocks: [OnceLock<Box<[T]>>; BLOCKS],
}

/// Cells in the first block, a power of two.
const FIRST: u64 = 64;
/// So many doubling blocks hold any index.
const BLOCKS: usize = 27;

impl<T> Default for Cells<T> {
    fn default() -> Self {
        Self {
            blocks: [const { OnceLock::new() }; BLOCKS],
        }
    }
}

impl<T: Default> Cells<T> {
    /// The cell, if it was used or stands in a block that was.
    pub fn get(&self, index: u32) -> Option<&T> {
        let (block, offset) = place(index);
        self.blocks[block].get().map(|cells| &cells[offset])
    }

    /// The cell, made if need be.
    pub fn cell(&self, index: u32) -> &T {
        let (block, offset) = place(index);
        let make = || (0..FIRST << block).map(|_| T::default()).collect();
        &self.blocks[block].get_or_init(make)[offset]
    }
}

/// Block `b` holds the indices from `FIRST * (2^b - 1)` on.
fn place(index: u32) -> (usize, usize) {
    let from_first = u64::from(index) + FIRST;
    let block = (from_first / FIRST).ilog2();
    (block as usize, (from_first - (FIRST << block)) as usize)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_index_has_a_place_of_its_own() {
        for (index, expected) in [
            (0, (0, 0)),
            (63, (0, 63)),
            (64, (1, 0)),
            (191, (1, 127)),
            (192, (2, 0)),
            (1_000_000, (13, 475_776)),
        ] {
            assert_eq!(place(index), expected, "{index}");
        }
        let (block, offset) = place(u32::MAX);
        assert!(block < BLOCKS && (offset as u64) < FIRST << block);
    }

    #[test]
    fn a_cell_stays_where_it_was_made() {
        let cells = Cells::<u8>::default();
        assert!(cells.get(70).is_none());
        let made = std::ptr::from_ref(cells.cell(70));
        cells.cell(5000);
        assert_eq!(cells.get(70).map(std::ptr::from_ref), Some(made));
        assert!(cells.get(0).is_none(), "its block was not used");
    }
}
