//! The byte stream under an HTTP/2 connection, watched for what `h2` keeps to itself: when the upstream's settings
//! have come, which streams a GOAWAY vouches for, whether the upstream shows signs of life, and how much comes in crumbs.

use std::{
    cell::Cell,
    io::{self, IoSlice},
    pin::Pin,
    rc::Rc,
    task::{Context, Poll, ready},
};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::sips::Sips;
use crate::upstream::transport::Transport;

/// `h2` counts what is smaller as overhead, each such frame as at most this many bytes.
const CRUMB: usize = 256;
/// How many of them may come before they are gathered. Those of one more turn of reading come on top.
const MANY_CRUMBS: usize = 512;

/// What was seen on a connection.
#[derive(Default)]
pub(super) struct Watch {
    greeted: Cell<bool>,
    last_stream: Cell<Option<u32>>,
    frames: Cell<u64>,
    reads: Cell<u64>,
    crumbs: Cell<usize>,
}

impl Watch {
    /// Whether the upstream's first settings have come.
    pub(super) fn is_greeted(&self) -> bool {
        self.greeted.get()
    }

    /// Whether it said GOAWAY.
    pub(super) fn is_going_away(&self) -> bool {
        self.last_stream.get().is_some()
    }

    /// Whether a GOAWAY says that the upstream did nothing about this stream, and won't (RFC 9113 section 6.8).
    pub(super) fn is_unprocessed(&self, stream: u32) -> bool {
        self.last_stream.get().is_some_and(|last| stream > last)
    }

    /// How many frames came, pings and their answers apart.
    pub(super) fn frames(&self) -> u64 {
        self.frames.get()
    }

    /// How many times something was read.
    pub(super) fn reads(&self) -> u64 {
        self.reads.get()
    }

    /// Whether so many small DATA frames came since it last said so that they should be [gathered]; the count begins anew.
    ///
    /// [gathered]: super::incoming::Responses::gather
    pub(super) fn take_crumbs(&self) -> bool {
        let many = self.crumbs.get() >= MANY_CRUMBS;
        if many {
            self.crumbs.set(0);
        }
        many
    }

    fn note(&self, frame: Frame) {
        if frame != Frame::Ping {
            self.frames.set(self.frames.get() + 1);
        }
        match frame {
            Frame::Settings => self.greeted.set(true),
            Frame::GoAway { last } => {
                let known = self.last_stream.get().unwrap_or(u32::MAX);
                self.last_stream.set(Some(known.min(last)));
            }
            Frame::Crumb => self.crumbs.set(self.crumbs.get() + 1),
            Frame::Ping | Frame::Other => {}
        }
    }
}

/// The stream to an upstream, as `h2` gets it.
pub(super) struct Watched {
    sips: Sips,
    scanner: Scanner,
    watch: Rc<Watch>,
}

impl Watched {
    pub(super) fn new(transport: Transport) -> (Self, Rc<Watch>) {
        let watch = Rc::<Watch>::default();
        let watched = Self {
            sips: Sips::from(transport),
            scanner: Scanner::default(),
            watch: watch.clone(),
        };
        (watched, watch)
    }
}

impl AsyncRead for Watched {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        let before = buf.filled().len();
        ready!(Pin::new(&mut this.sips).poll_read(cx, buf))?;
        let read = &buf.filled()[before..];
        this.watch.reads.set(this.watch.reads.get() + 1);
        this.scanner.scan(read, |frame| this.watch.note(frame));
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Watched {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.sips).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.sips).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.sips.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.sips).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.sips).poll_shutdown(cx)
    }
}

/// A frame, as far as it matters here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Frame {
    /// The upstream's settings, whole.
    Settings,
    /// The highest stream that it may have acted on.
    GoAway {
        last: u32,
    },
    Ping,
    /// DATA that costs more than it brings.
    Crumb,
    Other,
}

/// Finds the frames in what is read, however it is cut (RFC 9113 section 4.1).
#[derive(Default)]
struct Scanner {
    header: [u8; HEADER],
    header_read: usize,
    /// Bytes of the payload still to come.
    left: usize,
    /// The first bytes of a GOAWAY's payload.
    last: [u8; 4],
    last_read: usize,
}

