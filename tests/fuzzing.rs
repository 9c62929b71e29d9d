//! Parsers are given thousands of texts made up by a seed, and those of a corpus: `WAYPOST_SEED=7` runs that one again.

mod invariants;
pub mod reference;

use std::{env, fs, panic, path::Path};

use rand::{Rng, RngExt, SeedableRng, rngs::StdRng, seq::IndexedRandom};

/// So many inputs for each kind.
const CASES: usize = 20_000;

/// The seed of this run, which is printed: what fails shows it.
pub fn seed() -> u64 {
    let seed = env::var("WAYPOST_SEED").ok();
    let seed = seed.map_or_else(rand::random, |text| text.parse().expect("a number"));
    eprintln!("WAYPOST_SEED={seed}");
    seed
}

/// A text of these pieces, some of them damaged.
pub fn assembled(random: &mut impl Rng, pieces: &[&str]) -> Vec<u8> {
    let count = random.random_range(0..12);
    let chosen = (0..count).filter_map(|_| pieces.choose(random));
    let mut bytes = chosen.flat_map(|piece| piece.bytes()).collect();
    while random.random_bool(0.3) {
        damage(random, &mut bytes);
    }
    bytes
}

/// Puts a byte in, takes one out, or turns one into another.
pub fn damage(random: &mut impl Rng, bytes: &mut Vec<u8>) {
    const ODD: &[u8] = b"\0\t\n\r \"%+,-./0;:=@[]\\_{}~\x7f\x80\xc3\xff";
    let byte = match random.random_bool(0.7) {
        true => *ODD.choose(random).expect("some"),
        false => random.random(),
    };
    let at = random.random_range(0..=bytes.len());
    match random.random_range(0..3) {
        0 => bytes.insert(at, byte),
        _ if at == bytes.len() => bytes.push(byte),
        1 => bytes[at] = byte,
        _ => {
            bytes.remove(at);
        }
    }
}

#[test]
fn parsers_keep_their_word_whatever_they_are_given() {
    type Kind = (&'static str, fn(&[u8]), &'static [&'static str]);
    let kinds: [Kind; 6] = [
        (
            "keys",
            invariants::keys,
            &[
                "a.test",
                "*",
                "*.",
                "Blog.",
                "b\u{fc}cher.",
                "/",
                "/",
                "api",
                "%2F",
                "%61",
                "..",
                ".",
                "10.0.0.1:80",
                "[::1]:80",
                "name:8080",
                "unix:",
                "%2Frun%2Fx",
                "@settings",
                "@x",
                ":",
                "xn--",
                "0",
            ],
        ),
        (
            "values",
            invariants::values,
            &[
                "{",
                "}",
                "\"weight\": ",
                "5",
                ",",
                "\"tls\": ",
                "true",
                "{\"sni\": \"a\"}",
                "\"protocol\": ",
                "\"h2\"",
                "\"backup\": ",
                "false",
                "null",
                "-1",
                "\"max_requests\": ",
                "1e400",
                "[",
                "]",
                "\"drain\": ",
                "{}",
            ],
        ),
        (
            "settings",
            invariants::settings,
            &[
                "{",
                "}",
                ",",
                "\"balance\": ",
                "\"random\"",
                "\"timeouts\": ",
                "{\"connect\": \"1s\"}",
                "\"5m\"",
                "\"64KiB\"",
                "\"max_body\": ",
                "\"retries\": ",
                "{\"attempts\": 2}",
                "\"health\": ",
                "{\"path\": \"/\"}",
                "null",
                "1e99",
                "\"request_headers\": ",
                "{\"set\": {\"X\": \"1\"}}",
                "\"strip_prefix\": ",
                "true",
                "{}",
                "\"9999999999y\"",
            ],
        ),
        (
            "hosts",
            invariants::hosts,
            &[
                "a",
                "A",
                ".",
                "test",
                ":",
                "80",
                "[",
                "]",
                "::1",
                "-",
                "_",
                "xn--a",
                "65535",
                "0",
                "@",
                "127.0.0.1",
                "fe80",
            ],
        ),
        (
            "paths",
            invariants::paths,
            &[
                "/", "//", ".", "..", "%2e", "%2E", "%2f", "%", "%25", "2e", "a", "b", "%61",
                "\u{e9}", "%c3%a9", ";", "%00",
            ],
        ),
        (
            "proxy_headers",
            invariants::proxy_headers,
            &[
                "PROXY ",
                "TCP4 ",
                "TCP6 ",
                "UNKNOWN",
                "1.2.3.4 ",
                "5.6.7.8 ",
                "::1 ",
                "80 ",
                "443",
                "\r\n",
                "65536",
                " ",
                "\r\n\r\n\0\r\nQUIT\n",
                "\x21",
                "\x20",
                "\x11",
                "\0",
                "\0\x0c",
                "\x01\x02\x03\x04\x05\x06\x07\x08\0\x50\0\x50",
            ],
        ),
    ];
    let mut random = StdRng::seed_from_u64(seed());
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus");
    for (name, holds, pieces) in kinds {
        let kept = fs::read_dir(corpus.join(name)).into_iter().flatten();
        let kept = kept.map(|file| fs::read(file.expect("an entry").path()).expect("a file"));
        let kept: Vec<Vec<u8>> = kept.collect();
        assert!(!kept.is_empty(), "no corpus of {name}");
        let made = (0..CASES).map(|_| assembled(&mut random, pieces));
        for bytes in kept.into_iter().chain(made) {
            let held = panic::catch_unwind(|| holds(&bytes));
            assert!(
                held.is_ok(),
                "{name}: {:?}",
                String::from_utf8_lossy(&bytes)
            );
        }
    }
}
