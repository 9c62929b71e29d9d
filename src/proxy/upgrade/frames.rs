//! WebSocket frames as they pass (RFC 6455 section 5.2): where one ends, so that a frame of ours may follow it. Only
//! headers are looked at, and nothing is kept of the payload.

/// Follows one direction of a WebSocket through its frames.
#[derive(Clone, Copy, Debug, Default)]
pub struct Frames {
    at: At,
    /// The frame that passes is a Close.
    is_close: bool,
    has_closed: bool,
}

/// What the next byte belongs to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum At {
    /// A new frame: its first byte.
    #[default]
    Boundary,
    /// The byte with the short length.
    Length,
    /// The long length, most significant byte first.
    LongLength { missing: u8, so_far: u64, key: u64 },
    /// The masking key, if there is one, and the payload.
    Rest(u64),
}

/// The opcode of a Close frame.
const CLOSE: u8 = 0x8;
/// The bit of the last fragment, which a control frame always is.
const FINAL: u8 = 0x80;
/// The bit that says that a masking key follows.
const MASKED: u8 = 0x80;
const KEY_LENGTH: u64 = 4;
/// "An endpoint is going away" (RFC 6455 section 7.4.1).
const GOING_AWAY: u16 = 1001;
/// The longest payload of a control frame.
const LONGEST: usize = 125;

impl Frames {
    /// These bytes pass.
    pub fn pass(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let taken = self.step(bytes);
            bytes = &bytes[taken..];
        }
    }

    /// How many of these bytes, which are the next, belong to the frame that passes; `None` if all do and it is not over
    /// with them. 0 between two frames.
    pub fn rest_of_frame(mut self, bytes: &[u8]) -> Option<usize> {
        let mut passed = 0;
        while self.at != At::Boundary {
            if passed == bytes.len() {
                return None;
            }
            passed += self.step(&bytes[passed..]);
        }
        Some(passed)
    }

    /// Whether a whole Close frame has passed: no frame may follow it.
    pub fn has_closed(&self) -> bool {
        self.has_closed
    }

    /// Takes at least one of these bytes (there is one): how many.
    fn step(&mut self, bytes: &[u8]) -> usize {
        let first = bytes[0];
        let (next, taken) = match self.at {
            At::Boundary => {
                self.is_close = first & 0x0f == CLOSE;
                (At::Length, 1)
            }
            At::Length => {
                let key = if first & MASKED == 0 { 0 } else { KEY_LENGTH };
                let long = |missing| At::LongLength {
                    missing,
                    so_far: 0,
                    key,
                };
                let next = match first & !MASKED {
                    126 => long(2),
                    127 => long(8),
                    length => At::Rest(key + u64::from(length)),
                };
                (next, 1)
            }
            At::LongLength {
                missing,
                so_far,
                key,
            } => {
                let so_far = so_far << 8 | u64::from(first);
                let next = match missing {
                    1 => At::Rest(so_far.saturating_add(key)),
                    _ => At::LongLength {
                        missing: missing - 1,
                        so_far,
                        key,
                    },
                };
                (next, 1)
            }
            At::Rest(left) => {
                let taken = usize::try_from(left).map_or(bytes.len(), |left| left.min(bytes.len()));
                (At::Rest(left - taken as u64), taken)
            }
        };
        self.at = next;
        if next == At::Rest(0) {
            self.has_closed |= self.is_close;
            self.at = At::Boundary;
        }
        taken
    }
}

