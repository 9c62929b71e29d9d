//! When a silent connection is asked whether anybody is there, and when it is given up.

/// Seconds of silence after which the first pings go out; then one each [`REPEAT`]. gRPC servers end connections that
/// ping too often: more than two pings that come within five minutes of another, with nothing sent by them in between.
const PINGS: [u32; 3] = [10, 30, 90];
const REPEAT: u32 = 310;
/// How many seconds an answer may take.
const ANSWER: u32 = 10;

/// The silence of one connection that has streams, counted in seconds by whoever looks at it: a process that was
/// stopped has not waited.
#[derive(Default)]
pub(super) struct Keepalive {
    /// The frames seen when the silence began.
    frames: u64,
    silent: u32,
    ping: Option<Unanswered>,
}

struct Unanswered {
    /// How much was read when it was sent.
    reads: u64,
    waited: u32,
}

/// What is to be done about a silent connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Nothing.
    Wait,
    /// A ping.
    Ping,
    /// Nobody is there.
    Dead,
}

impl Keepalive {
    /// To be called once a second while there are streams, with the frames (but pings) and reads so far.
    pub(super) fn check(&mut self, frames: u64, reads: u64) -> Verdict {
        if frames != self.frames {
            *self = Self {
                frames,
                ..Self::default()
            };
            return Verdict::Wait;
        }
        self.silent = self.silent.saturating_add(1);
        if let Some(ping) = &mut self.ping {
            if ping.reads == reads {
                ping.waited += 1;
                return match ping.waited {
                    ..ANSWER => Verdict::Wait,
                    _ => Verdict::Dead,
                };
            }
            self.ping = None;
        }
        let last = PINGS[PINGS.len() - 1];
        let due = PINGS.contains(&self.silent)
            || self.silent > last && (self.silent - last).is_multiple_of(REPEAT);
        if due {
            self.ping = Some(Unanswered { reads, waited: 0 });
            return Verdict::Ping;
        }
        Verdict::Wait
    }

    /// There are no streams: silence means nothing.
    pub(super) fn rest(&mut self) {
        self.silent = 0;
        self.ping = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn silence_is_pinged_ever_more_rarely_while_it_is_answered() {
        let mut keepalive = Keepalive::default();
        let mut reads = 0;
        let mut pings = Vec::new();
        for second in 1..=1000 {
            match keepalive.check(0, reads) {
                Verdict::Wait => {}
                Verdict::Ping => {
                    pings.push(second);
                    reads += 1;
                }
                Verdict::Dead => panic!("dead after {second} s"),
            }
        }
        assert_eq!(pings, [10, 30, 90, 400, 710]);
    }

    #[test]
    fn an_unanswered_ping_ends_the_connection_and_a_frame_begins_anew() {
        let mut keepalive = Keepalive::default();
        let mut check = |frames, reads, seconds: u32| {
            let verdicts = (0..seconds).map(|_| keepalive.check(frames, reads));
            verdicts.last().expect("a second at least")
        };
        assert_eq!(check(0, 1, 10), Verdict::Ping);
        assert_eq!(check(0, 1, 9), Verdict::Wait);
        assert_eq!(check(1, 2, 1), Verdict::Wait, "it spoke");
        assert_eq!(check(1, 2, 9), Verdict::Wait);
        assert_eq!(check(1, 2, 1), Verdict::Ping);
        assert_eq!(check(1, 2, 9), Verdict::Wait);
        assert_eq!(check(1, 2, 1), Verdict::Dead);
    }
}
