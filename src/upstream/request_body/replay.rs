//! What was taken of a request's body, kept within bounds so that it can be sent again.

use std::{cell::Cell, rc::Rc};

use bytes::Bytes;
use http::HeaderMap;

use super::RequestFrame;

/// The most that is kept of one body, in bytes.
pub const MOST_OF_ONE: usize = 64 * 1024;
/// The most that one worker keeps of all bodies together, in bytes.
const MOST_OF_ALL: usize = 32 * 1024 * 1024;

/// The room of one worker for bodies that may have to be sent again.
pub struct ReplayRoom {
    left: Rc<Cell<usize>>,
}

/// A copy of what was taken of one body so far: bodies sent in small pieces would pin the buffers they came in.
pub struct Replay {
    /// Has room for `most` bytes and no more.
    kept: Vec<u8>,
    trailers: Option<HeaderMap>,
    /// The trailers were sent again.
    trailers_read: bool,
    /// How much of `kept` was sent in this pass.
    read: usize,
    /// What it may grow to, which is set aside for it.
    most: usize,
    is_of_known_length: bool,
    room: Rc<Cell<usize>>,
}

impl Default for ReplayRoom {
    fn default() -> Self {
        Self {
            left: Rc::new(Cell::new(MOST_OF_ALL)),
        }
    }
}

impl ReplayRoom {
    /// Room for a body of this length; `None` if it is too large, or there is no room left. Set aside for as long as
    /// the [`Replay`] lives.
    pub fn reserve(&self, length: Option<u64>) -> Option<Replay> {
        let most = match length {
            None => MOST_OF_ONE,
            Some(length) => usize::try_from(length)
                .ok()
                .filter(|&length| length <= MOST_OF_ONE)?,
        };
        self.left.set(self.left.get().checked_sub(most)?);
        Some(Replay {
            kept: Vec::new(),
            trailers: None,
            trailers_read: false,
            read: 0,
            most,
            is_of_known_length: length.is_some(),
            room: self.left.clone(),
        })
    }
}

impl Replay {
    /// Keeps what was just taken; `false` if that is more than there is room for.
    pub(super) fn keep(&mut self, frame: &RequestFrame) -> bool {
        match frame {
            RequestFrame::Data(data) => {
                if self.kept.len() + data.len() > self.most {
                    return false;
                }
                self.make_room(data.len());
                self.kept.extend_from_slice(data);
                self.read = self.kept.len();
            }
            RequestFrame::Trailers(trailers) => {
                self.trailers = Some(trailers.clone());
                self.trailers_read = true;
            }
        }
        true
    }

    /// For so many bytes more, within what was set aside. Of a body of known length there is one allocation: those that
    /// were outgrown would stay with the allocator, beside the bodies that run.
    fn make_room(&mut self, more: usize) {
        let (length, capacity) = (self.kept.len(), self.kept.capacity());
        if capacity - length >= more {
            return;
        }
        let wanted = match self.is_of_known_length {
            true => self.most,
            false => (2 * capacity).clamp(length + more, self.most),
        };
        self.kept.reserve_exact(wanted - length);
    }

    /// What was kept is to be sent again.
    pub(super) fn rewind(&mut self) {
        self.read = 0;
        self.trailers_read = false;
    }

    /// What was kept and is to be sent again; `None` when that is over.
    pub(super) fn next(&mut self) -> Option<RequestFrame> {
        if self.read < self.kept.len() {
            let rest = Bytes::copy_from_slice(&self.kept[self.read..]);
            self.read = self.kept.len();
            return Some(RequestFrame::Data(rest));
        }
        let trailers = self.trailers.as_ref().filter(|_| !self.trailers_read)?;
        self.trailers_read = true;
        Some(RequestFrame::Trailers(trailers.clone()))
    }
}

impl Drop for Replay {
    fn drop(&mut self) {
        self.room.set(self.room.get() + self.most);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(frame: Option<RequestFrame>) -> String {
        match frame {
            Some(RequestFrame::Data(data)) => String::from_utf8_lossy(&data).into_owned(),
            Some(RequestFrame::Trailers(trailers)) => format!("{trailers:?}"),
            None => "nothing".to_owned(),
        }
    }

    #[test]
    fn what_was_kept_is_given_again_and_what_comes_after_it_is_kept_too() {
        let mut replay = ReplayRoom::default().reserve(None).expect("room");
        for data in ["one", "two"] {
            assert!(replay.keep(&RequestFrame::Data(data.into())));
        }
        assert_eq!(text(replay.next()), "nothing", "it was sent as it came");
        replay.rewind();
        assert_eq!(text(replay.next()), "onetwo");
        assert_eq!(text(replay.next()), "nothing");
        assert!(replay.keep(&RequestFrame::Data("three".into())));
        let trailers = HeaderMap::from_iter([("x-sum".parse().unwrap(), "1".parse().unwrap())]);
        assert!(replay.keep(&RequestFrame::Trailers(trailers)));
        assert_eq!(text(replay.next()), "nothing");
        replay.rewind();
        assert_eq!(text(replay.next()), "onetwothree");
        assert_eq!(text(replay.next()), r#"{"x-sum": "1"}"#);
        assert_eq!(text(replay.next()), "nothing");
    }

    #[test]
    fn memory_is_bounded_per_body_and_over_all() {
        let room = ReplayRoom::default();
        assert!(room.reserve(Some(MOST_OF_ONE as u64 + 1)).is_none());
        let mut one = room.reserve(Some(5)).expect("room");
        assert!(one.keep(&RequestFrame::Data("hell".into())));
        assert!(!one.keep(&RequestFrame::Data("oo".into())), "more than 5");
        drop(one);
        for (length, pieces) in [(Some(60_000), 8), (None, 8), (None, 5), (Some(1), 1)] {
            let mut replay = room.reserve(length).expect("room");
            let piece = vec![b'x'; length.unwrap_or(60_000) as usize / pieces];
            for _ in 0..pieces {
                assert!(replay.keep(&RequestFrame::Data(piece.clone().into())));
                assert!(replay.kept.capacity() <= replay.most, "{length:?}");
            }
        }
        let all: Vec<_> = std::iter::from_fn(|| room.reserve(None)).collect();
        assert_eq!(all.len(), MOST_OF_ALL / MOST_OF_ONE);
        assert!(room.reserve(Some(1)).is_none());
        drop(all);
        assert!(room.reserve(None).is_some(), "given back");
    }
}