const HEADER: usize = 9;
const DATA: u8 = 0x0;
const SETTINGS: u8 = 0x4;
const PING: u8 = 0x6;
const GOAWAY: u8 = 0x7;
const ACK: u8 = 0x1;
const PADDED: u8 = 0x8;

impl Scanner {
    fn scan(&mut self, mut bytes: &[u8], mut seen: impl FnMut(Frame)) {
        while !bytes.is_empty() {
            if self.header_read < HEADER {
                let taken = bytes.len().min(HEADER - self.header_read);
                self.header[self.header_read..][..taken].copy_from_slice(&bytes[..taken]);
                self.header_read += taken;
                bytes = &bytes[taken..];
                if self.header_read < HEADER {
                    return;
                }
                self.left = self.length();
                self.last_read = 0;
            }
            let taken = bytes.len().min(self.left);
            if self.header[3] == GOAWAY {
                for &byte in bytes[..taken].iter().take(4 - self.last_read) {
                    self.last[self.last_read] = byte;
                    self.last_read += 1;
                }
            }
            self.left -= taken;
            bytes = &bytes[taken..];
            if self.left == 0 {
                self.header_read = 0;
                seen(self.frame());
            }
        }
    }

    /// Bytes of the payload, as the header says.
    fn length(&self) -> usize {
        let [a, b, c, ..] = self.header;
        u32::from_be_bytes([0, a, b, c]) as usize
    }

    /// The frame that has just ended.
    fn frame(&self) -> Frame {
        match (self.header[3], self.header[4]) {
            (SETTINGS, flags) if flags & ACK == 0 => Frame::Settings,
            (PING, _) => Frame::Ping,
            // How much of a frame is padding is not looked at.
            (DATA, flags) if flags & PADDED != 0 || self.length() < CRUMB => Frame::Crumb,
            // The highest bit is reserved.
            (GOAWAY, _) if self.last_read == 4 => Frame::GoAway {
                last: u32::from_be_bytes(self.last) & (u32::MAX >> 1),
            },
            _ => Frame::Other,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(kind: u8, flags: u8, payload: &[u8]) -> Vec<u8> {
        let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
        let mut bytes = length[1..].to_vec();
        bytes.extend([kind, flags, 0, 0, 0, 0]);
        bytes.extend(payload);
        bytes
    }

    #[test]
    fn frames_are_found_however_they_are_cut() {
        let bytes = [
            frame(SETTINGS, 0, &[0; 12]),
            frame(SETTINGS, ACK, &[]),
            frame(0, 0, &[GOAWAY; 700]),
            frame(PING, ACK, &[7; 8]),
            frame(DATA, 0, &[0; CRUMB - 1]),
            frame(DATA, PADDED, &[200; 700]),
            frame(GOAWAY, 0, &[0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0]),
            frame(GOAWAY, 0, b"\0\0\x01\x03\0\0\0\0because"),
            frame(GOAWAY, 0, b"\0"),
            frame(SETTINGS, 0, &[]),
        ]
        .concat();
        let expected = [
            Frame::Settings,
            Frame::Other,
            Frame::Other,
            Frame::Ping,
            Frame::Crumb,
            Frame::Crumb,
            Frame::GoAway { last: 0x7fff_ffff },
            Frame::GoAway { last: 0x103 },
            Frame::Other,
            Frame::Settings,
        ];
        for size in 1..bytes.len() {
            let (mut scanner, mut seen) = (Scanner::default(), Vec::new());
            for piece in bytes.chunks(size) {
                scanner.scan(piece, |frame| seen.push(frame));
            }
            assert_eq!(seen, expected, "in pieces of {size}");
        }
    }

    #[test]
    fn the_lowest_stream_of_several_goaways_counts() {
        let watch = Watch::default();
        assert!(!watch.is_unprocessed(1));
        for (last, unprocessed) in [(0x7fff_ffff, false), (5, true), (9, true)] {
            watch.note(Frame::GoAway { last });
            assert_eq!(watch.is_unprocessed(7), unprocessed, "{last}");
        }
        assert!(watch.is_going_away() && !watch.is_unprocessed(5));
    }
}
