//! Headers, whole, in pieces, and broken.

use tokio::io::AsyncWriteExt;

use super::*;
use crate::upstream::ProxyProtocol;

fn from(source: &str, destination: &str) -> Origin {
    Origin::Client {
        source: source.parse().unwrap(),
        destination: destination.parse().unwrap(),
    }
}

/// Version 2 with this command, family and block.
fn v2(command: u8, family: u8, block: &[u8]) -> Vec<u8> {
    let length = u16::try_from(block.len()).unwrap().to_be_bytes();
    [&V2[..], &[command, family], &length, block].concat()
}

fn tlv(kind: u8, value: &[u8]) -> Vec<u8> {
    let length = u16::try_from(value.len()).unwrap().to_be_bytes();
    [&[kind], &length[..], value].concat()
}

const INET: &[u8] = &[192, 0, 2, 1, 198, 51, 100, 2, 0xdc, 0x04, 0x01, 0xbb];

fn inet6() -> Vec<u8> {
    let ip = |text: &str| text.parse::<Ipv6Addr>().unwrap().octets();
    let ports = [0xdc, 0x04, 0x01, 0xbb];
    [&ip("2001:db8::1")[..], &ip("2001:db8::2"), &ports].concat()
}

/// With a checksum of the whole behind a TLV.
fn summed() -> Vec<u8> {
    let block = [INET, &tlv(0x04, b"..."), &tlv(CRC32C, &[0; 4])].concat();
    let mut header = v2(0x21, 0x11, &block);
    let sum = crc32c(header.iter()).to_be_bytes();
    let at = header.len() - 4;
    header[at..].copy_from_slice(&sum);
    header
}

fn valid() -> Vec<(Vec<u8>, Origin)> {
    let inet = from("192.0.2.1:56324", "198.51.100.2:443");
    let inet6_ = from("[2001:db8::1]:56324", "[2001:db8::2]:443");
    let longest = format!("PROXY UNKNOWN {}\r\n", "f".repeat(107 - 16));
    assert_eq!(longest.len(), 107);
    let text = |text: &str| text.as_bytes().to_vec();
    vec![
        (
            text("PROXY TCP4 192.0.2.1 198.51.100.2 56324 443\r\n"),
            inet,
        ),
        (
            text("PROXY TCP6 2001:db8::1 2001:db8::2 56324 443\r\n"),
            inet6_,
        ),
        (
            text("PROXY TCP4 255.255.255.255 0.0.0.0 65535 0\r\n"),
            from("255.255.255.255:65535", "0.0.0.0:0"),
        ),
        (
            text(
                "PROXY TCP6 ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff ::ffff:192.0.2.1 65535 65535\r\n",
            ),
            from(
                "[ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff]:65535",
                "[::ffff:192.0.2.1]:65535",
            ),
        ),
        (text("PROXY UNKNOWN\r\n"), Origin::Unknown),
        (text("PROXY UNKNOWN ffff:f...f 65535\r\n"), Origin::Unknown),
        (text(&longest), Origin::Unknown),
        (v2(0x21, 0x11, INET), inet),
        (v2(0x21, 0x21, &inet6()), inet6_),
        (v2(0x21, 0x11, &[INET, &tlv(0xea, b"vpce")].concat()), inet),
        (
            v2(
                0x21,
                0x11,
                &[INET, &tlv(0x04, b""), &tlv(0x04, b"")].concat(),
            ),
            inet,
        ),
        (summed(), inet),
        (
            v2(0x21, 0x11, &[INET, &tlv(0x20, &[7; MAX_V2 - 31])].concat()),
            inet,
        ),
        (v2(0x21, 0x12, INET), Origin::Unknown),
        (v2(0x21, 0x22, &inet6()), Origin::Unknown),
        (v2(0x21, 0x31, &[0; 216]), Origin::Unknown),
        (v2(0x21, 0x32, &[0; 216]), Origin::Unknown),
        (v2(0x21, 0x00, b""), Origin::Unknown),
        (v2(0x21, 0x00, b"what"), Origin::Unknown),
        (v2(0x20, 0x00, b""), Origin::Local),
        // Whatever it says, it is ignored.
        (v2(0x20, 0x11, INET), Origin::Local),
        (v2(0x20, 0xff, b"what"), Origin::Local),
    ]
}

