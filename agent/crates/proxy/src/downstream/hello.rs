//! The ClientHello of a TLS handshake, read only so far as to know which server is meant (SNI).
//!
//! Nothing is decrypted and nothing changed: where TLS is passed through, the backend must see the very bytes. So this is no
//! judge of TLS: what it need not understand it does not refuse. Input is hostile: sizes are bounded, and bytes that come
//! one by one cost no more than those that come at once.

use std::{net::IpAddr, sync::Arc};

/// Bytes that a ClientHello may take with the headers of its records. Those of browsers with post-quantum key shares take
/// under 2 KiB.
pub const MAX_HELLO: usize = 16 * 1024;

/// Record header: type, version, length (RFC 8446 section 5.1).
const RECORD_HEADER: usize = 5;
/// Handshake header: type, length (RFC 8446 section 4).
const HANDSHAKE_HEADER: usize = 4;
/// Longest payload of a record in clear text.
const MAX_FRAGMENT: usize = 16 * 1024;
const RECORD_HANDSHAKE: u8 = 22;
const MESSAGE_CLIENT_HELLO: u8 = 1;
const EXTENSION_SERVER_NAME: u16 = 0;
const NAME_HOST: u8 = 0;

/// What is known of a ClientHello.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientHello {
    /// Name of the server that is meant: lower case, without a trailing dot. An address is no name (RFC 6066 section 3).
    pub server_name: Option<Arc<str>>,
}

/// Why bytes are no ClientHello.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HelloError {
    /// Not the records of a TLS handshake.
    #[error("not a TLS handshake")]
    Record,
    /// A handshake that begins with something else.
    #[error("the handshake does not begin with a ClientHello")]
    Message,
    /// More than [`MAX_HELLO`] bytes.
    #[error("the ClientHello is longer than {MAX_HELLO} bytes")]
    TooLong,
    /// A length in it does not fit.
    #[error("the ClientHello is malformed")]
    Malformed,
    /// The server name is none, or there are two.
    #[error("the server name is no host name")]
    ServerName,
}

/// Finds a ClientHello in bytes that are still coming.
#[derive(Debug, Default)]
pub struct HelloScanner {
    /// Where the next record begins.
    at: usize,
    /// Bytes of the handshake message in the records before it.
    collected: usize,
}

impl HelloScanner {
    /// Looks at everything that has come so far: the bytes of the call before with more behind them. `None` when it is not
    /// whole yet.
    ///
    /// # Errors
    /// See [`HelloError`]; more bytes change nothing about it.
    pub fn find(&mut self, bytes: &[u8]) -> Result<Option<ClientHello>, HelloError> {
        loop {
            let record = &bytes[self.at.min(bytes.len())..];
            check_header(record)?;
            let whole = record.first_chunk().map(|header| RECORD_HEADER + fragment_len(header));
            let Some(whole) = whole.filter(|&whole| whole <= record.len()) else {
                // A length that lies is told before its bytes are waited for.
                let claimed = self.at + whole.unwrap_or_default();
                return if claimed > MAX_HELLO || bytes.len() >= MAX_HELLO {
                    Err(HelloError::TooLong)
                } else {
                    Ok(None)
                };
            };
            self.at += whole;
            self.collected += whole - RECORD_HEADER;
            if self.at > MAX_HELLO {
                return Err(HelloError::TooLong);
            }
            if let Some(message_len) = self.message_len(bytes)?
                && self.collected >= message_len
            {
                let mut message = Vec::with_capacity(self.collected);
                fragments(&bytes[..self.at]).for_each(|fragment| message.extend_from_slice(fragment));
                let body = message.get(HANDSHAKE_HEADER..message_len).ok_or(HelloError::Malformed)?;
                return read_hello(body).map(Some);
            }
        }
    }

    /// Length of the handshake message with its header, once that has come.
    fn message_len(&self, bytes: &[u8]) -> Result<Option<usize>, HelloError> {
        let mut header = [0; HANDSHAKE_HEADER];
        let mut filled = 0;
        for byte in fragments(&bytes[..self.at]).flatten().take(HANDSHAKE_HEADER) {
            header[filled] = *byte;
            filled += 1;
        }
        if filled > 0 && header[0] != MESSAGE_CLIENT_HELLO {
            return Err(HelloError::Message);
        }
        if filled < HANDSHAKE_HEADER {
            return Ok(None);
        }
        let len = u32::from_be_bytes([0, header[1], header[2], header[3]]) as usize + HANDSHAKE_HEADER;
        if len > MAX_HELLO { Err(HelloError::TooLong) } else { Ok(Some(len)) }
    }
}

