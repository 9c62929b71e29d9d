//! Fields by which an upstream may be told who the client is: only those may say so who know.
//!
//! CGI, WSGI and their kin make one variable of names that differ in `-` and `_`, so a spelling is as good as the name.

use http::HeaderName;

/// Whether an upstream may take this field for a forwarding field: `X-Forwarded-*` itself and any spelling of it,
/// `Forwarded` (RFC 7239) and `X-Real-IP`. `name` is lower-case, as a `HeaderName` is.
pub fn tells_of_a_client(name: &str) -> bool {
    let name = name.as_bytes();
    match name.first() {
        Some(b'x') => starts_as(name, b"x-forwarded-") || same(name, b"x-real-ip"),
        Some(b'f') => name == b"forwarded",
        _ => false,
    }
}

/// Whether some upstreams read one name as the other.
pub fn is_spelling_of(name: &HeaderName, field: &HeaderName) -> bool {
    let dashed = |byte: u8| if byte == b'_' { b'-' } else { byte };
    let [name, field] = [name, field].map(|name| name.as_str().bytes().map(dashed));
    name.eq(field)
}

fn starts_as(name: &[u8], start: &[u8]) -> bool {
    name.len() >= start.len() && same(&name[..start.len()], start)
}

fn same(name: &[u8], with_dashes: &[u8]) -> bool {
    name.len() == with_dashes.len()
        && name
            .iter()
            .zip(with_dashes)
            .all(|(&byte, &dashed)| byte == dashed || (dashed == b'-' && byte == b'_'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn aliases_are_found_however_they_are_spelt() {
        let cases = [
            ("X-Forwarded-For", true),
            ("x_forwarded_for", true),
            ("X-Forwarded_Proto", true),
            ("x_forwarded-host", true),
            ("x-forwarded-port", true),
            ("x-forwarded-", true),
            ("forwarded", true),
            ("X-Real-IP", true),
            ("x_real_ip", true),
            ("x-forwarded", false),
            ("forwarded-for", false),
            ("x.forwarded.for", false),
            ("x-real-ips", false),
            ("x", false),
            ("host", false),
        ];
        for (name, expected) in cases {
            assert_eq!(
                tells_of_a_client(&name.to_ascii_lowercase()),
                expected,
                "{name}"
            );
        }
    }

    #[test]
    fn a_spelling_differs_in_dashes_alone() {
        let name = |text| HeaderName::from_bytes(text).unwrap();
        for (one, other, expected) in [
            (&b"client-cert"[..], &b"Client_Cert"[..], true),
            (b"client_cert", b"client-cert", true),
            (b"client-cert", b"client-cert-chain", false),
            (b"client-cert", b"clientcert", false),
        ] {
            assert_eq!(is_spelling_of(&name(one), &name(other)), expected);
        }
    }
}