#[test]
fn a_header_is_read_whatever_follows_and_no_piece_of_it_is_one() {
    for (header, origin) in valid() {
        let whole = Parsed::Whole(Header {
            length: header.len(),
            origin,
        });
        for rest in [&b""[..], b"\n", b"\r\n", b"GET / HTTP/1.1\r\n\r\n", &header] {
            let bytes = [&header, rest].concat();
            assert_eq!(parse(&bytes), Ok(whole), "{}", header.escape_ascii());
        }
        for end in 0..header.len() {
            let piece = &header[..end];
            assert_eq!(
                parse(piece),
                Ok(Parsed::Incomplete),
                "{}",
                piece.escape_ascii()
            );
        }
    }
}

#[test]
fn what_is_said_to_upstreams_is_read_here_as_it_was_meant() {
    let (v1, v2) = (ProxyProtocol::V1, ProxyProtocol::V2);
    let both = [
        from("192.0.2.1:56324", "198.51.100.2:443"),
        from("255.255.255.255:65535", "0.0.0.0:0"),
        from("[2001:db8::1]:56324", "[2001:db8::2]:443"),
        from(
            "[ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff]:65535",
            "[::ffff:192.0.2.1]:65535",
        ),
        Origin::Unknown,
    ];
    let said = both
        .into_iter()
        .flat_map(|origin| [(v1, origin), (v2, origin)]);
    for (version, origin) in said.chain([(v2, Origin::Local)]) {
        let header = version.header(origin);
        assert!(header.len() <= MAX_V1);
        let whole = Parsed::Whole(Header {
            length: header.len(),
            origin,
        });
        let bytes = [&header[..], b"\x16\x03\x01"].concat();
        assert_eq!(parse(&bytes), Ok(whole), "{}", header.escape_ascii());
    }
    // Version 1 has no better word.
    assert_eq!(v1.header(Origin::Local), v1.header(Origin::Unknown));
}