/// Checks as much of a record's header as there is: garbage is told from TLS by its first byte.
fn check_header(record: &[u8]) -> Result<(), HelloError> {
    let is_handshake = record.first().is_none_or(|&kind| kind == RECORD_HANDSHAKE);
    let is_tls = record.get(1).is_none_or(|&major| major == 3);
    let has_length = record.first_chunk().is_none_or(|header| (1..=MAX_FRAGMENT).contains(&fragment_len(header)));
    if is_handshake && is_tls && has_length { Ok(()) } else { Err(HelloError::Record) }
}

fn fragment_len(header: &[u8; RECORD_HEADER]) -> usize {
    usize::from(u16::from_be_bytes([header[3], header[4]]))
}

/// Payloads of whole records.
fn fragments(mut records: &[u8]) -> impl Iterator<Item = &[u8]> {
    std::iter::from_fn(move || {
        let (header, rest) = records.split_first_chunk::<RECORD_HEADER>()?;
        let (fragment, rest) = rest.split_at_checked(fragment_len(header))?;
        records = rest;
        Some(fragment)
    })
}

/// Reads the body of a ClientHello (RFC 8446 section 4.1.2; the same from TLS 1.0 on).
fn read_hello(body: &[u8]) -> Result<ClientHello, HelloError> {
    let mut reader = Reader(body);
    // Version and random.
    reader.take(2 + 32)?;
    // Session id, cipher suites, compression methods.
    reader.take_short()?;
    reader.take_long()?;
    reader.take_short()?;
    if reader.0.is_empty() {
        // TLS 1.0 knows no extensions.
        return Ok(ClientHello { server_name: None });
    }
    let mut extensions = Reader(reader.take_long()?);
    if !reader.0.is_empty() {
        return Err(HelloError::Malformed);
    }
    let mut server_name = None;
    let mut is_named = false;
    while !extensions.0.is_empty() {
        let kind = extensions.take_u16()?;
        let data = extensions.take_long()?;
        if kind == EXTENSION_SERVER_NAME {
            if std::mem::replace(&mut is_named, true) {
                return Err(HelloError::ServerName);
            }
            server_name = read_server_name(data)?;
        }
    }
    Ok(ClientHello { server_name })
}

/// Reads a ServerNameList (RFC 6066 section 3).
fn read_server_name(data: &[u8]) -> Result<Option<Arc<str>>, HelloError> {
    let mut reader = Reader(data);
    let mut list = Reader(reader.take_long()?);
    if !reader.0.is_empty() || list.0.is_empty() {
        return Err(HelloError::Malformed);
    }
    let mut host = None;
    while !list.0.is_empty() {
        let kind = list.take(1)?;
        let name = list.take_long()?;
        if kind == [NAME_HOST] && host.replace(name).is_some() {
            return Err(HelloError::ServerName);
        }
    }
    host.map_or(Ok(None), normal_name)
}

/// `None` for an address: clients that send one mean nobody by name.
fn normal_name(name: &[u8]) -> Result<Option<Arc<str>>, HelloError> {
    let text = str::from_utf8(name).map_err(|_| HelloError::ServerName)?;
    let text = text.strip_suffix('.').unwrap_or(text);
    if text.parse::<IpAddr>().is_ok() {
        return Ok(None);
    }
    let is_label = |label: &str| {
        (1..=63).contains(&label.len())
            && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'))
    };
    if text.len() > 253 || !text.split('.').all(is_label) {
        return Err(HelloError::ServerName);
    }
    Ok(Some(text.to_ascii_lowercase().into()))
}

