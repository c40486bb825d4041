//! `envoy.service.auth.v3.Authorization/Check`: the messages of the call, by the field numbers of
//! `envoy/service/auth/v3/{external_auth,attribute_context}.proto` and `envoy/config/core/v3/{base,address}.proto`, and
//! gRPC's frames around them (PROTOCOL-HTTP2.md of grpc/grpc).

use std::{collections::BTreeMap, net::SocketAddr, time::Duration};

use super::{
    Effects,
    protobuf::{Encoder, Malformed, Value, read_fields},
};
use crate::filters::write::Write;

/// Path of the call.
pub(super) const PATH: &str = "/envoy.service.auth.v3.Authorization/Check";

/// Bytes of gRPC's frame before a message: whether it is compressed, and its length.
const PREFIX: usize = 5;

/// Status of a denial that names none.
const FORBIDDEN: u16 = 403;

/// Status of a server's own failure that names none.
const INTERNAL_ERROR: u16 = 500;

/// What is asked.
#[derive(Debug)]
pub(super) struct Check<'a> {
    pub(super) source: SocketAddr,
    pub(super) destination: SocketAddr,
    /// Since the epoch.
    pub(super) time: Duration,
    pub(super) method: &'a str,
    /// With the query.
    pub(super) path: &'a str,
    pub(super) host: &'a [u8],
    pub(super) scheme: &'a str,
    pub(super) protocol: &'a str,
    /// Lower-case names; values of one name are joined with `,`.
    pub(super) headers: BTreeMap<Vec<u8>, Vec<u8>>,
    /// Bytes of the whole body, if that is known.
    pub(super) size: Option<u64>,
    /// What is sent of it.
    pub(super) body: &'a [u8],
}

/// What the server said.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    Allowed(Effects),
    Denied { status: u16, headers: Vec<Write>, body: Vec<u8> },
}

impl Check<'_> {
    /// The message in its frame.
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut message = Encoder::default();
        message.push_message(1, |attributes| {
            for (field, peer) in [(1, self.source), (2, self.destination)] {
                attributes
                    .push_message(field, |of_peer| of_peer.push_message(1, |address| push_address(address, peer)));
            }
            attributes.push_message(4, |request| {
                request.push_message(1, |time| {
                    time.push_number(1, self.time.as_secs());
                    time.push_number(2, u64::from(self.time.subsec_nanos()));
                });
                request.push_message(2, |http| self.push_http(http));
            });
        });
        let message = message.into_bytes();
        let mut frame = vec![0];
        // A question is a head of 64 KiB and a body of 1 MiB at most.
        frame.extend_from_slice(&(message.len() as u32).to_be_bytes());
        frame.extend_from_slice(&message);
        frame
    }

    fn push_http(&self, http: &mut Encoder) {
        http.push_bytes(2, self.method);
        for (name, value) in &self.headers {
            // A text must be UTF-8: a server's decoder would refuse the whole message.
            http.push_entry(3, String::from_utf8_lossy(name).as_bytes(), String::from_utf8_lossy(value).as_bytes());
        }
        http.push_bytes(4, self.path);
        http.push_bytes(5, String::from_utf8_lossy(self.host).as_bytes());
        http.push_bytes(6, self.scheme);
        // -1 stands for a length that is not known.
        http.push_number(9, self.size.unwrap_or(u64::MAX));
        http.push_bytes(10, self.protocol);
        // `body` is a text: what is none goes as bytes.
        http.push_bytes(if str::from_utf8(self.body).is_ok() { 11 } else { 12 }, self.body);
    }
}

/// `Address` with a `SocketAddress`.
fn push_address(address: &mut Encoder, peer: SocketAddr) {
    address.push_message(1, |socket| {
        socket.push_bytes(2, peer.ip().to_canonical().to_string());
        socket.push_number(3, u64::from(peer.port()));
    });
}

/// Reads the answer: one message in its frame.
///
/// # Errors
/// It is none, is compressed (nobody asked for that), or wants what is not done here.
pub(super) fn read_answer(frame: &[u8]) -> Result<Verdict, Malformed> {
    let (prefix, message) = frame.split_at_checked(PREFIX).ok_or(Malformed)?;
    let length = prefix[1..].iter().fold(0usize, |length, &byte| length << 8 | usize::from(byte));
    if prefix[0] != 0 || length != message.len() {
        return Err(Malformed);
    }
    let (mut code, mut denied, mut allowed) = (0, None, None);
    read_fields(message, |field, value| {
        match field {
            1 => read_fields(value.bytes()?, |field, value| {
                if field == 1 {
                    code = value.number()?;
                }
                Ok(())
            })?,
            // Of a `oneof` the last counts.
            2 => (denied, allowed) = (Some(read_denied(value.bytes()?, FORBIDDEN)?), None),
            // `error_response`: the server could not judge.
            5 => (denied, allowed) = (Some(read_denied(value.bytes()?, INTERNAL_ERROR)?), None),
            3 => (denied, allowed) = (None, Some(read_allowed(value.bytes()?)?)),
            // Dynamic metadata is for filters of Envoy.
            _ => {}
        }
        Ok(())
    })?;
    Ok(match (code, denied) {
        (0, None) => Verdict::Allowed(allowed.unwrap_or_default()),
        (_, Some(denied)) => denied,
        (_, None) => Verdict::Denied { status: FORBIDDEN, headers: Vec::new(), body: Vec::new() },
    })
}

