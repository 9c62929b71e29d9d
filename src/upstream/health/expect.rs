//! Which statuses are good: `200`, `200-399`, `200,204,301-308`.

use std::{fmt, str::FromStr};

/// Ranges of statuses.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Expect(Box<[(u16, u16)]>);

/// More are not needed, and each is compared with each answer.
const MOST_RANGES: usize = 32;

impl Expect {
    /// Whether this status is good.
    pub fn holds(&self, status: u16) -> bool {
        let is_in = |&(first, last): &(u16, u16)| (first..=last).contains(&status);
        self.0.iter().any(is_in)
    }
}

impl Default for Expect {
    fn default() -> Self {
        Self(Box::new([(200, 399)]))
    }
}

impl FromStr for Expect {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let bad = || format!("{text:?} is no list of statuses such as \"200-399\" or \"200,204\"");
        let status = |text: &str| -> Option<u16> {
            let text = text.trim();
            let is_three_digits = text.len() == 3 && text.bytes().all(|byte| byte.is_ascii_digit());
            let status = is_three_digits.then(|| text.parse().ok()).flatten()?;
            (200..=599).contains(&status).then_some(status)
        };
        let range = |part: &str| match part.split_once('-') {
            None => status(part).map(|status| (status, status)),
            Some((first, last)) => {
                let range = (status(first)?, status(last)?);
                (range.0 <= range.1).then_some(range)
            }
        };
        let ranges: Option<Box<[_]>> = text.split(',').map(range).collect();
        match ranges {
            Some(ranges) if ranges.len() <= MOST_RANGES => Ok(Self(ranges)),
            _ => Err(bad()),
        }
    }
}

impl fmt::Display for Expect {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, (first, last)) in self.0.iter().enumerate() {
            let comma = if index > 0 { "," } else { "" };
            match first == last {
                true => write!(f, "{comma}{first}")?,
                false => write!(f, "{comma}{first}-{last}")?,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statuses_and_ranges_are_read_and_held() {
        for (text, good, bad) in [
            ("200", &[200][..], &[201, 199, 404][..]),
            ("200-399", &[200, 301, 399], &[400, 503]),
            ("200, 204,301-308", &[200, 204, 301, 308], &[202, 300, 309]),
        ] {
            let expect: Expect = text.parse().expect(text);
            assert!(good.iter().all(|&status| expect.holds(status)), "{text}");
            assert!(!bad.iter().any(|&status| expect.holds(status)), "{text}");
        }
        let expect: Expect = "200, 204,301-308".parse().expect("as above");
        assert_eq!(expect.to_string(), "200,204,301-308");
    }

    #[test]
    fn what_is_no_list_of_statuses_is_refused() {
        let long = vec!["200"; 33].join(",");
        for text in [
            "", "2xx", "399-200", "100", "600", "200-", ",", "0200", &long,
        ] {
            assert!(text.parse::<Expect>().is_err(), "{text}");
        }
    }
}
