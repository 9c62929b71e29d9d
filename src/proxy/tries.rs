//! Where a request was sent in vain, and what it may still cost.

use smallvec::SmallVec;

use super::{attempt::From, retry::Cause};

/// How many members a request tries while each refuses the connection.
const MAX_REFUSALS: usize = 8;

/// How often upstreams may say that they did nothing about a request.
const MAX_UNPROCESSED: usize = 3;

/// How many members are passed over that can't be asked for what a request wants.
const MAX_UNSUITED: usize = 64;

/// The attempts of one request that failed.
#[derive(Clone, Debug)]
pub(super) struct Tries {
    /// The members that had it, by index.
    pub(super) members: SmallVec<[usize; 4]>,
    /// Attempts it may still cost, refused connections apart.
    extra: u32,
    /// Members that refused the connection.
    refusals: usize,
    /// Members that were passed over.
    unsuited: usize,
    /// Attempts that their upstreams did nothing about.
    unprocessed: usize,
    /// A connection from a pool turned out to be at its end.
    met_stale: bool,
}

/// Whom the next attempt goes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Again {
    /// The same member, on a fresh connection.
    Same,
    /// Another one.
    Other,
    /// Another one, or the same one if there is none.
    OtherOrSame,
}

impl Tries {
    /// None yet, and at most so many beyond the first.
    pub(super) fn new(extra: u32) -> Self {
        Self {
            members: SmallVec::new(),
            extra,
            refusals: 0,
            unsuited: 0,
            unprocessed: 0,
            met_stale: false,
        }
    }

    /// As they are in another version of the route, which has these members at these places.
    pub(super) fn moved(&self, members: SmallVec<[usize; 4]>) -> Self {
        Self { members, ..*self }
    }

    /// Where further attempts take their connections from. Only one may end for nothing: what ended the first, should
    /// it be the request itself, would end each that is kept anywhere.
    pub(super) fn from(&self) -> From {
        match self.met_stale {
            true => From::Dial,
            false => From::Pool,
        }
    }

    /// Whom the request may go to after an attempt at this member that ended so; `None`: nobody.
    pub(super) fn again(&mut self, cause: Cause, member: usize) -> Option<Again> {
        let again = match cause {
            // A fresh connection is as good as any.
            Cause::Stale => {
                self.met_stale = true;
                return Some(Again::Same);
            }
            // Another connection to the same upstream is what it asks for.
            Cause::GoneAway if self.unprocessed < MAX_UNPROCESSED => {
                self.unprocessed += 1;
                return Some(Again::Same);
            }
            Cause::RefusedStream if self.unprocessed < MAX_UNPROCESSED => {
                self.unprocessed += 1;
                Again::OtherOrSame
            }
            Cause::Unsuited if self.unsuited < MAX_UNSUITED => {
                self.unsuited += 1;
                Again::Other
            }
            Cause::Refused if self.refusals + 1 < MAX_REFUSALS => {
                self.refusals += 1;
                Again::Other
            }
            Cause::Reset if self.extra > 0 => Again::OtherOrSame,
            // Whoever answers so, or is so slow, would only do it again.
            Cause::Connect | Cause::BadGateway | Cause::Unavailable | Cause::GatewayTimeout
                if self.extra > 0 =>
            {
                Again::Other
            }
            _ => return None,
        };
        if cause.costs_an_attempt() {
            self.extra -= 1;
        }
        self.members.push(member);
        Some(again)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What becomes of a request whose attempts, at members 0, 1, ..., end so.
    fn run(extra: u32, causes: &[Cause]) -> Vec<Option<Again>> {
        let mut tries = Tries::new(extra);
        let ends = causes.iter().enumerate();
        ends.map(|(member, &cause)| tries.again(cause, member))
            .collect()
    }

    #[test]
    fn attempts_are_counted_and_refusals_are_bounded_apart() {
        let (same, other, either) = (
            Some(Again::Same),
            Some(Again::Other),
            Some(Again::OtherOrSame),
        );
        for (extra, causes, expected) in [
            (1, &[Cause::Reset, Cause::Reset][..], &[either, None][..]),
            (
                2,
                &[Cause::Reset, Cause::Unavailable, Cause::Reset],
                &[either, other, None],
            ),
            (0, &[Cause::Reset], &[None]),
            (0, &[Cause::BadGateway], &[None]),
            (1, &[Cause::Stale, Cause::Reset], &[same, either]),
            (
                1,
                &[Cause::Refused, Cause::Refused, Cause::Reset],
                &[other, other, either],
            ),
            (1, &[Cause::Connect, Cause::Connect], &[other, None]),
            (
                1,
                &[
                    Cause::RefusedStream,
                    Cause::GoneAway,
                    Cause::RefusedStream,
                    Cause::Reset,
                ],
                &[either, same, either, either],
            ),
            (
                0,
                &[Cause::RefusedStream; 4],
                &[either, either, either, None],
            ),
            (0, &[Cause::GoneAway; 4], &[same, same, same, None]),
            (
                1,
                &[Cause::Refused; 8],
                &[other, other, other, other, other, other, other, None],
            ),
            (
                0,
                &[&[Cause::Unsuited; 9][..], &[Cause::Refused, Cause::Refused]].concat(),
                &[other; 11],
            ),
            (
                1,
                &[Cause::GatewayTimeout, Cause::GatewayTimeout],
                &[other, None],
            ),
        ] {
            assert_eq!(run(extra, causes), expected, "{extra} {causes:?}");
        }
    }

    #[test]
    fn one_connection_may_end_for_nothing() {
        let mut tries = Tries::new(1);
        assert!(tries.from() == From::Pool);
        tries.again(Cause::Refused, 0);
        assert!(tries.from() == From::Pool);
        tries.again(Cause::Stale, 1);
        tries.again(Cause::Refused, 1);
        assert!(tries.from() == From::Dial);
        assert!(tries.moved(SmallVec::new()).from() == From::Dial);
    }
}