/// Takes pieces off the front.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, len: usize) -> Result<&'a [u8], HelloError> {
        let (piece, rest) = self.0.split_at_checked(len).ok_or(HelloError::Malformed)?;
        self.0 = rest;
        Ok(piece)
    }

    fn take_u16(&mut self) -> Result<u16, HelloError> {
        let (piece, rest) = self.0.split_first_chunk().ok_or(HelloError::Malformed)?;
        self.0 = rest;
        Ok(u16::from_be_bytes(*piece))
    }

    /// What follows a length of one byte.
    fn take_short(&mut self) -> Result<&'a [u8], HelloError> {
        let len = self.take(1)?[0];
        self.take(usize::from(len))
    }

    /// What follows a length of two bytes.
    fn take_long(&mut self) -> Result<&'a [u8], HelloError> {
        let len = self.take_u16()?;
        self.take(usize::from(len))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Extensions with these names of hosts.
    fn server_names(names: &[&[u8]]) -> Vec<u8> {
        let list: Vec<u8> = names.iter().flat_map(|name| [&[NAME_HOST][..], &long(name)].concat()).collect();
        [&EXTENSION_SERVER_NAME.to_be_bytes()[..], &long(&long(&list))].concat()
    }

    fn long(bytes: &[u8]) -> Vec<u8> {
        [&(bytes.len() as u16).to_be_bytes()[..], bytes].concat()
    }

    fn message(extensions: &[u8]) -> Vec<u8> {
        let body = [&[3, 3][..], &[7; 32], &[0], &long(&[0x13, 1]), &[1, 0], &long(extensions)].concat();
        [&[MESSAGE_CLIENT_HELLO][..], &(body.len() as u32).to_be_bytes()[1..], &body].concat()
    }

    fn records(message: &[u8], size: usize) -> Vec<u8> {
        message.chunks(size).flat_map(|piece| [&[RECORD_HANDSHAKE, 3, 1][..], &long(piece)].concat()).collect()
    }

    fn find(bytes: &[u8]) -> Result<Option<ClientHello>, HelloError> {
        HelloScanner::default().find(bytes)
    }

    fn named(name: Option<&str>) -> Result<Option<ClientHello>, HelloError> {
        Ok(Some(ClientHello { server_name: name.map(Arc::from) }))
    }

    #[test]
    fn reads_the_hello_of_rustls_with_its_name() {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(rustls::RootCertStore::empty())
            .with_no_client_auth();
        let config = Arc::new(config);
        for (name, expected) in [("Shop.Example.com", Some("shop.example.com")), ("10.0.0.1", None)] {
            let mut client = rustls::ClientConnection::new(config.clone(), name.try_into().unwrap()).unwrap();
            let mut bytes = Vec::new();
            client.write_tls(&mut bytes).unwrap();
            assert_eq!(find(&bytes), named(expected));
            assert_eq!(find(&bytes[..bytes.len() - 1]), Ok(None));
        }
    }

    proptest! {
        #[test]
        fn the_name_is_found_however_the_bytes_are_cut(size in 1usize..400, step in 1usize..50, rest in 0usize..300) {
            let mut bytes = records(&message(&server_names(&[b"a.Example."])), size);
            let whole = bytes.len();
            bytes.extend(std::iter::repeat_n(0xff, rest));
            let mut scanner = HelloScanner::default();
            let mut end = 0;
            loop {
                end = (end + step).min(bytes.len());
                let found = scanner.find(&bytes[..end]);
                if end >= whole {
                    prop_assert_eq!(found, named(Some("a.example")));
                    break;
                }
                prop_assert_eq!(found, Ok(None));
            }
        }

        #[test]
        fn damaged_hellos_never_panic(at in 0usize..120, byte in any::<u8>(), end in 0usize..120) {
            let mut bytes = records(&message(&server_names(&[b"a.example"])), 40);
            let len = bytes.len();
            bytes[at % len] = byte;
            let _ = find(&bytes[..end % len]);
        }
    }

    #[test]
    fn what_is_no_hello_is_refused_at_its_first_sign() {
        assert_eq!(find(b"G"), Err(HelloError::Record));
        assert_eq!(find(&[22, 2]), Err(HelloError::Record));
        assert_eq!(find(&[22, 3, 1, 0, 0]), Err(HelloError::Record), "an empty fragment");
        assert_eq!(find(&[22, 3, 1, 0xff, 0xff]), Err(HelloError::Record), "longer than a record may be");
        assert_eq!(find(&[22, 3, 1, 0, 1, 2]), Err(HelloError::Message), "a ServerHello");
        assert_eq!(find(&[22, 3, 1, 0, 4, 1, 1, 0, 0]), Err(HelloError::TooLong), "64 KiB");
        assert_eq!(find(&[22, 3, 1, 0x40, 0]), Err(HelloError::TooLong), "with the header it is above 16 KiB");
        let endless = records(&[1, 0, 0x3f, 0x00].into_iter().chain([0; MAX_HELLO]).collect::<Vec<_>>(), 1);
        assert_eq!(find(&endless[..MAX_HELLO]), Err(HelloError::TooLong));
    }

    #[test]
    fn names_that_are_none_are_refused_and_addresses_are_no_names() {
        let with = |names: &[&[u8]]| find(&records(&message(&server_names(names)), 1000));
        assert_eq!(with(&[b"192.0.2.1"]), named(None));
        assert_eq!(with(&[b"a.example", b"b.example"]), Err(HelloError::ServerName));
        for name in [&b"a..example"[..], b"", b"a b", b"\xff", b"a/../b", &[b'a'; 64]] {
            assert_eq!(with(&[name]), Err(HelloError::ServerName), "{name:?}");
        }
        let twice = [server_names(&[b"a.example"]), server_names(&[b"a.example"])].concat();
        assert_eq!(find(&records(&message(&twice), 1000)), Err(HelloError::ServerName));
        assert_eq!(find(&records(&message(&[]), 1000)), named(None));
    }

    #[test]
    fn a_hello_of_an_old_client_has_no_name() {
        let body = [&[3, 1][..], &[7; 32], &[0], &long(&[0, 0x2f]), &[1, 0]].concat();
        let message = [&[MESSAGE_CLIENT_HELLO, 0, 0, body.len() as u8][..], &body].concat();
        assert_eq!(find(&records(&message, 1000)), named(None));
    }
}