#[test]
fn what_is_no_header_is_refused_as_soon_as_that_is_clear() {
    use Error::{Checksum, Command, Family, Field, Length, NoHeader, Tlv, TooLong};
    let line = |line: &str| format!("PROXY {line}\r\n").into_bytes();
    let inet_and = |tlvs: &[u8]| v2(0x21, 0x11, &[INET, tlvs].concat());
    let mut tampered = summed();
    tampered[19] ^= 1;
    let cases = [
        (b"G".to_vec(), NoHeader),
        (b"\x16\x03\x01".to_vec(), NoHeader),
        (b"PRI * HTTP/2.0".to_vec(), NoHeader),
        (b"proxy ".to_vec(), NoHeader),
        (b"PROXYxTCP4 1.1.1.1 2.2.2.2 1 2\r\n".to_vec(), NoHeader),
        (b"\r\nPROXY UNKNOWN\r\n".to_vec(), NoHeader),
        (b"\r\n\r\n\0\r\nQUIT\r".to_vec(), NoHeader),
        (line(&format!("UNKNOWN {}", "f".repeat(92))), TooLong),
        ([b"PROXY ", &[b'x'; 101][..]].concat(), TooLong),
        (b"PROXY UNKNOWN\n".to_vec(), Field("end of line")),
        (b"PROXY \n".to_vec(), Field("end of line")),
        (line("UNKNOWNS"), Field("protocol")),
        (line("unknown"), Field("protocol")),
        (line(""), Field("protocol")),
        (line("UDP4 1.1.1.1 2.2.2.2 1 2"), Field("protocol")),
        (line("\u{fffd}"), Field("protocol")),
        (b"PROXY TCP4 \xff\r\n".to_vec(), Field("protocol")),
        (line(" TCP4 1.1.1.1 2.2.2.2 1 2"), Field("protocol")),
        (line("TCP4"), Field("source address")),
        (line("TCP4  1.1.1.1 2.2.2.2 1 2"), Field("end of line")),
        (line("TCP4 1.1.1.1 2.2.2.2 1 2 "), Field("end of line")),
        (
            line("TCP4 1.1.1.1 2.2.2.2 1 2\r"),
            Field("destination port"),
        ),
        (line("TCP4 1.1.1.1\t2.2.2.2 1 2"), Field("source address")),
        (line("TCP4 01.1.1.1 2.2.2.2 1 2"), Field("source address")),
        (line("TCP4 1.1.1 2.2.2.2 1 2"), Field("source address")),
        (line("TCP4 ::1 2.2.2.2 1 2"), Field("source address")),
        (line("TCP4 1.1.1.1 ::1 1 2"), Field("destination address")),
        (line("TCP6 1.1.1.1 ::1 1 2"), Field("source address")),
        (line("TCP6 [::1] ::1 1 2"), Field("source address")),
        (line("TCP6 fe80::1%eth0 ::1 1 2"), Field("source address")),
        (line("TCP4 1.1.1.1 2.2.2.2 +1 2"), Field("source port")),
        (line("TCP4 1.1.1.1 2.2.2.2 01 2"), Field("source port")),
        (line("TCP4 1.1.1.1 2.2.2.2 65536 2"), Field("source port")),
        (line("TCP4 1.1.1.1 2.2.2.2 1"), Field("destination port")),
        (line("TCP4 1.1.1.1 2.2.2.2 1 -2"), Field("destination port")),
        (v2(0x11, 0x11, INET), Command(0x11)),
        (v2(0x22, 0x11, INET), Command(0x22)),
        (v2(0x21, 0x10, INET), Family(0x10)),
        (v2(0x21, 0x13, INET), Family(0x13)),
        (v2(0x21, 0x01, INET), Family(0x01)),
        (v2(0x21, 0x41, INET), Family(0x41)),
        (v2(0x21, 0x11, &INET[..11]), Length(27)),
        (v2(0x21, 0x21, INET), Length(28)),
        (v2(0x21, 0x31, &[0; 215]), Length(231)),
        (
            v2(0x20, 0x00, &[0; MAX_V2])[..16].to_vec(),
            Length(MAX_V2 + 16),
        ),
        (inet_and(&[0x04]), Tlv),
        (inet_and(&[0x04, 0]), Tlv),
        (inet_and(&[0x04, 0, 1]), Tlv),
        (inet_and(&[0x04, 0xff, 0xff, 0]), Tlv),
        (inet_and(&tlv(CRC32C, &[0; 3])), Tlv),
        (inet_and(&tlv(CRC32C, &[0; 4])), Checksum),
        (tampered, Checksum),
    ];
    for (bytes, error) in cases {
        assert_eq!(parse(&bytes), Err(error), "{}", bytes.escape_ascii());
        let more = [&bytes[..], b"PROXY UNKNOWN\r\n"].concat();
        assert_eq!(
            parse(&more),
            Err(error),
            "{} and more",
            bytes.escape_ascii()
        );
    }
}

#[test]
fn the_checksum_is_that_of_the_standard() {
    assert_eq!(crc32c(b"123456789".iter()), 0xe306_9283);
}

#[tokio::test]
async fn not_a_byte_behind_the_header_is_read_however_it_comes() {
    for (header, origin) in valid() {
        for piece in [1, 7, 300, usize::MAX] {
            let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
            let mut far = TcpStream::connect(listener.local_addr().unwrap())
                .await
                .unwrap();
            far.set_nodelay(true).unwrap();
            let (mut near, _) = listener.accept().await.unwrap();
            let bytes = [&header[..], b"the client's own"].concat();
            let send = async move {
                for piece in bytes.chunks(piece) {
                    far.write_all(piece).await.unwrap();
                    // Others may look at it before there is more.
                    tokio::task::yield_now().await;
                }
            };
            let receive = async {
                let read = read(&mut near).await.unwrap();
                let mut rest = Vec::new();
                near.read_to_end(&mut rest).await.unwrap();
                (read.origin, rest)
            };
            let (_, (read, rest)) = tokio::join!(send, receive);
            assert_eq!((read, &rest[..]), (origin, &b"the client's own"[..]));
        }
    }
}