/// A Close frame that says "going away" and why; towards a server it is masked by a key, as all frames are.
pub fn going_away(why: &str, key: Option<[u8; 4]>) -> Vec<u8> {
    debug_assert!(why.len() + 2 <= LONGEST);
    let mut payload = GOING_AWAY.to_be_bytes().to_vec();
    payload.extend_from_slice(why.as_bytes());
    payload.truncate(LONGEST);
    let length = payload.len() as u8;
    match key {
        None => [&[FINAL | CLOSE, length][..], &payload].concat(),
        Some(key) => {
            let bytes = payload.iter_mut().zip(key.iter().cycle());
            bytes.for_each(|(byte, key)| *byte ^= key);
            [&[FINAL | CLOSE, MASKED | length][..], &key, &payload].concat()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: u8 = 0x1;
    const CONTINUATION: u8 = 0x0;
    const PING: u8 = 0x9;

    /// A frame of so many payload bytes, each of which would begin a Close frame if taken for a header.
    fn frame(first: u8, length: usize, key: Option<[u8; 4]>) -> Vec<u8> {
        let mut frame = vec![first];
        let mask = if key.is_some() { MASKED } else { 0 };
        match length {
            0..126 => frame.push(mask | length as u8),
            126..65536 => {
                frame.push(mask | 126);
                frame.extend_from_slice(&(length as u16).to_be_bytes());
            }
            _ => {
                frame.push(mask | 127);
                frame.extend_from_slice(&(length as u64).to_be_bytes());
            }
        }
        frame.extend(key.into_iter().flatten());
        frame.resize(frame.len() + length, FINAL | CLOSE);
        frame
    }

    /// Every kind of frame once: lengths of 7, 16 and 64 bits and their edges, masked and not, a message in fragments
    /// with a control frame between them. The last is the Close.
    fn stream() -> Vec<Vec<u8>> {
        let key = Some([0x88, 0, 0x7f, 0xfe]);
        vec![
            frame(FINAL | TEXT, 0, None),
            frame(FINAL | TEXT, 0, key),
            frame(FINAL | TEXT, 125, None),
            frame(FINAL | TEXT, 126, key),
            frame(TEXT, 300, None),
            frame(FINAL | PING, 5, key),
            frame(CONTINUATION, 1, None),
            frame(FINAL | CONTINUATION, 2, key),
            frame(0x40 | FINAL | TEXT, 65535, key),
            frame(FINAL | 0x2, 65536, None),
            frame(FINAL | 0x2, 70_000, key),
            frame(FINAL | CLOSE, 2, key),
        ]
    }

    #[test]
    fn frames_end_where_they_end_however_the_bytes_come() {
        let frames = stream();
        let bytes = frames.concat();
        let mut ends: Vec<_> = frames
            .iter()
            .scan(0, |end, frame| {
                *end += frame.len();
                Some(*end)
            })
            .collect();
        ends.insert(0, 0);
        let small = 1_000;
        // Byte by byte through all that is small, and at every distance around each end.
        let near_an_end = |at: &usize| ends.iter().any(|end| end.abs_diff(*at) < 16);
        for at in (0..=bytes.len()).filter(|at| *at < small || near_an_end(at)) {
            let (before, after) = bytes.split_at(at);
            let next = *ends.iter().find(|end| **end >= at).unwrap();
            for piece in [1, 2, 3, 7, 8192, usize::MAX] {
                if at > small && piece < 8192 {
                    continue;
                }
                let mut following = Frames::default();
                before.chunks(piece).for_each(|piece| following.pass(piece));
                assert_eq!(
                    following.rest_of_frame(after),
                    Some(next - at),
                    "at {at}, in pieces of {piece}"
                );
                assert_eq!(
                    following.has_closed(),
                    at == bytes.len(),
                    "at {at}, in pieces of {piece}"
                );
                if let Some(cut) = (next - at).checked_sub(1) {
                    assert_eq!(following.rest_of_frame(&after[..cut]), None, "at {at}");
                }
            }
        }
    }

    #[test]
    fn a_length_beyond_all_bounds_never_ends() {
        for second in [127, MASKED | 127] {
            let mut frames = Frames::default();
            frames.pass(&[FINAL | TEXT, second]);
            frames.pass(&[0xff; 8]);
            for _ in 0..10 {
                frames.pass(&[0; 4096]);
                assert_eq!(frames.rest_of_frame(&[0; 4096]), None);
            }
        }
    }

    #[test]
    fn going_away_is_one_close_frame_with_its_code_and_reason() {
        let plain = going_away("bye", None);
        assert_eq!(plain, b"\x88\x05\x03\xe9bye");
        let key = [1, 2, 3, 4];
        let masked = going_away("bye", Some(key));
        assert_eq!(masked[..6], [0x88, 0x85, 1, 2, 3, 4]);
        let payload: Vec<_> = (masked[6..].iter().zip(key.iter().cycle()))
            .map(|(byte, key)| byte ^ key)
            .collect();
        assert_eq!(payload, b"\x03\xe9bye");
        for frame in [plain, masked] {
            let mut frames = Frames::default();
            frames.pass(&frame);
            assert!(frames.has_closed());
            assert_eq!(frames.rest_of_frame(b""), Some(0));
        }
    }
}