fn read_denied(message: &[u8], usual: u16) -> Result<Verdict, Malformed> {
    let (mut code, mut headers, mut body) = (0, Vec::new(), Vec::new());
    read_fields(message, |field, value| {
        match field {
            1 => read_fields(value.bytes()?, |field, value| {
                if field == 1 {
                    code = value.number()?;
                }
                Ok(())
            })?,
            2 => headers.extend(read_header(value)?),
            3 => body = value.bytes()?.to_vec(),
            _ => {}
        }
        Ok(())
    })?;
    let status = u16::try_from(code).ok().filter(|status| (200..600).contains(status)).unwrap_or(usual);
    Ok(Verdict::Denied { status, headers, body })
}

fn read_allowed(message: &[u8]) -> Result<Effects, Malformed> {
    let mut effects = Effects::default();
    read_fields(message, |field, value| {
        match field {
            2 => effects.request.extend(read_header(value)?),
            5 => {
                let name = str::from_utf8(value.bytes()?).map_err(|_| Malformed)?;
                effects.request.extend(Write::remove(name));
            }
            6 => effects.response.extend(read_header(value)?),
            // Edits of the query: to leave them out would let a request go on that was not judged.
            7 | 8 => return Err(Malformed),
            _ => {}
        }
        Ok(())
    })?;
    Ok(effects)
}

