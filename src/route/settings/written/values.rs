//! Durations, sizes, numbers and words as they are written.

use std::{fmt, marker::PhantomData, str::FromStr, time::Duration};

use serde::{
    Deserialize, Deserializer,
    de::{self, IntoDeserializer},
};

const DAY: Duration = Duration::from_secs(24 * 60 * 60);

/// Longer than any request lives; catches `5d` written for `5s`.
const MAX_DURATION: Duration = Duration::from_secs(7 * DAY.as_secs());

/// Browsers keep no cookie longer (RFC 6265bis section 5.5).
const MAX_COOKIE_LIFE: Duration = Duration::from_secs(400 * DAY.as_secs());

/// `"5s"`: over zero, up to [`MAX_DURATION`].
pub(in crate::route) struct Span(pub(in crate::route) Duration);

impl FromStr for Span {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let duration = duration(text)?;
        if duration.is_zero() {
            return Err(format!(
                "{text:?} is zero; leave the field out for the default"
            ));
        }
        if duration > MAX_DURATION {
            return Err(format!("{text:?} is over the limit of 7 days"));
        }
        Ok(Self(duration))
    }
}

/// How long a client is to keep a cookie: whole seconds, from one to [`MAX_COOKIE_LIFE`].
pub(super) struct CookieLife(pub(super) Duration);

impl FromStr for CookieLife {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match duration(text)? {
            short if short < Duration::from_secs(1) => Err(format!(
                "{text:?} is under 1 second; leave the field out for a cookie that lasts until the client is closed"
            )),
            long if long > MAX_COOKIE_LIFE => Err(format!(
                "{text:?} is over 400 days, the longest that browsers keep a cookie"
            )),
            life => Ok(Self(life)),
        }
    }
}

/// How long a connection may lie idle.
pub(in crate::route) struct IdleSpan(pub(in crate::route) Duration);

impl FromStr for IdleSpan {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if duration(text)?.is_zero() {
            return Err(format!("{text:?} is zero; \"max_idle\": 0 keeps none"));
        }
        text.parse().map(|Span(span)| Self(span))
    }
}

fn duration(text: &str) -> Result<Duration, String> {
    if text.contains('M') {
        return Err(format!(
            "{text:?} has an \"M\", which would be months; write \"1m\" for a minute, \"30days\" for a month"
        ));
    }
    humantime::parse_duration(text)
        .map_err(|error| format!("{text:?} is no duration such as \"5s\" or \"250ms\": {error}"))
}

/// `"64KiB"`: over zero, in bytes.
pub(super) struct Size(pub(super) u64);

impl FromStr for Size {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let size: bytesize::ByteSize = text
            .parse()
            .map_err(|_| format!("{text:?} is no size such as \"64KiB\" or \"10MB\""))?;
        match size.as_u64() {
            0 => Err(format!(
                "{text:?} is zero; leave the field out for no limit"
            )),
            bytes => Ok(Self(bytes)),
        }
    }
}

/// 0 to 100.
pub(super) struct Percent(pub(super) u8);

impl<'de> Deserialize<'de> for Percent {
    fn deserialize<D: Deserializer<'de>>(json: D) -> Result<Self, D::Error> {
        let Count(percent) = Count::<0, 100>::deserialize(json)?;
        Ok(Self(u8::try_from(percent).expect("100 at most")))
    }
}

/// A text that is parsed further.
struct Text<T>(PhantomData<T>, &'static str);

impl<T: FromStr<Err = String>> de::Visitor<'_> for Text<T> {
    type Value = T;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.1)
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<T, E> {
        text.parse().map_err(E::custom)
    }
}

impl<'de> Deserialize<'de> for Span {
    fn deserialize<D: Deserializer<'de>>(json: D) -> Result<Self, D::Error> {
        json.deserialize_str(Text(PhantomData, "a duration such as \"5s\""))
    }
}

impl<'de> Deserialize<'de> for CookieLife {
    fn deserialize<D: Deserializer<'de>>(json: D) -> Result<Self, D::Error> {
        json.deserialize_str(Text(PhantomData, "a duration such as \"1h\""))
    }
}

impl<'de> Deserialize<'de> for IdleSpan {
    fn deserialize<D: Deserializer<'de>>(json: D) -> Result<Self, D::Error> {
        json.deserialize_str(Text(PhantomData, "a duration such as \"60s\""))
    }
}

impl<'de> Deserialize<'de> for Size {
    fn deserialize<D: Deserializer<'de>>(json: D) -> Result<Self, D::Error> {
        json.deserialize_str(Text(PhantomData, "a size such as \"64KiB\""))
    }
}

/// A whole number from `LEAST` to `MOST`.
pub(in crate::route) struct Count<const LEAST: u32, const MOST: u32>(pub(in crate::route) u32);

impl<'de, const LEAST: u32, const MOST: u32> Deserialize<'de> for Count<LEAST, MOST> {
    fn deserialize<D: Deserializer<'de>>(json: D) -> Result<Self, D::Error> {
        json.deserialize_u64(CountVisitor::<LEAST, MOST>).map(Self)
    }
}

struct CountVisitor<const LEAST: u32, const MOST: u32>;

impl<const LEAST: u32, const MOST: u32> de::Visitor<'_> for CountVisitor<LEAST, MOST> {
    type Value = u32;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a whole number from {LEAST} to {MOST}")
    }

    fn visit_u64<E: de::Error>(self, number: u64) -> Result<u32, E> {
        match u32::try_from(number) {
            Ok(count) if (LEAST..=MOST).contains(&count) => Ok(count),
            _ => Err(E::invalid_value(de::Unexpected::Unsigned(number), &self)),
        }
    }
}

/// One of a few words.
pub(in crate::route) struct Word<T>(pub(in crate::route) T);

/// What is written as one of a few words.
pub(in crate::route) trait Words {
    /// All of them, for who writes something else.
    const WORDS: &'static str;
}

impl<'de, T: Words + Deserialize<'de>> Deserialize<'de> for Word<T> {
    fn deserialize<D: Deserializer<'de>>(json: D) -> Result<Self, D::Error> {
        json.deserialize_str(WordVisitor(PhantomData)).map(Self)
    }
}

struct WordVisitor<T>(PhantomData<T>);

impl<'de, T: Words + Deserialize<'de>> de::Visitor<'de> for WordVisitor<T> {
    type Value = T;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(T::WORDS)
    }

    fn visit_str<E: de::Error>(self, word: &str) -> Result<T, E> {
        T::deserialize(word.into_deserializer())
    }
}
