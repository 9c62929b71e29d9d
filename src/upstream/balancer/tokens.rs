//! The values of sticky cookies: which member a client was at, without saying who that is.
//!
//! A token is a truncated SHA-256 of the upstream's address: the same at every instance, in every route and after every restart. It
//! keeps addresses out of sight. It is no secret: who guesses an address can check the guess, and a client may choose
//! its upstream by it, as with any cookie of this kind.

use std::fmt;

use aws_lc_rs::digest;

/// What a sticky cookie holds: 16 hexadecimal digits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Token(u64);

impl Token {
    /// Of the upstream with this address.
    pub fn of(upstream: &str) -> Self {
        // Of other hashes of addresses nothing is to be learned about this one.
        let mut context = digest::Context::new(&digest::SHA256);
        context.update(b"waypost sticky ");
        context.update(upstream.as_bytes());
        let digest = context.finish();
        let bytes = digest.as_ref().first_chunk();
        Self(u64::from_be_bytes(*bytes.expect("a SHA-256 has 32 bytes")))
    }

    /// As a cookie has it; `None` for anything else.
    pub fn parse(text: &[u8]) -> Option<Self> {
        let digits: &[u8; 16] = text.try_into().ok()?;
        let digit = |&byte: &u8| match byte {
            b'0'..=b'9' => Some(byte - b'0'),
            b'a'..=b'f' => Some(byte - b'a' + 10),
            _ => None,
        };
        let mut digits = digits.iter().map(digit);
        let value = digits.try_fold(0, |value, digit| Some(value << 4 | u64::from(digit?)));
        value.map(Self)
    }
}

impl fmt::Display for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

/// The members of a route by token.
#[derive(Debug)]
pub struct Tokens {
    /// Ordered.
    members: Box<[(Token, u32)]>,
}

impl Tokens {
    /// Of these members, by index and address.
    pub fn new<'u>(members: impl Iterator<Item = (u32, &'u str)>) -> Self {
        let mut members: Vec<_> = members
            .map(|(member, upstream)| (Token::of(upstream), member))
            .collect();
        members.sort_unstable();
        Self {
            members: members.into(),
        }
    }

    /// Whose token this is.
    pub fn member(&self, token: Token) -> Option<usize> {
        let first = self.members.partition_point(|&(other, _)| other < token);
        let (found, member) = self.members.get(first)?;
        (*found == token).then_some(*member as usize)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_are_read_as_they_are_written_and_nothing_else_is() {
        let token = Token::of("10.0.0.7:4000");
        // Another build must know the clients of this one.
        assert_eq!(token.to_string(), "d54cc1462cd61747");
        assert_eq!(Token::parse(token.to_string().as_bytes()), Some(token));
        assert_eq!(Token::parse(b"00000000000000ff"), Some(Token(255)));
        for text in [
            "",
            "0",
            "10.0.0.7:4000",
            "00000000000000FF",
            "0000000000000 ff",
            "+0000000000000ff",
            "00000000000000ff0",
            "\"0000000000000ff\"",
        ] {
            assert_eq!(Token::parse(text.as_bytes()), None, "{text:?}");
        }
    }

    #[test]
    fn a_token_leads_to_its_member_alone() {
        let names = ["10.0.0.1:80", "10.0.0.2:80", "unix:%2Frun%2Fapp"];
        let tokens = Tokens::new((0..).zip(names));
        for (member, name) in names.into_iter().enumerate() {
            assert_eq!(tokens.member(Token::of(name)), Some(member));
        }
        assert_eq!(tokens.member(Token::of("10.0.0.3:80")), None);
        assert_eq!(Tokens::new([].into_iter()).member(Token(0)), None);
    }
}