/// A `HeaderValueOption`; `None` for a field that must not be written.
fn read_header(value: Value<'_>) -> Result<Option<Write>, Malformed> {
    let (mut name, mut text, mut append, mut action, mut keep_empty) = ("", &b""[..], false, 0, false);
    read_fields(value.bytes()?, |field, value| {
        match field {
            1 => read_fields(value.bytes()?, |field, value| {
                match field {
                    1 => name = str::from_utf8(value.bytes()?).map_err(|_| Malformed)?,
                    // `raw_value` stands in place of `value`.
                    2 | 3 => text = value.bytes()?,
                    _ => {}
                }
                Ok(())
            })?,
            2 => read_fields(value.bytes()?, |field, value| {
                if field == 1 {
                    append = value.number()? != 0;
                }
                Ok(())
            })?,
            3 => action = value.number()?,
            4 => keep_empty = value.number()? != 0,
            _ => {}
        }
        Ok(())
    })?;
    if text.is_empty() && !keep_empty {
        return Ok(None);
    }
    // `append` defaults to false in these messages, so what the action calls its default overwrites.
    Ok(match (append, action) {
        (true, _) => Write::add(name, text),
        (false, 1) => Write::add_if_absent(name, text),
        (false, 3) => Write::set_if_present(name, text),
        (false, _) => Write::set(name, text),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    // What Google's own library makes of Envoy's definitions (PyPI `xds-protos`), fields in their order.
    const QUESTION: &[u8] = b"\x0a\x97\x01\x0a\x13\x0a\x11\x0a\x0f\x12\x09192.0.2.7\x18\xc0\xb8\x02\x12\x14\x0a\x12\x0a\x10\x12\x0b2001:db8::1\x18\xbb\x03\x22j\x0a\x08\x08\x80\xa4\xa7\xda\x06\x10\x05\x12^\x12\x04POST\x1a\x0d\x0a\x06cookie\x12\x03a=1\x1a\x0a\x0a\x03x-a\x12\x031,2\x1a\x0b\x0a\x07x-empty\x12\x00\x22\x06/a?b=c*\x0cshop.example2\x05httpsH\x05R\x08HTTP/1.1Z\x05hello";
    const QUESTION_RAW: &[u8] = b"\x0a\x9d\x01\x0a\x13\x0a\x11\x0a\x0f\x12\x09192.0.2.7\x18\xc0\xb8\x02\x12\x14\x0a\x12\x0a\x10\x12\x0b2001:db8::1\x18\xbb\x03\x22p\x0a\x08\x08\x80\xa4\xa7\xda\x06\x10\x05\x12d\x12\x04POST\x1a\x0d\x0a\x06cookie\x12\x03a=1\x1a\x0a\x0a\x03x-a\x12\x031,2\x1a\x0b\x0a\x07x-empty\x12\x00\x22\x06/a?b=c*\x0cshop.example2\x05httpsH\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01R\x08HTTP/1.1b\x02\xff\xfe";
    const ALLOWED: &[u8] = b"\x0a\x00\x1a\x97\x01\x12\x0f\x0a\x0d\x0a\x06X-User\x12\x03ann\x12\x12\x0a\x0c\x0a\x07x-group\x12\x01a\x12\x02\x08\x01\x12\x0e\x0a\x0a\x0a\x05x-new\x12\x011\x18\x01\x12\x0e\x0a\x0a\x0a\x05x-old\x12\x012\x18\x03\x12\x0b\x0a\x09\x0a\x07x-empty\x12\x0c\x0a\x08\x0a\x06x-kept \x01\x12\x0e\x0a\x0c\x0a\x04host\x12\x04evil*\x0dAuthorization*\x05:path2\x0f\x0a\x0d\x0a\x06x-seen\x12\x03yes\x22\x10\x0a\x0e\x0a\x01a\x12\x09\x11\x00\x00\x00\x00\x00\x00\xf0?";
    const DENIED: &[u8] = b"\x0a\x06\x08\x07\x12\x02no\x12(\x0a\x03\x08\x91\x03\x12\x1b\x0a\x19\x0a\x10WWW-Authenticate\x12\x05Basic\x1a\x04who?";

    fn question<'a>(size: Option<u64>, body: &'a [u8]) -> Check<'a> {
        let headers = [("cookie", "a=1"), ("x-a", "1,2"), ("x-empty", "")];
        Check {
            source: "192.0.2.7:40000".parse().unwrap(),
            destination: "[2001:db8::1]:443".parse().unwrap(),
            time: Duration::new(1_800_000_000, 5),
            method: "POST",
            path: "/a?b=c",
            host: b"shop.example",
            scheme: "https",
            protocol: "HTTP/1.1",
            headers: headers.map(|(name, value)| (name.into(), value.into())).into(),
            size,
            body,
        }
    }

    fn frame(message: &[u8]) -> Vec<u8> {
        [&[0][..], &(message.len() as u32).to_be_bytes(), message].concat()
    }

    fn forbidden() -> Verdict {
        Verdict::Denied { status: 403, headers: vec![], body: vec![] }
    }

    #[test]
    fn a_question_is_what_googles_library_writes() {
        assert_eq!(question(Some(5), b"hello").encode(), frame(QUESTION));
        assert_eq!(question(None, b"\xff\xfe").encode(), frame(QUESTION_RAW));
    }

    #[test]
    fn an_allowed_request_takes_the_servers_fields_along() {
        let request = [
            Write::set("x-user", b"ann"),
            Write::add("x-group", b"a"),
            Write::add_if_absent("x-new", b"1"),
            Write::set_if_present("x-old", b"2"),
            Write::set("x-kept", b""),
            Write::remove("authorization"),
        ];
        let response = [Write::set("x-seen", b"yes")];
        let effects = Effects {
            request: request.into_iter().flatten().collect(),
            response: response.into_iter().flatten().collect(),
        };
        assert_eq!(read_answer(&frame(ALLOWED)), Ok(Verdict::Allowed(effects)));
        assert_eq!(read_answer(&frame(b"")), Ok(Verdict::Allowed(Effects::default())));
    }

    #[test]
    fn a_denial_has_status_fields_and_body() {
        let headers = Write::set("www-authenticate", b"Basic").into_iter().collect();
        let denied = Verdict::Denied { status: 401, headers, body: b"who?".to_vec() };
        assert_eq!(read_answer(&frame(DENIED)), Ok(denied));
        // A status that is not OK, alone and beside an answer that allows.
        assert_eq!(read_answer(&frame(b"\x0a\x02\x08\x10")), Ok(forbidden()));
        assert_eq!(read_answer(&frame(b"\x0a\x02\x08\x07\x1a\x0a\x12\x08\x0a\x06\x0a\x01x\x12\x011")), Ok(forbidden()));
        // An error of the server's own, with a status of OK.
        let error = Verdict::Denied { status: 502, headers: vec![], body: vec![] };
        assert_eq!(read_answer(&frame(b"*\x05\x0a\x03\x08\xf6\x03")), Ok(error));
    }

    #[test]
    fn what_cannot_be_read_or_done_allows_nothing() {
        for bytes in [
            vec![],
            vec![0, 0, 0, 0],
            [&[1, 0, 0, 0, 2][..], b"\x0a\x00"].concat(),
            [&[0, 0, 0, 0, 9][..], b"\x0a\x00"].concat(),
            [frame(b"\x0a\x00"), frame(b"\x0a\x00")].concat(),
            frame(b"\x0a\x05\x08"),
            frame(b"\x08\x01"),
            // Edits of the query.
            frame(b"\x1a\x03B\x01q"),
        ] {
            assert_eq!(read_answer(&bytes), Err(Malformed), "{}", bytes.escape_ascii());
        }
        for end in 0..ALLOWED.len() {
            let cut = &frame(ALLOWED)[..PREFIX + end];
            assert_eq!(read_answer(cut), Err(Malformed), "{end}");
        }
    }
}
