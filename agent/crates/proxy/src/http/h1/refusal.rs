//! Why a message is refused: each reason has a name for counters and the access log, a status and its rule's source.

macro_rules! refusals {
    ($($(#[$doc:meta])* $variant:ident = $status:literal $name:literal;)*) => {
        /// Why a message cannot be taken. Towards a client the status answers it; from an upstream each is a 502.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum Refusal {
            $($(#[$doc])* $variant,)*
        }

        impl Refusal {
            /// Status that answers a request refused for this.
            pub fn status(self) -> u16 {
                match self { $(Self::$variant => $status,)* }
            }

            /// Name in counters and the access log.
            pub fn name(self) -> &'static str {
                match self { $(Self::$variant => $name,)* }
            }
        }
    };
}

refusals! {
    /// A line that ends with LF alone (RFC 9112 section 2.2 allows to refuse it).
    BareLf = 400 "bare_lf";
    /// A CR that no LF follows (RFC 9112 section 2.2).
    BareCr = 400 "bare_cr";
    /// White space before the first field (RFC 9112 section 2.2) or a folded line (section 5.2).
    Folded = 400 "folded_line";
    /// Not `method SP target SP version` (RFC 9112 section 3).
    RequestLine = 400 "request_line";
    /// A method that is no token (RFC 9110 section 9.1).
    Method = 400 "method";
    /// `CONNECT`: this is no forward proxy (RFC 9110 section 9.3.6).
    Connect = 501 "connect";
    /// A target that is none of the forms of RFC 9112 section 3.2.
    Target = 400 "target";
    /// A target longer than [`super::parse::MAX_TARGET`].
    TargetTooLong = 414 "target_too_long";
    /// A version other than HTTP/1.0 and HTTP/1.1 (RFC 9112 section 2.3).
    Version = 505 "version";
    /// Not `version SP status [SP reason]` (RFC 9112 section 4).
    StatusLine = 400 "status_line";
    /// White space between a field's name and its colon (RFC 9112 section 5.1).
    SpaceBeforeColon = 400 "space_before_colon";
    /// A field name that is no token (RFC 9110 section 5.1).
    FieldName = 400 "field_name";
    /// A control character in a field's value (RFC 9110 section 5.5).
    FieldValue = 400 "field_value";
    /// More than [`super::parse::MAX_HEAD`] bytes.
    HeadTooLarge = 431 "head_too_large";
    /// More than [`super::parse::MAX_FIELDS`] fields.
    TooManyFields = 431 "too_many_fields";
    /// No `Host` in an HTTP/1.1 request (RFC 9112 section 3.2).
    HostMissing = 400 "host_missing";
    /// Several `Host` fields (RFC 9112 section 3.2).
    HostRepeated = 400 "host_repeated";
    /// A `Host` that is no host name or address (RFC 9112 section 3.2).
    HostInvalid = 400 "host_invalid";
    /// `Content-Length` beside `Transfer-Encoding` (RFC 9112 section 6.1: may be an attempt at smuggling).
    LengthAndEncoding = 400 "length_and_encoding";
    /// Several `Content-Length` values, even equal ones (RFC 9112 section 6.3 allows to refuse them).
    LengthRepeated = 400 "length_repeated";
    /// A `Content-Length` that is no number below 2^63 (RFC 9110 section 8.6).
    LengthInvalid = 400 "length_invalid";
    /// `Transfer-Encoding` in an HTTP/1.0 message (RFC 9112 section 6.1).
    EncodingInHttp10 = 400 "encoding_in_http10";
    /// `chunked` twice or not last (RFC 9112 sections 6.1 and 6.3).
    EncodingInvalid = 400 "encoding_invalid";
    /// A transfer coding other than `chunked` (RFC 9112 section 6.1).
    EncodingUnknown = 501 "encoding_unknown";
    /// An expectation other than `100-continue` (RFC 9110 section 10.1.1).
    Expectation = 417 "expectation";
    /// A chunk size that is no hexadecimal number below 2^60 (RFC 9112 section 7.1).
    ChunkSize = 400 "chunk_size";
    /// A chunk's size line longer than [`super::chunked::MAX_LINE`] or with a control character in it.
    ChunkExtension = 400 "chunk_extension";
    /// Chunk data that no CRLF follows (RFC 9112 section 7.1).
    ChunkEnd = 400 "chunk_end";
    /// More than [`super::chunked::MAX_TRAILERS`] bytes of trailer fields.
    TrailersTooLarge = 431 "trailers_too_large";
    /// A trailer field that frames, routes or authenticates (RFC 9110 section 6.5.1).
    TrailerForbidden = 400 "trailer_forbidden";
    /// The stream ended before the body did (RFC 9112 section 8).
    Incomplete = 400 "incomplete";
}
