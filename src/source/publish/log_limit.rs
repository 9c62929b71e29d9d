//! Keeps a flood of one kind of line from drowning the rest of the log: whoever may write keys may write thousands of
//! bad ones.

use std::{borrow::Cow, future, time::Duration};

use tokio::time::{Instant, sleep_until};

/// How many lines of one kind are logged within [`WINDOW`]; further ones are counted.
pub(super) const LINES: usize = 20;
pub(super) const WINDOW: Duration = Duration::from_secs(1);

/// Longest text that a line quotes, in characters.
const LONGEST: usize = 300;

/// Lines of one kind.
#[derive(Default)]
pub(super) struct LogLimit {
    /// When the current window began; `None` before the first line.
    since: Option<Instant>,
    logged: usize,
    /// Not logged in this window, which may go on.
    kept_back: usize,
    /// Not logged in windows that are over.
    owed: usize,
}

impl LogLimit {
    /// Whether one more line may be logged; else it is counted.
    pub(super) fn admits(&mut self) -> bool {
        self.roll();
        let is_admitted = self.logged < LINES;
        match is_admitted {
            true => self.logged += 1,
            false => self.kept_back += 1,
        }
        is_admitted
    }

    /// How many lines were not logged and are told of nowhere yet, once their window is over.
    pub(super) fn take_owed(&mut self) -> Option<usize> {
        self.roll();
        Some(std::mem::take(&mut self.owed)).filter(|owed| *owed > 0)
    }

    /// Ends when there is something to take.
    pub(super) async fn due(&self) {
        match self.since {
            Some(since) if self.kept_back > 0 => sleep_until(since + WINDOW).await,
            _ if self.owed > 0 => {}
            _ => future::pending().await,
        }
    }

    fn roll(&mut self) {
        let now = Instant::now();
        if self.since.is_some_and(|since| now < since + WINDOW) {
            return;
        }
        self.since = Some(now);
        self.logged = 0;
        self.owed += std::mem::take(&mut self.kept_back);
    }
}

/// As much of a text as a line quotes.
pub(super) fn quoted(text: &str) -> Cow<'_, str> {
    match text.char_indices().nth(LONGEST) {
        Some((end, _)) => format!("{}\u{2026}", &text[..end]).into(),
        None => text.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn of_a_flood_the_first_are_logged_and_the_others_counted() {
        let mut limit = LogLimit::default();
        let admitted =
            |limit: &mut LogLimit, lines: usize| (0..lines).filter(|_| limit.admits()).count();
        assert_eq!(admitted(&mut limit, LINES - 1), LINES - 1);
        assert_eq!(limit.take_owed(), None);
        assert_eq!(admitted(&mut limit, 6), 1);
        assert_eq!(limit.take_owed(), None, "its window goes on");
        limit.due().await;
        assert_eq!(limit.take_owed(), Some(5));
        assert_eq!(limit.take_owed(), None, "it was told");
        let idle = tokio::time::timeout(10 * WINDOW, limit.due()).await;
        assert!(idle.is_err(), "nothing is due");
        // Some in each window, and nobody looks between.
        assert_eq!(admitted(&mut limit, LINES + 3), LINES);
        tokio::time::advance(WINDOW).await;
        assert_eq!(admitted(&mut limit, LINES + 4), LINES);
        assert_eq!(limit.take_owed(), Some(3));
        limit.due().await;
        assert_eq!(limit.take_owed(), Some(4));
    }

    #[test]
    fn a_line_quotes_so_much() {
        assert_eq!(quoted("short"), "short");
        let long = "\u{e4}".repeat(LONGEST);
        assert_eq!(quoted(&long), long);
        let longer = long.clone() + "b";
        assert_eq!(quoted(&longer), long + "\u{2026}");
    }
}
